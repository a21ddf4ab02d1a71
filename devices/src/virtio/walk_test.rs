use proptest::prelude::*;
use ringlet_io::{Backing, GuestRam, GuestRange};

use super::*;
use crate::testing::Descriptor as Raw;
use crate::virtio::spec::descriptor::{INDIRECT, NEXT, WRITE};

/// The queue's table; the queue has 8 descriptors.
const TABLE: u64 = 0x1000;
const SIZE: u16 = 8;
/// An indirect table.
const INNER: u64 = 0x2000;
/// RAM ends here.
const END: u64 = 0x1_0000;

fn ram() -> GuestRam {
    GuestRam::new(&[(0, 0x8000), (0x8000, 0x8000)], Backing::Pages4K).unwrap()
}

thread_local! {
    /// Made once: there are thousands of cases.
    static RAM: GuestRam = ram();
}

fn put(ram: &GuestRam, table: u64, descriptors: &[Raw]) {
    for (index, descriptor) in descriptors.iter().enumerate() {
        ram.write(table + 16 * index as u64, &descriptor.bytes()).unwrap();
    }
}

fn raw(gpa: u64, len: u32, flags: u16, next: u16) -> Raw {
    Raw { gpa, len, flags, next }
}

fn walk(ram: &GuestRam, indirect: bool, head: u16) -> Result<Chain, ChainError> {
    Walker::new(ram, TABLE, SIZE, indirect).chain(head, 0)
}

/// What a chain is worth, written down as simply as can be: a list of its buffers, or nothing.
fn model(outer: &[Raw], inner: &[Raw], indirect: bool, head: u16) -> Option<Vec<Raw>> {
    let mut chain: Vec<Raw> = Vec::new();
    let (mut table, mut at, mut steps) = (outer, usize::from(head), 0);
    let mut inside = false;
    loop {
        let found = *table.get(at)?;
        steps += 1;
        if steps > table.len() {
            return None;
        }
        if found.flags & INDIRECT != 0 {
            let whole = found.len % 16 == 0 && found.len > 0 && found.len <= 4096;
            let there = found.gpa.checked_add(u64::from(found.len)).is_some_and(|end| end <= END);
            if inside || !indirect || found.flags & NEXT != 0 || !whole || !there || found.gpa != INNER {
                return None;
            }
            (table, at, steps, inside) = (&inner[..inner.len().min(found.len as usize / 16)], 0, 0, true);
            continue;
        }
        chain.push(found);
        if found.flags & NEXT == 0 {
            break;
        }
        at = usize::from(found.next);
    }
    let sound = |b: &Raw| b.len > 0 && b.gpa.checked_add(u64::from(b.len)).is_some_and(|end| end <= END);
    let ordered = chain.windows(2).all(|pair| pair[0].flags & WRITE == 0 || pair[1].flags & WRITE != 0);
    (chain.len() <= usize::from(SIZE) && chain.iter().all(sound) && ordered).then_some(chain)
}

fn descriptor() -> impl Strategy<Value = Raw> {
    let gpa = prop_oneof![
        8 => 0x3000..0xF000u64,
        1 => Just(INNER),
        1 => prop::sample::select(vec![END - 1, END, END + 1, 0x7FFF, u64::MAX, u64::MAX - 15]),
    ];
    let len = prop_oneof![
        8 => 1..256u32,
        1 => prop::sample::select(vec![0, 16, 24, 32, 128, 4096, 4112, 1 << 31, u32::MAX]),
    ];
    let flags = prop_oneof![
        4 => Just(NEXT), 4 => Just(NEXT | WRITE), 2 => Just(0), 2 => Just(WRITE), 1 => any::<u16>(),
    ];
    let next = prop_oneof![8 => 0..SIZE, 1 => any::<u16>()];
    (gpa, len, flags, next).prop_map(|(gpa, len, flags, next)| raw(gpa, len, flags, next))
}

/// A descriptor that points to the inner table more often than not.
fn outer() -> impl Strategy<Value = Raw> {
    // A table may be anywhere; the model knows the one.
    let known = |d: Raw| if d.gpa == INNER { d } else { Raw { flags: d.flags & !INDIRECT, ..d } };
    let table = |(n, w): (u32, bool)| raw(INNER, 16 * n, INDIRECT | if w { WRITE } else { 0 }, 0);
    prop_oneof![
        3 => descriptor().prop_map(known),
        1 => (1..=8u32, any::<bool>()).prop_map(table),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn sec_06_any_table_gives_a_chain_or_an_error_as_the_model_says(
        outer in prop::collection::vec(outer(), 8),
        inner in prop::collection::vec(descriptor(), 8),
        indirect in prop::bool::weighted(0.9),
        head in prop_oneof![20 => 0..SIZE, 1 => any::<u16>()],
    ) {
        let ram = RAM.with(GuestRam::clone);
        // Behind the inner table: descriptors that no chain may use.
        put(&ram, INNER, &[raw(0x3000, 1, 0, 0); 256]);
        put(&ram, TABLE, &outer);
        put(&ram, INNER, &inner);
        let mut table = inner.clone();
        table.resize(256, raw(0x3000, 1, 0, 0));
        let expected = model(&outer, &table, indirect, head);
        let found = walk(&ram, indirect, head);
        match (&found, &expected) {
            (Ok(chain), Some(buffers)) => {
                let part = |write: bool| -> Vec<GuestRange> {
                    let part = buffers.iter().filter(|b| (b.flags & WRITE != 0) == write);
                    part.map(|b| GuestRange { gpa: b.gpa, len: b.len }).collect()
                };
                prop_assert_eq!(chain.readable_ranges(), part(false));
                prop_assert_eq!(chain.writable_ranges(), part(true));
                let total: u64 = buffers.iter().map(|b| u64::from(b.len)).sum();
                prop_assert_eq!(chain.readable_len() + chain.writable_len(), total);
            }
            (Err(_), None) => {}
            _ => prop_assert!(false, "found {found:?}, the model says {expected:?}"),
        }
    }
}

#[test]
fn sec_07_each_rule_has_its_error() {
    let ram = ram();
    let refuse = |descriptors: &[Raw], error: ChainError| {
        put(&ram, TABLE, descriptors);
        assert_eq!(walk(&ram, true, 0).unwrap_err(), error);
    };
    refuse(&[raw(0x3000, 1, NEXT, 8)], ChainError::Index { index: 8, size: 8 });
    refuse(&[raw(0x3000, 1, NEXT, 1), raw(0x3000, 1, NEXT, 1)], ChainError::Loop { index: 1 });
    refuse(&[raw(0x3000, 0, 0, 0)], ChainError::Empty { index: 0 });
    refuse(&[raw(END, 1, 0, 0)], ChainError::NotInRam { index: 0, gpa: END, len: 1 });
    refuse(&[raw(0x3000, 1, WRITE | NEXT, 1), raw(0x3000, 1, 0, 0)], ChainError::Order { index: 1 });
    refuse(&[raw(INNER, 16, INDIRECT | NEXT, 1)], ChainError::IndirectNext { index: 0 });
    refuse(&[raw(INNER, 15, INDIRECT, 0)], ChainError::TableLen { len: 15 });
    put(&ram, INNER, &[raw(INNER, 16, INDIRECT, 0)]);
    refuse(&[raw(INNER, 16, INDIRECT, 0)], ChainError::Nested { index: 0 });
    put(&ram, TABLE, &[raw(INNER, 16, INDIRECT, 0)]);
    assert_eq!(walk(&ram, false, 0).unwrap_err(), ChainError::NotNegotiated { index: 0 });
    let long: Vec<Raw> = (0..9).map(|n| raw(0x3000, 1, if n < 8 { NEXT } else { 0 }, n + 1)).collect();
    put(&ram, INNER, &long);
    refuse(&[raw(INNER, 16 * 9, INDIRECT, 0)], ChainError::TooLong { size: 8 });
}

#[test]
fn sec_07_the_sum_of_all_lengths_fits_the_used_ring() {
    let ram = GuestRam::new(&[(0, 1 << 30)], Backing::Pages4K).unwrap();
    let gib = |n: u16, len: u32| raw(0, len, if n < 3 { NEXT | WRITE } else { WRITE }, n + 1);
    put(&ram, TABLE, &[gib(0, 1 << 30), gib(1, 1 << 30), gib(2, 1 << 30), gib(3, 1 << 30)]);
    assert_eq!(walk(&ram, false, 0).unwrap_err(), ChainError::TooLarge);
    put(&ram, TABLE, &[gib(0, 1 << 30), gib(1, 1 << 30), gib(2, 1 << 30), gib(3, (1 << 30) - 1)]);
    assert_eq!(walk(&ram, false, 0).unwrap().writable_len(), u64::from(u32::MAX));
}

#[test]
fn sec_07_pieces_are_bounded_by_what_the_kernel_takes() {
    let regions: Vec<(u64, u64)> = (0..256).map(|n| (n * 0x1000, 0x1000)).collect();
    let ram = GuestRam::new(&regions, Backing::Pages4K).unwrap();
    let whole = |n: u16| raw(0x10_0000 - 0xF_0000, 0xF_0000, if n < 7 { NEXT } else { 0 }, n + 1);
    put(&ram, TABLE, &(0..8).map(whole).collect::<Vec<_>>());
    assert_eq!(walk(&ram, false, 0).unwrap_err(), ChainError::TooManyPieces);
    put(&ram, TABLE, &[whole(7)]);
    let chain = walk(&ram, false, 0).unwrap();
    let lease = ram.lease(chain.readable_ranges(), ringlet_io::LeaseUse::Source).unwrap();
    assert_eq!(lease.len(), 0xF_0000, "what passes here can be lent to the kernel");
}

#[test]
fn sec_11_a_chain_is_a_copy() {
    let ram = ram();
    put(&ram, INNER, &[raw(0x3000, 4, NEXT, 1), raw(0x4000, 8, WRITE, 0)]);
    put(&ram, TABLE, &[raw(INNER, 32, INDIRECT, 0)]);
    let chain = walk(&ram, true, 0).unwrap();
    put(&ram, INNER, &[raw(0x5000, 99, WRITE, 0); 2]);
    put(&ram, TABLE, &[raw(END, 0, 0, 0)]);
    assert_eq!(chain.readable_ranges(), [GuestRange { gpa: 0x3000, len: 4 }]);
    assert_eq!(chain.writable_ranges(), [GuestRange { gpa: 0x4000, len: 8 }]);
}
