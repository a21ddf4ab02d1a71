//! Several pairs of queues on real KVM, on both engines, each test in a network of its own: the guest `netbench` uses as many
//! pairs of a tap as it is told, and counts what goes through each. Needs `ip` and user name spaces.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use common::network::{GUEST, GUEST_MAC, address_tap, in_networks_of_their_own, run};
use common::{Guest, Host, eventually, within};
use ringlet::{MacAddress, NetworkInterface, VmConfig};
use ringlet_metrics::GuestErrorKind;

/// Pairs that the tap has and the guest uses.
const PAIRS: u16 = 4;

/// What a guest says of its pairs: whether it did as it was told, how many it uses, and what came in and went out through
/// each.
#[derive(Debug)]
struct Pairs {
    agreed: bool,
    used: u16,
    packets: Vec<(u64, u64)>,
}

impl Pairs {
    fn parse(line: &str) -> Self {
        let mut words = line.split_whitespace();
        let agreed = match words.next().expect(line) {
            "ok" => true,
            "no" => false,
            _ => panic!("{line}"),
        };
        let used = words.next().unwrap().parse().unwrap();
        let counts = words.map(|word| {
            let (received, sent) = word.split_once('/').expect(line);
            (received.parse().unwrap(), sent.parse().unwrap())
        });
        Self { agreed, used, packets: counts.collect() }
    }

    /// Pairs through which packets have gone both ways since `before`.
    fn busy_since(&self, before: &Self) -> Vec<bool> {
        let both = self.packets.iter().zip(&before.packets);
        both.map(|(now, before)| now.0 > before.0 && now.1 > before.1).collect()
    }
}

fn connect(command: &str) -> TcpStream {
    let mut stream = TcpStream::connect((GUEST, 5001)).unwrap();
    stream.set_read_timeout(Some(common::deadline())).unwrap();
    writeln!(stream, "{command}").unwrap();
    stream
}

/// Has the guest use so many pairs.
fn use_pairs(pairs: u16) -> Pairs {
    let mut line = String::new();
    BufReader::new(connect(&format!("pairs {pairs}"))).read_line(&mut line).unwrap();
    Pairs::parse(&line)
}

/// A request on this connection is answered.
fn ask(stream: &mut TcpStream) {
    let mut answer = [0; 1000];
    stream.write_all(&[7; 1000]).unwrap();
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, [7; 1000]);
}

/// Makes connections until packets have gone both ways through each of the first `pairs`: which one a connection takes is a
/// matter of its ports.
fn until_busy(pairs: u16) -> Pairs {
    let before = use_pairs(pairs);
    assert!(before.agreed, "{before:?}");
    let mut now = None;
    eventually("each pair carries packets both ways", || {
        for _ in 0..8 {
            ask(&mut connect("echo"));
        }
        let pairs = now.insert(use_pairs(pairs));
        pairs.busy_since(&before)[..usize::from(pairs.used)].iter().all(|busy| *busy)
    });
    let now = now.unwrap();
    // Nothing comes by the others, and nothing leaves by them.
    let unused = usize::from(pairs);
    assert_eq!(now.packets[unused..], before.packets[unused..], "{before:?} {now:?}");
    now
}

/// How many queues of the tap are attached, and how many are not.
fn attached() -> (u64, u64) {
    let text = run("ip -details -json link show tap0");
    let links: serde_json::Value = serde_json::from_str(&text).unwrap();
    let count = |what: &str| links[0]["linkinfo"]["info_data"][what].as_u64().expect(&text);
    (count("numqueues"), count("numdisabled"))
}

/// The guest `netbench` on a tap with several queues, with these words.
fn guest(host: &Host, words: &[&str]) -> Guest {
    run("ip tuntap add dev tap0 mode tap multi_queue");
    address_tap(1500);
    let interface = NetworkInterface::tap("net0", "tap0").queues(PAIRS).mac(MacAddress(GUEST_MAC));
    let config = VmConfig::new("netbench").memory_mib(64).network_interface(interface);
    let guest = host.bundled_with(config.args(["serve", "ip=192.0.2.2/24"].iter().chain(words).copied()));
    guest.until_printed("ready on port 5001");
    guest
}

in_networks_of_their_own! {
    async fn a_guest_uses_all_pairs_of_a_tap_and_fewer_or_more_of_them_when_it_likes(host: Host) {
        let guest = guest(&host, &["queues=4"]);
        assert!(guest.printed().contains("4 pairs of queues"), "{}", guest.printed());
        assert_eq!(attached(), (4, 0));
        until_busy(4);
        // A connection outlives all of that, though its packets take another pair.
        let mut lasting = connect("echo");
        for pairs in [2, 1, 3, 4] {
            ask(&mut lasting);
            let answer = use_pairs(pairs);
            assert_eq!((answer.agreed, answer.used), (true, pairs), "{answer:?}");
            assert_eq!(attached(), (u64::from(pairs), u64::from(PAIRS - pairs)));
            ask(&mut lasting);
            until_busy(pairs);
        }
        assert_eq!(guest.errors(GuestErrorKind::BadRequest), 0);
        within(guest.vm.stop()).await;
    }

    async fn streams_go_on_while_pairs_come_and_go(host: Host) {
        let guest = guest(&host, &["queues=4"]);
        const LEN: usize = 8 << 20;
        let streams: Vec<_> = (0..4).map(|_| std::thread::spawn(|| {
            let mut stream = connect("source");
            let mut bytes = vec![7; LEN];
            stream.read_exact(&mut bytes).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 0));
        })).collect();
        let mut pairs = [1, 4, 2, 3].iter().cycle();
        while !streams.iter().all(std::thread::JoinHandle::is_finished) {
            assert!(use_pairs(*pairs.next().unwrap()).agreed);
        }
        streams.into_iter().for_each(|stream| stream.join().unwrap());
        within(guest.vm.stop()).await;
    }

    async fn sec_02_pairs_that_are_not_there_are_refused_and_change_nothing(host: Host) {
        let guest = guest(&host, &["queues=4"]);
        for (refused, pairs) in [0, PAIRS + 1, 0x8000, u16::MAX].into_iter().enumerate() {
            let answer = use_pairs(pairs);
            assert_eq!((answer.agreed, answer.used), (false, PAIRS), "{pairs}: {answer:?}");
            assert_eq!(guest.errors(GuestErrorKind::BadRequest), refused as u64 + 1);
        }
        assert_eq!(attached(), (4, 0));
        until_busy(4);
        within(guest.vm.stop()).await;
    }

    async fn pairs_that_a_guest_does_not_use_keep_nothing_from_it(host: Host) {
        let guest = guest(&host, &["queues=3"]);
        assert_eq!(attached(), (3, 1));
        until_busy(3);
        within(guest.vm.stop()).await;
    }
}
