use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

use super::*;
use crate::config::LimitsConfig;
use crate::devices::throttle::NETS;

fn filter_of(pinning: Option<Pinning>, is_tenants: bool) -> Filter {
    let (ours, _theirs) = UnixDatagram::pair().unwrap();
    let mut interface = NetworkInterface::fds("net0", [ours.as_raw_fd()]).mac(MacAddress([2, 0, 0, 0, 0, 1]));
    interface.ringlet.anti_spoof = pinning;
    let limits = LimitsConfig::default().net.limits();
    let together = Together { name: NETS, limits, weight: 100, shared: None };
    Interface::open(&interface, is_tenants, &together).unwrap().options.filter
}

#[test]
fn sec_01_guests_of_tenants_send_from_their_own_ethernet_address_only() {
    let own = Some(Mac([2, 0, 0, 0, 0, 1]));
    let addresses = AntiSpoof { ipv4: Some(vec![[10, 0, 0, 1].into()]), ipv6: None };
    assert_eq!(filter_of(None, true).mac, own);
    assert_eq!(filter_of(None, true).ipv4, None);
    assert_eq!(filter_of(None, false).mac, None);
    assert_eq!(filter_of(Some(Pinning::Off), true).mac, None);
    for is_tenants in [false, true] {
        let filter = filter_of(Some(Pinning::On(addresses.clone())), is_tenants);
        assert_eq!((filter.mac, &filter.ipv4), (own, &addresses.ipv4));
        assert!(filter.no_loopback, "as on every socket");
    }
}

#[test]
fn descriptors_that_cannot_be_used_are_called_by_the_numbers_that_were_given() {
    let refused = |fds: &[RawFd]| {
        let interface = NetworkInterface::fds("net0", fds.iter().copied());
        open(&interface, Mac([2, 0, 0, 0, 0, 1])).err().map(|error| error.to_string()).unwrap()
    };
    let (file, socket) = (File::open("/dev/null").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let (file, socket) = (file.as_raw_fd(), socket.as_raw_fd());
    for (given, told) in [
        (vec![file], format!("descriptor {file}: not attached to a tap")),
        (vec![socket], format!("descriptor {socket}: it is no Unix socket")),
        (vec![socket, file], format!("descriptor {socket}: not attached to a tap")),
    ] {
        let error = refused(&given);
        assert!(error.contains(&told), "{error}");
    }
}
