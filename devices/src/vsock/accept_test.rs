use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::task::{Context, Poll, Waker};

use ringlet_io::unix::{Listener, SocketFile};
use ringlet_io::{DescriptorShare, Descriptors, EngineKind, MonoTime, OWN_DESCRIPTORS};

use super::*;
use crate::testing::{Options, PATIENCE};
use crate::vsock::greet::GRACE;
use crate::vsock::packet::Op;
use crate::vsock::test_util::*;
use crate::vsock::{ConnectError, VsockDevice, VsockOptions, VsockSource};

/// A device that listens in a folder of its own.
struct Place {
    bench: Bench,
    path: PathBuf,
    _file: SocketFile,
    _folder: tempfile::TempDir,
}

fn place_with(options: VsockOptions) -> Place {
    place_taking(options, DescriptorShare::unlimited())
}

fn place_taking(options: VsockOptions, descriptors: DescriptorShare) -> Place {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.sock");
    let (listener, file) = Listener::bind(&path).unwrap();
    let (source, handle) = VsockSource::new(Some(listener), Some(path.clone()));
    let source = (source.taking_from(descriptors), handle);
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

/// Whether a client has been closed, and has read nothing.
fn is_closed(client: &mut UnixStream) -> bool {
    client.set_nonblocking(true).unwrap();
    matches!(client.read(&mut [0]), Ok(0))
}

#[test]
fn sec_02_those_that_do_not_say_where_to_make_room_for_others() {
    let mut place = place();
    let begun = MonoTime::now();
    let mut silent: Vec<_> = (0..GREETINGS).map(|_| place.client(b"CONN")).collect();
    place.bench.rig.settle();
    let _late = place.client(b"CONNECT 7\n");
    assert_eq!(place.bench.expect(Op::Request).0, 7);
    assert!(rest_of(&mut silent.remove(0)).is_empty(), "the one that has waited longest goes");
    assert!(MonoTime::now().since(begun) >= GRACE, "but not before it could have spoken");
    assert!(!silent.iter_mut().any(is_closed), "and no other");
    // The rest of the line comes in time.
    silent[0].write_all(b"ECT 8\n").unwrap();
    assert_eq!(place.bench.expect(Op::Request).0, 8);
    assert_eq!(place.bench.connections(), 2);
}

#[test]
fn sec_02_many_silent_ones_keep_nobody_out() {
    let mut place = place();
    let mut silent = Vec::new();
    for port in 0..3 * GREETINGS as u32 {
        silent.push(place.client(b""));
        let _client = place.client(format!("CONNECT {port}\n").as_bytes());
        let (guest, host) = place.bench.expect(Op::Request);
        assert_eq!(guest, port);
        place.bench.say(Op::Reset, port, host);
    }
    let closed = silent.iter_mut().filter_map(|client| is_closed(client).then_some(())).count();
    assert!((2 * GREETINGS..=2 * GREETINGS + 1).contains(&closed), "{closed}: no more wait than may");
}

/// They use the time of the VM's event loop, and a VM that owes some has them wait.
#[test]
fn sec_02_nobody_is_accepted_while_the_vm_has_no_cpu_time() {
    let share = DescriptorShare::unlimited();
    let mut place = place_taking(options(), share.clone());
    place.bench.rig.settle();
    place.bench.rig.take_cpu_time();
    let clients: Vec<_> = (0..20).map(|_| place.client(b"CONNECT 7\n")).collect();
    place.bench.rig.settle();
    assert!(share.used() <= 1, "{} are accepted", share.used());
    assert_eq!(place.bench.connections(), 0);
    place.bench.rig.give_cpu_time();
    for _ in &clients {
        assert_eq!(place.bench.expect(Op::Request).0, 7);
    }
    assert_eq!((share.used(), place.bench.connections()), (20, 20));
}

/// A socket and a place for it, and the other end.
fn placed() -> (Placed, UnixStream) {
    let (ours, client) = UnixStream::pair().unwrap();
    let descriptor = DescriptorShare::unlimited().try_take().unwrap();
    (Placed { stream: Stream::new(ours.into()).unwrap(), descriptor }, client)
}

#[test]
fn nobody_has_to_go_for_whom_one_that_has_spoken_makes_room() {
    let bench = Bench::new();
    bench.rig.on_shard(|cx| async move {
        let owner = ringlet_io::Owner::shard();
        let source = VsockSource::new(None, None).0;
        let device =
            VsockDevice::new(&cx, &owner, &options(), options().config(), source, metrics()).unwrap();
        let (switch, mut greetings) = (&device.switch, Greetings::default());
        let mut clients = Vec::new();
        for _ in 0..GREETINGS {
            let (socket, client) = placed();
            greetings.add(cx.timer().clone(), socket);
            clients.push(client);
        }
        cx.timer().sleep(2 * GRACE).await;
        clients.pop().unwrap().write_all(b"CONNECT 7\n").unwrap();
        assert!(make_room(switch, &switch.budget(), &mut greetings).await.is_some());
        assert_eq!((greetings.len(), switch.metrics.connections.get()), (GREETINGS - 1, 1));
        assert!(!clients.iter_mut().any(is_closed));
    });
}

/// A device that listens, of which all descriptors are taken but for its own, and the pool.
fn scarce() -> (Place, Descriptors) {
    let pool = Descriptors::new(Some(0));
    (place_taking(options(), pool.share()), pool)
}

#[test]
fn sec_02_without_descriptors_connections_are_refused() {
    let (mut place, _pool) = scarce();
    let mut listener = place.bench.handle.listen(5).unwrap();
    let socket = place.listener(6);
    // One for each end of the first, one for the second, and one for the third.
    place.bench.say(Op::Request, 9, 5);
    assert_eq!(place.bench.expect(Op::Response), (9, 5));
    place.bench.say(Op::Request, 9, 6);
    assert_eq!(place.bench.expect(Op::Response), (9, 6));
    let _kept = place.client(b"CONNECT 7\n");
    assert_eq!(place.bench.expect(Op::Request).0, 7);
    for port in [5, 6] {
        place.bench.say(Op::Request, 10, port);
        assert_eq!(place.bench.expect(Op::Reset), (10, port));
    }
    assert!(rest_of(&mut place.client(b"CONNECT 7\n")).is_empty());
    // Where nobody listens, that is what it was refused for.
    place.bench.say(Op::Request, 10, 8);
    assert_eq!(place.bench.expect(Op::Reset), (10, 8));
    assert_eq!(place.bench.results(ConnectionResult::Refused), 1);
    let (_stream, answer) = place.bench.connect(7);
    assert_eq!(answer.recv_timeout(PATIENCE).unwrap(), Err(ConnectError::NoDescriptors));
    assert_eq!(place.bench.results(ConnectionResult::NoDescriptors), 4);
    assert_eq!(place.bench.connections(), 3);
    // One that has ended leaves its place, when it is closed, to the next: both ends of the first have one.
    let [first, mut second] = [socket.accept().unwrap().0, socket.accept().unwrap().0];
    assert!(rest_of(&mut second).is_empty(), "there was no place for it");
    drop(first);
    assert_eq!(place.bench.expect(Op::Shutdown), (9, 6));
    place.bench.say(Op::Reset, 9, 6);
    place.bench.say(Op::Request, 10, 5);
    assert_eq!(place.bench.expect(Op::Reset), (10, 5), "there is none for the other end");
    place.bench.say(Op::Request, 10, 6);
    assert_eq!(place.bench.expect(Op::Response), (10, 6));
    place.bench.say(Op::Reset, 9, 5);
    place.bench.say(Op::Request, 11, 6);
    assert_eq!(place.bench.expect(Op::Response), (11, 6));
    place.bench.say(Op::Request, 12, 6);
    assert_eq!(place.bench.expect(Op::Reset), (12, 6), "the process still has its end");
    let accepted = std::pin::pin!(listener.accept()).poll(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(Some(incoming)) = accepted else { panic!("it waits to be accepted") };
    drop(incoming);
    place.bench.say(Op::Request, 12, 6);
    assert_eq!(place.bench.expect(Op::Response), (12, 6));
}

#[test]
fn sec_02_those_that_do_not_say_where_to_keep_no_descriptors_from_others() {
    let (mut place, pool) = scarce();
    let mut silent: Vec<_> = (0..OWN_DESCRIPTORS).map(|_| place.client(b"")).collect();
    place.bench.rig.settle();
    let kept = place.client(b"CONNECT 7\n");
    assert_eq!(place.bench.expect(Op::Request).0, 7);
    assert!(rest_of(&mut silent.remove(0)).is_empty());
    assert!(!silent.iter_mut().any(is_closed));
    // Nor from the guest, nor from this process.
    let mut late = place.client(b"");
    place.bench.rig.settle();
    let _listener = place.bench.handle.listen(5).unwrap();
    place.bench.say(Op::Request, 9, 5);
    assert_eq!(place.bench.expect(Op::Response), (9, 5));
    let (_stream, _answer) = place.bench.connect(8);
    assert_eq!(place.bench.expect(Op::Request).0, 8);
    // Now there is no place for one more, who has said so in vain.
    late.write_all(b"CONNECT 9\n").unwrap();
    assert!(rest_of(&mut late).is_empty());
    assert_eq!(place.bench.results(ConnectionResult::NoDescriptors), 1);
    assert!(!silent.iter_mut().any(is_closed));
    drop((kept, silent));
    assert_eq!(pool.used(), 0);
}

/// What a guest asks for takes nothing while there is no socket for it yet.
#[test]
fn sec_02_connections_that_are_being_made_take_no_descriptors() {
    let share = Descriptors::new(Some(0)).share();
    let mut place = place_taking(options(), share.clone());
    let held: Vec<_> = (0..OWN_DESCRIPTORS).filter_map(|_| share.try_take()).collect();
    for port in 0..20 {
        place.bench.post(Bench::header(Op::Request, 100 + port, 7), &[]);
        place.bench.rig.used(&mut place.bench.tx);
        assert_eq!(place.bench.expect(Op::Reset), (100 + port, 7));
    }
    assert_eq!(place.bench.results(ConnectionResult::Refused), 20, "nobody listens there");
    drop(held);
    let socket = place.listener(7);
    place.bench.say(Op::Request, 9, 7);
    assert_eq!(place.bench.expect(Op::Response), (9, 7));
    assert_eq!(share.used(), 1);
    drop(socket);
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
