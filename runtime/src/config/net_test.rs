use super::*;
use crate::VmConfig;

fn parse(interface: &str) -> std::result::Result<VmConfig, String> {
    let text =
        format!(r#"{{"boot-source":{{"kernel_image_path":"hello"}},"network-interfaces":[{interface}]}}"#);
    let config: VmConfig = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    config.validate().map_err(|error| error.to_string())?;
    Ok(config)
}

#[test]
fn firecrackers_words_are_understood() {
    let config = parse(
        r#"{"iface_id":"eth0","host_dev_name":"tap0","guest_mac":"06:00:AC:10:00:02","mtu":1400,
            "rx_rate_limiter":{"bandwidth":{"size":1000,"refill_time":100}},
            "tx_rate_limiter":{"ops":{"size":10,"refill_time":1000}}}"#,
    )
    .unwrap();
    let interface = &config.network_interfaces[0];
    assert_eq!(interface.guest_mac, Some(MacAddress([6, 0, 0xAC, 0x10, 0, 2])));
    let limits = interface.limits();
    assert_eq!(limits.read.bytes.map(|bucket| bucket.size), Some(1000));
    assert_eq!(limits.write.operations.map(|bucket| bucket.size), Some(10));
    assert!(limits.total.bytes.is_none() && limits.read.operations.is_none());
    let again: VmConfig = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
    assert_eq!(again, config);
    assert!(parse(r#"{"iface_id":"e","host_dev_name":"t","guest_mac":null,"mtu":null}"#).is_ok());
}

#[test]
fn what_firecracker_has_no_words_for_is_understood() {
    for extras in [
        r#"{"fds":[3,4]}"#,
        r#"{"socket":"/tmp/passt.socket"}"#,
        r#"{"fds":[3],"anti_spoof":{"ipv4":["10.0.0.2"],"ipv6":["2001:db8::2"]}}"#,
        r#"{"fds":[3],"anti_spoof":{}}"#,
        r#"{"fds":[3],"anti_spoof":true}"#,
        r#"{"fds":[3],"anti_spoof":false}"#,
        r#"{"passt":{}}"#,
        r#"{"passt":{"publish":["8080:80","127.0.0.1:8081:80","127.0.0.2:8081:80","8080:80/udp"]}}"#,
    ] {
        assert!(parse(&format!(r#"{{"iface_id":"net0","ringlet":{extras}}}"#)).is_ok(), "{extras}");
    }
}

#[test]
fn sec_07_what_cannot_be_is_refused() {
    for (interface, named) in [
        (r#"{"iface_id":"","host_dev_name":"t"}"#, "iface_id"),
        (r#"{"iface_id":"a.b","host_dev_name":"t"}"#, "iface_id"),
        (r#"{"iface_id":"rng0","host_dev_name":"t"}"#, "rng0"),
        (r#"{"iface_id":"n"}"#, "host_dev_name"),
        (r#"{"iface_id":"n","host_dev_name":"t","ringlet":{"fds":[3]}}"#, "one of"),
        (r#"{"iface_id":"n","ringlet":{"fds":[-1]}}"#, "fds"),
        (r#"{"iface_id":"n","ringlet":{"fds":[3],"queues":2}}"#, "queues"),
        (r#"{"iface_id":"n","host_dev_name":"t","ringlet":{"queues":0}}"#, "queues"),
        (r#"{"iface_id":"n","host_dev_name":"t","ringlet":{"queues":32}}"#, "1..=31"),
        (r#"{"iface_id":"n","host_dev_name":"t","ringlet":{"queue_size":48}}"#, "queue_size"),
        (r#"{"iface_id":"n","host_dev_name":"t","mtu":67}"#, "mtu"),
        (r#"{"iface_id":"n","host_dev_name":"t","guest_mac":"01:00:00:00:00:01"}"#, "one station"),
        (r#"{"iface_id":"n","host_dev_name":"t","guest_mac":"2:00:00:00:00:01"}"#, "one station"),
        (r#"{"iface_id":"n","host_dev_name":"t","guest_mac":"+2:00:00:00:00:01"}"#, "one station"),
        (r#"{"iface_id":"n","host_dev_name":"t","guest_mac":"02:00:00:00:00:01:02"}"#, "one station"),
        (r#"{"iface_id":"n","host_dev_name":"t","allow_mmds_requests":true}"#, "allow_mmds_requests"),
        (r#"{"iface_id":"n","host_dev_name":"t","speed":1}"#, "speed"),
        (r#"{"iface_id":"n","ringlet":{"fds":[3],"anti_spoof":1}}"#, "true, false or addresses"),
        (r#"{"iface_id":"n","ringlet":{"fds":[3],"anti_spoof":{"mac":1}}}"#, "mac"),
        (r#"{"iface_id":"n","host_dev_name":"t","ringlet":{"passt":{}}}"#, "one of"),
        (r#"{"iface_id":"n","ringlet":{"passt":{"publish":["80"]}}}"#, "8080:80"),
        (r#"{"iface_id":"n","ringlet":{"passt":{"publish":["1:1","1:2"]}}}"#, "one port of the host"),
        (
            r#"{"iface_id":"n","ringlet":{"passt":{"publish":["1:1","127.0.0.1:1:2"]}}}"#,
            "one port of the host",
        ),
        (r#"{"iface_id":"n","host_dev_name":"t"},{"iface_id":"n","host_dev_name":"u"}"#, "two devices"),
    ] {
        let error = parse(interface).unwrap_err();
        assert!(error.contains(named), "{interface}: {error}");
    }
}
