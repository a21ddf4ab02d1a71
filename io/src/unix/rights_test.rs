use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::*;
use crate::engine::EngineKind;
use crate::net::Socket;
use crate::testing::*;
use crate::unix::{Connector, Listener, Stream};

on_both_engines!(sec_02_sockets_that_are_accepted_or_connected_take_no_descriptors);

/// Sends a byte, and a descriptor with it.
fn send_with_descriptor(socket: BorrowedFd<'_>) -> rustix::io::Result<usize> {
    let sent = std::fs::File::open("/dev/null").unwrap();
    let fds = [sent.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(socket, &[IoSlice::new(b"x")], &mut control, SendFlags::NOSIGNAL)
}

/// Whether this kernel can refuse at all; says so if not.
fn can_refuse() -> bool {
    let can = refuse_rights(UnixStream::pair().unwrap().0).unwrap();
    if !can {
        eprintln!(
            "NOT TESTED: this kernel has no SO_PASSRIGHTS (Linux 6.16), so descriptors are not refused"
        );
    }
    can
}

/// Nothing is taken with a descriptor, and bytes without one still are.
fn assert_refuses(mut peer: UnixStream, what: &str) {
    assert_eq!(send_with_descriptor(peer.as_fd()), Err(Errno::PERM), "{what}");
    peer.write_all(b"y").unwrap();
}

fn sec_02_sockets_that_are_accepted_or_connected_take_no_descriptors(engine: EngineKind) {
    if !can_refuse() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.sock");
    let (bound, _file) = Listener::bind(&path).unwrap();
    // Nobody has accepted it yet.
    assert_refuses(UnixStream::connect(&path).unwrap(), "bound");
    let other = folder.path().join("other");
    let given = Listener::from_fd(UnixListener::bind(&other).unwrap().into()).unwrap();
    assert_refuses(UnixStream::connect(&other).unwrap(), "taken over");
    let theirs = folder.path().join("theirs");
    let listener = UnixListener::bind(&theirs).unwrap();
    on_shard(engine, move |_| async move {
        for listener in [bound, given] {
            let mut accepted = UnixStream::from(listener.attach().unwrap().accept().await.unwrap());
            let mut bytes = Vec::new();
            accepted.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes, b"y");
        }
        let _connected = Connector::default().connect(theirs).await.unwrap();
        assert_refuses(listener.accept().unwrap().0, "connected");
        let (ours, peer) = UnixStream::pair().unwrap();
        let _stream = Stream::new(ours.into()).unwrap();
        assert_refuses(peer, "handed in");
    });
}

#[test]
fn sec_02_sockets_of_networks_take_no_descriptors() {
    if !can_refuse() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("n.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let _connected = Socket::connect(&path).unwrap();
    assert_refuses(listener.accept().unwrap().0, "connected");
    let (ours, peer) = UnixStream::pair().unwrap();
    let _given = Socket::from_fd(ours.into()).unwrap();
    assert_refuses(peer, "taken over");
    let (one, other) = Socket::pair().unwrap();
    assert_eq!(send_with_descriptor(one.fd.as_fd()), Err(Errno::PERM));
    assert_eq!(send_with_descriptor(other.fd.as_fd()), Err(Errno::PERM));
}
