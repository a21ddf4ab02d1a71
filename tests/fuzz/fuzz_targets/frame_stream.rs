//! Frames in a stream, from a peer that may send anything.
//!
//! Input: how often the stream is repeated (0 to 63 times), number of sizes, the sizes (a byte each, squared) of the parts
//! in which it comes, the stream. Fails on a panic, if there is no room for the rest of a frame, and if the
//! frames are others than a plain reading of the stream gives.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use ringlet_io::net::MAX_FRAME;
use ringlet_io::net::framing::{BadLength, Incoming, Outgoing, PREFIX};

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Some((&[repeated, count], rest)) = bytes.split_first_chunk() else { return Corpus::Reject };
    let Some((sizes, stream)) = rest.split_at_checked(count.into()) else { return Corpus::Reject };
    let stream = &stream.repeat(1 + usize::from(repeated % 64));
    let sizes = sizes.iter().map(|&size| usize::from(size).pow(2).max(1));
    let (expected, end) = plain(stream);
    let mut came = Vec::new();
    assert_eq!(cut(stream, sizes, &mut came), end);
    assert_eq!(came, expected);
    came.iter().for_each(|frame| back(frame));
    Corpus::Keep
});

/// What is in the stream, read from its beginning to its end, or to a length that no frame has.
fn plain(mut stream: &[u8]) -> (Vec<Vec<u8>>, Result<(), BadLength>) {
    let mut frames = Vec::new();
    while let Some((prefix, rest)) = stream.split_first_chunk::<PREFIX>() {
        let told = u32::from_be_bytes(*prefix);
        if told as usize > MAX_FRAME {
            return (frames, Err(BadLength(told)));
        }
        let Some((frame, behind)) = rest.split_at_checked(told as usize) else { break };
        frames.push(frame.to_vec());
        stream = behind;
    }
    (frames, Ok(()))
}

/// The same, as it comes in parts.
fn cut(
    mut stream: &[u8],
    mut sizes: impl Iterator<Item = usize>,
    came: &mut Vec<Vec<u8>>,
) -> Result<(), BadLength> {
    let mut incoming = Incoming::default();
    loop {
        loop {
            let ready = incoming.is_ready();
            let frame = incoming.next_frame()?;
            assert_eq!(ready, frame.is_some());
            let Some(frame) = frame else { break };
            came.push(frame.to_vec());
        }
        if stream.is_empty() {
            return Ok(());
        }
        let room = incoming.room();
        assert!(!room.is_empty(), "no room for the rest of a frame");
        let size = sizes.next().unwrap_or(usize::MAX).min(room.len()).min(stream.len());
        let (part, behind) = stream.split_at(size);
        room[..size].copy_from_slice(part);
        incoming.came(size);
        stream = behind;
    }
}

/// A frame goes out as it came in, prefix and all, also in parts.
fn back(frame: &[u8]) {
    let mut outgoing = Outgoing::default();
    outgoing.put(frame.len(), |bytes| bytes.copy_from_slice(frame)).expect("it came in");
    let mut bytes = Vec::new();
    while !outgoing.rest().is_empty() {
        let count = outgoing.rest().len().div_ceil(2);
        bytes.extend(&outgoing.rest()[..count]);
        outgoing.gone(count);
        assert_eq!(outgoing.under_way().is_some(), !outgoing.rest().is_empty());
    }
    assert_eq!(plain(&bytes), (vec![frame.to_vec()], Ok(())));
}
