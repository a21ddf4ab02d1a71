//! Taps on real KVM, on both engines, each test in a network of its own: what hosts do to their interfaces and see of a
//! guest. Needs `ip`, `curl`, busybox, dnsmasq, and user name spaces.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::capture::{Capture, Tally};
use common::guest::Code;
use common::network::{
    GUEST, GUEST_MAC, configured, counter, curl, exchange, http, in_networks_of_their_own, metric, pattern,
    run, tap,
};
use common::process::{Running, resident_kib};
use common::{Guest, Host, eventually, small, within};
use ringlet::{MacAddress, NetworkInterface, VmState};

/// Waits until the guest answers to HTTP: a request that comes too early is asked again by TCP.
fn answers() {
    assert_eq!(curl("http://192.0.2.2/bytes/10"), (0..10).collect::<Vec<u8>>());
}

/// An address that a guest has printed.
fn printed_address(guest: &Guest) -> String {
    let printed = guest.printed();
    let (address, _) = printed.split_once("/24").expect(&printed);
    address.rsplit(' ').next().unwrap().to_owned()
}

/// What this process logs from now on.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<u8>>>);

impl Told {
    fn everything() -> Self {
        let told = Self::default();
        let writer = told.clone();
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).init();
        told
    }

    /// How many lines have this in them.
    fn count(&self, what: &str) -> usize {
        let told = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        told.lines().filter(|line| line.contains(what)).count()
    }
}

impl Write for Told {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A connection on which the guest sends more than anybody takes.
fn endless() -> TcpStream {
    let mut stream = TcpStream::connect((GUEST, 80)).unwrap();
    stream.set_read_timeout(Some(common::deadline())).unwrap();
    stream.write_all(b"GET /bytes/1000000000000 HTTP/1.0\r\n\r\n").unwrap();
    stream
}

/// A driver that offers four buffers to receive into and never looks at them: registers of virtio-mmio (virtio 1.2,
/// section 4.2.2), and a queue in memory that nobody else uses.
fn four_buffers() -> Code {
    const DEVICE: u32 = 0xD000_0000;
    const QUEUE_SEL: u32 = 0x30;
    const QUEUE_NUM: u32 = 0x38;
    const QUEUE_READY: u32 = 0x44;
    const NOTIFY: u32 = 0x50;
    const STATUS: u32 = 0x70;
    const AREAS: [(u32, u32); 3] = [(0x80, 0x18_0000), (0x90, 0x18_1000), (0xA0, 0x18_2000)];
    const DESCRIPTORS: u32 = 0x18_0000;
    const AVAILABLE: u32 = 0x18_1000;
    const BUFFERS: u32 = 0x19_0000;
    const LEN: u32 = 2048;
    let mut code = Code::new().negotiate(DEVICE);
    for index in 0..4 {
        let (at, buffer) = (DESCRIPTORS + 16 * index, BUFFERS + LEN * index);
        // VIRTQ_DESC_F_WRITE
        code = code.write32(at, buffer).write32(at + 4, 0).write32(at + 8, LEN).write32(at + 12, 2);
    }
    // VIRTQ_AVAIL_F_NO_INTERRUPT, four entries.
    code = code.write32(AVAILABLE, 4 << 16 | 1);
    code = code.write32(AVAILABLE + 4, 1 << 16).write32(AVAILABLE + 8, 3 << 16 | 2);
    code = code.write32(DEVICE + QUEUE_SEL, 0).write32(DEVICE + QUEUE_NUM, 4);
    for (register, address) in AREAS {
        code = code.write32(DEVICE + register, address).write32(DEVICE + register + 4, 0);
    }
    code = code.write32(DEVICE + QUEUE_READY, 1).write32(DEVICE + STATUS, 15).write32(DEVICE + NOTIFY, 0);
    code.print("offered").halt()
}

in_networks_of_their_own! {
    async fn hosts_reach_a_guest_by_arp_icmp_and_icmpv6(host: Host) {
        tap(1500);
        let guest = http(&host, &[]);
        let asked = run("busybox arping -c 3 -w 200 -I tap0 192.0.2.2");
        assert!(asked.contains("Received 3 repl") || asked.contains("Received 3 resp"), "{asked}");
        assert!(asked.contains("02:00:00:00:00:02"), "{asked}");
        for (command, address) in [("ping", "192.0.2.2"), ("ping6", "fd00::2")] {
            for size in [0, 56, 1400] {
                let pinged = run(&format!("busybox {command} -c 3 -W 60 -s {size} {address}"));
                assert!(pinged.contains("3 packets received"), "{size}: {pinged}");
            }
            let neighbour = run(&format!("ip neighbour show {address}"));
            assert!(neighbour.contains("02:00:00:00:00:02"), "{neighbour}");
        }
        within(guest.vm.stop()).await;
    }

    async fn a_guest_gets_its_address_from_a_dhcp_server(host: Host) {
        tap(1500);
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let settings = format!(
            "interface tap0\nstart 192.0.2.77\nend 192.0.2.77\nlease_file {}\npidfile {}\n\
             option subnet 255.255.255.0\noption router 192.0.2.1\noption lease 600\n",
            path("leases"),
            path("pid"),
        );
        std::fs::write(path("settings"), settings).unwrap();
        std::fs::write(path("leases"), "").unwrap();
        let mut server = Command::new("busybox");
        let server = server.args(["udhcpd", "-f", &path("settings")]).stdin(Stdio::null());
        let _server = Running::start(server);
        let guest = host.bundled_with(configured("http", &[]));
        guest.until_printed("ready on port 80");
        assert_eq!(printed_address(&guest), "192.0.2.77");
        exchange("192.0.2.77", 100_000, folder.path());
        within(guest.vm.stop()).await;
    }

    async fn a_guest_gets_its_address_of_ipv6_from_a_router(host: Host) {
        tap(1500);
        let mut router = Command::new("dnsmasq");
        router.args(["--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface=tap0", "--enable-ra"]);
        let _router = Running::start(router.arg("--dhcp-range=fd00::,ra-only").stdin(Stdio::null()));
        let guest = host.bundled_with(configured("http", &["ip=192.0.2.2/24", "ip=slaac"]));
        guest.until_printed("ready on port 80");
        let own = "fd00::ff:fe00:2";
        assert!(guest.printed().contains(&format!(", {own}/64, ")), "{}", guest.printed());
        exchange(&format!("[{own}]"), 100_000, tempfile::tempdir().unwrap().path());
        within(guest.vm.stop()).await;
    }

    async fn packets_are_as_long_as_the_mtu_allows(host: Host) {
        let folder = tempfile::tempdir().unwrap();
        tap(1500);
        for (mtu, word) in [(576, "offloads=off"), (1280, "offloads=off"), (9000, "offloads=off"), (576, ""), (9000, "")] {
            run(&format!("ip link set tap0 mtu {mtu}"));
            let guest = http(&host, if word.is_empty() { &[] } else { &["offloads=off"] });
            assert!(guest.printed().contains(&format!("MTU {mtu}")), "{}", guest.printed());
            let capture = Capture::of(GUEST_MAC);
            exchange("192.0.2.2", 300_000, folder.path());
            let [from_guest, to_guest] = capture.finish();
            // 14 of Ethernet; without offloads, all of a segment is used both ways. With them, segments that the guest has
            // sent one by one may come as one packet, too.
            let longest = from_guest.longest.min(if word.is_empty() { mtu + 14 } else { usize::MAX });
            assert_eq!(longest, mtu + 14, "{mtu} {word}");
            assert_eq!(to_guest.longest > mtu + 14, word.is_empty(), "{mtu} {word}: {to_guest:?}");
            within(guest.vm.stop()).await;
        }
    }

    async fn segments_of_a_stream_are_few_packets_for_the_host(host: Host) {
        tap(1500);
        let guest = http(&host, &[]);
        let sent = || metric(&host, &["ringlet_device_requests_total", "kind=\"transmit\"", "status=\"ok\""]);
        for address in ["192.0.2.2", "[fd00::2]"] {
            let before = (sent(), counter("tap0", "rx", "packets"));
            assert!(curl(&format!("http://{address}/bytes/6000000")) == pattern(6_000_000), "other bytes came");
            let (frames, packets) = (sent() - before.0, counter("tap0", "rx", "packets") - before.1);
            assert!(frames > 4000.0 && packets as f64 * 2.0 < frames, "{address}: {frames} frames in {packets} packets");
        }
        let dropped = metric(&host, &["ringlet_device_dropped_packets_total"]);
        assert!(dropped < 1.0, "{dropped} packets are dropped");
        within(guest.vm.stop()).await;
    }

    async fn checksums_are_whole_or_left_to_those_who_can(host: Host) {
        let folder = tempfile::tempdir().unwrap();
        tap(1500);
        for word in ["offloads=off", "offloads=on"] {
            let guest = http(&host, &[word]);
            let capture = Capture::of(GUEST_MAC);
            for address in ["192.0.2.2", "[fd00::2]"] {
                exchange(address, 300_000, folder.path());
            }
            let [from_guest, to_guest] = capture.finish();
            assert!(from_guest.wrong.is_empty() && to_guest.wrong.is_empty(), "{word}: {from_guest:?} {to_guest:?}");
            let left = |tally: &Tally| tally.partial > 0;
            assert_eq!((left(&from_guest), left(&to_guest)), (word == "offloads=on", word == "offloads=on"), "{word}");
            // Echoes are always whole. By themselves: of a stream, a slow capture may miss frames.
            let capture = Capture::of(GUEST_MAC);
            run("busybox ping -c 2 -W 60 192.0.2.2");
            run("busybox ping6 -c 2 -W 60 fd00::2");
            for echoes in capture.finish() {
                assert!(echoes.whole >= 4 && echoes.wrong.is_empty(), "{word}: {echoes:?}");
            }
            within(guest.vm.stop()).await;
        }
    }

    async fn a_link_that_flaps_costs_nothing_but_time(host: Host) {
        tap(1500);
        // Each loss doubles the time until TCP sends again, to more than the server's own patience.
        let guest = http(&host, &["--timeout", "3600"]);
        answers();
        let mut stream = endless();
        let mut piece = vec![0; 1 << 20];
        for _ in 0..5 {
            stream.read_exact(&mut piece).unwrap();
            run("ip link set tap0 down");
            run("ip link set tap0 up");
            answers();
        }
        // The connection has outlived that, too.
        stream.read_exact(&mut piece).unwrap();
        within(guest.vm.stop()).await;
    }

    async fn a_tap_that_is_deleted_takes_the_link_down_and_nothing_else(host: Host) {
        let told = Told::everything();
        tap(1500);
        let guest = http(&host, &[]);
        let mut stream = endless();
        let mut piece = vec![0; 1 << 20];
        stream.read_exact(&mut piece).unwrap();
        run("ip link delete tap0");
        drop(stream);
        // The guest sends again what nobody acknowledges.
        eventually("a packet is dropped because the link is down", || {
            metric(&host, &["ringlet_device_dropped_packets_total", "reason=\"link_down\""]) > 0.0
        });
        within(guest.vm.pause()).await.unwrap();
        within(guest.vm.resume()).await.unwrap();
        assert_eq!(guest.vm.state(), VmState::Running);
        assert_eq!(told.count("the link is down"), 1);
        // Another guest of the same process is none the worse.
        tap(1500);
        let other = http(&host, &[]);
        answers();
        within(other.vm.stop()).await;
        within(guest.vm.stop()).await;
        assert_eq!(told.count("the link is down"), 1);
    }

    async fn sec_02_a_guest_that_stops_reading_costs_the_host_nothing(host: Host) {
        tap(1500);
        run("ip neighbour add 192.0.2.2 lladdr 02:00:00:00:00:02 dev tap0");
        let interface = NetworkInterface::tap("net0", "tap0").mac(MacAddress(GUEST_MAC));
        let guest = host.launch_with(&four_buffers(), small().network_interface(interface));
        guest.until_printed("offered");
        let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
        let datagram = [0; 1400];
        let send = || drop(socket.send_to(&datagram, (GUEST, 9)));
        let received = || metric(&host, &["ringlet_device_requests_total", "kind=\"receive\""]);
        eventually("its buffers are full", || {
            send();
            received() >= 4.0
        });
        let busy = || metric(&host, &["ringlet_event_loop_busy_seconds_total"]);
        let (begun, busy_before, memory_before) = (Instant::now(), busy(), resident_kib());
        let mut sent = 0;
        while sent < 20_000 || begun.elapsed() < Duration::from_secs(2) {
            send();
            sent += 1;
        }
        let (spent, time) = (busy() - busy_before, begun.elapsed().as_secs_f64());
        assert!(spent < 0.2 * time, "busy for {spent} of {time} s");
        // Guest RAM is 4 MiB, and all of it may come to be used meanwhile.
        assert!(resident_kib() < memory_before + (8 << 10), "{memory_before} KiB before, {}", resident_kib());
        assert_eq!(received(), 4.0);
        assert!(counter("tap0", "tx", "dropped") > 1000, "the tap has dropped what nobody read");
        within(guest.vm.pause()).await.unwrap();
        within(guest.vm.resume()).await.unwrap();
        within(guest.vm.stop()).await;
    }
}
