use super::*;

#[test]
fn each_host_side_has_its_word() {
    assert_eq!(parse("uds=/tmp/v.sock"), Ok(Vsock::new().uds("/tmp/v.sock")));
    assert_eq!(parse("fd=3"), Ok(Vsock::new().fd(3)));
    // Where the host's connections come from, and where the guest's go.
    assert_eq!(parse("fd=3,uds=v"), Ok(Vsock::new().fd(3).uds("v")));
    assert_eq!(parse("cid=7,uds=v,connections=10"), Ok(Vsock::new().uds("v").cid(7).max_connections(10)));
}

#[test]
fn what_cannot_be_understood_is_told() {
    for (text, told) in [
        ("", "a comma too many"),
        ("cid=3", "where does the host listen"),
        ("uds=", "needs a value"),
        ("uds", "needs a value"),
        ("uds=a,uds=b", "twice"),
        ("uds=a,", "a comma too many"),
        ("fd=x", "descriptor"),
        ("fd=-1", "descriptor"),
        ("uds=a,cid=x", "not a number"),
        ("uds=a,cid=4294967296", "from 3 to 4294967294"),
        ("uds=a,connections=x", "from 1 to 10000"),
        ("./v.sock", "say uds=./v.sock"),
        ("uds=a,port=1", "there are uds, fd"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(told), "{text}: {error}");
    }
}

#[test]
fn each_of_many_vms_has_its_own() {
    let config = |text: &str| VmConfig::new("hello").vsock(parse(text).unwrap());
    let numbered = |text: &str, number| {
        let mut config = config(text);
        of_many(&mut config, number);
        config.vsock.unwrap()
    };
    assert_eq!(numbered("uds=/tmp/v.sock", 1), Vsock::new().uds("/tmp/v.sock-1"));
    assert_eq!(numbered("uds=v,cid=7", 3), Vsock::new().uds("v-3").cid(9));
    assert_eq!(check_sharing(&config("uds=v,cid=7"), 3), Ok(()));
    assert_eq!(check_sharing(&config("fd=3"), 1), Ok(()));
    assert!(check_sharing(&config("fd=3"), 2).unwrap_err().contains("one descriptor"));
    assert!(check_sharing(&config("uds=v,cid=4294967293"), 2).is_ok());
    assert!(check_sharing(&config("uds=v,cid=4294967294"), 2).unwrap_err().contains("addresses"));
}
