//! Stream sockets between guest and host on real KVM, on both engines: the bundled guest `vsock-echo` with the library, with
//! Firecracker's convention on Unix sockets, and (tests named `socat_…`) with this machine's socat.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::future::poll_fn;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use common::process::{Running, ringlet};
use common::{Guest, Host, deadline, eventually, on_both_engines, rounds, within};
use ringlet::{
    Bucket, ConnectError, EngineChoice, Error, Outcome, RateLimiter, Resources, RuntimeOptions, VSOCK_ID, Vm,
    VmConfig, Vsock, VsockStream,
};
use ringlet_metrics::LimiterReading;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The guest's port.
const PORT: u32 = 1024;
/// A port of the host.
const OURS: u32 = 7000;

fn config(vsock: Vsock, args: &[&str]) -> VmConfig {
    VmConfig::new("vsock-echo").memory_mib(64).timeout(5 * deadline()).vsock(vsock).args(args.iter().copied())
}

/// A guest that sends back what comes, as soon as it does.
fn echo(host: &Host, vsock: Vsock) -> Guest {
    let guest = host.bundled_with(config(vsock, &[]));
    guest.until_printed("ready on port 1024");
    guest
}

/// A folder, and a path in it.
fn socket_path() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.sock");
    (folder, path)
}

/// What is sent: as many bytes, of which none is where it was by chance.
fn pattern(len: usize) -> Vec<u8> {
    let mut word = 0x9E37_79B9_u32;
    let next = |_| {
        word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (word >> 24) as u8
    };
    (0..len).map(next).collect()
}

/// A socket whose calls end.
fn patient(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(deadline())).unwrap();
    stream.set_write_timeout(Some(deadline())).unwrap();
    stream
}

/// Sends `len` bytes and ends that half. What comes back until the end has to be the same.
fn there_and_back(stream: UnixStream, len: usize) {
    let stream = patient(stream);
    let mut writer = stream.try_clone().unwrap();
    let sent = std::thread::spawn(move || {
        pattern(len).chunks(7919).for_each(|piece| writer.write_all(piece).unwrap());
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    (&stream).read_to_end(&mut back).unwrap();
    sent.join().unwrap();
    assert_eq!(back.len(), len);
    assert!(back == pattern(len), "other bytes came back");
}

/// Sends bytes until it is `over`, and ends that half. What comes back until the end has to be the same.
fn there_and_back_until(stream: UnixStream, over: Arc<AtomicBool>) -> JoinHandle<()> {
    let stream = patient(stream);
    let mut writer = stream.try_clone().unwrap();
    let piece = pattern(7919);
    let sent = piece.clone();
    let sent = std::thread::spawn(move || {
        let mut count = 0;
        while !over.load(Ordering::Relaxed) {
            writer.write_all(&sent).unwrap();
            count += sent.len();
        }
        writer.shutdown(Shutdown::Write).unwrap();
        count
    });
    std::thread::spawn(move || {
        let (mut count, mut buffer) = (0, [0; 4096]);
        loop {
            let len = (&stream).read(&mut buffer).unwrap();
            if len == 0 {
                break;
            }
            let expected = piece.iter().cycle().skip(count % piece.len());
            assert!(buffer[..len].iter().eq(expected.take(len)), "other bytes came back");
            count += len;
        }
        assert_eq!(count, sent.join().unwrap());
    })
}

/// The next connection, or a panic after [`deadline`].
fn accept(listener: &UnixListener) -> UnixStream {
    listener.set_nonblocking(true).unwrap();
    let mut accepted = None;
    eventually("a connection comes", || match listener.accept() {
        Ok((stream, _)) => {
            accepted = Some(stream);
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
            false
        }
    });
    accepted.unwrap()
}

/// Sends back what comes, until its end.
fn send_back(stream: UnixStream) -> JoinHandle<u64> {
    std::thread::spawn(move || {
        let stream = patient(stream);
        let count = std::io::copy(&mut &stream, &mut &stream).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        count
    })
}

/// Connects to the guest by Firecracker's convention: the stream, and the line that came first, which is empty if the
/// end came instead.
fn connect(path: &Path, request: &str) -> (UnixStream, String) {
    let mut stream = patient(UnixStream::connect(path).unwrap());
    // Who is refused may be so before it has said anything.
    let _ = stream.write_all(request.as_bytes());
    let mut line = Vec::new();
    let mut byte = [0];
    // Silence is no refusal.
    while !line.ends_with(b"\n") {
        match stream.read(&mut byte) {
            Ok(0) => break,
            Ok(_) => line.extend(byte),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) => panic!("neither an answer nor an end: {error}"),
        }
    }
    (stream, String::from_utf8(line).unwrap())
}

async fn write(stream: &mut VsockStream, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let written = within(poll_fn(|cx| Pin::new(&mut *stream).poll_write(cx, bytes))).await.unwrap();
        bytes = &bytes[written..];
    }
}

/// Reads `len` bytes, or fewer if the end comes first.
async fn read(stream: &mut VsockStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut buffer = ReadBuf::new(&mut bytes);
    while buffer.remaining() > 0 {
        let before = buffer.filled().len();
        within(poll_fn(|cx| Pin::new(&mut *stream).poll_read(cx, &mut buffer))).await.unwrap();
        if buffer.filled().len() == before {
            break;
        }
    }
    let len = buffer.filled().len();
    bytes.truncate(len);
    bytes
}

async fn dial(guest: &Guest) -> VsockStream {
    within(guest.vm.vsock_connect(PORT)).await.unwrap()
}

/// A number of the socket device of the runtime's first VM.
fn number(host: &Host, series: &str) -> f64 {
    let text = host.runtime.registry().encode();
    let found = text.lines().find_map(|line| line.strip_prefix(series)).map(str::trim);
    found.unwrap_or_else(|| panic!("no {series}: {text}")).parse().unwrap()
}

fn open_connections(host: &Host) -> f64 {
    number(host, r#"ringlet_device_connections{vm="vm-1",device="vsock0"}"#)
}

fn moved(host: &Host) -> [f64; 2] {
    ["receive", "transmit"].map(|kind| {
        number(host, &format!(r#"ringlet_device_bytes_total{{vm="vm-1",device="vsock0",kind="{kind}"}}"#))
    })
}

fn limited(bandwidth: Bucket) -> RateLimiter {
    RateLimiter { bandwidth: Some(bandwidth), ops: None }
}

/// What the limiter of the socket device tells.
fn limiter(guest: &Guest) -> LimiterReading {
    let limiters = guest.vm.metrics().limiters();
    limiters.into_iter().find(|(name, _)| name == VSOCK_ID).unwrap().1
}

fn refused(error: &Error, what: ConnectError) -> bool {
    matches!(error, Error::Connect(found) if *found == what)
}

on_both_engines! {
    async fn the_library_connects_to_the_guest_and_one_half_is_closed_before_the_other(host: Host) {
        let guest = echo(&host, Vsock::new());
        let mut stream = dial(&guest).await;
        assert_eq!(stream.guest_port(), PORT);
        write(&mut stream, b"question").await;
        assert_eq!(read(&mut stream, 8).await, b"question");
        write(&mut stream, b"last").await;
        within(poll_fn(|cx| Pin::new(&mut stream).poll_shutdown(cx))).await.unwrap();
        assert_eq!(read(&mut stream, 100).await, b"last", "and then the end");
        drop(stream);
        eventually("the connection is forgotten", || open_connections(&host) == 0.0);
        let established = r#"ringlet_device_connections_total{vm="vm-1",device="vsock0",result="established"}"#;
        assert_eq!(number(&host, established), 1.0);
        within(guest.vm.stop()).await;
    }

    async fn much_goes_there_and_back_unchanged(host: Host) {
        let guest = echo(&host, Vsock::new());
        let total = usize::try_from(rounds(16)).unwrap() << 20;
        there_and_back(dial(&guest).await.into_std().unwrap(), total);
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert!(within(guest.vm.vsock_attach(PORT, theirs)).await.unwrap() > 0);
        there_and_back(ours, total / 4);
        assert!(moved(&host).into_iter().all(|bytes| bytes >= (total + total / 4) as f64));
        within(guest.vm.stop()).await;
    }

    async fn the_guest_connects_to_the_process(host: Host) {
        let args = ["send", "--port", "7000", "--bytes", "1M", "--streams", "4"];
        let guest = host.create_bundled(&config(Vsock::new(), &args));
        let mut listener = guest.vm.vsock_listen(OURS).unwrap();
        assert!(matches!(guest.vm.vsock_listen(OURS), Err(Error::Port(_))), "there can be one");
        within(guest.vm.start()).await.unwrap();
        let mut echoes = Vec::new();
        for _ in 0..4 {
            let stream = within(listener.accept()).await.unwrap();
            assert_eq!(stream.host_port(), OURS);
            echoes.push(send_back(stream.into_std().unwrap()));
        }
        assert_eq!(*guest.outcome().await, Outcome::Exited { code: 0 }, "{}", guest.printed());
        assert!(guest.printed().contains("4194304 bytes there and back"), "{}", guest.printed());
        for echo in echoes {
            assert_eq!(echo.join().unwrap(), 1 << 20);
        }
        assert!(within(listener.accept()).await.is_err(), "the VM has ended");
    }

    async fn requests_are_answered_and_timed(host: Host) {
        let count = rounds(2000).to_string();
        let guest = host.create_bundled(&config(Vsock::new(), &["rr", "--port", "7000", "--requests", &count]));
        let mut listener = guest.vm.vsock_listen(OURS).unwrap();
        within(guest.vm.start()).await.unwrap();
        let echo = send_back(within(listener.accept()).await.unwrap().into_std().unwrap());
        assert_eq!(*guest.outcome().await, Outcome::Exited { code: 0 }, "{}", guest.printed());
        echo.join().unwrap();
        let printed = guest.printed();
        let line = printed.lines().find_map(|line| line.strip_prefix("vsock-result ")).unwrap();
        let result: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(result["requests"].to_string(), count);
        assert!(result["p50_ns"].as_u64() > Some(0), "{line}");
        println!("{line}");
    }

    /// What `ringlet bench vsock` relies on.
    async fn the_ports_of_a_benchmark_do_what_they_are_for(host: Host) {
        let guest = host.bundled_with(config(Vsock::new(), &["bench"]));
        guest.until_printed("ready on ports 1024 to 1027");
        let stream = async |port| within(guest.vm.vsock_connect(port)).await.unwrap().into_std().unwrap();
        there_and_back(stream(PORT).await, 10_000);
        let said = |mut stream: UnixStream| {
            let mut line = String::new();
            stream.read_to_string(&mut line).unwrap();
            line.trim_end().split(' ').map(|number| number.parse().unwrap()).collect::<Vec<u64>>()
        };
        let mut sink = patient(stream(PORT + 1).await);
        sink.write_all(&pattern(300_000)).unwrap();
        sink.shutdown(Shutdown::Write).unwrap();
        assert!(matches!(said(sink)[..], [300_000, _nanoseconds]));
        let mut source = patient(stream(PORT + 2).await);
        source.read_exact(&mut vec![0; 300_000]).unwrap();
        drop(source);
        let exits = said(patient(stream(PORT + 3).await));
        assert!(exits.len() == 3 && exits.iter().all(|number| *number > 0), "{exits:?}");
        eventually("the connections are forgotten", || open_connections(&host) == 0.0);
        within(guest.vm.stop()).await;
    }

    async fn unix_sockets_lead_to_the_guest_and_from_it(host: Host) {
        let (_folder, path) = socket_path();
        let guest = echo(&host, Vsock::new().uds(&path));
        let (stream, line) = connect(&path, "CONNECT 1024\n");
        let port = line.strip_prefix("OK ").unwrap().trim_end();
        assert!(port.parse::<u32>().is_ok(), "{line}");
        there_and_back(stream, 300_000);
        for wrong in ["CONNECT 1025\n", "CONNECT x\n", "HELLO\n", "CONNECT 4294967296\n"] {
            assert_eq!(connect(&path, wrong).1, "", "{wrong}");
        }
        within(guest.vm.stop()).await;
        eventually("the socket is removed", || !path.exists());

        let ours = UnixListener::bind(path.with_file_name("v.sock_7000")).unwrap();
        let args = ["send", "--port", "7000", "--bytes", "300K", "--streams", "3"];
        let guest = host.bundled_with(config(Vsock::new().uds(&path), &args));
        let echoes: Vec<_> = (0..3).map(|_| send_back(accept(&ours))).collect();
        assert_eq!(*guest.outcome().await, Outcome::Exited { code: 0 }, "{}", guest.printed());
        echoes.into_iter().for_each(|echo| assert_eq!(echo.join().unwrap(), 300 << 10));
        // What the process listens at does not go there; what nobody listens at is refused.
        let args = ["send", "--port", "7001"];
        let guest = host.bundled_with(config(Vsock::new().uds(&path), &args));
        assert_eq!(*guest.outcome().await, Outcome::Exited { code: 5 }, "{}", guest.printed());
    }

    async fn a_descriptor_is_as_good_as_a_path(host: Host) {
        let (_folder, path) = socket_path();
        let listener = UnixListener::bind(&path).unwrap();
        let guest = echo(&host, Vsock::new().fd(listener.as_raw_fd()));
        let (stream, line) = connect(&path, "CONNECT 1024\n");
        assert!(line.starts_with("OK "), "{line}");
        there_and_back(stream, 10_000);
        within(guest.vm.stop()).await;
        assert!(path.exists(), "it is not Ringlet's to remove");
    }

    async fn many_connections_at_once_are_served(host: Host) {
        // Each takes two descriptors, on both engines at once, and there may be few.
        let count = u32::try_from(rounds(300).min(raise_open_files() / 16)).unwrap();
        let guest = echo(&host, Vsock::new());
        let mut streams = Vec::new();
        for _ in 0..count {
            streams.push(dial(&guest).await);
        }
        assert_eq!(open_connections(&host), f64::from(count));
        for (number, stream) in (0_u32..).zip(&mut streams) {
            write(stream, &number.to_le_bytes()).await;
        }
        for (number, stream) in (0..count).zip(&mut streams).rev() {
            assert_eq!(read(stream, 4).await, number.to_le_bytes());
        }
        drop(streams);
        eventually("all are forgotten", || open_connections(&host) == 0.0);
        within(guest.vm.stop()).await;
    }

    async fn sec_02_there_are_no_more_connections_than_allowed(host: Host) {
        let (_folder, path) = socket_path();
        let guest = echo(&host, Vsock::new().uds(&path).max_connections(3));
        let mut streams = vec![dial(&guest).await, dial(&guest).await];
        let (hybrid, line) = connect(&path, "CONNECT 1024\n");
        assert!(line.starts_with("OK "), "{line}");
        let error = within(guest.vm.vsock_connect(PORT)).await.unwrap_err();
        assert!(refused(&error, ConnectError::Full), "{error}");
        drop(hybrid);
        eventually("one is forgotten", || open_connections(&host) == 2.0);
        streams.push(dial(&guest).await);
        write(&mut streams[2], b"x").await;
        assert_eq!(read(&mut streams[2], 1).await, b"x");
        within(guest.vm.stop()).await;
    }

    async fn sec_02_a_vm_that_floods_leaves_others_their_connections(host: Host) {
        let engine = if host.is_epoll() { EngineChoice::Epoll } else { EngineChoice::Uring };
        let options = RuntimeOptions { engine, vsock_descriptors: Some(6), ..RuntimeOptions::default() };
        let host = Host::with(options);
        let greedy = echo(&host, Vsock::new());
        // Its own four and two of the pool's six, two each: with a third it would have as many as are left.
        let mut streams = Vec::new();
        let error = loop {
            match within(greedy.vm.vsock_connect(PORT)).await {
                Ok(stream) => streams.push(stream),
                Err(error) => break error,
            }
        };
        assert!(refused(&error, ConnectError::NoDescriptors), "{error}");
        assert_eq!(streams.len(), 3);
        let refusals = r#"ringlet_device_connections_total{vm="vm-1",device="vsock0",result="no_descriptors"}"#;
        assert_eq!(number(&host, refusals), 1.0);
        assert_eq!(number(&host, "ringlet_connection_descriptors "), 2.0);
        assert_eq!(number(&host, "ringlet_connection_descriptors_max"), 6.0);
        assert_eq!(number(&host, r#"ringlet_vm_connection_descriptors{vm="vm-1"}"#), 6.0);
        // Another VM, also one that is made now, has its own, and then as many of the pool as the first.
        let (_folder, path) = socket_path();
        let modest = echo(&host, Vsock::new().uds(&path));
        let mut stream = dial(&modest).await;
        write(&mut stream, b"x").await;
        assert_eq!(read(&mut stream, 1).await, b"x");
        let hybrid: Vec<_> = (0..4).map(|_| connect(&path, "CONNECT 1024\n")).collect();
        assert!(hybrid.iter().all(|(_, line)| line.starts_with("OK ")), "{hybrid:?}");
        let (_closed, line) = connect(&path, "CONNECT 1024\n");
        assert_eq!(line, "", "there is none for a fifth");
        let error = within(modest.vm.vsock_connect(PORT)).await.unwrap_err();
        assert!(refused(&error, ConnectError::NoDescriptors), "{error}");
        // What one VM gives back, another can have.
        drop(streams);
        eventually("all are forgotten", || open_connections(&host) == 0.0);
        let (_more, line) = connect(&path, "CONNECT 1024\n");
        assert!(line.starts_with("OK "), "{line}");
        within(greedy.vm.stop()).await;
        within(modest.vm.stop()).await;
    }

    async fn sec_02_a_guest_receives_and_sends_no_more_than_its_limits(host: Host) {
        // What is spent does not come back in a test's time.
        let only = |size| limited(Bucket { size, one_time_burst: None, refill_time: 1 << 40 });
        let guest = echo(&host, Vsock::new().rate_limiters(only(32 << 10), only((32 << 10) + 100)));
        let mut stream = dial(&guest).await;
        let spent = |expected: [u32; 2]| {
            moved(&host) == expected.map(f64::from) && limiter(&guest).waiting == 1
        };
        let unlimited = limited(Bucket { size: 0, one_time_burst: None, refill_time: 0 });
        for _ in 0..8 {
            write(&mut stream, &[1; 4 << 10]).await;
            assert_eq!(read(&mut stream, 4 << 10).await, [1; 4 << 10]);
        }
        // Nothing is owed yet, so the next packet is received; it is what may be sent still.
        write(&mut stream, &[2; 100]).await;
        assert_eq!(read(&mut stream, 100).await, [2; 100]);
        write(&mut stream, &[3]).await;
        eventually("what comes waits", || spent([(32 << 10) + 100; 2]));
        // The device has had its turn when it has paused.
        within(guest.vm.pause()).await.unwrap();
        within(guest.vm.resume()).await.unwrap();
        assert!(moved(&host) == [f64::from((32 << 10) + 100); 2], "what is owed is not lent");
        within(guest.vm.set_net_rate_limiters(VSOCK_ID, unlimited, RateLimiter::default())).await.unwrap();
        eventually("what goes waits", || spent([(32 << 10) + 101, (32 << 10) + 100]));
        within(guest.vm.set_net_rate_limiters(VSOCK_ID, RateLimiter::default(), unlimited)).await.unwrap();
        assert_eq!(read(&mut stream, 1).await, [3]);
        assert!(limiter(&guest).throttled >= 2);
        within(guest.vm.stop()).await;
    }

    async fn what_is_under_way_survives_pauses(host: Host) {
        let guest = echo(&host, Vsock::new());
        let stream = dial(&guest).await.into_std().unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let traffic = there_and_back_until(stream, over.clone());
        for _ in 0..5 {
            let other = dial(&guest).await.into_std().unwrap();
            within(guest.vm.pause()).await.unwrap();
            let before = moved(&host);
            // What is written meanwhile stays where it is, as much as a socket holds.
            other.set_nonblocking(true).unwrap();
            while (&other).write(&[0; 4096]).is_ok() {}
            assert_eq!(moved(&host), before, "a paused VM's sockets rest");
            assert!(!traffic.is_finished(), "it is under way");
            within(guest.vm.resume()).await.unwrap();
            eventually("it goes on", || moved(&host).iter().zip(before).all(|(now, before)| *now > before));
        }
        assert!(!traffic.is_finished(), "it is under way");
        over.store(true, Ordering::Relaxed);
        traffic.join().unwrap();
        within(guest.vm.stop()).await;
    }

    async fn a_vm_that_stops_ends_its_connections(host: Host) {
        let (_folder, path) = socket_path();
        let guest = echo(&host, Vsock::new().uds(&path));
        let mut listener = guest.vm.vsock_listen(OURS).unwrap();
        let mut streams = Vec::new();
        for _ in 0..10 {
            streams.push(dial(&guest).await);
        }
        write(&mut streams[0], &[7; 100_000]).await;
        let (hybrid, _) = connect(&path, "CONNECT 1024\n");
        assert_eq!(*within(guest.vm.stop()).await, Outcome::Stopped);
        for stream in streams {
            ends(stream.into_std().unwrap());
        }
        ends(hybrid);
        assert!(within(listener.accept()).await.is_err());
        let error = within(guest.vm.vsock_connect(PORT)).await.unwrap_err();
        assert!(refused(&error, ConnectError::Ended), "{error}");
        eventually("the socket is removed", || !path.exists());
    }

    async fn a_guest_that_ends_ends_its_connections(host: Host) {
        let args = ["send", "--port", "7000", "--bytes", "64M"];
        let guest = host.create_bundled(&config(Vsock::new(), &args));
        let mut listener = guest.vm.vsock_listen(OURS).unwrap();
        within(guest.vm.start()).await.unwrap();
        let stream = within(listener.accept()).await.unwrap().into_std().unwrap();
        // An end that comes too early, which the guest takes ill.
        (&patient(stream.try_clone().unwrap())).read_exact(&mut [0; 1000]).unwrap();
        stream.shutdown(Shutdown::Both).unwrap();
        drop(stream);
        assert_eq!(*guest.outcome().await, Outcome::Exited { code: 8 }, "{}", guest.printed());
    }

    async fn ports_at_which_nobody_listens_are_refused(host: Host) {
        let guest = echo(&host, Vsock::new());
        let error = within(guest.vm.vsock_connect(PORT + 1)).await.unwrap_err();
        assert!(refused(&error, ConnectError::Refused), "{error}");
        within(guest.vm.stop()).await;
        let guest = host.bundled_with(config(Vsock::new(), &["send", "--port", "7000"]));
        assert_eq!(*guest.outcome().await, Outcome::Exited { code: 5 }, "{}", guest.printed());
    }

    async fn a_path_at_which_somebody_listens_is_refused(host: Host) {
        let (_folder, path) = socket_path();
        let create = |config: &VmConfig| host.runtime.create(config, Resources::default());
        let vm = config(Vsock::new().uds(&path), &[]);
        let first = create(&vm).unwrap();
        let error = create(&vm).unwrap_err().to_string();
        assert!(error.contains("somebody listens there already") && error.contains("v.sock"), "{error}");
        within(first.stop()).await;
        // What is left behind of a process that is gone is in nobody's way.
        let stale = path.with_file_name("stale");
        drop(UnixListener::bind(&stale).unwrap());
        let second = create(&config(Vsock::new().uds(&stale), &[])).unwrap();
        assert!(UnixStream::connect(&stale).is_ok());
        within(second.stop()).await;
        let file = path.with_file_name("file");
        std::fs::write(&file, "precious").unwrap();
        let error = create(&config(Vsock::new().uds(&file), &[])).unwrap_err().to_string();
        assert!(error.contains("no socket"), "{error}");
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    }

    async fn every_vm_has_an_address_of_its_own(host: Host) {
        let create = |vsock| host.runtime.create(&config(vsock, &[]), Resources::default()).unwrap();
        let wanted = create(Vsock::new().cid(4));
        let vms: Vec<Vm> = (0..3).map(|_| create(Vsock::new())).collect();
        let cids: Vec<_> = vms.iter().filter_map(Vm::vsock_cid).collect();
        assert_eq!((wanted.vsock_cid(), cids), (Some(4), vec![3, 5, 6]));
        let guest = echo(&host, Vsock::new().cid(77));
        guest.until_printed("CID 77");
        let none = host.runtime.create(&VmConfig::new("hello"), Resources::default()).unwrap();
        assert_eq!(none.vsock_cid(), None);
        assert!(none.vsock_listen(OURS).unwrap_err().to_string().contains("no socket device"));
        within(guest.vm.stop()).await;
    }

    /// Nothing goes by it from one VM to another, so that each of two is reached by its own handle and its own socket.
    async fn two_vms_may_be_told_to_have_the_same_address(host: Host) {
        let (folder, path) = socket_path();
        let paths = [path, folder.path().join("w.sock")];
        let guests = paths.each_ref().map(|path| echo(&host, Vsock::new().cid(3).uds(path)));
        for (guest, path) in guests.iter().zip(&paths) {
            assert_eq!(guest.vm.vsock_cid(), Some(3));
            there_and_back(dial(guest).await.into_std().unwrap(), 10_000);
            let (stream, line) = connect(path, "CONNECT 1024\n");
            assert!(line.starts_with("OK "), "{line}");
            there_and_back(stream, 10_000);
        }
        let [first, second] = guests;
        within(first.vm.stop()).await;
        there_and_back(dial(&second).await.into_std().unwrap(), 10_000);
        within(second.vm.stop()).await;
    }
}

/// A stream comes to its end, whichever.
fn ends(stream: UnixStream) {
    let mut rest = Vec::new();
    match (&patient(stream)).read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
}

/// As far as it goes, which is what it gives.
fn raise_open_files() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    maximum.unwrap_or(u64::MAX)
}

/// `ringlet run` with a path, on one engine.
fn run(engine: &str, path: &Path, options: &[&str]) -> Running {
    let vsock = format!("uds={}", path.display());
    let args = [&["run", "vsock-echo", "--io-engine", engine, "--vsock", &vsock], options].concat();
    Running::start(&mut ringlet(&args))
}

/// With fewer, it says so at once (tests/cli.rs).
#[test]
fn sec_02_the_fewest_open_files_are_enough_for_the_connections_that_a_vm_has_for_itself() {
    let (_folder, path) = socket_path();
    let script = "ulimit -n 40; exec \"$0\" run vsock-echo --vsock \"uds=$1\"";
    let mut command = std::process::Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_ringlet")]).arg(&path);
    let mut running = Running::start(&mut command);
    running.until_printed("ready on port 1024");
    let silent: Vec<_> = (0..4).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let connected: Vec<_> = (0..4).map(|_| connect(&path, "CONNECT 1024\n")).collect();
    assert!(connected.iter().all(|(_, line)| line.starts_with("OK ")), "{connected:?}");
    drop((connected, silent));
    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.status().code(), Some(143));
}

#[test]
fn every_vm_of_many_has_a_path_of_its_own() {
    let (folder, path) = socket_path();
    let mut vms = run("auto", &path, &["--count", "2"]);
    let printed: String =
        (0..2).map(|_| vms.until_printed("ready on port 1024, CID ") + &vms.until_printed("\n")).collect();
    assert!(printed.contains("CID 3\n") && printed.contains("CID 4\n"), "{printed}");
    for number in [1, 2] {
        let (stream, line) = connect(&folder.path().join(format!("v.sock-{number}")), "CONNECT 1024\n");
        assert!(line.starts_with("OK "), "{line}");
        there_and_back(stream, 10_000);
    }
    vms.signal(rustix::process::Signal::TERM);
    assert_eq!(vms.status().code(), Some(143));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the sockets are removed");
}

#[test]
fn the_command_says_why_there_is_no_socket() {
    let (_folder, path) = socket_path();
    let _listener = UnixListener::bind(&path).unwrap();
    let finished = run("auto", &path, &[]).finish().expect(125);
    assert!(finished.stderr.contains("somebody listens there already"), "{finished:?}");
}

/// socat, which waits for the other half of a connection after the end of one.
const SOCAT: [&str; 3] = ["socat", "-t", "300"];

#[test]
fn socat_talks_to_the_guest() {
    for engine in ["uring", "epoll"] {
        let (folder, path) = socket_path();
        let mut vm = run(engine, &path, &[]);
        vm.until_printed("ready on port 1024");
        let said = folder.path().join("said");
        std::fs::write(&said, [b"CONNECT 1024\n".to_vec(), pattern(3 << 20)].concat()).unwrap();
        // Stopped if it hangs.
        let output = std::process::Command::new("timeout")
            .args(["--kill-after=10", "400"])
            .args(SOCAT)
            .args(["-", &format!("UNIX-CONNECT:{}", path.display())])
            .stdin(std::fs::File::open(&said).unwrap())
            .output()
            .expect("timeout is there");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "socat of tests/setup: {}: {errors}", output.status);
        let end = output.stdout.iter().position(|byte| *byte == b'\n').unwrap();
        assert!(output.stdout.starts_with(b"OK "), "{engine}");
        assert!(output.stdout[end + 1..] == pattern(3 << 20), "{engine}: other bytes came back");
    }
}

#[test]
fn socat_is_talked_to_by_the_guest() {
    for engine in ["uring", "epoll"] {
        let (folder, path) = socket_path();
        let ours = folder.path().join("v.sock_7000");
        let listen = format!("UNIX-LISTEN:{},fork", ours.display());
        let [program, args @ ..] = SOCAT;
        let mut socat = std::process::Command::new(program);
        let _socat = Running::start(socat.args(args).args([&listen, "EXEC:cat"]));
        eventually("socat listens", || UnixStream::connect(&ours).is_ok());
        let options = ["--", "send", "--port", "7000", "--bytes", "3M", "--streams", "4"];
        let finished = run(engine, &path, &options).finish().expect(0);
        assert!(finished.stdout.contains("12582912 bytes there and back"), "{finished:?}");
    }
}
