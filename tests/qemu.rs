//! The bundled images on another VMM: QEMU's `microvm` machine under software emulation, so that it runs anywhere.
//!
//! `hostile` is left out: it is made to break VMMs, and some of its seeds end in assertions of QEMU.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use ringlet::images;

/// A QEMU that boots `image`; `append` is its whole command line.
fn qemu(image: &str, append: &str) -> (tempfile::NamedTempFile, Command) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), images::find(image).unwrap().bytes).unwrap();
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args([
            "-M",
            "microvm",
            "-accel",
            "tcg,thread=single",
            "-smp",
            "2",
            "-m",
            "64",
            "-nodefaults",
            "-no-reboot",
        ])
        .args(["-display", "none", "-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        .arg("-kernel")
        .arg(file.path())
        .args(["-append", append])
        .stdin(Stdio::null());
    (file, command)
}

/// What the guest printed and its exit code, of which QEMU's debug port keeps 7 bits.
fn run(image: &str, append: &str) -> (String, i32) {
    let (_file, mut command) = qemu(image, append);
    finish(image, &mut command)
}

/// As [`run`], of a machine that is ready to start.
fn finish(image: &str, command: &mut Command) -> (String, i32) {
    let output = command.output().expect("qemu-system-x86_64 is needed: apt-get install qemu-system-x86");
    let errors = String::from_utf8_lossy(&output.stderr);
    let status = output.status.code().unwrap_or_else(|| panic!("{image}: {errors}"));
    assert_eq!(status & 1, 1, "{image} did not write to the exit port: {errors}");
    (String::from_utf8_lossy(&output.stdout).into_owned(), status >> 1)
}

#[test]
fn every_image_that_ends_runs_on_qemu() {
    for ring in ["", "ring0 "] {
        for (image, append, text, code) in [
            ("hello", "-- \"an argument\"", "argument: an argument", 0),
            ("hello", "", "primes below 10000: 1229", 0),
            ("exit", "-- \"5\"", "", 5),
            ("alloc", "", "MiB touched", 0),
            ("smp", "ringlet.vcpus=2", "on 2 cpus", 0),
            ("spin", "-- \"1\"", "", 0),
            ("fault", "-- \"ud\"", "#UD", 134 & 0x7f),
        ] {
            let append = format!("{ring}{append}");
            let (printed, status) = run(image, &append);
            assert!(printed.contains(text), "{image} {append}: {printed}");
            assert_eq!(status, code, "{image} {append}: {printed}");
        }
    }
}

#[test]
fn the_image_that_sleeps_comes_up_on_qemu() {
    let (_file, mut command) = qemu("idle", "");
    let mut child = command.stdout(Stdio::piped()).spawn().expect("apt-get install qemu-system-x86");
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(line.trim_end(), "idle");
}

/// Where this machine has its eight places for devices when it has no ACPI, and their pins.
fn places() -> String {
    (0..8)
        .map(|index| format!("virtio_mmio.device=512@{:#x}:{} ", 0xfeb0_0000_u64 + 512 * index, 5 + index))
        .collect()
}

/// A machine whose devices are there, and not legacy ones.
const MMIO: [&str; 4] =
    ["-machine", "acpi=off,auto-kernel-cmdline=off", "-global", "virtio-mmio.force-legacy=false"];

/// Our driver's side of virtio against devices that are not ours.
#[test]
fn blkbench_verifies_a_disk_on_qemu() {
    let places = places();
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(16 << 20).unwrap();
    let drive = format!("file={},if=none,id=disk,format=raw,discard=unmap", disk.path().display());
    for driver in ["ring", "crate"] {
        let options = format!(r#""--verify" "--mode" "randrw" "--total" "4M" "--driver" "{driver}""#);
        let (_file, mut command) = qemu("blkbench", &format!("{places}-- {options}"));
        command.args(MMIO).args(["-drive", &drive, "-device", "virtio-blk-device,drive=disk"]);
        let (printed, status) = finish("blkbench", &mut command);
        assert_eq!(status, 0, "{driver}: {printed}");
        let result = printed.lines().find_map(|line| line.strip_prefix("blkbench-result ")).expect(&printed);
        let result: serde_json::Value = serde_json::from_str(result).unwrap();
        assert_eq!(result["ok"], true, "{printed}");
        let bytes = (result["reads"].as_u64().unwrap() + result["writes"].as_u64().unwrap()) * 4096;
        assert_eq!(bytes, 4 << 20, "{printed}");
        assert!(result["verified"].as_u64().unwrap() > 100, "{printed}");
        assert!(result["interrupts"].as_u64().unwrap() > 0, "{printed}");
    }
    let written = std::fs::read(disk.path()).unwrap();
    assert!(written.chunks(512).any(|sector| sector.starts_with(b"blkbench")));
}

/// A guest that serves, and the port of this machine that leads to it; killed when dropped.
struct Served {
    child: std::process::Child,
    port: u16,
    _image: tempfile::NamedTempFile,
    /// What it printed until it was ready.
    printed: Vec<String>,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Served {
    /// The guest `http` with a network card of these options, for so many connections.
    fn start(words: &str, card: &str, connections: usize) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (image, mut command) = qemu(
            "http",
            &format!(r#"{}{words} -- "--timeout" "60" "--connections" "{connections}""#, places()),
        );
        let network = format!("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{free}-10.0.2.15:80");
        command.args(MMIO).args(["-netdev", &network]);
        command.args(["-device", &format!("virtio-net-device,netdev=net{card}")]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("apt-get install qemu-system-x86");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut served = Self { child, port: free, _image: image, printed: Vec::new() };
        for line in lines {
            served.printed.push(line.unwrap());
            if served.printed.last().unwrap().starts_with("http: ready") {
                return served;
            }
        }
        panic!("the guest ended: {:?}", served.printed);
    }

    /// What curl prints about this path.
    fn curl(&self, options: &[&str], path: &str) -> Vec<u8> {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "120", "--noproxy", "*"])
            .args(options)
            .arg(format!("http://127.0.0.1:{}{path}", self.port))
            .output()
            .expect("curl is needed: apt-get install curl");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "curl {options:?} {path}: {errors}");
        output.stdout
    }
}

/// The network of the guests against a device that is not ours, with and without what it offers.
#[test]
fn http_serves_curl_on_qemu() {
    for (words, card) in [
        ("", ""),
        ("ip=10.0.2.15/24 gw=10.0.2.2", ",mrg_rxbuf=off,event_idx=off"),
        ("ip=10.0.2.15/24 offloads=off", ",mq=off,host_mtu=1400"),
    ] {
        let served = Served::start(words, card, 64);
        assert!(served.printed[0].contains("10.0.2.15/24"), "{:?}", served.printed);
        let expected: Vec<u8> = (0..300_000_u32).map(|at| (at % 251) as u8).collect();
        assert!(served.curl(&[], "/bytes/300000") == expected, "{card}: other bytes");
        let body = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(body.path(), &expected).unwrap();
        let data = format!("@{}", body.path().display());
        let back = served.curl(&["--data-binary", &data, "-H", "Expect: 100-continue"], "/echo");
        assert!(back == expected, "{card}: other bytes came back");
        let refused =
            served.curl(&["-H", "Transfer-Encoding: chunked", "-d", "x", "-w", "%{http_code}"], "/echo");
        assert!(refused.ends_with(b"411"), "{}", String::from_utf8_lossy(&refused));
        let head = String::from_utf8(served.curl(&["--head"], "/")).unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        let stats: serde_json::Value = serde_json::from_slice(&served.curl(&[], "/stats")).unwrap();
        assert_eq!(
            (&stats["requests"]["good"], &stats["requests"]["bad"]),
            (&3.into(), &1.into()),
            "{stats}"
        );
        assert_eq!(stats["body_bytes"], serde_json::json!({"in": 300_000, "out": 600_000}), "{stats}");
        assert!(stats["device"]["interrupts"].as_u64().unwrap() > 0, "{stats}");
    }
}

/// Streams and requests between the guest and this machine, by both protocols. The peer here does what a peer has to.
#[test]
fn netbench_measures_a_peer_on_qemu() {
    use std::net::{TcpListener, UdpSocket};
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind(("127.0.0.1", tcp.local_addr().unwrap().port())).unwrap();
    let port = tcp.local_addr().unwrap().port().to_string();
    std::thread::spawn(move || tcp.incoming().for_each(|stream| drop(peer_of_tcp(stream.unwrap()))));
    std::thread::spawn(move || peer_of_udp(&udp));
    for mode in ["tcp-send", "tcp-receive", "tcp-rr", "udp-send", "udp-receive", "udp-rr"] {
        // The host as the guest of QEMU's network sees it.
        let options =
            format!(r#""{mode}" "--to" "10.0.2.2" "--port" "{port}" "--duration" "1" "--rate" "500""#);
        let (_image, mut command) = qemu("netbench", &format!("{}-- {options}", places()));
        command.args(MMIO).args(["-netdev", "user,id=net", "-device", "virtio-net-device,netdev=net"]);
        let (printed, status) = finish("netbench", &mut command);
        assert_eq!(status, 0, "{mode}: {printed}");
        let result = printed.lines().find_map(|line| line.strip_prefix("netbench-result ")).expect(&printed);
        let result: serde_json::Value = serde_json::from_str(result).unwrap();
        let count = |name: &str| result[name].as_u64().unwrap();
        assert!(count("bytes") > 0 && count("interrupts") > 0, "{printed}");
        assert_eq!(count("requests") > 0, mode.ends_with("-rr"), "{printed}");
        assert_eq!(count("p50_ns") > 0, mode.ends_with("-rr"), "{printed}");
        assert_eq!(count("datagrams") > 0, mode.starts_with("udp"), "{printed}");
    }
}

/// Does what the first line of a connection asks for (examples/guests/guests/src/netbench/wire.rs).
fn peer_of_tcp(mut stream: std::net::TcpStream) -> std::io::Result<()> {
    use std::io::{Read, Write};
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 && byte != *b"\n" {
        line.extend(byte);
    }
    let mut buffer = vec![0; 65536];
    let (mut bytes, start) = (0, std::time::Instant::now());
    loop {
        match &line[..] {
            b"source" => stream.write_all(&buffer)?,
            _ => match stream.read(&mut buffer)? {
                0 => break,
                len if line == b"echo" => stream.write_all(&buffer[..len])?,
                len => bytes += len,
            },
        }
    }
    if line == b"sink" { writeln!(stream, "{bytes} {}", start.elapsed().as_nanos()) } else { Ok(()) }
}

/// Counts datagrams, sends them back, sends some, and tells how many there were.
fn peer_of_udp(socket: &std::net::UdpSocket) {
    const DATA: u8 = 0;
    let mut buffer = [0; 2048];
    let mut counted = 0_u64;
    while let Ok((len, from)) = socket.recv_from(&mut buffer) {
        let (datagram, mut sent) = (&mut buffer[..len], 0);
        match datagram[4] {
            DATA => counted += 1,
            // Echo, and its reply.
            1 => (datagram[4], sent) = (2, 1),
            // Send, which may be asked for again: a few at once are enough.
            3 if counted == 0 => (datagram[4], sent, counted) = (DATA, 20, 20),
            // Query, and the report.
            4 => {
                datagram[4] = 5;
                datagram[16..24].copy_from_slice(&counted.to_be_bytes());
                // Of so many nanoseconds.
                datagram[32..40].copy_from_slice(&1_000_000_u64.to_be_bytes());
                (sent, counted) = (1, 0);
            }
            _ => {}
        }
        for number in 0..sent {
            if datagram[4] == DATA {
                datagram[16..24].copy_from_slice(&u64::to_be_bytes(number));
            }
            let _ = socket.send_to(datagram, from);
        }
    }
}

/// More connections than the guest has room for, and clients that say nothing, keep nobody out for good.
#[test]
fn http_outlives_its_clients_on_qemu() {
    use std::io::{Read, Write};
    let served = Served::start("ip=10.0.2.15/24", "", 4);
    let connect = || {
        let stream = std::net::TcpStream::connect(("127.0.0.1", served.port)).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(120))).unwrap();
        stream
    };
    let silent: Vec<_> = (0..8).map(|_| connect()).collect();
    drop(silent);
    // Connections that are refused or torn down meanwhile are what is expected.
    let answer = || {
        let mut stream = connect();
        let mut answer = Vec::new();
        stream.write_all(b"GET /bytes/3 HTTP/1.0\r\n\r\n").ok()?;
        stream.read_to_end(&mut answer).ok()?;
        answer.ends_with(&[0, 1, 2]).then_some(())
    };
    let end = std::time::Instant::now() + std::time::Duration::from_secs(120);
    while answer().is_none() {
        assert!(std::time::Instant::now() < end, "nobody is served any more");
    }
    assert!(served.curl(&[], "/bytes/1") == [0]);
}
