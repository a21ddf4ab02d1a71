//! A driver of a socket device, and who is on the host.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use ringlet_io::EngineKind;
use ringlet_metrics::{ConnectionResult, DeviceKind, DeviceMetrics, GuestErrorKind, ResetReason};

use super::packet::{HEADER, HOST_CID, Header, Op, STREAM};
use super::{ConnectError, VsockDevice, VsockHandle, VsockOptions, VsockSource};
use crate::testing::{Buffer, DriverQueue, Options, PATIENCE, Rig, Subject, wait_until};
use crate::virtio::spec::feature;

pub(super) const CID: u64 = 42;
/// Room that the driver says it has.
pub(super) const ROOM: u32 = 1 << 20;
/// Where the driver's packets are, and where it receives some.
const OUT: u64 = Rig::DATA;
const IN: u64 = Rig::HIGH;
/// Bytes of data that fit into a buffer of the driver.
pub(super) const BUFFER: usize = 1 << 20;

pub(super) fn options() -> VsockOptions {
    VsockOptions { queue_size: 64, ..VsockOptions::new("vsock0", CID) }
}

/// A device with this host's side and these numbers.
pub(super) fn subject(options: VsockOptions, source: VsockSource, metrics: &Arc<DeviceMetrics>) -> Subject {
    let config = options.config();
    let (space, metrics) = (config.clone(), Arc::clone(metrics));
    Subject {
        identity: options.identity(),
        config,
        device: Box::new(move |cx, owner| {
            Ok(Box::new(VsockDevice::new(cx, owner, &options, space, source, metrics)?))
        }),
        queue: 0,
        request: |_, _| Vec::new(),
        release: None,
    }
}

/// Numbers of a device.
pub(super) fn metrics() -> Arc<DeviceMetrics> {
    crate::test_util::metrics().register_device("vsock0", DeviceKind::Vsock)
}

/// A driver, and the process that its VM is in.
pub(super) struct Bench {
    pub(super) rig: Rig,
    pub(super) handle: VsockHandle,
    pub(super) rx: DriverQueue,
    pub(super) tx: DriverQueue,
    pub(super) events: DriverQueue,
    /// The device's own numbers.
    pub(super) metrics: Arc<DeviceMetrics>,
    /// A buffer is offered.
    waiting: bool,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with(options(), VsockSource::new(None, None), Options::new(EngineKind::Epoll))
    }

    pub(super) fn with(
        options: VsockOptions,
        (source, handle): (VsockSource, VsockHandle),
        rig: Options,
    ) -> Self {
        let metrics = metrics();
        let subject = subject(options, source, &metrics);
        let rig = Rig::new(subject, rig);
        let queues = rig.bring_up(rig.offered() & !feature::EVENT_IDX);
        Self::of(rig, handle, metrics, queues)
    }

    /// A driver with these queues.
    pub(super) fn of(
        rig: Rig,
        handle: VsockHandle,
        metrics: Arc<DeviceMetrics>,
        queues: Vec<DriverQueue>,
    ) -> Self {
        let [rx, tx, events] = queues.try_into().unwrap();
        Self { rig, handle, rx, tx, events, metrics, waiting: false }
    }

    /// A header of a packet from port `guest` of the guest to port `host`.
    pub(super) fn header(op: Op, guest: u32, host: u32) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: guest,
            dst_port: host,
            kind: STREAM,
            op: op.number(),
            buf_alloc: ROOM,
            ..Header::default()
        }
    }

    /// Sends a packet, and waits until it is given back.
    pub(super) fn send(&mut self, header: Header, data: &[u8]) {
        self.post(header, data);
        let used = self.rig.used(&mut self.tx);
        assert_eq!(used.len, 0, "nothing is written to what is sent");
    }

    pub(super) fn post(&mut self, header: Header, data: &[u8]) {
        self.rig.ram.write(OUT, &[&header.bytes()[..], data].concat()).unwrap();
        let mut buffers = vec![Buffer::readable(OUT, HEADER as u32)];
        if !data.is_empty() {
            buffers.push(Buffer::readable(OUT + HEADER as u64, data.len() as u32));
        }
        self.rig.send(&mut self.tx, &buffers);
    }

    /// Sends a packet without data.
    pub(super) fn say(&mut self, op: Op, guest: u32, host: u32) {
        self.send(Self::header(op, guest, host), &[]);
    }

    /// Sends data.
    pub(super) fn write(&mut self, guest: u32, host: u32, data: &[u8]) {
        self.send(Header { len: data.len() as u32, ..Self::header(Op::Data, guest, host) }, data);
    }

    /// Waits for a packet.
    pub(super) fn next(&mut self) -> (Header, Vec<u8>) {
        self.offer();
        wait_until("a packet comes", || self.rx.used_index() != self.rx.taken);
        self.take().unwrap()
    }

    /// A packet, if there is one as far as the device knows.
    pub(super) fn poll(&mut self) -> Option<(Header, Vec<u8>)> {
        self.offer();
        self.rig.settle();
        self.take()
    }

    fn take(&mut self) -> Option<(Header, Vec<u8>)> {
        let used = self.rx.take_used()?;
        self.waiting = false;
        let mut bytes = vec![0; used.len as usize];
        self.rig.ram.read(IN, &mut bytes).unwrap();
        let (header, data) = bytes.split_first_chunk().unwrap();
        let header = Header::parse(header);
        assert_eq!(header.len as usize, data.len(), "{header:?}");
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
        Some((header, data.to_vec()))
    }

    /// Offers a buffer, unless one is offered.
    pub(super) fn offer(&mut self) {
        if !std::mem::replace(&mut self.waiting, true) {
            let buffer = Buffer::writable(IN, (HEADER + BUFFER) as u32);
            self.rig.send(&mut self.rx, &[buffer]);
        }
    }

    /// Waits for a packet of this kind, and says nothing of its header but its ports.
    pub(super) fn expect(&mut self, op: Op) -> (u32, u32) {
        let (header, _) = self.next();
        assert_eq!(Op::from_number(header.op), Some(op), "{header:?}");
        (header.dst_port, header.src_port)
    }

    /// Waits for data, until there are so many bytes.
    pub(super) fn read(&mut self, len: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < len {
            let (header, data) = self.next();
            assert!(
                [Op::Data, Op::CreditUpdate].contains(&Op::from_number(header.op).unwrap()),
                "{header:?}"
            );
            all.extend(data);
        }
        all
    }

    /// The process connects to a port of the guest: the process's end, and what comes of it.
    pub(super) fn connect(&self, port: u32) -> (UnixStream, Receiver<Result<u32, ConnectError>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (sender, receiver) = channel();
        let handle = self.handle.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _ = sender.send(runtime.block_on(handle.connect(port, theirs)));
        });
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        (ours, receiver)
    }

    /// A connection that the process has made to port 7 of the guest: its end, and the host's port.
    pub(super) fn connected(&mut self) -> (UnixStream, u32) {
        let (stream, answer) = self.connect(7);
        let (guest, host) = self.expect(Op::Request);
        assert_eq!(guest, 7);
        self.say(Op::Response, 7, host);
        assert_eq!(answer.recv_timeout(PATIENCE).unwrap(), Ok(host));
        (stream, host)
    }

    /// How often something became of a connection.
    pub(super) fn results(&self, result: ConnectionResult) -> u64 {
        self.metrics.connection_results.get(result)
    }

    /// How often connections were broken off, by reason.
    pub(super) fn resets(&self) -> Vec<(ResetReason, u64)> {
        self.metrics.connection_resets.iter().map(|(reason, count)| (reason, count.get())).collect()
    }

    pub(super) fn connections(&self) -> i64 {
        self.metrics.connections.get()
    }

    /// Malformed packets so far.
    pub(super) fn bad(&self) -> u64 {
        self.rig.errors(GuestErrorKind::BadRequest)
    }
}

/// Bytes that tell their place.
pub(super) fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8).collect()
}

/// Reads exactly so many bytes.
pub(super) fn taken(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Reads to the end.
pub(super) fn rest_of(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Writes all of it.
pub(super) fn give(stream: &mut UnixStream, bytes: &[u8]) {
    stream.write_all(bytes).unwrap();
}
