use proptest::prelude::*;
use ringlet_io::Backing;

use super::*;

fn ram() -> GuestRam {
    GuestRam::new(&[(0, 0x10000)], Backing::Pages4K).unwrap()
}

fn chain(ram: &GuestRam) -> (Chain, Vec<u8>) {
    let ranges = [(0x1000, 3), (0x2000, 1), (0x3000, 5), (0x4000, 2), (0x5000, 4)];
    let ranges: Ranges = ranges.into_iter().map(|(gpa, len)| GuestRange { gpa, len }).collect();
    let bytes: Vec<u8> = (1..=9).collect();
    ram.write(0x1000, &bytes[..3]).unwrap();
    ram.write(0x2000, &bytes[3..4]).unwrap();
    ram.write(0x3000, &bytes[4..]).unwrap();
    (Chain::new(7, 0, ranges, 3), bytes)
}

proptest! {
    #[test]
    fn sec_06_parts_are_cut_exactly_or_not_at_all(from in 0..12u64, len in 0..12usize) {
        let ram = ram();
        let (chain, bytes) = chain(&ram);
        prop_assert_eq!((chain.head(), chain.readable_len(), chain.writable_len()), (7, 9, 6));
        let inside = |size: u64| from + len as u64 <= size;
        let ranges = chain.readable(from, len as u64);
        prop_assert_eq!(ranges.is_some(), inside(9));
        if let Some(ranges) = ranges {
            let sum: u64 = ranges.iter().map(|range| u64::from(range.len)).sum();
            prop_assert_eq!(sum, len as u64);
        }
        let mut buf = vec![0; len];
        let copied = chain.copy_out(&ram, from, &mut buf);
        prop_assert_eq!(copied.is_ok(), inside(9));
        if copied.is_ok() {
            prop_assert_eq!(&buf, &bytes[from as usize..from as usize + len]);
        }
        let written = chain.copy_in(&ram, from, &vec![0xEE; len]);
        prop_assert_eq!(written.is_ok(), inside(6));
        let mut after = [0; 6];
        ram.read(0x4000, &mut after[..2]).unwrap();
        ram.read(0x5000, &mut after[2..]).unwrap();
        for (at, byte) in after.iter().enumerate() {
            let within = written.is_ok() && at >= from as usize && at < from as usize + len;
            prop_assert_eq!(*byte, if within { 0xEE } else { 0 });
        }
    }
}

#[test]
fn sec_06_numbers_at_the_edge_of_their_type_are_outside() {
    let ram = ram();
    let (chain, _) = chain(&ram);
    assert!(chain.readable(u64::MAX, 1).is_none());
    assert!(chain.readable(1, u64::MAX).is_none());
    assert!(chain.writable(u64::MAX, u64::MAX).is_none());
    assert_eq!(chain.readable(9, 0), Some(Ranges::new()));
    assert_eq!(chain.readable(10, 0), None, "that is behind the end");
}
