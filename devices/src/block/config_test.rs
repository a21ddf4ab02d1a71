//! The configuration space byte by byte.

use super::*;

const LAYOUT: Layout = Layout {
    capacity: 0x0102_0304_0506_0708,
    block_size: 512,
    queues: 4,
    depth: 256,
    read_only: false,
    discard: true,
    write_zeroes: true,
};

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

#[test]
fn fields_are_where_the_specification_has_them() {
    let bytes = LAYOUT.bytes(true);
    assert_eq!(bytes.len(), 60);
    assert_eq!(bytes[..8], [8, 7, 6, 5, 4, 3, 2, 1], "capacity, little-endian");
    assert_eq!((u32_at(&bytes, 8), u32_at(&bytes, 12)), (65536, 254), "size_max, seg_max");
    assert_eq!(u32_at(&bytes, 20), 512, "blk_size");
    assert_eq!((bytes[24], bytes[25], bytes[26], bytes[27]), (3, 0, 8, 0), "topology");
    assert_eq!((bytes[32], bytes[33]), (1, 0), "writeback, unused");
    assert_eq!((bytes[34], bytes[35]), (4, 0), "num_queues");
    assert_eq!((u32_at(&bytes, 36), u32_at(&bytes, 40), u32_at(&bytes, 44)), (1 << 21, 16, 8), "discard");
    assert_eq!((u32_at(&bytes, 48), u32_at(&bytes, 52)), (1 << 15, 1), "write zeroes");
    assert_eq!(bytes[56..60], [1, 0, 0, 0], "may unmap, unused");
    assert_eq!(WRITEBACK_OFFSET, 32);
    assert_eq!(LAYOUT.bytes(false)[32], 0);
}

#[test]
fn blocks_of_a_page_are_their_own_physical_blocks() {
    let bytes = Layout { block_size: 4096, ..LAYOUT }.bytes(true);
    assert_eq!((u32_at(&bytes, 20), bytes[24], bytes[26]), (4096, 0, 1));
    assert_eq!(u32_at(&bytes, 44), 8, "discards are aligned to blocks");
    let bytes = Layout { block_size: 65536, ..LAYOUT }.bytes(true);
    assert_eq!((bytes[24], bytes[26], u32_at(&bytes, 44)), (0, 1, 128));
}

#[test]
fn fields_of_what_is_not_offered_are_zero() {
    let bytes = Layout { queues: 1, discard: false, write_zeroes: false, ..LAYOUT }.bytes(true);
    assert_eq!(bytes[34..], [0; 26]);
    let bytes = Layout { read_only: true, ..LAYOUT }.bytes(true);
    assert_eq!(bytes[36..], [0; 24]);
    let bytes = Layout { discard: false, ..LAYOUT }.bytes(true);
    assert_eq!((u32_at(&bytes, 36), bytes[56]), (0, 0), "write-zeroes may not unmap");
}

#[test]
fn small_queues_take_a_segment_nevertheless() {
    for depth in 1..=3 {
        assert_eq!(u32_at(&Layout { depth, ..LAYOUT }.bytes(true), 12), 1);
    }
}

#[test]
fn features() {
    let all = [1, 2, 6, 9, 10, 11, 12, 13, 14];
    assert_eq!(LAYOUT.features(), all.iter().map(|bit| 1 << bit).sum::<u64>());
    let fewer = Layout { queues: 1, discard: false, write_zeroes: false, ..LAYOUT }.features();
    assert_eq!(fewer, [1, 2, 6, 9, 10, 11].iter().map(|bit| 1 << bit).sum::<u64>());
    let read_only = Layout { read_only: true, ..LAYOUT }.features();
    assert_eq!(read_only, [1, 2, 5, 6, 9, 10, 11, 12].iter().map(|bit| 1 << bit).sum::<u64>());
}
