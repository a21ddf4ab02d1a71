use super::*;
use crate::VmConfig;

fn parse(vsock: &str) -> std::result::Result<Vsock, String> {
    let text = format!(r#"{{"boot-source":{{"kernel_image_path":"hello"}},"vsock":{vsock}}}"#);
    let config: VmConfig = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    config.validate().map_err(|error| error.to_string())?;
    let again: VmConfig = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
    assert_eq!(again, config);
    Ok(config.vsock.unwrap())
}

#[test]
fn firecrackers_words_are_understood() {
    let expected = Vsock::new().cid(3).uds("./v.sock");
    assert_eq!(parse(r#"{"guest_cid":3,"uds_path":"./v.sock"}"#), Ok(expected.clone()));
    assert_eq!(parse(r#"{"guest_cid":3,"uds_path":"./v.sock","vsock_id":null}"#), Ok(expected.clone()));
    // It has no meaning there any more.
    assert_eq!(parse(r#"{"guest_cid":3,"uds_path":"./v.sock","vsock_id":"vsock0"}"#), Ok(expected));
    assert_eq!(parse("{}"), Ok(Vsock::new()));
}

#[test]
fn what_firecracker_has_no_words_for_is_understood() {
    let vsock = parse(
        r#"{"ringlet":{"fd":3,"max_connections":10,
            "rx_rate_limiter":{"bandwidth":{"size":1000,"refill_time":100}},
            "tx_rate_limiter":{"ops":{"size":10,"refill_time":1000}}}}"#,
    )
    .unwrap();
    assert_eq!((vsock.ringlet.fd, vsock.ringlet.max_connections), (Some(3), 10));
    let limits = vsock.limits();
    assert_eq!(limits.read.bytes.map(|bucket| bucket.size), Some(1000));
    assert_eq!(limits.write.operations.map(|bucket| bucket.size), Some(10));
    assert!(limits.total.bytes.is_none() && limits.read.operations.is_none());
}

#[test]
fn sec_07_what_cannot_be_is_refused() {
    let long = format!(r#"{{"uds_path":"/{}"}}"#, "x".repeat(MAX_UDS_PATH));
    for (vsock, named) in [
        (r#"{"guest_cid":2}"#, "guest_cid"),
        (r#"{"guest_cid":4294967295}"#, "guest_cid"),
        (r#"{"guest_cid":4294967296}"#, "u32"),
        (r#"{"guest_cid":-1}"#, "u32"),
        (r#"{"uds_path":""}"#, "uds_path"),
        (&long, "1 to 107"),
        (r#"{"uds_path":"/run/vm_2"}"#, "ends like the socket of a host's port"),
        (r#"{"ringlet":{"fd":-1}}"#, "fd"),
        (r#"{"ringlet":{"max_connections":0}}"#, "max_connections"),
        (r#"{"ringlet":{"max_connections":10001}}"#, "1..=10000"),
        (r#"{"rx_rate_limiter":{}}"#, "rx_rate_limiter"),
        (r#"{"ringlet":{"speed":1}}"#, "speed"),
        (r#"{"vsock_id":3}"#, "vsock_id"),
    ] {
        let error = parse(vsock).unwrap_err();
        assert!(error.contains(named), "{vsock}: {error}");
    }
}

#[test]
fn no_other_device_has_its_name() {
    let drive = crate::Drive::null(VSOCK_ID, 512);
    let error = VmConfig::new("hello").drive(drive).validate().unwrap_err().to_string();
    assert!(error.contains("another device"), "{error}");
}

/// The guest of a VM at `/run/vm` is connected to `/run/vm_2` when it asks for port 2.
#[test]
fn sec_07_no_vm_listens_where_the_guest_of_another_is_connected_to() {
    for path in ["/run/vm_0", "vm_2", "_7", "a_b_4294967295", "a__1", "vm_2/"] {
        assert!(is_of_a_port(path.as_ref()), "{path}");
        assert!(Vsock::new().uds(path).fd(3).validate().is_ok(), "nothing is made at {path}");
    }
    // What is no port as it is written is nobody's; so is each path of many VMs.
    for path in ["vm", "vm2", "vm_2.sock", "vm_02", "vm_+2", "vm_", "vm_4294967296", "vm_2-1", "/a_2/vm", "2"]
    {
        assert!(Vsock::new().uds(path).validate().is_ok(), "{path}");
    }
}
