//! What the guests' network code does that needs no guest: requests, connections, checksums, addresses. The guests
//! themselves have no standard library, and so no tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]
#![allow(dead_code, unreachable_pub, reason = "the guest uses the rest")]

extern crate alloc;

#[path = "../examples/guests/kit/src/net/bytes.rs"]
mod bytes;
#[path = "../examples/guests/kit/src/net/checksum.rs"]
mod checksum;
#[path = "../examples/guests/guests/src/http/connection.rs"]
mod connection;
#[path = "../examples/guests/kit/src/net/cut.rs"]
mod cut;
#[path = "../examples/guests/kit/src/net/flow.rs"]
mod flow;
#[path = "../examples/guests/guests/src/netbench/iperf_wire.rs"]
mod iperf_wire;
#[path = "../examples/guests/guests/src/http/request.rs"]
mod request;
#[path = "../examples/guests/guests/src/http/response.rs"]
mod response;
#[path = "../examples/guests/kit/src/net/router.rs"]
mod router;
#[path = "../examples/guests/kit/src/net/segments.rs"]
mod segments;
#[path = "../examples/guests/kit/src/net/settings.rs"]
mod settings;
#[path = "../examples/guests/guests/src/http/site.rs"]
mod site;
#[path = "../examples/guests/guests/src/netbench/wire.rs"]
mod wire;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr};

use connection::{Connection, Outcome, Patience, Stream};
use cut::Cut;
use proptest::prelude::*;
use request::{HEAD_MAX, Method, Request, parse};
use response::Refusal;
use router::{Advertised, Solicitor, advertised, solicitation};
use segments::Segments;
use settings::{ADDRESSES_MAX, PAIRS_MAX, Settings};
use site::Stats;
use wire::{Command, Kind, Pace, Tally};

const SECOND: u64 = 1_000_000_000;
const PATIENCE: Patience = Patience { work: 10 * SECOND, idle: 30 * SECOND };

/// The other end of a connection.
#[derive(Default)]
struct Client {
    sent: VecDeque<u8>,
    /// It sends no more than that.
    ended: bool,
    received: Vec<u8>,
    /// Bytes that it takes before it is asked again.
    room: usize,
    /// Bytes at once, in both directions; 0: any.
    pieces: usize,
    closed: bool,
}

impl Client {
    fn of(sent: &[u8]) -> Self {
        Self { sent: sent.iter().copied().collect(), room: usize::MAX, ..Self::default() }
    }

    fn piece(&self, len: usize) -> usize {
        if self.pieces == 0 { len } else { len.min(self.pieces) }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.received).into_owned()
    }

    /// Status codes of all responses.
    fn codes(&self) -> Vec<u16> {
        self.text().split("HTTP/1.1 ").skip(1).map(|rest| rest[..3].parse().unwrap()).collect()
    }
}

impl Stream for Client {
    fn read(&mut self, into: &mut [u8]) -> usize {
        let len = self.piece(into.len()).min(self.sent.len());
        into.iter_mut().zip(self.sent.drain(..len)).for_each(|(to, from)| *to = from);
        len
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        assert!(!self.closed, "written to after it was closed");
        let len = self.piece(bytes.len()).min(self.room);
        self.room -= len;
        self.received.extend_from_slice(&bytes[..len]);
        len
    }

    fn has_ended(&self) -> bool {
        self.ended && self.sent.is_empty()
    }

    fn queued(&self) -> usize {
        0
    }

    fn close(&mut self) {
        self.closed = true;
    }

    fn is_gone(&self) -> bool {
        self.closed && self.has_ended()
    }
}

/// A connection at its start.
fn fresh() -> (Connection, Stats) {
    (Connection::new(PATIENCE, 0), Stats::default())
}

/// What a client gets that sends all this at once and then waits.
fn exchange(sent: &[u8]) -> (Client, Outcome) {
    let (mut connection, mut stats) = fresh();
    let mut client = Client::of(sent);
    let outcome = connection.advance(&mut client, &mut stats, 1);
    (client, outcome)
}

fn refusal(head: &[u8]) -> Refusal {
    parse(head).expect_err("refused")
}

fn request(head: &[u8]) -> Request<'_> {
    parse(head).expect("sound").expect("whole")
}

#[test]
fn a_head_says_what_is_asked_for() {
    let head =
        b"POST /echo?a=b HTTP/1.1\r\nHOST: a\r\ncontent-length: 12\r\nExpect: 100-Continue\r\n\r\nbody";
    let expected = Request {
        method: Method::Post,
        path: "/echo",
        len: head.len() - 4,
        body: 12,
        keep_alive: true,
        is_old: false,
        expects_continue: true,
    };
    assert_eq!(request(head), expected);
    for len in 0..expected.len {
        assert_eq!(parse(&head[..len]), Ok(None), "the first {len} bytes");
    }
}

#[test]
fn a_target_may_be_a_whole_url() {
    for (target, path) in [
        ("/", "/"),
        ("/a?b/c", "/a"),
        ("http://host/stats", "/stats"),
        ("HTTP://host:80/stats?x", "/stats"),
        ("http://host", "/"),
        ("http://host?x", "/"),
        ("*", "*"),
    ] {
        let head = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(request(head.as_bytes()).path, path, "{target}");
    }
    for target in ["stats", "ftp://host/", "host:80", "?x"] {
        let head = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(refusal(head.as_bytes()), Refusal::Malformed, "{target}");
    }
}

#[test]
fn connections_stay_as_the_version_and_the_client_say() {
    for (version, connection, stays) in [
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: TE, Close\r\n", false),
        ("1.0", "", false),
        ("1.0", "Connection: Keep-Alive\r\n", true),
        ("1.0", "Connection: keep-alive, close\r\n", false),
    ] {
        let head = format!("GET / HTTP/{version}\r\nHost: a\r\n{connection}\r\n");
        assert_eq!(request(head.as_bytes()).keep_alive, stays, "{head}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_with_its_reason() {
    let fields = |fields: &str| refusal(format!("POST /echo HTTP/1.1\r\n{fields}\r\n").as_bytes());
    assert_eq!(fields(""), Refusal::Malformed);
    assert_eq!(fields("Host: a\r\nHost: b\r\n"), Refusal::Malformed);
    for length in ["-1", "+1", "1 ", "0x1", "1,1", "", "18446744073709551616"] {
        let refused =
            parse(format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n").as_bytes())
                .map(|request| request.map(|request| request.body));
        // Spaces around a value are not part of it.
        let expected = if length == "1 " { Ok(Some(1)) } else { Err(Refusal::Malformed) };
        assert_eq!(refused, expected, "{length:?}");
    }
    assert_eq!(fields("Host: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n"), Refusal::Malformed);
    assert_eq!(fields("Host: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n"), Refusal::Malformed);
    assert_eq!(fields("Host: a\r\nTransfer-Encoding: Chunked\r\n"), Refusal::Chunked);
    assert_eq!(fields("Host: a\r\nTransfer-Encoding: gzip, chunked\r\n"), Refusal::Encoding);
    assert_eq!(fields("Host: a\r\nExpect: more\r\n"), Refusal::Expectation);
    assert_eq!(fields("Host : a\r\n"), Refusal::Malformed);
    assert_eq!(fields("Host: a\r\nFolded: a\r\n b\r\n"), Refusal::Malformed);
    assert_eq!(fields(&"A: b\r\n".repeat(65)), Refusal::TooLarge);
    assert_eq!(refusal(b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), Refusal::Malformed);
    assert_eq!(refusal(b"GET / HTTP/2.0\r\n\r\n"), Refusal::Version);
    assert_eq!(refusal(b"\x16\x03\x01\x02\x00\x01"), Refusal::Malformed);
    assert_eq!(refusal(&[b'a'; HEAD_MAX]), Refusal::TooLarge);
    assert_eq!(refusal("\r\n".repeat(HEAD_MAX / 2).as_bytes()), Refusal::TooLarge);
}

#[test]
fn requests_in_a_row_are_answered_in_a_row() {
    let (client, outcome) = exchange(
        b"GET /bytes/3 HTTP/1.1\r\nHost: a\r\n\r\nPOST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody\
          HEAD /bytes/9 HTTP/1.1\r\nHost: a\r\n\r\nGET /none HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\n",
    );
    assert_eq!(client.codes(), [200, 200, 200, 404]);
    let text = client.text();
    assert!(text.contains("\r\n\r\n\0\u{1}\u{2}HTTP/1.1"), "{text}");
    assert!(text.contains("Content-Length: 4\r\n\r\nbodyHTTP/1.1"), "{text}");
    assert!(text.contains("Content-Length: 9\r\n\r\nHTTP/1.1"), "{text}");
    assert_eq!(outcome, Outcome::Open);
    assert!(!client.closed);
}

#[test]
fn a_refusal_is_the_last_response() {
    for (sent, code) in [
        (&b"nonsense\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], 400),
        (b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n", 411),
    ] {
        let (client, _) = exchange(sent);
        assert_eq!(client.codes(), [code]);
        assert!(client.closed && client.sent.is_empty() && client.text().contains("Connection: close\r\n"));
    }
}

#[test]
fn methods_are_for_their_resources() {
    for (method, path, allow) in [
        ("POST", "/", "GET, HEAD"),
        ("GET", "/echo", "POST"),
        ("HEAD", "/echo", "POST"),
        ("DELETE", "/stats", "GET, HEAD"),
        ("PUT", "/bytes/1", "GET, HEAD"),
    ] {
        let (client, _) = exchange(format!("{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
        assert_eq!(client.codes(), [405], "{method} {path}");
        assert!(client.text().contains(&format!("Allow: {allow}\r\n")), "{method} {path}");
    }
    for path in ["/bytes/", "/bytes/-1", "/bytes/+1", "/bytes/1/", "/bytes/18446744073709551616", "/../", "*"]
    {
        let (client, _) = exchange(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
        assert_eq!(client.codes(), [404], "{path}");
    }
}

#[test]
fn bytes_are_those_that_were_asked_for_however_they_are_taken() {
    for pieces in [1, 7, 250, 251, 252, 1000, 8191] {
        let (mut connection, mut stats) = fresh();
        let mut client = Client::of(b"GET /bytes/20000 HTTP/1.0\r\n\r\n");
        client.pieces = pieces;
        connection.advance(&mut client, &mut stats, 1);
        let head = client.received.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let expected: Vec<u8> = (0..20_000_u32).map(|at| (at % 251) as u8).collect();
        assert!(client.received[head..] == expected, "in pieces of {pieces}");
        assert_eq!((stats.good, stats.bytes_out), (1, 20_000));
    }
}

#[test]
fn nothing_is_read_that_there_is_no_room_for() {
    let (mut connection, mut stats) = fresh();
    let mut sent = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n".to_vec();
    sent.resize(sent.len() + 100_000, b'x');
    let mut client = Client::of(&sent);
    client.room = 1000;
    assert_eq!(connection.advance(&mut client, &mut stats, 1), Outcome::Open);
    assert!(client.sent.len() >= 100_000 - 2 * HEAD_MAX, "{} bytes left", client.sent.len());
    client.room = usize::MAX;
    assert_eq!(connection.advance(&mut client, &mut stats, 2), Outcome::Open);
    assert!(client.sent.is_empty());
    assert_eq!(stats.bytes_out, 100_000);
}

#[test]
fn a_client_that_waits_for_100_gets_it_before_anything_else() {
    let (mut connection, mut stats) = fresh();
    let head = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";
    let mut client = Client::of(head);
    connection.advance(&mut client, &mut stats, 1);
    assert_eq!(client.received, b"HTTP/1.1 100 Continue\r\n\r\n");
    client.sent.extend(b"body");
    connection.advance(&mut client, &mut stats, 2);
    assert_eq!(client.codes(), [100, 200]);
    assert!(client.text().ends_with("\r\n\r\nbody"));
}

#[test]
fn a_body_that_nobody_wants_is_skipped_or_ends_the_connection() {
    let (client, _) = exchange(
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nGET GET /bytes/1 HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    assert_eq!(client.codes(), [200, 200]);
    let (client, _) = exchange(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 65537\r\n\r\n");
    assert!(client.closed && client.text().contains("Connection: close\r\n"));
    let (client, _) =
        exchange(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.codes(), [200]);
    assert!(client.closed);
}

#[test]
fn a_client_that_ends_in_the_middle_is_dropped() {
    let half = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbo";
    let (mut connection, mut stats) = fresh();
    let mut client = Client::of(half);
    client.ended = true;
    assert_eq!(connection.advance(&mut client, &mut stats, 1), Outcome::Abort);
    // But one that says only that it asks for no more gets its answer.
    let (mut connection, mut stats) = fresh();
    let mut client = Client::of(b"GET /bytes/5 HTTP/1.1\r\nHost: a\r\n\r\n");
    client.ended = true;
    assert_eq!(connection.advance(&mut client, &mut stats, 1), Outcome::Gone);
    assert!(client.text().ends_with("\0\u{1}\u{2}\u{3}\u{4}"));
}

#[test]
fn a_head_has_to_come_in_time() {
    let (mut connection, mut stats) = fresh();
    let mut client = Client::of(b"GET / HTTP/1.1\r\nX: ");
    let mut now = 1;
    assert_eq!(connection.advance(&mut client, &mut stats, now), Outcome::Open);
    let end = connection.deadline();
    // More bytes of it don't buy time.
    while now + SECOND < end {
        now += SECOND;
        client.sent.push_back(b'x');
        assert_eq!(connection.advance(&mut client, &mut stats, now), Outcome::Open);
        assert!(client.received.is_empty());
    }
    connection.advance(&mut client, &mut stats, end);
    assert_eq!(client.codes(), [408]);
    assert!(client.closed);
    // It has the same time again to go.
    assert_eq!(connection.advance(&mut client, &mut stats, end + PATIENCE.work), Outcome::Abort);
}

#[test]
fn a_connection_without_requests_is_closed_without_a_word() {
    let (mut connection, mut stats) = fresh();
    let mut client = Client::of(b"GET /bytes/0 HTTP/1.1\r\nHost: a\r\n\r\n");
    connection.advance(&mut client, &mut stats, 5);
    assert_eq!(connection.deadline(), 5 + PATIENCE.idle);
    let len = client.received.len();
    assert_eq!(connection.advance(&mut client, &mut stats, 5 + PATIENCE.idle), Outcome::Open);
    assert!(client.closed && client.received.len() == len);
}

#[test]
fn a_client_that_reads_too_slowly_is_dropped() {
    // (bytes a second, whether that is enough)
    for (rate, enough) in [(0, false), (10, false), (500, false), (2000, true)] {
        let (mut connection, mut stats) = fresh();
        let mut client = Client::of(b"GET /bytes/1000000 HTTP/1.1\r\nHost: a\r\n\r\n");
        client.room = 0;
        let last = (0..200).map(|second| {
            client.room = rate;
            connection.advance(&mut client, &mut stats, second * SECOND)
        });
        let aborted = last.into_iter().any(|outcome| outcome == Outcome::Abort);
        assert_eq!(aborted, !enough, "{rate} bytes a second");
    }
}

proptest! {
    /// Whatever a client sends, in whatever pieces: responses only, and in the end it is over.
    #[test]
    fn no_client_gets_the_better_of_a_connection(
        parts in proptest::collection::vec(prop_oneof![
            Just(b"GET /bytes/300 HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
            Just(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello".to_vec()),
            Just(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n".to_vec()),
            Just(b"\r\n".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..200),
        ], 0..20),
        pieces in 1_usize..300,
        room in 0_usize..5000,
        ended: bool,
    ) {
        let (mut connection, mut stats) = fresh();
        let mut client = Client::of(&parts.concat());
        (client.pieces, client.ended) = (pieces, ended);
        let mut over = false;
        for second in 0..200 {
            client.room = room;
            over = connection.advance(&mut client, &mut stats, second * SECOND) != Outcome::Open;
            if over {
                break;
            }
        }
        prop_assert!(over, "still open");
        prop_assert!(client.received.is_empty() || room < 9 || client.received.starts_with(b"HTTP/1.1 "));
    }

    #[test]
    fn requests_in_pieces_are_the_same_requests(cuts in proptest::collection::vec(1_usize..50, 1..50)) {
        let sent = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabcdefGET /bytes/2 HTTP/1.1\r\nHost: a\r\n\r\n";
        let (whole, _) = exchange(sent);
        let (mut connection, mut stats) = fresh();
        let mut client = Client::of(b"");
        let mut rest = &sent[..];
        for cut in cuts.iter().copied().chain([sent.len()]) {
            let (now, later) = rest.split_at(cut.min(rest.len()));
            client.sent.extend(now);
            rest = later;
            connection.advance(&mut client, &mut stats, 1);
        }
        prop_assert_eq!(client.received, whole.received);
    }

    /// A checksum that a device would compute is right, and one with any bit wrong is not.
    #[test]
    fn checksums_are_those_of_the_packets(
        payload in proptest::collection::vec(any::<u8>(), 0..100),
        is_tcp: bool,
        is_ipv6: bool,
        bit in 0_usize..800,
        padding in 0_usize..20,
    ) {
        let mut frame = frame(&payload, is_tcp, is_ipv6);
        let end = frame.len();
        frame.resize(end + padding, 0xaa);
        let (start, offset) = checksum::delegate(&mut frame).unwrap();
        let (start, offset) = (usize::from(start), usize::from(offset));
        prop_assert_eq!((start, offset), (if is_ipv6 { 54 } else { 34 }, if is_tcp { 16 } else { 6 }));
        let sum = !ones_sum(&frame[start..end]);
        frame[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
        prop_assert!(checksum::holds(&frame));
        let at = start + bit / 8 % (end - start);
        frame[at] ^= 1 << (bit % 8);
        // An empty field of UDP says that there is none.
        let absent = !is_tcp && frame[start + offset..start + offset + 2] == [0, 0];
        prop_assert!(absent || !checksum::holds(&frame));
    }

    /// Datagrams that go out as one are the same again when they are cut.
    #[test]
    fn datagrams_that_are_sent_as_one_are_cut_into_what_they_were(
        size in 8_usize..200,
        last in 8_usize..200,
        count in 0_usize..63,
        is_ipv6: bool,
    ) {
        let of = |nth: usize, len: usize| datagram(&vec![nth as u8; len], is_ipv6);
        let frames: Vec<_> = (0..=count).map(|nth| of(nth, size)).chain([of(count + 1, last.min(size))]).collect();
        let mut buffer = frames[0].clone();
        buffer.resize(20_000, 0);
        let mut segments = Segments::of(&frames[0]).unwrap();
        for frame in &frames[1..] {
            prop_assert!(segments.add(&mut buffer, frame) , "{segments:?}");
        }
        buffer.truncate(segments.len());
        let sizes = segments.finish(&mut buffer).unwrap();
        prop_assert_eq!(usize::from(sizes.1), size);
        prop_assert_eq!(is_ipv6 || ones_sum(&buffer[14..34]) == u16::MAX, true);
        prop_assert!(checksum::delegate(&mut buffer.clone()).is_some(), "its lengths are those of the whole");
        prop_assert_eq!(expected_of(&buffer, sizes, is_ipv6), frames.clone());
        // The driver that gets it does the same, but for the checksum of UDP, which nobody looks at.
        prop_assert_eq!(all_of(&mut buffer, sizes.1), Some(frames));
    }

    /// Whatever a device says: all data once and in order, or nothing.
    #[test]
    fn a_packet_is_cut_into_datagrams_of_any_size(
        payload in proptest::collection::vec(any::<u8>(), 0..300),
        size: u16,
        small in 0_u16..100,
        options in 0_usize..11,
        padding in 0_usize..20,
        is_ipv6: bool,
    ) {
        let packet = with_options(&datagram(&payload, is_ipv6), if is_ipv6 { 0 } else { options });
        let headers = packet.len() - payload.len();
        for size in [size, small] {
            let mut frame = [&packet[..], &vec![0xaa; padding]].concat();
            let Some(datagrams) = all_of(&mut frame, size) else {
                prop_assert!(size == 0 || payload.is_empty());
                continue;
            };
            let pieces: Vec<_> = datagrams.iter().map(|datagram| &datagram[headers..]).collect();
            prop_assert_eq!(&pieces, &payload.chunks(size.into()).collect::<Vec<_>>());
            for (datagram, data) in datagrams.iter().zip(pieces) {
                prop_assert_eq!(checksum::datagram(datagram), Some(headers - 8..datagram.len()));
                prop_assert_eq!(datagram[headers - 4..headers - 2].to_vec(), (8 + data.len() as u16).to_be_bytes());
                prop_assert!(is_ipv6 || ones_sum(&datagram[14..headers - 8]) == u16::MAX);
                prop_assert_eq!(&datagram[..14], &packet[..14]);
                prop_assert_eq!(&datagram[26..headers - 4], &packet[26..headers - 4]);
            }
        }
    }

    #[test]
    fn no_frame_confuses_the_checksums(mut frame in proptest::collection::vec(any::<u8>(), 0..120), kind in 0..4) {
        if let Some(version) = frame.get_mut(14) {
            *version = if kind & 1 == 0 { 0x45 } else { 0x60 };
        }
        if let Some(types) = frame.get_mut(12..14) {
            types.copy_from_slice(if kind & 1 == 0 { &[8, 0] } else { &[0x86, 0xdd] });
        }
        if let Some(protocol) = frame.get_mut(if kind & 1 == 0 { 23 } else { 20 }) {
            *protocol = if kind & 2 == 0 { 6 } else { 17 };
        }
        let _ = checksum::holds(&frame);
        if let Some(mut segments) = Segments::of(&frame) {
            let mut buffer = [&frame[..], &[0; 100]].concat();
            prop_assert!(segments.add(&mut buffer, &frame));
            prop_assert!(segments.len() <= buffer.len());
        }
        for size in [0, 1, 8, u16::MAX] {
            let _ = all_of(&mut frame.clone(), size);
        }
        if let Some((start, offset)) = checksum::delegate(&mut frame) {
            prop_assert!(usize::from(start) + usize::from(offset) + 2 <= frame.len());
        }
    }
}

/// An Ethernet frame of a packet whose checksum is 0.
fn frame(payload: &[u8], is_tcp: bool, is_ipv6: bool) -> Vec<u8> {
    let (protocol, header): (u8, usize) = if is_tcp { (6, 20) } else { (17, 8) };
    let len = (header + payload.len()) as u16;
    let mut frame = vec![2; 12];
    if is_ipv6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, (len >> 8) as u8, len as u8, protocol, 64]);
        frame.extend((0..32).map(|at| at * 7));
    } else {
        let total = len + 20;
        frame.extend([8, 0, 0x45, 0, (total >> 8) as u8, total as u8, 0, 0, 0x40, 0, 64, protocol, 0, 0]);
        frame.extend([10, 0, 2, 15, 192, 168, 255, 254]);
    }
    frame.extend(vec![0; header]);
    frame.extend(payload);
    frame
}

/// An Ethernet frame of a datagram whose lengths are right; of IPv4, with the header's checksum.
fn datagram(payload: &[u8], is_ipv6: bool) -> Vec<u8> {
    let mut frame = frame(payload, false, is_ipv6);
    let udp = if is_ipv6 { 54 } else { 34 };
    frame[udp + 4..udp + 6].copy_from_slice(&(8 + payload.len() as u16).to_be_bytes());
    if !is_ipv6 {
        let sum = !ones_sum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    frame
}

/// What becomes of a packet with `(headers, size)` where it is cut.
fn expected_of(frame: &[u8], (headers, size): (u16, u16), is_ipv6: bool) -> Vec<Vec<u8>> {
    let (headers, data) = frame.split_at(headers.into());
    let pieces = data.chunks(size.into()).map(|payload| {
        let mut piece = datagram(payload, is_ipv6);
        let udp = headers.len() - 8;
        // All that the lengths and checksums of each do not concern.
        piece[..16].copy_from_slice(&headers[..16]);
        piece[26..udp + 4].copy_from_slice(&headers[26..udp + 4]);
        piece
    });
    pieces.collect()
}

/// The frame with so many words of options in its header of IPv4.
fn with_options(frame: &[u8], words: usize) -> Vec<u8> {
    let mut frame = [&frame[..34], &vec![1; 4 * words], &frame[34..]].concat();
    if words > 0 {
        frame[14] += words as u8;
        let len = (frame.len() - 14) as u16;
        frame[16..18].copy_from_slice(&len.to_be_bytes());
        frame[24..26].fill(0);
        let sum = !ones_sum(&frame[14..34 + 4 * words]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    frame
}

/// What a driver makes of a packet of datagrams with `size` bytes of data.
fn all_of(frame: &mut [u8], size: u16) -> Option<Vec<Vec<u8>>> {
    let mut cut = Cut::of(frame, size)?;
    let mut datagrams = Vec::new();
    while !cut.is_done() {
        let place = cut.next(frame).expect("not done");
        datagrams.push(frame[place].to_vec());
    }
    assert_eq!(cut.next(frame), None);
    Some(datagrams)
}

#[test]
fn a_packet_that_lies_is_not_cut() {
    for is_ipv6 in [false, true] {
        let good = datagram(&[1; 200], is_ipv6);
        let (udp, kind, len) = if is_ipv6 { (54, 20, 19) } else { (34, 23, 17) };
        assert_eq!(all_of(&mut good.clone(), 64).map(|datagrams| datagrams.len()), Some(4));
        assert!(Cut::of(&good, 0).is_none(), "no size");
        assert!(Cut::of(&datagram(&[], is_ipv6), 64).is_none(), "no data");
        for end in 0..good.len() {
            assert!(Cut::of(&good[..end], 64).is_none(), "only {end} bytes are there");
        }
        // Another protocol, version and type; lengths of IP and UDP that are not the same, or not there.
        for (place, byte) in [
            (13, 6),
            (14, if is_ipv6 { 0x45 } else { 0x60 }),
            (14, 0x44),
            (kind, 6),
            (udp + 4, 255),
            (udp + 5, 7),
            (len, 9),
            (len - 1, 255),
        ] {
            let mut bad = good.clone();
            bad[place] = byte;
            assert!(Cut::of(&bad, 64).is_none(), "byte {place} is {byte}");
        }
        if !is_ipv6 {
            let mut bad = good.clone();
            bad[24] ^= 1;
            assert!(Cut::of(&bad, 64).is_none(), "the header's checksum is wrong");
        }
        // What is not the frame any more gives nothing.
        let mut cut = Cut::of(&good, 64).unwrap();
        assert_eq!(cut.next(&mut good.clone()[..80]), None);
    }
    let mut fragment = datagram(&[1; 200], false);
    fragment[20] = 0x20;
    assert!(Cut::of(&fragment, 64).is_none(), "a part of a packet");
}

#[test]
fn only_datagrams_of_one_flow_that_are_no_longer_than_the_first_are_sent_as_one() {
    for is_ipv6 in [false, true] {
        let first = datagram(&[1; 64], is_ipv6);
        let begin = || {
            let mut buffer = first.clone();
            buffer.resize(14 + 40 + 8 + 64 * 3, 0);
            (Segments::of(&first).unwrap(), buffer)
        };
        let (mut segments, mut buffer) = begin();
        assert_eq!(segments.finish(&mut buffer), None, "one is what it is");
        assert_eq!(buffer[..first.len()], first);
        assert!(!segments.add(&mut buffer, &datagram(&[2; 65], is_ipv6)), "a longer one");
        assert!(segments.add(&mut buffer, &datagram(&[2; 63], is_ipv6)));
        assert!(!segments.add(&mut buffer, &datagram(&[2; 63], is_ipv6)), "one behind the last");
        let (mut segments, mut buffer) = begin();
        assert!(segments.add(&mut buffer, &first) && segments.add(&mut buffer, &first));
        let room = buffer.len() - segments.len();
        assert_eq!(segments.add(&mut buffer, &first), room >= 64, "one for which there is no room");
        // Addresses, class of traffic, hops, ports.
        let places = if is_ipv6 { [0, 6, 15, 21, 22, 53, 54, 57] } else { [0, 6, 15, 22, 26, 33, 34, 37] };
        for place in places {
            let (mut segments, mut buffer) = begin();
            let mut other = first.clone();
            other[place] ^= 1;
            assert!(!segments.add(&mut buffer, &other), "byte {place} is another");
        }
        let udp = if is_ipv6 { 54 } else { 34 };
        let kind = if is_ipv6 { 20 } else { 23 };
        for (place, byte) in
            [(13, 6), (14, 0x46), (kind, 6), (udp + 5, 71), (if is_ipv6 { 19 } else { 17 }, 9)]
        {
            let mut other = first.clone();
            other[place] = byte;
            assert_eq!(Segments::of(&other), None, "byte {place} is {byte}");
        }
        assert_eq!(Segments::of(&datagram(&[1; 7], is_ipv6)), None, "too little");
        assert_eq!(Segments::of(&[&first[..], &[0]].concat()), None, "more than the packet");
    }
    let mut fragment = datagram(&[1; 64], false);
    fragment[20] = 0x60;
    assert_eq!(Segments::of(&fragment), None);
    fragment[20] = 0;
    assert_eq!(Segments::of(&fragment), None, "it may be taken apart on its way");
}

/// The sum of RFC 1071, as its text has it.
fn ones_sum(bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(0_u16, |sum, pair| {
        let word = u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]);
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    })
}

#[test]
fn parts_of_packets_and_others_have_no_checksum_to_compute() {
    let mut fragment = frame(b"abc", true, false);
    fragment[20] = 0x20;
    assert_eq!(checksum::delegate(&mut fragment), None);
    let mut icmp = frame(b"abc", true, false);
    icmp[23] = 1;
    assert_eq!(checksum::delegate(&mut icmp), None);
    let mut arp = frame(b"abc", true, false);
    arp[13] = 6;
    assert_eq!(checksum::delegate(&mut arp), None);
    assert!(checksum::holds(&arp));
}

#[test]
fn frames_of_a_connection_have_a_flow_in_common_and_connections_do_not() {
    for is_ipv6 in [false, true] {
        let of_ports = |from: u16, to: u16, payload: &[u8]| {
            let mut frame = frame(payload, true, is_ipv6);
            let ports = if is_ipv6 { 54 } else { 34 };
            frame[ports..ports + 2].copy_from_slice(&from.to_be_bytes());
            frame[ports + 2..ports + 4].copy_from_slice(&to.to_be_bytes());
            flow::of(&frame)
        };
        // Whatever the numbers of ports have in common: the kernel gives out every second one first.
        for step in [1, 2, 16] {
            for pairs in 2..=8 {
                let mut taken = [0; 8];
                for port in 0..256 {
                    let flow = of_ports(5001, 40_000 + port * step, b"first");
                    assert_eq!(flow, of_ports(5001, 40_000 + port * step, b"something else"));
                    taken[flow as usize % pairs] += 1;
                }
                let even = 256 / pairs as u32;
                assert!(taken[..pairs].iter().all(|taken| *taken > even / 3), "{step}, {pairs}: {taken:?}");
            }
        }
    }
}

#[test]
fn what_has_no_ports_has_a_flow_by_its_addresses() {
    let mut fragment = frame(b"abc", true, false);
    fragment[20] = 0x20;
    let mut rest = frame(b"other", true, false);
    rest[21] = 1;
    rest[36] ^= 255;
    assert_eq!(flow::of(&fragment), flow::of(&rest));
    assert_ne!(flow::of(&fragment), flow::of(&frame(b"abc", true, false)));
    let mut arp = frame(b"abc", true, false);
    arp[13] = 6;
    assert_eq!(flow::of(&arp), 0);
    for is_ipv6 in [false, true] {
        let whole = frame(b"abc", true, is_ipv6);
        for len in 0..whole.len() {
            let _ = flow::of(&whole[..len]);
        }
    }
}

fn settings(words: &str) -> Result<Settings, &'static str> {
    Settings::of(words.split(' ')).map_err(|senseless| senseless.0)
}

#[test]
fn addresses_are_taken_from_words() {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    assert_eq!(settings("console=ttyS0 quiet").unwrap(), Settings::default());
    let both = settings("ip=10.0.2.15/24 gw=10.0.2.2 ip=fd00::2/64 gw=fd00::1 net=1 offloads=off").unwrap();
    assert_eq!(both.addresses, [(ip("10.0.2.15"), 24), (ip("fd00::2"), 64)]);
    assert_eq!(both.gateways, [ip("10.0.2.2"), ip("fd00::1")]);
    assert_eq!((both.device, both.offloads, both.dhcp), (1, false, false));
    assert_eq!((both.queues, settings("queues=8").unwrap().queues), (1, PAIRS_MAX));
    assert_eq!(settings("dns=10.0.2.3").unwrap().resolvers, [ip("10.0.2.3")]);
    assert!(settings("ip=fd00::2/64").unwrap().dhcp, "IPv6 alone leaves IPv4 to DHCP");
    assert!(settings("ip=10.0.0.1/8 ip=dhcp").unwrap().dhcp);
    let linux = settings("ip=172.16.0.2::172.16.0.1:255.255.255.252::eth0:off").unwrap();
    assert_eq!(linux.addresses, [(ip("172.16.0.2"), 30)]);
    assert_eq!(linux.gateways, [ip("172.16.0.1")]);
}

#[test]
fn addresses_that_make_no_sense_are_told() {
    for word in [
        "ip=",
        "ip=1.2.3.4",
        "ip=SLAAC",
        "ip=1.2.3.4/33",
        "ip=1.2.3/8",
        "ip=::1/129",
        "ip=224.0.0.1/8",
        "ip=0.0.0.0/0",
        "ip=1.2.3.4:::255.0.255.0",
        "gw=",
        "gw=1.2.3.4/8",
        "gw=1.2.3.4 gw=1.2.3.5",
        "net=-1",
        "offloads=maybe",
        "queues=0",
        "queues=9",
        "dns=server",
        "dns=10.0.0.1 dns=10.0.0.2",
    ] {
        assert!(settings(word).is_err(), "{word}");
    }
    let many = ["ip=10.0.0.1/8"; ADDRESSES_MAX + 1].join(" ");
    assert!(settings(&many).is_err());
}

#[test]
fn routers_are_asked_where_nothing_is_given_or_an_answer_is_wanted() {
    for (words, asks) in [
        ("", true),
        ("ip=dhcp dns=10.0.2.3", true),
        ("ip=10.0.0.1/8", false),
        ("ip=fd00::2/64", false),
        ("gw=fe80::1", false),
        ("ip=10.0.0.1/8 ip=slaac", true),
    ] {
        let settings = settings(words).unwrap();
        assert_eq!(settings.asks_routers(), asks, "{words}");
        assert_eq!(settings.slaac, words.contains("slaac"));
    }
}

const ROUTER_MAC: [u8; 6] = [2, 0, 10, 0, 2, 2];

/// The sum of an ICMPv6 packet and its pseudo header, from the first byte of IPv6 on.
fn icmpv6_sum(packet: &[u8]) -> u16 {
    let length = (packet.len() - 40) as u32;
    ones_sum(&[&packet[8..40], &length.to_be_bytes(), &[0, 0, 0, 58], &packet[40..]].concat())
}

/// A frame with a message of ICMPv6 from `source`, whose checksum is right.
fn icmpv6(source: &str, hop_limit: u8, mut message: Vec<u8>) -> Vec<u8> {
    let source: Ipv6Addr = source.parse().unwrap();
    let all_nodes: Ipv6Addr = "ff02::1".parse().unwrap();
    let length = (message.len() as u16).to_be_bytes();
    let header =
        [&[0x60, 0, 0, 0], &length[..], &[58, hop_limit], &source.octets(), &all_nodes.octets()].concat();
    let sum = !icmpv6_sum(&[&header[..], &message].concat());
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    [&[0x33, 0x33, 0, 0, 0, 1], &ROUTER_MAC[..], &[0x86, 0xdd], &header, &message].concat()
}

/// An advertisement that leads for so many seconds, with these options.
fn advertisement(lifetime: u16, options: &[&[u8]]) -> Vec<u8> {
    let [high, low] = lifetime.to_be_bytes();
    [&[134, 0, 0, 0, 255, 0, high, low, 0, 0, 0, 0, 0, 0, 0, 0], &options.concat()[..]].concat()
}

/// The option that tells of a network (RFC 4861, section 4.6.2).
fn prefix(network: &str, bits: u8, flags: u8, seconds: u32) -> Vec<u8> {
    let network: Ipv6Addr = network.parse().unwrap();
    [&[3, 4, bits, flags], &seconds.to_be_bytes()[..], &[0; 8], &network.octets()].concat()
}

#[test]
fn routers_are_asked_three_times_and_no_more_once_one_has_answered() {
    let mut solicitor = Solicitor::new(5);
    let mut times = Vec::new();
    while let Some(at) = solicitor.due() {
        times.push((at - 5) / SECOND);
        solicitor.asked(at);
    }
    assert_eq!(times, [0, 4, 8]);
    let mut solicitor = Solicitor::new(5);
    solicitor.asked(5);
    solicitor.answered();
    assert_eq!(solicitor.due(), None);

    let frame = solicitation([2, 0, 0, 0, 0, 7]);
    assert_eq!(frame[..14], [0x33, 0x33, 0, 0, 0, 2, 2, 0, 0, 0, 0, 7, 0x86, 0xdd]);
    let packet = &frame[14..];
    assert_eq!((packet[..4].to_vec(), &packet[4..8]), (vec![0x60, 0, 0, 0], &[0, 16, 58, 255][..]));
    assert_eq!(packet[8..24], "fe80::ff:fe00:7".parse::<Ipv6Addr>().unwrap().octets());
    assert_eq!(packet[24..40], "ff02::2".parse::<Ipv6Addr>().unwrap().octets());
    assert_eq!((packet[40], &packet[48..]), (133, &[1, 1, 2, 0, 0, 0, 0, 7][..]));
    assert_eq!(icmpv6_sum(packet), u16::MAX);
}

#[test]
fn what_a_router_advertises_is_understood() {
    let router = "fe80::2".parse().unwrap();
    let network = |text: &str| Some((text.parse().unwrap(), true));
    let (mtu, source) = ([5, 1, 0, 0, 0, 0, 5, 0xdc], [1, 1, 2, 0, 10, 0, 2, 2]);
    let own = prefix("fd00:10:0:2::", 64, 0xc0, 86400);
    for (lifetime, options, expected) in [
        (1800, vec![], Advertised { router, leads: true, network: None }),
        (0, vec![&mtu[..]], Advertised { router, leads: false, network: None }),
        (
            1800,
            vec![&mtu, &own, &source],
            Advertised { router, leads: true, network: network("fd00:10:0:2::") },
        ),
        // Not for addresses, of another length, of the link, then one that is right.
        (
            1,
            vec![
                &*prefix("fd01::", 64, 0x80, 9),
                &prefix("fd02::", 56, 0xc0, 9),
                &prefix("fe80::", 64, 0xc0, 9),
                &prefix("fd03::", 64, 0x40, 9),
            ],
            Advertised { router, leads: true, network: network("fd03::") },
        ),
        (
            1,
            vec![&*prefix("fd04::", 64, 0xc0, 0)],
            Advertised { router, leads: true, network: Some(("fd04::".parse().unwrap(), false)) },
        ),
    ] {
        let frame = icmpv6("fe80::2", 255, advertisement(lifetime, &options));
        assert_eq!(advertised(&frame), Some(expected), "{options:?}");
        // A short frame is as long as Ethernet wants it.
        assert_eq!(advertised(&[&frame[..], &[0; 9]].concat()), Some(expected));
    }
}

#[test]
fn what_is_no_routers_advertisement_is_not_believed() {
    let own = prefix("fd00::", 64, 0xc0, 9);
    let good = icmpv6("fe80::2", 255, advertisement(1800, &[&own]));
    assert!(advertised(&good).is_some());
    for (what, frame) in [
        ("from elsewhere", icmpv6("fe80::2", 254, advertisement(1800, &[&own]))),
        ("from no address of the link", icmpv6("fd00::2", 255, advertisement(1800, &[&own]))),
        (
            "an option without a length",
            icmpv6("fe80::2", 255, advertisement(1800, &[&[3, 0, 64, 0xc0, 0, 0, 0, 0]])),
        ),
        ("an option that is cut off", icmpv6("fe80::2", 255, advertisement(1800, &[&own[..24]]))),
        ("a solicitation", icmpv6("fe80::2", 255, [&[133][..], &advertisement(1800, &[])[1..]].concat())),
        ("too short", icmpv6("fe80::2", 255, advertisement(1800, &[])[..12].to_vec())),
    ] {
        assert_eq!(advertised(&frame), None, "{what}");
    }
    for len in 0..good.len() {
        assert_eq!(advertised(&good[..len]), None, "{len}");
    }
    // Any byte of the packet that is another: the checksum, which says nothing of some fields of IPv6, or the field itself.
    for at in (12..good.len()).filter(|at| !(15..18).contains(at)) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        assert_eq!(advertised(&bad), None, "{at}");
    }
}

#[test]
fn the_sides_of_netbench_understand_each_other() {
    for command in [Command::Sink, Command::Source, Command::Echo, Command::Pairs(65535)] {
        assert_eq!(Command::parse(command.to_string().as_bytes()), Some(command));
    }
    assert_eq!(Command::parse(b"sink "), None);
    assert_eq!(wire::report(b"12 34"), Some((12, 34)));
    for line in [&b""[..], b"12", b"12 ", b"-1 2", b"1 2 3", b"\xff 1"] {
        assert_eq!(wire::report(line), None, "{line:?}");
    }
    for kind in [Kind::Data, Kind::Echo, Kind::Reply, Kind::Send, Kind::Query, Kind::Report] {
        let header = wire::Header { kind, flow: 1 << 63, number: 2, first: 3, second: u64::MAX };
        let mut bytes = header.encode().to_vec();
        assert_eq!(wire::Header::parse(&bytes[..wire::HEADER - 1]), None);
        bytes.extend(b"payload");
        assert_eq!(wire::Header::parse(&bytes), Some(header));
        bytes[4] = 6;
        assert_eq!(wire::Header::parse(&bytes), None);
    }
}

#[test]
fn datagrams_are_counted_and_paced() {
    let mut tally = Tally::default();
    for (number, now) in [(0, 100), (1, 110), (4, 120), (3, 130), (4, 140), (u64::MAX, 150), (5, 160)] {
        tally.add(number, 10, now);
    }
    // The 3, the second 4 and the 5 came after a higher one.
    assert_eq!((tally.packets, tally.bytes, tally.late, tally.nanoseconds()), (7, 70, 3, 60));
    let pace = Pace::new(1000, 5);
    assert_eq!((pace.at(0), pace.at(1), pace.at(2500)), (5, 1_000_005, 2_500_000_005));
    assert_eq!(Pace::new(0, 5).at(u64::MAX), 5);
    assert_eq!(Pace::new(1, 5).at(u64::MAX), u64::MAX);
}

#[test]
fn what_iperf3_wants_is_understood_or_refused() {
    use iperf_wire::{Parameters, Refusal};
    let parse = |text: &str| Parameters::parse(text.as_bytes(), 1472);
    let tcp = parse(r#"{"tcp":true,"omit":0,"time":10,"parallel":1,"len":131072,"client_version":"3.12"}"#);
    let expected = Parameters { is_udp: false, up: 1, down: 0, len: 131_072, rate: 0, wide: false };
    assert_eq!(tcp, Ok(expected));
    let reverse = parse(r#"{"tcp":true,"parallel":4,"reverse":true,"len":1}"#).unwrap();
    assert_eq!((reverse.up, reverse.down), (0, 4));
    let udp = r#"{"udp":true,"parallel":2,"bidirectional":1,"len":1000,"bandwidth":8000000,"udp_counters_64bit":1}"#;
    let expected = Parameters { is_udp: true, up: 2, down: 2, len: 1000, rate: 1000, wide: true };
    assert_eq!(parse(udp), Ok(expected));
    assert_eq!(parse(r#"{"udp":true,"len":1472,"bandwidth":1}"#).unwrap().rate, 1, "never none at all");
    for (text, refusal) in [
        ("", Refusal::Parameters),
        ("{}", Refusal::Parameters),
        ("[1]", Refusal::Parameters),
        (r#"{"sctp":true,"len":1}"#, Refusal::Parameters),
        (r#"{"tcp":true,"udp":true,"len":1000}"#, Refusal::Parameters),
        (r#"{"tcp":true,"len":0}"#, Refusal::Length),
        (r#"{"tcp":true,"len":-1}"#, Refusal::Length),
        (r#"{"udp":true,"len":15}"#, Refusal::Length),
        (r#"{"udp":true,"len":1473}"#, Refusal::Length),
        (r#"{"tcp":true,"len":1,"parallel":0}"#, Refusal::Streams),
        (r#"{"tcp":true,"len":1,"parallel":17}"#, Refusal::Streams),
    ] {
        assert_eq!(parse(text), Err(refusal), "{text}");
    }
    // However deep, it is no stack that overflows.
    assert_eq!(parse(&"[".repeat(60_000)), Err(Refusal::Parameters));
}

#[test]
fn messages_of_iperf3_have_a_length_that_is_bounded() {
    use iperf_wire::{MESSAGE_MAX, Refusal, message};
    let whole = b"\0\0\0\x02{}rest";
    for len in 0..6 {
        assert_eq!(message(&whole[..len]), Ok(None));
    }
    assert_eq!(message(whole), Ok(Some((&b"{}"[..], 6))));
    assert_eq!(message(&(MESSAGE_MAX as u32 + 1).to_be_bytes()), Err(Refusal::Parameters));
    assert_eq!(message(&[255; 4]), Err(Refusal::Parameters));
}

#[test]
fn datagrams_of_iperf3_are_counted_as_it_counts_them() {
    use iperf_wire::{Flow, HEADER, ids, results};
    for wide in [false, true] {
        let (mut sender, mut receiver) = (Flow::default(), Flow::default());
        let datagrams: Vec<Vec<u8>> = (0..10)
            .map(|number| {
                let mut datagram = vec![0; 100];
                sender.send(&mut datagram, wide, number * 1_000_000_000);
                datagram
            })
            .collect();
        // One comes late, one not at all.
        for number in [0, 1, 3, 4, 2, 6, 7, 8, 9] {
            assert!(receiver.receive(&datagrams[number], wide, number as u64 * 1_000_000_000 + 5));
        }
        assert_eq!((sender.packets, sender.bytes), (10, 1000));
        assert_eq!((receiver.packets, receiver.lost, receiver.bytes), (10, 1, 900));
        let shortest = if wide { HEADER } else { HEADER - 4 };
        assert!(!receiver.receive(&datagrams[0][..shortest - 1], wide, 0));
        assert_eq!(receiver.bytes, 900);
        // Numbers that lie are numbers all the same.
        assert!(receiver.receive(&[255; 100], wide, u64::MAX) && receiver.receive(&[0; 100], wide, 0));
        let message = results(&[sender, receiver], &[1, 3], 2_500_000_000);
        let text: serde_json::Value = serde_json::from_slice(&message[4..]).unwrap();
        assert_eq!(message[..4], (message.len() as u32 - 4).to_be_bytes());
        assert_eq!((&text["streams"][0]["packets"], &text["streams"][1]["id"]), (&10.into(), &3.into()));
        assert_eq!(ids(&message[4..], 2), Some(vec![1, 3]));
        assert_eq!(ids(&message[4..], 1), None);
    }
}
