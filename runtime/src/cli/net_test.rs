use ringlet::MacAddress;

use super::*;

fn interface(text: &str) -> NetworkInterface {
    parse(text).unwrap().interface
}

#[test]
fn each_host_side_has_its_word() {
    assert_eq!(interface("tap=tap0"), NetworkInterface::tap("", "tap0"));
    assert_eq!(interface("fd=3"), NetworkInterface::fds("", [3]));
    assert_eq!(interface("fd=3:4"), NetworkInterface::fds("", [3, 4]));
    assert_eq!(interface("socket=/tmp/passt.socket"), NetworkInterface::socket("", "/tmp/passt.socket"));
    assert_eq!(interface("passt=/tmp/passt.socket"), NetworkInterface::socket("", "/tmp/passt.socket"));
    let published = |text: &str| text.parse().unwrap();
    assert_eq!(interface("passt"), NetworkInterface::passt(""));
    let expected =
        NetworkInterface::passt("").publish(published("8080:80")).publish(published("127.0.0.1:5353:53/udp"));
    assert_eq!(interface("passt,publish=8080:80,publish=127.0.0.1:5353:53/udp"), expected);
    assert_eq!(interface("publish=8080:80,passt").ringlet.passt.unwrap().publish.len(), 1);
}

#[test]
fn options_say_the_rest() {
    let mac = MacAddress([2, 0, 0, 0, 0, 1]);
    let expected = NetworkInterface::tap("eth0", "tap0").mac(mac).mtu(1400).queues(2);
    assert_eq!(interface("tap=tap0,id=eth0,mac=02:00:00:00:00:01,mtu=1400,queues=2"), expected);
    let options = "tap=t,ipv4=10.0.0.2,ipv4=10.0.0.3,ipv6=fd00::2";
    let Some(Pinning::On(pinned)) = interface(options).ringlet.anti_spoof else { panic!("it is pinned") };
    assert_eq!(pinned.ipv4.unwrap().len(), 2);
    assert_eq!(pinned.ipv6.unwrap().len(), 1);
    assert_eq!(interface("tap=t,anti_spoof").ringlet.anti_spoof, Some(Pinning::On(AntiSpoof::default())));
    assert_eq!(interface("tap=t,anti_spoof=off").ringlet.anti_spoof, Some(Pinning::Off));
    assert_eq!(interface("tap=t").ringlet.anti_spoof, None);
}

#[test]
fn what_cannot_be_understood_is_told() {
    for (text, told) in [
        ("", "a comma too many"),
        ("mtu=1500", "host's side"),
        ("tap=", "needs a value"),
        ("tap=a,fd=3", "one of"),
        ("tap=a,tap=b", "twice"),
        ("fd=x", "descriptor"),
        ("fd=-1", "descriptor"),
        ("tap=a,", "a comma too many"),
        ("tap=a,mac=1", "one station"),
        ("tap=a,mtu=70000", "68 to 65535"),
        ("tap=a,queues=x", "1 to 31"),
        ("tap=a,queue_size=x", "power of two"),
        ("tap0", "say tap=tap0"),
        ("./passt.sock", "say socket=./passt.sock"),
        ("tap=a,ipv4=10.0.0", "not an address of IPv4"),
        ("tap=a,anti_spoof=maybe", "on or off"),
        ("tap=a,ipv4=10.0.0.2,anti_spoof=off", "from any address"),
        ("tap=a,anti_spoof=off,ipv4=10.0.0.2", "from any address"),
        ("tap=a,ipv6=fd00::2,anti_spoof=false", "from any address"),
        ("tap=a,speed=1", "there are tap, fd, socket"),
        ("passt,passt", "twice"),
        ("passt=", "needs a value"),
        ("passt,tap=a", "one of"),
        ("passt,publish=80", "8080:80"),
        ("tap=a,publish=8080:80", "is for passt"),
        ("socket=a,publish=8080:80", "who started"),
        ("passt=a,publish=8080:80", "who started"),
        ("publish=8080:80", "host's side"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(told), "{text}: {error}");
    }
}

#[test]
fn interfaces_get_the_first_names_that_are_free() {
    let mut config = VmConfig::new("hello").network_interface(NetworkInterface::tap("net0", "old"));
    add(
        &mut config,
        &["tap=a", "tap=b,id=net2", "tap=c", "tap=new,id=net0"].map(|text| parse(text).unwrap()),
    );
    let names: Vec<_> = (config.network_interfaces.iter())
        .map(|it| (it.iface_id.as_str(), it.host_dev_name.as_deref().unwrap_or("")))
        .collect();
    assert_eq!(names, [("net0", "new"), ("net1", "a"), ("net2", "b"), ("net3", "c")]);
}
