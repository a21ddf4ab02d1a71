use proptest::prelude::*;

use super::*;

const OWN: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
const OTHER: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x57]);
const OWN4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const OTHER4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);
const OWN6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xDB8, 0, 0, 0, 0, 0, 2);
const OTHER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xDB8, 0, 0, 0, 0, 0, 3);

fn pinned() -> Filter {
    Filter { mac: Some(OWN), ipv4: Some(vec![OWN4]), ipv6: Some(vec![OWN6]), no_loopback: false }
}

fn frame(source: Mac, kind: u16, packet: &[u8]) -> Vec<u8> {
    [&[0xFF; 6][..], &source.0, &kind.to_be_bytes(), packet].concat()
}

fn arp(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    asking(mac, address, OTHER4)
}

/// ARP with a target.
fn asking(mac: Mac, address: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let sender = [&mac.0[..], &address.octets()].concat();
    let packet = [&[0, 1, 8, 0, 6, 4, 0, 2][..], &sender, &[0; 6], &target.octets()].concat();
    frame(OWN, 0x0806, &packet)
}

fn ipv4(source: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let header = [&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0][..], &source.octets(), &[255; 4]].concat();
    frame(OWN, 0x0800, &[&header, payload].concat())
}

fn ipv6(source: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let header = [&[0x60, 0, 0, 0, 0, 0, next, 255][..], &source.octets(), &OTHER6.octets()].concat();
    frame(OWN, 0x86DD, &[&header, payload].concat())
}

/// An ICMPv6 message about an address.
fn about(kind: u8, target: Ipv6Addr) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat()
}

#[test]
fn nothing_is_judged_where_nothing_is_pinned() {
    let open = Filter::default();
    assert!(open.is_open() && !pinned().is_open());
    assert_eq!(open.judge(&arp(OTHER, OTHER4)), Ok(()));
    assert_eq!(open.judge(&frame(OTHER, 0x1234, &[])), Ok(()));
    assert_eq!(open.judge(&ipv4(OTHER4, 6, &[])), Ok(()));
}

#[test]
fn ones_own_addresses_pass() {
    let filter = pinned();
    for frame in [
        arp(OWN, OWN4),
        asking(OWN, Ipv4Addr::UNSPECIFIED, OWN4),
        ipv4(OWN4, 6, &[]),
        ipv6(OWN6, 6, &[]),
        ipv6("fe80::5054:ff:fe12:3456".parse().unwrap(), 58, &about(135, OTHER6)),
        ipv6(OWN6, 58, &about(136, OWN6)),
        ipv6(Ipv6Addr::UNSPECIFIED, 58, &about(135, OWN6)),
    ] {
        assert_eq!(filter.judge(&frame), Ok(()), "{frame:?}");
    }
}

#[test]
fn others_addresses_are_refused() {
    let filter = pinned();
    let other_source = frame(OTHER, 0x0800, &ipv4(OWN4, 6, &[])[14..]);
    for (frame, why) in [
        (other_source, Spoof::Mac(OTHER)),
        (arp(OTHER, OWN4), Spoof::Arp { mac: OTHER, address: OWN4 }),
        (arp(OWN, OTHER4), Spoof::Arp { mac: OWN, address: OTHER4 }),
        (ipv4(OTHER4, 6, &[]), Spoof::Ipv4(OTHER4)),
        (ipv6(OTHER6, 6, &[]), Spoof::Ipv6(OTHER6)),
        (ipv6(OWN6, 58, &about(136, OTHER6)), Spoof::Neighbour(136)),
        (ipv6(OWN6, 58, &about(134, OWN6)), Spoof::Neighbour(134)),
        (ipv6(OWN6, 58, &about(137, OWN6)), Spoof::Neighbour(137)),
    ] {
        assert_eq!(filter.judge(&frame), Err(why));
    }
}

/// A neighbour that is told so gives its address up, or takes one from whoever offers it.
#[test]
fn sec_07_addresses_are_neither_taken_from_neighbours_nor_given_to_them() {
    let (filter, nobody) = (pinned(), nobody());
    let first_fragment = |mut packet: Vec<u8>| {
        packet[20] = 0x20;
        packet
    };
    let behind =
        |first, next: u8, ports: &[u8]| ipv6(OWN6, first, &[&[next, 0, 0, 0, 0, 0, 0, 0], ports].concat());
    for (frame, why) in [
        (asking(OWN, nobody, OTHER4), Spoof::Arp { mac: OWN, address: OTHER4 }),
        (ipv6(Ipv6Addr::UNSPECIFIED, 58, &about(135, OTHER6)), Spoof::Neighbour(135)),
        (ipv4(OWN4, 17, &[0, 67, 0, 68]), Spoof::Server(67)),
        (first_fragment(ipv4(OWN4, 17, &[0, 67, 0, 68])), Spoof::Server(67)),
        (ipv6(OWN6, 17, &[2, 35, 2, 34]), Spoof::Server(547)),
        (behind(0, 17, &[2, 35, 2, 34]), Spoof::Server(547)),
        (behind(44, 17, &[2, 35, 2, 34]), Spoof::Server(547)),
    ] {
        assert_eq!(filter.judge(&frame), Err(why), "{frame:?}");
        let only_mac = Filter { mac: Some(OWN), ..Filter::default() };
        assert_eq!(only_mac.judge(&frame), Ok(()), "whoever may have any address may give it");
    }
    for frame in [
        ipv4(OWN4, 17, &[0, 68, 0, 67]),
        ipv4(OWN4, 6, &[0, 67, 0, 68]),
        ipv6(OWN6, 17, &[2, 34, 2, 35]),
        ipv6(OWN6, 6, &[2, 35, 2, 34]),
        ipv6(Ipv6Addr::UNSPECIFIED, 58, &about(133, OTHER6)),
    ] {
        assert_eq!(filter.judge(&frame), Ok(()), "{frame:?}");
    }
    assert_eq!(filter.judge(&ipv4(OWN4, 17, &[0])), Err(Spoof::Truncated), "a port that is not seen");
}

#[test]
fn what_could_carry_anything_is_refused() {
    let filter = pinned();
    let tagged = frame(OWN, 0x8100, &[0, 1, 8, 0]);
    assert_eq!(filter.judge(&tagged), Err(Spoof::Type(0x8100)));
    assert_eq!(filter.judge(&frame(OWN, 60, &[0; 60])), Err(Spoof::Type(60)), "802.3 with a length");
    let only_mac = Filter { mac: Some(OWN), ..Filter::default() };
    assert_eq!(only_mac.judge(&tagged), Ok(()));
    assert_eq!(only_mac.judge(&ipv4(OTHER4, 6, &[])), Ok(()));
    let mut wrong_version = ipv4(OWN4, 6, &[]);
    wrong_version[14] = 0x65;
    assert_eq!(filter.judge(&wrong_version), Err(Spoof::Ipv4(OWN4)));
    let mut not_ethernet = arp(OWN, OWN4);
    not_ethernet[18] = 8;
    assert!(filter.judge(&not_ethernet).is_err());
}

#[test]
fn a_family_without_addresses_is_closed() {
    let filter = Filter { mac: Some(OWN), ipv4: Some(vec![]), ipv6: Some(vec![]), no_loopback: false };
    assert_eq!(filter.judge(&ipv4(OWN4, 6, &[])), Err(Spoof::Ipv4(OWN4)));
    assert_eq!(filter.judge(&ipv6(OWN6, 6, &[])), Err(Spoof::Ipv6(OWN6)));
    assert_eq!(Filter { ipv6: None, ..filter }.judge(&ipv6(OWN6, 6, &[])), Ok(()));
}

#[test]
fn sec_03_nothing_goes_to_the_loopback_addresses_of_the_host() {
    let filter = Filter { no_loopback: true, ..Filter::default() };
    assert!(!filter.is_open());
    for first in [0, 127] {
        let mut packet = ipv4(OTHER4, 6, &[]);
        packet[30..34].copy_from_slice(&[first, 1, 2, 3]);
        assert_eq!(filter.judge(&packet), Err(Spoof::Loopback(Ipv4Addr::from([first, 1, 2, 3]).into())));
        assert_eq!(filter.judge(&packet[..33]), Err(Spoof::Truncated));
        assert_eq!(pinned().judge(&packet), Err(Spoof::Ipv4(OTHER4)), "of no concern to others");
    }
    for frame in [ipv4(OTHER4, 6, &[]), arp(OTHER, OTHER4), ipv6(OTHER6, 6, &[]), frame(OTHER, 0x1234, &[])] {
        assert_eq!(filter.judge(&frame), Ok(()));
    }
    let both = Filter { no_loopback: true, ..pinned() };
    assert_eq!(both.judge(&ipv4(nobody(), 17, &[0, 68, 0, 67])), Ok(()));
}

#[test]
fn sec_03_nothing_goes_to_the_loopback_addresses_of_the_host_by_ipv6() {
    let filter = Filter { no_loopback: true, ..Filter::default() };
    let to = |address: &str| {
        let mut packet = ipv6(OWN6, 6, &[]);
        packet[38..54].copy_from_slice(&address.parse::<Ipv6Addr>().unwrap().octets());
        packet
    };
    for address in
        ["::", "::1", "::2", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:0.0.0.0", "::ffff:10.0.0.1"]
    {
        let why = Spoof::Loopback(address.parse().unwrap());
        assert_eq!(filter.judge(&to(address)), Err(why), "{address}");
        assert_eq!(pinned().judge(&to(address)), Ok(()), "of no concern to others");
    }
    assert_eq!(filter.judge(&to("::1")[..53]), Err(Spoof::Truncated));
    for address in ["::10.0.0.1", "fe80::1", "ff02::1", "2001:db8::1", "::1:0:0", "0:0:0:0:ffff::"] {
        assert_eq!(filter.judge(&to(address)), Ok(()), "{address}");
    }
}

fn nobody() -> Ipv4Addr {
    Ipv4Addr::UNSPECIFIED
}

#[test]
fn who_has_no_address_may_ask_for_one_and_no_more() {
    let filter = pinned();
    let nobody = nobody();
    assert_eq!(filter.judge(&ipv4(nobody, 17, &[0, 68, 0, 67])), Ok(()));
    for (protocol, ports) in [(17, [0, 67, 0, 68]), (17, [0, 68, 0, 53]), (6, [0, 68, 0, 67])] {
        assert_eq!(filter.judge(&ipv4(nobody, protocol, &ports)), Err(Spoof::Ipv4(nobody)));
    }
    let mut fragment = ipv4(nobody, 17, &[0, 68, 0, 67]);
    fragment[14 + 6] = 0x20;
    assert_eq!(filter.judge(&fragment), Err(Spoof::Ipv4(nobody)));
    // The ports are behind the options.
    let mut options = ipv4(nobody, 17, &[0, 68, 0, 67]);
    options[14] = 0x46;
    assert_eq!(filter.judge(&options), Err(Spoof::Truncated));
}

#[test]
fn what_is_behind_extension_headers_is_found() {
    let filter = pinned();
    let behind = |headers: &[u8], first: u8| ipv6(OWN6, first, &[headers, &about(136, OTHER6)].concat());
    for first in [0, 43, 60] {
        assert_eq!(filter.judge(&behind(&[58, 0, 0, 0, 0, 0, 0, 0], first)), Err(Spoof::Neighbour(136)));
    }
    let two = [&[44, 1, 0, 0, 0, 0, 0, 0][..], &[0; 8], &[58, 0, 0, 1, 0, 0, 0, 0]].concat();
    assert_eq!(filter.judge(&behind(&two, 0)), Err(Spoof::Neighbour(136)), "a first fragment");
    assert_eq!(filter.judge(&behind(&[58, 0, 0, 8, 0, 0, 0, 0], 44)), Ok(()), "a later one says nothing");
    // Too far away to be judged.
    assert_eq!(filter.judge(&behind(&[58, 255, 0, 0, 0, 0, 0, 0], 0)), Err(Spoof::Truncated));
}

#[test]
fn sec_07_what_is_cut_off_is_refused() {
    let filter = pinned();
    for whole in [arp(OWN, OWN4), ipv4(OWN4, 6, &[]), ipv6(OWN6, 58, &about(136, OWN6))] {
        let judged: Vec<usize> =
            (0..whole.len()).filter(|len| filter.judge(&whole[..*len]).is_ok()).collect();
        // What is not judged may be cut off.
        assert!(judged.iter().all(|len| *len >= 14 + 16), "{judged:?}");
    }
}

/// The host writes the checksum after the frame was judged.
#[test]
fn sec_07_a_checksum_that_is_left_to_the_host_is_that_of_tcp_or_udp() {
    let filter = pinned();
    let check = |frame: &[u8], start, offset| {
        assert_eq!(filter.judge(frame), Ok(()));
        filter.judge_checksum(frame, start, offset)
    };
    let tcp_behind = ipv6(OWN6, 0, &[&[6, 0, 0, 0, 0, 0, 0, 0][..], &[0; 20]].concat());
    let mut options = ipv4(OWN4, 6, &[0; 28]);
    options[14] = 0x47;
    for (frame, start, offset) in [
        (ipv4(OWN4, 6, &[0; 20]), 34, 16),
        (ipv4(OWN4, 17, &[0; 8]), 34, 6),
        (options, 42, 16),
        (ipv6(OWN6, 6, &[0; 20]), 54, 16),
        (ipv6(OWN6, 17, &[0; 8]), 54, 6),
        (tcp_behind, 62, 16),
    ] {
        assert_eq!(check(&frame, start, offset), Ok(()), "{frame:?}");
        for (start, offset) in [(start - 1, offset + 1), (14, 12), (14, start - 14 + offset), (start, 0)] {
            assert_eq!(check(&frame, start, offset), Err(Spoof::Checksum { start, offset }));
        }
    }
    let mut fragment = ipv4(OWN4, 6, &[0; 20]);
    fragment[20] = 0x20;
    let mut short_header = ipv4(OWN4, 17, &[0; 20]);
    short_header[14] = 0x42;
    for (frame, start, offset) in [
        (arp(OWN, OWN4), 14, 14),
        (arp(OWN, OWN4), 40, 0),
        (ipv4(OWN4, 1, &[0; 20]), 34, 2),
        (ipv6(OWN6, 58, &about(136, OWN6)), 54, 22),
        (ipv6(OWN6, 58, &about(136, OWN6)), 54, 2),
        (ipv6(OWN6, 44, &[6, 0, 0, 8, 0, 0, 0, 0]), 62, 16),
        (fragment, 34, 16),
        (short_header, 22, 6),
    ] {
        assert_eq!(check(&frame, start, offset), Err(Spoof::Checksum { start, offset }), "{frame:?}");
    }
    // Nothing behind the Ethernet header of a frame with a VLAN tag was judged.
    let only_mac = Filter { mac: Some(OWN), ..Filter::default() };
    let tagged = frame(OWN, 0x8100, &[0; 60]);
    assert_eq!(only_mac.judge(&tagged).and(only_mac.judge_checksum(&tagged, 38, 16)), Ok(()));
    let arp = arp(OWN, OTHER4);
    assert!(only_mac.judge(&arp).is_ok() && only_mac.judge_checksum(&arp, 14, 8).is_err());
}

proptest! {
    #[test]
    fn sec_07_what_passes_has_the_guests_addresses(
        kind in prop::sample::select(vec![0x0800u16, 0x0806, 0x86DD, 0x8100, 40]),
        bytes in prop::collection::vec(any::<u8>(), 0..JUDGED),
        own: bool,
    ) {
        let frame = frame(if own { OWN } else { OTHER }, kind, &bytes);
        if pinned().judge(&frame).is_ok() {
            prop_assert!(own);
            match kind {
                0x0806 => prop_assert_eq!(&bytes[8..14], &OWN.0),
                0x0800 => prop_assert!(bytes[12..16] == OWN4.octets() || bytes[12..16] == [0; 4]),
                0x86DD => prop_assert_eq!(bytes[0] >> 4, 6),
                _ => prop_assert!(false, "{:#x} passes", kind),
            }
        }
    }
}
