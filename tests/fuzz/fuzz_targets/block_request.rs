//! A block request: a chain of any shape whose readable part is the end of the input.
//!
//! Input: flags (bit 0 read-only, 1 discard, 2 write-zeroes), length of the writable part
//! (le32), capacity in sectors (le64), readable part. Fails on a panic, if a byte is fetched twice, and if what is
//! accepted leaves the disk, splits a sector, or is not as long as the chain's data.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use ringlet_devices::block::request::{Command, Extent, HEADER_LEN, Request, Rules, Shape};

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Some((head, readable)) = bytes.split_first_chunk::<13>() else { return Corpus::Reject };
    let [flags, lengths @ ..] = *head;
    let lengths = lengths.iter().rev().fold(0_u128, |value, byte| value << 8 | u128::from(*byte));
    let rules = Rules {
        capacity: (lengths >> 32) as u64,
        read_only: flags & 1 != 0,
        discard: flags & 2 != 0,
        write_zeroes: flags & 4 != 0,
    };
    check(&rules, readable, u64::from(lengths as u32));
    Corpus::Keep
});

fn check(rules: &Rules, readable: &[u8], writable: u64) {
    let shape = Shape { readable: readable.len() as u64, writable };
    let mut fetched = 0;
    let request = Request::parse(shape, rules, |from, buf| {
        assert!(from >= fetched, "a byte is fetched twice");
        fetched = from + buf.len() as u64;
        buf.copy_from_slice(&readable[from as usize..fetched as usize]);
        Ok(())
    });
    let Ok(command) = &request.command else { return };
    assert!(writable > 0, "there is a byte for the status");
    let inside = |extent: &Extent| {
        let end = u128::from(extent.offset) + u128::from(extent.len);
        assert!(end <= u128::from(rules.capacity) * 512, "{extent:?} leaves the disk");
        assert!(extent.offset % 512 == 0 && extent.len % 512 == 0, "{extent:?} splits a sector");
    };
    match command {
        Command::Read(extent) => assert_eq!(extent.len, writable - 1),
        Command::Write(extent) => {
            assert!(!rules.read_only && extent.len == readable.len() as u64 - HEADER_LEN);
        }
        Command::Discard(_) => assert!(rules.discard),
        Command::WriteZeroes(_) => assert!(rules.write_zeroes),
        Command::Flush | Command::GetId => {}
    }
    match command {
        Command::Read(extent) | Command::Write(extent) => inside(extent),
        Command::Discard(extents) => extents.iter().for_each(inside),
        Command::WriteZeroes(zero) => inside(&zero.extent),
        Command::Flush | Command::GetId => {}
    }
}
