use std::future::poll_fn;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::*;
use crate::engine::EngineKind;
use crate::lease::GuestRange;
use crate::ram::{Backing, GuestRam};
use crate::testing::*;

on_both_engines!(
    bytes_pass_between_a_socket_and_guest_memory,
    what_is_full_or_empty_is_told_and_waited_for,
    each_direction_ends_by_itself,
    what_was_peeked_is_still_there,
    the_end_of_both_directions_is_told_apart_from_that_of_one,
    sec_02_what_nobody_receives_is_bounded,
    what_is_kept_for_a_peer_is_seen_until_it_is_taken,
);

fn ram() -> GuestRam {
    GuestRam::new(&[(0, 0x10_0000)], Backing::Pages4K).unwrap()
}

/// A stream, and the other end.
fn pair() -> (Stream, UnixStream) {
    let (ours, peer) = UnixStream::pair().unwrap();
    (Stream::new(ours.into()).unwrap(), peer)
}

fn lease(ram: &GuestRam, ranges: &[(u64, u32)], use_: LeaseUse) -> Lease {
    let ranges: Vec<_> = ranges.iter().map(|&(gpa, len)| GuestRange { gpa, len }).collect();
    ram.lease(&ranges, use_).unwrap()
}

fn bytes_pass_between_a_socket_and_guest_memory(engine: EngineKind) {
    on_shard(engine, |_| async {
        let (ram, (stream, mut peer), mut scratch) = (ram(), pair(), Scratch::default());
        ram.write(0x1000, b"from the guest").unwrap();
        let source = lease(&ram, &[(0x1000, 5), (0x1005, 9)], LeaseUse::Source);
        assert_eq!(stream.send(&mut scratch, &source).unwrap(), Some(14), "before anything is known");
        let mut bytes = [0; 14];
        peer.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"from the guest");
        peer.write_all(b"to the guest").unwrap();
        poll_fn(|cx| stream.poll_readable(cx)).await.unwrap();
        let _ = ram.take_host_dirty();
        let target = lease(&ram, &[(0x2FFE, 2), (0x5000, 100)], LeaseUse::Target);
        assert_eq!(stream.receive(&mut scratch, &target).unwrap(), Some(12));
        assert_eq!(ram.take_host_dirty(), [0x2000, 0x5000], "only what was written");
        let mut bytes = [0; 11];
        ram.read(0x5000, &mut bytes).unwrap();
        assert_eq!(&bytes, b" the guest\0");
        for wrong in [lease(&ram, &[], LeaseUse::Target), source] {
            let error = stream.receive(&mut scratch, &wrong).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    });
}

fn what_is_full_or_empty_is_told_and_waited_for(engine: EngineKind) {
    on_shard(engine, |_| async {
        let (ram, (stream, mut peer), mut scratch) = (ram(), pair(), Scratch::default());
        let target = lease(&ram, &[(0, 100)], LeaseUse::Target);
        assert_eq!(stream.receive(&mut scratch, &target).unwrap(), None);
        let source = lease(&ram, &[(0, 0x1_0000)], LeaseUse::Source);
        let mut sent = 0;
        while let Some(count) = stream.send(&mut scratch, &source).unwrap() {
            sent += count;
        }
        let mut bytes = vec![0; sent];
        peer.read_exact(&mut bytes).unwrap();
        poll_fn(|cx| stream.poll_writable(cx)).await.unwrap();
        assert!(stream.send_bytes(b"x").unwrap().is_some());
        peer.write_all(b"x").unwrap();
        poll_fn(|cx| stream.poll_readable(cx)).await.unwrap();
        assert_eq!(stream.receive(&mut scratch, &target).unwrap(), Some(1));
        assert_eq!(stream.receive(&mut scratch, &target).unwrap(), None);
    });
}

fn the_end_of_both_directions_is_told_apart_from_that_of_one(engine: EngineKind) {
    on_shard(engine, |cx| async move {
        let (stream, mut peer) = pair();
        let is_hung_up = || poll_fn(|cx| Poll::Ready(stream.poll_hung_up(cx).is_ready()));
        assert!(!is_hung_up().await, "before anything is known");
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        poll_fn(|cx| stream.poll_readable(cx)).await.unwrap();
        for _ in 0..3 {
            cx.next_turn().await;
            assert!(!is_hung_up().await);
        }
        // What is full, and what is drained, is no end.
        let mut sent = 0;
        while let Some(count) = stream.send_bytes(&[0; 4096]).unwrap() {
            sent += count;
        }
        assert!(!is_hung_up().await);
        peer.read_exact(&mut vec![0; sent]).unwrap();
        poll_fn(|cx| stream.poll_writable(cx)).await.unwrap();
        assert!(!is_hung_up().await);
        drop(peer);
        poll_fn(|cx| stream.poll_hung_up(cx)).await.unwrap();
        assert!(is_hung_up().await, "for good");
    });
}

fn each_direction_ends_by_itself(engine: EngineKind) {
    on_shard(engine, |_| async {
        let (stream, mut peer) = pair();
        stream.end_sending();
        let mut byte = [0];
        assert_eq!(peer.read(&mut byte).unwrap(), 0);
        peer.write_all(b"x").unwrap();
        poll_fn(|cx| stream.poll_readable(cx)).await.unwrap();
        assert_eq!(stream.receive_bytes(&mut byte, false).unwrap(), Some(1));
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        poll_fn(|cx| stream.poll_readable(cx)).await.unwrap();
        assert_eq!(stream.receive_bytes(&mut byte, false).unwrap(), Some(0));
        let (stream, mut peer) = pair();
        assert!(!stream.has_hung_up());
        stream.end_receiving();
        assert_eq!(peer.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        drop(peer);
        assert!(stream.has_hung_up());
        assert!(stream.send_bytes(b"x").is_err());
    });
}

fn what_was_peeked_is_still_there(engine: EngineKind) {
    on_shard(engine, |_| async {
        let (stream, mut peer) = pair();
        peer.write_all(b"ab").unwrap();
        poll_fn(|cx| stream.poll_readable(cx)).await.unwrap();
        let mut bytes = [0; 4];
        assert_eq!(stream.receive_bytes(&mut bytes, true).unwrap(), Some(2));
        assert_eq!(stream.receive_bytes(&mut bytes[..1], false).unwrap(), Some(1));
        assert_eq!(stream.receive_bytes(&mut bytes, false).unwrap(), Some(1));
        assert_eq!(&bytes[..1], b"b");
        assert_eq!(stream.receive_bytes(&mut bytes, false).unwrap(), None);
    });
}

fn sec_02_what_nobody_receives_is_bounded(engine: EngineKind) {
    on_shard(engine, |_| async {
        for bound in [4 << 10, 16 << 10, 64 << 10] {
            let (stream, _peer) = pair();
            stream.keep_at_most(bound).unwrap();
            let mut kept = 0;
            while let Some(count) = stream.send_bytes(&[7; 1 << 20]).unwrap() {
                kept += count;
            }
            let most = 3 * bound as usize;
            assert!((bound as usize / 4..=most).contains(&kept), "{kept} bytes of {bound}");
        }
    });
}

fn what_is_kept_for_a_peer_is_seen_until_it_is_taken(engine: EngineKind) {
    on_shard(engine, |_| async {
        for is_received in [true, false] {
            let (stream, mut peer) = pair();
            stream.send_bytes(&[7; 10_000]).unwrap().unwrap();
            assert!(!stream.keeps_much(), "it may keep far more");
            stream.keep_at_most(0).unwrap();
            assert!(stream.keeps_much());
            stream.end_both();
            assert!(stream.keeps_much());
            assert_eq!(peer.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
            if is_received {
                let mut bytes = Vec::new();
                assert_eq!(peer.read_to_end(&mut bytes).unwrap(), 10_000);
            } else {
                drop(peer);
            }
            assert!(!stream.keeps_much());
        }
    });
}
