//! What the guests' sockets do that needs no device: headers, and streams, here between two guests' ends. The guests
//! themselves have no standard library, and so no tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]
#![allow(dead_code, unreachable_pub, reason = "the guest uses the rest")]

extern crate alloc;

#[path = "../examples/guests/kit/src/vsock/header.rs"]
mod header;
#[path = "../examples/guests/guests/src/vsock_echo/pattern.rs"]
mod pattern;
#[path = "../examples/guests/kit/src/vsock/socket.rs"]
mod socket;

use header::{Header, Op, Packet, Ports, SHUTDOWN_BOTH, SHUTDOWN_SEND};
use proptest::prelude::*;
use socket::{CAPACITY, End, Lie, Socket};

/// The next packet of a stream with its data, of at most `most` bytes.
fn next(from: &mut Socket, most: usize) -> Option<(Packet, Vec<u8>)> {
    if !from.wants_to_send() {
        return None;
    }
    let mut payload = vec![0; from.next_len(most)];
    let packet = from.send(&mut payload).expect("it said that it wants to");
    assert_eq!(packet.len as usize, payload.len());
    Some((packet, payload))
}

/// Takes everything that `from` has to say to `to`; how many packets that were.
fn deliver(from: &mut Socket, to: &mut Socket, most: usize) -> Result<usize, Lie> {
    let mut count = 0;
    while let Some((packet, payload)) = next(from, most) {
        to.receive(&packet, &payload)?;
        count += 1;
    }
    Ok(count)
}

fn settle(a: &mut Socket, b: &mut Socket) {
    while deliver(a, b, 4096).unwrap() + deliver(b, a, 4096).unwrap() > 0 {}
}

/// Both ends of a stream.
fn pair() -> (Socket, Socket) {
    let mut client = Socket::connecting();
    let (request, payload) = next(&mut client, 0).unwrap();
    assert_eq!((request.op, payload.len()), (Op::Request, 0));
    assert!(client.is_connecting() && !client.wants_to_send());
    let mut server = Socket::accepted(&request);
    settle(&mut server, &mut client);
    assert!(!client.is_connecting());
    (client, server)
}

fn packet(op: Op) -> Packet {
    Packet { op, len: 0, flags: 0, buf_alloc: CAPACITY, fwd_cnt: 0 }
}

fn read_all(socket: &mut Socket) -> Vec<u8> {
    let mut bytes = vec![0; socket.readable()];
    assert_eq!(socket.read(&mut bytes), bytes.len());
    bytes
}

#[test]
fn a_header_is_what_the_specification_says() {
    let ports = Ports { local: 0x0102_0304, peer: 0x0506_0708 };
    let packet = Packet { op: Op::Data, len: 5, flags: 0x0A0B, buf_alloc: 0x1_0000, fwd_cnt: 0xFFFF_FFFE };
    let bytes = Header::sent(0x1122, ports, packet).bytes();
    let expected = [
        &[0x22, 0x11, 0, 0, 0, 0, 0, 0][..],
        &[2, 0, 0, 0, 0, 0, 0, 0],
        &[4, 3, 2, 1],
        &[8, 7, 6, 5],
        &[5, 0, 0, 0],
        &[1, 0, 5, 0],
        &[0x0B, 0x0A, 0, 0],
        &[0, 0, 1, 0],
        &[0xFE, 0xFF, 0xFF, 0xFF],
    ];
    assert_eq!(bytes[..], expected.concat());
    assert_eq!(Header::of(&bytes), Some(Header::sent(0x1122, ports, packet)));
    assert_eq!(Header::of(&bytes[..43]), None);
}

#[test]
fn operations_that_there_are_not_are_none() {
    let mut bytes = Header::sent(3, Ports { local: 1, peer: 2 }, packet(Op::Request)).bytes();
    for (number, op) in
        [(0, None), (1, Some(Op::Request)), (7, Some(Op::CreditRequest)), (8, None), (255, None)]
    {
        bytes[30] = number;
        assert_eq!(Header::of(&bytes).unwrap().op, op, "{number}");
    }
}

#[test]
fn one_half_is_closed_and_the_other_goes_on() {
    let (mut client, mut server) = pair();
    client.write(b"question");
    client.finish();
    assert!(!client.may_write() && client.room() == 0);
    settle(&mut client, &mut server);
    assert!(!server.has_ended(), "there is something to read");
    assert_eq!(read_all(&mut server), b"question");
    assert!(server.has_ended() && server.may_write());
    server.write(b"answer");
    settle(&mut client, &mut server);
    assert_eq!(read_all(&mut client), b"answer");
    assert!(!client.has_ended());
    // This end says that it is done with both halves, the other confirms that.
    server.close();
    settle(&mut client, &mut server);
    assert_eq!((client.end(), server.end()), (Some(End::Closed), Some(End::Closed)));
    assert!(client.has_ended());
}

#[test]
fn what_came_before_a_reset_can_be_read() {
    let (mut client, mut server) = pair();
    client.write(b"last words");
    settle(&mut client, &mut server);
    client.abort();
    settle(&mut client, &mut server);
    assert_eq!(server.end(), Some(End::Reset));
    assert_eq!(read_all(&mut server), b"last words");
    assert!(server.has_ended() && !server.may_write());
    let mut refused = Socket::connecting();
    next(&mut refused, 0).unwrap();
    refused.receive(&packet(Op::Reset), &[]).unwrap();
    assert_eq!(refused.end(), Some(End::Refused));
}

#[test]
fn a_stream_that_is_not_read_holds_what_it_has_room_for() {
    let (mut client, mut server) = pair();
    let bytes = vec![7; 2 * CAPACITY as usize];
    let mut written = client.write(&bytes);
    settle(&mut client, &mut server);
    written += client.write(&bytes);
    settle(&mut client, &mut server);
    assert_eq!((written, server.readable()), (bytes.len(), CAPACITY as usize));
    assert_eq!(client.queued(), CAPACITY as usize, "no credit is left");
    assert_eq!(server.read(&mut [0; 100]), 100);
    settle(&mut client, &mut server);
    assert_eq!(server.readable(), CAPACITY as usize, "it is told of room when it has asked for some");
    read_all(&mut server);
    settle(&mut client, &mut server);
    assert_eq!(client.queued(), 0);
}

#[test]
fn a_peer_that_breaks_the_protocol_is_found_out() {
    type Peer = dyn Fn(&mut Socket) -> Result<(), Lie>;
    let lies: [&Peer; 7] = [
        &|socket| socket.receive(&packet(Op::Data), &vec![0; CAPACITY as usize + 1]),
        &|socket| socket.receive(&Packet { fwd_cnt: 1, ..packet(Op::CreditUpdate) }, &[]),
        &|socket| {
            socket.receive(&Packet { flags: SHUTDOWN_SEND, ..packet(Op::Shutdown) }, &[])?;
            socket.receive(&packet(Op::Data), &[1])
        },
        &|socket| socket.receive(&Packet { flags: 4, ..packet(Op::Shutdown) }, &[]),
        &|socket| socket.receive(&packet(Op::Shutdown), &[]),
        &|socket| socket.receive(&packet(Op::Request), &[]),
        &|socket| socket.receive(&packet(Op::Response), &[]),
    ];
    for (number, lie) in lies.iter().enumerate() {
        let (mut client, _) = pair();
        assert!(lie(&mut client).is_err(), "lie {number}");
    }
    let mut early = Socket::connecting();
    next(&mut early, 0).unwrap();
    assert!(early.receive(&packet(Op::Data), &[1]).is_err());
    // A stream that is gone may still be spoken of.
    let (mut client, _) = pair();
    client.receive(&Packet { flags: SHUTDOWN_BOTH, ..packet(Op::Shutdown) }, &[]).unwrap();
    assert_eq!(client.end(), Some(End::Closed));
    client.receive(&packet(Op::Data), &[1]).unwrap();
    assert_eq!(client.readable(), 0);
}

#[test]
fn pieces_of_the_pattern_fit_together() {
    let len = 5 * pattern::PIECE as u64 + 77;
    let bytes = |stream, pieces: &mut dyn Iterator<Item = u64>| {
        let mut all: Vec<u8> = Vec::new();
        for most in pieces {
            let piece = pattern::piece(stream, all.len() as u64, len);
            all.extend(&piece[..piece.len().min(most as usize)]);
        }
        all
    };
    let whole = bytes(3, &mut std::iter::repeat_n(u64::MAX, 6));
    assert_eq!(whole.len() as u64, len);
    assert_eq!(bytes(3, &mut std::iter::repeat_n(1001, 82))[..], whole[..82_000.min(whole.len())]);
    assert_ne!(bytes(4, &mut std::iter::repeat_n(u64::MAX, 6)), whole);
}

proptest! {
    /// Whatever the pieces are in which two ends write, read and send: each gets what the other has written.
    #[test]
    fn streams_arrive_as_they_were_written(
        steps in proptest::collection::vec((any::<bool>(), 0..4_u8, 1..40_000_usize), 1..200)
    ) {
        let (a, b) = pair();
        let mut ends = [a, b];
        let (mut written, mut read) = ([0_u64; 2], [0_u64; 2]);
        let byte = |end: usize, at: u64| (at % 251) as u8 ^ (end as u8) << 7;
        for (first, what, amount) in steps {
            let this = usize::from(first);
            let [a, b] = &mut ends;
            let (end, other) = if this == 0 { (a, b) } else { (b, a) };
            match what {
                0 | 1 => {
                    let bytes: Vec<u8> = (0..amount as u64).map(|n| byte(this, written[this] + n)).collect();
                    written[this] += end.write(&bytes) as u64;
                }
                2 => {
                    let mut bytes = vec![0; amount];
                    let len = end.read(&mut bytes);
                    for (n, found) in bytes[..len].iter().enumerate() {
                        prop_assert_eq!(*found, byte(1 - this, read[this] + n as u64));
                    }
                    read[this] += len as u64;
                }
                _ => {
                    if let Some((packet, payload)) = next(end, amount) {
                        prop_assert!(other.receive(&packet, &payload).is_ok());
                    }
                }
            }
        }
        let [a, b] = &mut ends;
        loop {
            settle(a, b);
            let (of_a, of_b) = (read_all(a).len() as u64, read_all(b).len() as u64);
            read[0] += of_a;
            read[1] += of_b;
            if of_a + of_b == 0 {
                break;
            }
        }
        prop_assert_eq!([read[1], read[0]], written);
    }
}
