use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use ringlet_io::EngineKind;
use ringlet_io::unix::{Listener, SocketFile};
use ringlet_metrics::ConnectionResult;

use super::*;
use crate::testing::{Options, PATIENCE};
use crate::vsock::packet::Op;
use crate::vsock::test_util::*;
use crate::vsock::{VsockOptions, VsockSource};

/// A device that listens in a folder of its own.
struct Place {
    bench: Bench,
    path: PathBuf,
    _file: SocketFile,
    _folder: tempfile::TempDir,
}

fn place_with(options: VsockOptions) -> Place {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.sock");
    let (listener, file) = Listener::bind(&path).unwrap();
    let source = VsockSource::new(Some(listener), Some(path.clone()));
    let bench = Bench::with(options, source, Options::new(EngineKind::Epoll));
    Place { bench, path, _file: file, _folder: folder }
}

fn place() -> Place {
    place_with(options())
}

impl Place {
    fn client(&self, says: &[u8]) -> UnixStream {
        let mut client = UnixStream::connect(&self.path).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(says).unwrap();
        client
    }

    /// Listens where the guest's connections to a port go.
    fn listener(&self, port: u32) -> UnixListener {
        UnixListener::bind(format!("{}_{port}", self.path.display())).unwrap()
    }
}

#[test]
fn who_says_where_to_is_connected_and_told_the_port() {
    let mut place = place();
    for says in ["CONNECT 7\nearly", "connect  7\r\nearly"] {
        let mut client = place.client(says.as_bytes());
        let (guest, host) = place.bench.expect(Op::Request);
        assert_eq!(guest, 7);
        place.bench.say(Op::Response, 7, host);
        let answer = format!("OK {host}\n");
        assert_eq!(taken(&mut client, answer.len()), answer.as_bytes());
        assert_eq!(place.bench.read(5), b"early", "what follows the line is the guest's");
        place.bench.write(7, host, b"reply");
        assert_eq!(taken(&mut client, 5), b"reply");
        place.bench.say(Op::Reset, 7, host);
        assert!(rest_of(&mut client).is_empty());
    }
    assert_eq!((place.bench.connections(), place.bench.results(ConnectionResult::Established)), (0, 2));
}

#[test]
fn a_line_may_come_in_parts() {
    let mut place = place();
    let mut client = place.client(b"");
    for byte in b"CONNECT 4294967295\n" {
        client.write_all(&[*byte]).unwrap();
        place.bench.rig.settle();
    }
    assert_eq!(place.bench.expect(Op::Request).0, u32::MAX);
}

#[test]
fn sec_07_what_is_no_request_is_closed() {
    let mut place = place();
    let long = [b'C'; 1000];
    let says: [&[u8]; 10] = [
        b"GET / HTTP/1.1\n",
        b"CONNECT\n",
        b"CONNECT x\n",
        b"CONNECT -1\n",
        b"CONNECT +1\n",
        b"CONNECT 4294967296\n",
        b"CONNECT 7 8\n",
        b"\n",
        b"CONNECT \xFF\n",
        &long,
    ];
    for says in says {
        let mut client = place.client(says);
        let mut byte = [0];
        assert!(matches!(client.read(&mut byte), Ok(0) | Err(_)), "{}", says.escape_ascii());
    }
    drop(place.client(b"CONN"));
    assert_eq!((place.bench.poll(), place.bench.connections()), (None, 0));
}

#[test]
fn a_guest_that_refuses_closes() {
    let mut place = place();
    let mut client = place.client(b"CONNECT 7\n");
    let (_, host) = place.bench.expect(Op::Request);
    place.bench.say(Op::Reset, 7, host);
    assert!(rest_of(&mut client).is_empty());
    let gone = place.client(b"CONNECT 7\n");
    let (_, host) = place.bench.expect(Op::Request);
    drop(gone);
    place.bench.say(Op::Response, 7, host);
    assert_eq!(place.bench.expect(Op::Reset), (7, host), "nobody waits any more");
}

#[test]
fn the_guest_connects_to_sockets_by_their_port() {
    let mut place = place();
    let listener = place.listener(5);
    place.bench.say(Op::Request, 9, 5);
    assert_eq!(place.bench.expect(Op::Response), (9, 5));
    let (mut stream, _) = listener.accept().unwrap();
    place.bench.write(9, 5, b"hello");
    assert_eq!(taken(&mut stream, 5), b"hello");
    place.bench.say(Op::Request, 10, 6);
    assert_eq!(place.bench.expect(Op::Reset), (10, 6), "there is none");
    drop(listener);
    place.bench.say(Op::Request, 11, 5);
    assert_eq!(place.bench.expect(Op::Reset), (11, 5), "nobody listens any more");
    let results = [ConnectionResult::Established, ConnectionResult::Refused];
    assert_eq!(results.map(|result| place.bench.results(result)), [1, 2]);
    assert_eq!((place.bench.connections(), place.bench.bad()), (1, 0));
}

#[test]
fn who_listens_in_the_process_comes_first() {
    let mut place = place();
    let socket = place.listener(5);
    socket.set_nonblocking(true).unwrap();
    let listener = place.bench.handle.listen(5).unwrap();
    place.bench.say(Op::Request, 9, 5);
    assert_eq!(place.bench.expect(Op::Response), (9, 5));
    assert!(socket.accept().is_err());
    drop(listener);
    // With it, what waits there.
    assert_eq!(place.bench.expect(Op::Shutdown), (9, 5));
    place.bench.say(Op::Request, 10, 5);
    assert_eq!(place.bench.expect(Op::Response), (10, 5));
    socket.accept().unwrap();
}

/// A guest gives up what it has asked for, before or after there is a socket.
#[test]
fn a_connection_that_is_not_wanted_any_more_is_closed() {
    let mut place = place();
    let listener = place.listener(5);
    listener.set_nonblocking(true).unwrap();
    for _ in 0..20 {
        place.bench.say(Op::Request, 9, 5);
        place.bench.say(Op::Reset, 9, 5);
        assert_eq!(place.bench.connections(), 0);
    }
    let _kept = place.bench.handle.listen(6).unwrap();
    place.bench.say(Op::Request, 9, 6);
    assert_eq!(place.bench.expect(Op::Response), (9, 6), "what was asked for before has left nothing");
    while let Ok((mut stream, _)) = listener.accept() {
        stream.set_nonblocking(false).unwrap();
        assert!(rest_of(&mut stream).is_empty());
    }
}

#[test]
fn sec_02_those_that_do_not_say_where_to_are_bounded_in_number() {
    let mut place = place();
    let mut silent: Vec<_> = (0..GREETINGS).map(|_| place.client(b"CONN")).collect();
    place.bench.rig.settle();
    let _late = place.client(b"CONNECT 7\n");
    assert_eq!(place.bench.poll(), None, "it is not its turn yet");
    drop(silent.pop());
    assert_eq!(place.bench.expect(Op::Request).0, 7);
}

#[test]
fn sec_02_those_that_do_not_say_where_to_are_bounded_in_time() {
    let bench = Bench::new();
    let (stream, _client) = UnixStream::pair().unwrap();
    let greeted = bench.rig.on_shard(|cx| async move {
        let stream = Stream::new(stream.into()).unwrap();
        let greeting = greet(cx.timer().clone(), stream, Duration::from_millis(1));
        assert!(
            (size_of_val(&greeting) * GREETINGS) as u64 <= GREETINGS_BYTES / 2,
            "with its place in a set"
        );
        greeting.await.is_some()
    });
    assert!(!greeted);
}

#[test]
fn a_vm_with_as_many_connections_as_it_may_have_refuses_more() {
    let mut place = place_with(VsockOptions { max_connections: 2, ..options() });
    let _listener = place.bench.handle.listen(5).unwrap();
    let _kept = place.client(b"CONNECT 7\n");
    place.bench.expect(Op::Request);
    place.bench.say(Op::Request, 9, 5);
    place.bench.expect(Op::Response);
    let mut refused = place.client(b"CONNECT 7\n");
    assert!(rest_of(&mut refused).is_empty());
    place.bench.say(Op::Request, 10, 5);
    assert_eq!(place.bench.expect(Op::Reset), (10, 5));
    assert_eq!((place.bench.results(ConnectionResult::Full), place.bench.connections()), (2, 2));
    place.bench.say(Op::Reset, 9, 5);
    place.bench.say(Op::Request, 10, 5);
    assert_eq!(place.bench.expect(Op::Response), (10, 5), "there is a place again");
}
