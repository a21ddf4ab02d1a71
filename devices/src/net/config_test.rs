use super::*;

const ALL: Offloads =
    Offloads { checksum: true, tso4: true, tso6: true, ecn: true, ufo: true, uso4: true, uso6: true };

fn layout(offloads: Offloads) -> Layout {
    Layout { mac: Mac([2, 0, 0, 0, 0, 1]), mac_changes: true, mtu: Some(1500), pairs: 4, offloads }
}

#[test]
fn every_feature_comes_with_what_it_needs() {
    // Also where a host says that it has segments without checksums.
    for bits in 0..128u32 {
        let has = |bit: u32| bits >> bit & 1 == 1;
        let offloads = Offloads {
            checksum: has(0),
            tso4: has(1),
            tso6: has(2),
            ecn: has(3),
            ufo: has(4),
            uso4: has(5),
            uso6: has(6),
        };
        for mac_changes in [false, true] {
            let layout = Layout { mac_changes, ..layout(offloads) };
            assert!(is_consistent(layout.features()), "{offloads:?}");
            assert!(guest_offloads(layout.features()).is_within(offloads));
        }
    }
}

#[test]
fn what_is_offered_follows_from_what_there_is() {
    let features = layout(ALL).features();
    let expected = [0, 1, 2, 3, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 22, 23, 54, 55, 56];
    assert_eq!(features, expected.into_iter().fold(0, |bits, feature| bits | bit(feature)));
    let least = Layout { mac_changes: false, mtu: None, pairs: 1, ..layout(Offloads::NONE) };
    assert_eq!(least.features(), [5, 15, 16, 17, 18, 20].into_iter().fold(0, |bits, n| bits | bit(n)));
}

#[test]
fn offloads_and_features_say_the_same() {
    assert_eq!(guest_offloads(guest_bits(ALL)), ALL);
    assert_eq!(guest_bits(ALL), guest_offload_bits(u64::MAX));
    assert_eq!(guest_bits(guest_offloads(bit(1) | bit(8))), bit(1) | bit(8));
    assert!(
        !is_consistent(bit(7)) && !is_consistent(bit(9) | bit(1)) && is_consistent(bit(9) | bit(8) | bit(1))
    );
}

#[test]
fn the_space_has_its_fields_where_the_specification_has_them() {
    let space = layout(ALL).bytes(Mac([1, 2, 3, 4, 5, 6]), true);
    assert_eq!(space, [1, 2, 3, 4, 5, 6, 1, 0, 4, 0, 0xDC, 5]);
    let least = Layout { mtu: None, pairs: 1, ..layout(ALL) };
    assert_eq!(least.bytes(Mac([1, 2, 3, 4, 5, 6]), false), [1, 2, 3, 4, 5, 6, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn an_interface_has_the_address_of_one_station() {
    assert!(Mac([2, 0, 0, 0, 0, 1]).is_station());
    assert!(
        !Mac([0; 6]).is_station() && !Mac([0xFF; 6]).is_station() && !Mac([1, 0, 0x5E, 0, 0, 1]).is_station()
    );
    assert_eq!(Mac([0x52, 0x54, 0, 0x12, 0xAB, 1]).to_string(), "52:54:00:12:ab:01");
}

#[test]
fn an_mtu_below_the_least_is_not_told() {
    let of = |mtu| mtu_of(&NetInfo { mtu, ..NetInfo::default() });
    assert_eq!((of(None), of(Some(67)), of(Some(68))), (None, None, Some(68)));
}
