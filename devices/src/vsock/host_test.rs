use std::io::{Read, Write};
use std::task::{Context, Poll, Waker};

use super::*;

/// What a future that need not wait gives.
fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

#[test]
fn a_port_has_one_listener_until_that_is_dropped() {
    let (_source, handle) = VsockSource::new(None, None);
    let first = handle.listen(5).unwrap();
    assert_eq!((first.port(), handle.listen(5).unwrap_err()), (5, ListenError::InUse(5)));
    let _other = handle.listen(6).unwrap();
    drop(first);
    assert!(handle.clone().listen(5).is_ok());
}

#[test]
fn what_the_guest_connects_to_is_a_pair_of_sockets() {
    let (source, handle) = VsockSource::new(None, None);
    assert!(source.door.0.offer(5, 77, &DescriptorShare::unlimited()).is_none(), "nobody listens");
    let mut listener = handle.listen(5).unwrap();
    let descriptors = DescriptorShare::unlimited();
    let (ours, place) = source.door.0.offer(5, 77, &descriptors).unwrap().unwrap();
    let mut ours = UnixStream::from(ours);
    assert_eq!(descriptors.used(), 2, "one for each end");
    let mut incoming = now(listener.accept()).unwrap().unwrap();
    assert_eq!(incoming.guest_port, 77);
    ours.write_all(b"hello").unwrap();
    let mut bytes = [0; 5];
    incoming.stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
    let error = incoming.stream.read(&mut bytes).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "as tokio wants it");
    drop((place, incoming));
    assert_eq!(descriptors.used(), 0);
}

#[test]
fn sec_02_connections_that_nobody_accepts_are_bounded() {
    let (source, handle) = VsockSource::new(None, None);
    let _listener = handle.listen(5).unwrap();
    let offer = |port| source.door.0.offer(5, port, &DescriptorShare::unlimited()).unwrap();
    let kept: Vec<_> = (0..BACKLOG as u32).map(|port| offer(port).unwrap()).collect();
    assert_eq!(offer(1000).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    drop(kept);
}

#[test]
fn the_end_of_the_device_is_told() {
    let (source, handle) = VsockSource::new(None, None);
    let mut listener = handle.listen(5).unwrap();
    assert!(now(listener.accept()).is_none(), "there may be one yet");
    drop(source);
    assert!(matches!(now(listener.accept()), Some(None)));
    assert_eq!(handle.listen(6).unwrap_err(), ListenError::Ended);
    let (one, _other) = UnixStream::pair().unwrap();
    assert_eq!(now(handle.connect(1, one)), Some(Err(ConnectError::Ended)));
}
