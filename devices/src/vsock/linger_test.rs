use std::io::{ErrorKind, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use ringlet_io::unix::Stream;
use ringlet_io::{Buffers, DescriptorShare, EngineKind, Owner};
use ringlet_metrics::ConnectionResult;

use super::*;
use crate::testing::{Options, PATIENCE, Rig, wait_until};
use crate::virtio::VirtioDevice;
use crate::virtio::spec::register;
use crate::vsock::packet::{Header, NO_MORE_RECEIVED, NO_MORE_SENT, Op};
use crate::vsock::test_util::*;
use crate::vsock::window::{WIDE, connection_bytes};
use crate::vsock::{VsockDevice, VsockOptions, VsockSource};

/// A guest, and a process of the host that listens at its port 5 and does nothing else.
struct Busy {
    bench: Bench,
    buffers: Buffers,
    share: DescriptorShare,
    listener: UnixListener,
    _folder: tempfile::TempDir,
}

/// With buffers for so many connections with wide windows.
fn busy(wide: u64, options: VsockOptions) -> Busy {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("v.sock");
    let listener = UnixListener::bind(folder.path().join("v.sock_5")).unwrap();
    let (buffers, share) = (Buffers::new(wide * connection_bytes(WIDE)), DescriptorShare::unlimited());
    let (source, handle) = VsockSource::new(None, Some(path));
    let rig = Options { buffers: buffers.clone(), ..Options::new(EngineKind::Epoll) };
    let bench = Bench::with(options, (source.taking_from(share.clone()), handle), rig);
    Busy { bench, buffers, share, listener, _folder: folder }
}

impl Busy {
    /// Connects from a port of the guest, if it may.
    fn connect(&mut self, port: u32) -> Option<Header> {
        self.bench.say(Op::Request, port, 5);
        let (header, _) = self.bench.next();
        (Op::from_number(header.op) == Some(Op::Response)).then_some(header)
    }

    /// Sends as much as there is room for, which is what it gives.
    fn fill(&mut self, port: u32, window: u32) -> usize {
        let data = bytes(window as usize / 4);
        let len = data.len() as u32;
        let (mut sent, mut told) = (0, 0);
        loop {
            if sent - told + len <= window {
                self.bench.write(port, 5, &data);
                sent += len;
            } else if let Some((header, _)) = self.bench.poll() {
                told = header.fwd_cnt;
            } else {
                return sent as usize;
            }
        }
    }

    fn accept(&self) -> UnixStream {
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn used(&self) -> (u64, u64) {
        (self.buffers.reading().used, self.share.used())
    }
}

#[test]
fn sec_02_what_nobody_takes_of_connections_that_are_over_is_bounded() {
    let mut busy = busy(3, options());
    let mut waiting = 0;
    for port in 0..50 {
        if let Some(header) = busy.connect(port) {
            waiting += 1;
            busy.fill(port, header.buf_alloc);
            busy.bench.say(Op::Reset, port, 5);
        }
    }
    assert_eq!(busy.bench.connections(), 0);
    assert_eq!(busy.bench.results(ConnectionResult::Full), 50 - waiting, "each has its place");
    let kept: usize = (0..waiting).map(|_| rest_of(&mut busy.accept()).len()).sum();
    assert!(kept > WIDE as usize && kept as u64 <= busy.buffers.reading().max, "{kept}");
    wait_until("all is given back", || busy.used() == (0, 0));
    assert!(busy.connect(1).is_some());
}

/// Whoever is not read to its end, but closed, keeps nothing either.
#[test]
fn sec_02_a_connection_that_is_over_has_its_place_until_what_is_left_is_taken() {
    let mut busy = busy(10, VsockOptions { max_connections: 1, ..options() });
    for (port, is_read) in [(1, true), (2, false)] {
        let header = busy.connect(port).unwrap();
        let sent = busy.fill(port, header.buf_alloc);
        let end = Header { flags: NO_MORE_RECEIVED | NO_MORE_SENT, ..Bench::header(Op::Shutdown, port, 5) };
        busy.bench.send(end, &[]);
        busy.bench.say(Op::Reset, port, 5);
        assert_eq!((busy.bench.connections(), busy.used()), (0, (connection_bytes(WIDE), 1)));
        assert!(busy.connect(7).is_none());
        let mut stream = busy.accept();
        let error = stream.write(b"x").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe, "its end is told at once");
        if is_read {
            let rest = rest_of(&mut stream);
            assert!(rest.len() > WIDE as usize && rest.len() <= sent, "{} of {sent}", rest.len());
        }
        drop(stream);
        assert!(busy.connect(8).is_some(), "its place is free at once");
        busy.bench.say(Op::Reset, 8, 5);
        drop(busy.accept());
        assert_eq!(busy.used(), (0, 0));
    }
    assert_eq!(busy.bench.bad(), 0);
}

#[test]
fn sec_02_what_is_left_is_counted_beyond_a_reset_of_the_device() {
    let mut busy = busy(10, options());
    let header = busy.connect(1).unwrap();
    busy.fill(1, header.buf_alloc);
    busy.connect(2).unwrap();
    busy.bench.rig.write(register::STATUS, 0);
    wait_until("what has sent nothing is gone", || busy.used() == (connection_bytes(WIDE), 1));
    let (mut stream, mut other) = (busy.accept(), busy.accept());
    assert!(rest_of(&mut stream).len() > WIDE as usize);
    assert!(rest_of(&mut other).is_empty());
    wait_until("all is given back", || busy.used() == (0, 0));
}

#[test]
fn the_end_of_a_vm_closes_what_lingers() {
    let source = || VsockSource::new(None, None).0;
    let subject = subject(options(), source(), &metrics());
    Rig::new(subject, Options::new(EngineKind::Epoll)).on_shard(move |cx| async move {
        let (options, owner) = (options(), Owner::shard());
        let mut device =
            VsockDevice::new(&cx, &owner, &options, options.config(), source(), metrics()).unwrap();
        let switch = device.switch.clone();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let id = switch.open_for_test(Stream::new(ours.into()).unwrap()).unwrap();
        switch.table.borrow_mut().get(id).unwrap().fill_for_test();
        device.reset();
        while switch.retiring.count() > 0 {
            cx.next_turn().await;
        }
        assert_eq!(switch.lingering.count(), 1);
        drop(device);
        while Rc::strong_count(&switch) > 1 || switch.retiring.count() > 0 {
            cx.next_turn().await;
        }
        assert_eq!((switch.lingering.count(), switch.descriptors.used()), (0, 0));
        assert!(!rest_of(&mut theirs).is_empty(), "what was sent is there");
    });
}
