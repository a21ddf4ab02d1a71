//! Taps on real KVM under load, on both engines, each test in a network of its own: many clients of one guest, and
//! many guests on a bridge. Needs `ip`, `curl`, `wrk`, and user name spaces.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};

use common::network::{GUEST, configured, curl, http, in_networks_of_their_own, ip_batch, metric, run, tap};
use common::{Guest, Host, within};
use ringlet::{NetworkInterface, Outcome, VmConfig};

/// Guests that serve, and as many that ask them.
const PAIRS: usize = 32;
/// Bytes that a stream is made of.
const STREAM: usize = 8 << 20;

/// A stream to the guest `netbench`, and one from it; both have all of their bytes.
fn streams() {
    let mut sink = TcpStream::connect((GUEST, 5001)).unwrap();
    sink.write_all(b"sink\n").unwrap();
    sink.write_all(&vec![7; STREAM]).unwrap();
    sink.shutdown(Shutdown::Write).unwrap();
    let mut report = String::new();
    BufReader::new(sink).read_line(&mut report).unwrap();
    assert_eq!(report.split(' ').next(), Some(&*STREAM.to_string()), "{report}");
    let mut source = TcpStream::connect((GUEST, 5001)).unwrap();
    source.write_all(b"source\n").unwrap();
    let mut bytes = vec![7; STREAM];
    source.read_exact(&mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
}

/// Makes so many taps, all of them ports of a bridge.
fn bridge(taps: usize) {
    let ports = (0..taps).map(|n| {
        format!(
            "tuntap add dev tap{n} mode tap\nlink set dev tap{n} master bridge0\nlink set dev tap{n} up\n"
        )
    });
    let bridge = "link add name bridge0 type bridge forward_delay 0\nlink set dev bridge0 up\n".to_owned();
    ip_batch(&[bridge].into_iter().chain(ports).collect::<String>());
}

/// A guest `netbench` with the tap and address of this number.
fn member(host: &Host, number: usize, args: &[&str]) -> Guest {
    let ip = format!("ip=10.0.0.{}/24", number + 1);
    let interface = NetworkInterface::tap("net0", format!("tap{number}"));
    let config = VmConfig::new("netbench").memory_mib(32).network_interface(interface);
    host.bundled_with(config.args(args.iter().copied().chain([&*ip])))
}

in_networks_of_their_own! {
    async fn a_guest_serves_many_clients_at_once(host: Host) {
        tap(1500);
        let guest = http(&host, &[]);
        for path in ["", "bytes/100000"] {
            let said = run(&format!("wrk --threads 2 --connections 32 --duration 2s --timeout 100s http://192.0.2.2/{path}"));
            assert!(!said.contains("Non-2xx") && !said.contains("Socket errors"), "{said}");
            let requests = said.lines().find(|line| line.contains("requests in")).expect(&said);
            assert!(requests.trim().split(' ').next().unwrap().parse::<u64>().unwrap() > 0, "{said}");
        }
        let stats: serde_json::Value = serde_json::from_slice(&curl("http://192.0.2.2/stats")).unwrap();
        assert_eq!(stats["requests"]["bad"], 0, "{stats}");
        assert_eq!(stats["device"]["rx_dropped"], 0, "{stats}");
        assert!(stats["connections"]["accepted"].as_u64() >= Some(65), "{stats}");
        within(guest.vm.stop()).await;
    }

    async fn a_guest_streams_both_ways_at_once(host: Host) {
        tap(1500);
        let guest = host.bundled_with(configured("netbench", &["serve", "ip=192.0.2.2/24"]));
        guest.until_printed("ready on port 5001");
        std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(streams))));
        // A guest that was kept from running and has little room left is waited for.
        let dropped = metric(&host, &["ringlet_device_dropped_packets_total", "vm="]);
        assert_eq!(dropped, 0.0);
        within(guest.vm.stop()).await;
    }

    async fn many_guests_of_one_process_talk_on_a_bridge(host: Host) {
        bridge(2 * PAIRS);
        let servers: Vec<Guest> = (0..PAIRS).map(|number| member(&host, number, &["serve"])).collect();
        for server in &servers {
            server.until_printed("ready on port 5001");
        }
        let ask = |number: usize| {
            let server = format!("10.0.0.{}", number + 1);
            let mode = if number.is_multiple_of(2) { "tcp-rr" } else { "udp-rr" };
            member(&host, PAIRS + number, &[mode, "--to", &server, "--duration", "1"])
        };
        let clients: Vec<Guest> = (0..PAIRS).map(ask).collect();
        for client in &clients {
            assert_eq!(*client.outcome().await, Outcome::Exited { code: 0 }, "{}", client.printed());
            assert!(client.printed().contains("netbench-result {\"ok\":true"), "{}", client.printed());
        }
        for server in servers {
            within(server.vm.stop()).await;
        }
    }
}
