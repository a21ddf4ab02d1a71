use proptest::prelude::*;

use super::*;

/// Feeds bytes in parts of some sizes, as far as there is room; gives the frames.
fn frames(bytes: &[u8], mut sizes: impl Iterator<Item = usize>) -> Result<Vec<Vec<u8>>, BadLength> {
    let mut incoming = Incoming::default();
    let (mut frames, mut rest) = (Vec::new(), bytes);
    loop {
        while let Some(frame) = incoming.next_frame()? {
            frames.push(frame.to_vec());
        }
        assert!(!incoming.is_ready());
        if rest.is_empty() {
            return Ok(frames);
        }
        let room = incoming.room();
        assert!(!room.is_empty(), "there is always room for what makes the frame whole");
        let count = sizes.next().unwrap().clamp(1, room.len()).min(rest.len());
        let (part, behind) = rest.split_at(count);
        room[..count].copy_from_slice(part);
        incoming.came(count);
        rest = behind;
    }
}

fn stream(frames: &[Vec<u8>]) -> Vec<u8> {
    let framed = frames.iter().map(|frame| [&(frame.len() as u32).to_be_bytes(), frame.as_slice()].concat());
    framed.collect::<Vec<_>>().concat()
}

#[test]
fn a_frame_is_there_when_its_last_byte_is() {
    let mut incoming = Incoming::default();
    for byte in [0, 0, 0, 2, b'h'] {
        incoming.room()[0] = byte;
        incoming.came(1);
        assert_eq!(incoming.next_frame(), Ok(None));
    }
    incoming.room()[..4].copy_from_slice(b"i\0\0\0");
    incoming.came(4);
    assert!(incoming.is_ready());
    assert_eq!(incoming.next_frame(), Ok(Some(b"hi".as_slice())));
    assert_eq!(incoming.next_frame(), Ok(None));
}

#[test]
fn the_longest_frame_passes_and_a_longer_one_is_the_end() {
    let longest = vec![7; MAX_FRAME];
    let four = vec![longest; 4];
    assert_eq!(frames(&stream(&four), std::iter::repeat(usize::MAX)), Ok(four));
    for told in [MAX_FRAME as u32 + 1, u32::MAX, 0x8000_0000] {
        let mut incoming = Incoming::default();
        incoming.room()[..4].copy_from_slice(&told.to_be_bytes());
        incoming.came(4);
        assert!(incoming.is_ready());
        for _ in 0..2 {
            assert_eq!(incoming.next_frame(), Err(BadLength(told)), "it stays so");
        }
    }
}

#[test]
fn what_goes_out_is_what_would_come_in() {
    let mut outgoing = Outgoing::default();
    assert_eq!((outgoing.under_way(), outgoing.rest()), (None, [].as_slice()));
    outgoing.put(5, |bytes| bytes.copy_from_slice(b"hello")).unwrap();
    assert_eq!(outgoing.under_way(), None, "nothing of it has gone yet");
    assert_eq!(outgoing.rest(), b"\0\0\0\x05hello");
    outgoing.gone(3);
    assert_eq!((outgoing.under_way(), outgoing.rest()), (Some(5), b"\x05hello".as_slice()));
    outgoing.gone(6);
    assert_eq!((outgoing.under_way(), outgoing.rest()), (None, [].as_slice()));
    assert!(outgoing.put(MAX_FRAME, |bytes| bytes.len()) == Some(MAX_FRAME));
    assert!(outgoing.put(MAX_FRAME + 1, |_| ()).is_none());
    assert!(outgoing.put(usize::MAX, |_| ()).is_none());
}

proptest! {
    #[test]
    fn frames_come_as_they_were_sent_however_the_stream_is_cut(
        lengths in prop::collection::vec(prop_oneof![0usize..100, 1400usize..1600, Just(MAX_FRAME)], 0..12),
        cuts in prop::collection::vec(prop_oneof![1usize..9, 1000usize..5000, Just(usize::MAX)], 1..20),
    ) {
        let fill = |(index, length)| (0..length).map(|at: usize| (at * 7 + index) as u8).collect::<Vec<u8>>();
        let sent: Vec<Vec<u8>> = lengths.into_iter().enumerate().map(fill).collect();
        prop_assert_eq!(frames(&stream(&sent), cuts.into_iter().cycle()), Ok(sent));
    }
}
