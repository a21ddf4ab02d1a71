//! A script of a guest that sends packets to a socket device, and of the process that its connections go to.
//!
//! Input: operations. Fails on a panic, if a packet comes that makes no sense or that the guest gave no credit for, if
//! the data of a connection is not, either way, a beginning of what was sent, and if the device does not stop at once or
//! does not work after a reset.

#![no_main]

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use ringlet_devices::testing::{Buffer, DriverQueue, Rig};
use ringlet_devices::virtio::spec::register;
use ringlet_devices::vsock::packet::{HEADER, HOST_CID, Header, Op, STREAM};
use ringlet_devices::vsock::{ConnectError, VsockHandle, VsockListener};
use ringlet_fuzz::{CID, Device, leave, rig, vsock, work_until};

/// Operations of one input: fewer than the answers that the device keeps for a guest that takes none.
const OPERATIONS: usize = 128;
/// The port at which the process listens.
const PORT: u32 = 5;
/// Where the guest's packets are, and where it receives some.
const OUT: u64 = Rig::DATA;
const IN: u64 = Rig::HIGH;
/// Bytes of data of a packet, and of a buffer.
const MOST: usize = 0x1_8000;

type Answer = Pin<Box<dyn Future<Output = std::result::Result<u32, ConnectError>>>>;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Unstructured::new(bytes);
    let mut bench = Bench::new();
    for _ in 0..OPERATIONS {
        if input.is_empty() || bench.step(&mut input).is_err() {
            break;
        }
    }
    bench.finish();
});

/// A connection as the guest sees it. A new one with the same ports is another.
#[derive(Default)]
struct Seen {
    /// What the guest has said that it has passed on, and up to where it has room, at most.
    taken: u64,
    limit: u64,
    received: usize,
    /// What it has sent.
    sent: usize,
}

/// The process's end of a connection.
struct End {
    stream: UnixStream,
    /// Ports of the guest and of the host; the latter once the guest has accepted.
    guest: u32,
    host: Option<u32>,
    answer: Option<Answer>,
    written: usize,
    read: usize,
}

struct Bench {
    rig: Rig,
    rx: DriverQueue,
    tx: DriverQueue,
    handle: VsockHandle,
    listener: VsockListener,
    ends: Vec<End>,
    seen: BTreeMap<(u32, u32), Seen>,
    /// What the guest has sent by all connections with the same ports.
    sent: BTreeMap<(u32, u32), usize>,
    /// The last ports that the device named.
    known: Vec<(u32, u32)>,
}

/// Byte `n` of any stream.
fn byte(n: usize) -> u8 {
    (n % 251) as u8
}

fn stream_of(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(byte).collect()
}

impl Bench {
    fn new() -> Self {
        let (subject, handle) = vsock();
        let listener = handle.listen(PORT).expect("nobody else listens");
        let rig = rig(Device::Vsock, subject, None);
        let [rx, tx, _] = rig.bring_up(rig.offered()).try_into().expect("three queues");
        let (ends, seen, sent, known) = (Vec::new(), BTreeMap::new(), BTreeMap::new(), Vec::new());
        Self { rig, rx, tx, handle, listener, ends, seen, sent, known }
    }

    fn step(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        match input.arbitrary::<u8>()? % 10 {
            0..=3 => self.speak(input)?,
            4 => {
                let bytes: [u8; HEADER] = input.arbitrary()?;
                self.send(Header::parse(&bytes), 8);
            }
            5 => self.connect(input.arbitrary::<u8>()?.into()),
            6 => self.receive(),
            7 => self.process(input)?,
            8 => {
                self.rig.suspend().expect("it stops at once");
                self.rig.resume().expect("it goes on");
            }
            _ => self.rig.settle(),
        }
        self.accept();
        Ok(())
    }

    /// The guest sends a packet that makes some sense.
    fn speak(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let (what, who, amount): (u8, u8, u16) = input.arbitrary()?;
        let ports = match self.known.len() {
            0 => (who.into(), PORT),
            _ if who & 0x80 != 0 => (u32::from(who & 7), PORT),
            count => self.known[usize::from(who) % count],
        };
        let op = Op::ALL[usize::from(what) % Op::ALL.len()];
        let received = self.seen.get(&ports).map_or(0, |seen| seen.received);
        let header = Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: ports.0,
            dst_port: ports.1,
            kind: STREAM,
            op: op.number(),
            flags: if op == Op::Shutdown { u32::from(amount) } else { 0 },
            len: if op == Op::Data { u32::from(amount) << (what >> 7) } else { 0 },
            buf_alloc: u32::from(amount),
            // One more than it received is a lie.
            fwd_cnt: received as u32 + u32::from(what >> 6 & 1),
        };
        self.send(header, header.len as usize);
        Ok(())
    }

    /// Sends a packet with so many bytes behind the header, and waits until it is given back.
    fn send(&mut self, header: Header, len: usize) {
        let ports = (header.src_port, header.dst_port);
        let mut data = stream_of(0, len.min(MOST));
        let is_known = (header.src_cid, header.dst_cid, header.kind) == (CID, HOST_CID, STREAM);
        if is_known {
            let seen = self.seen.entry(ports).or_default();
            if header.fwd_cnt as usize <= seen.received {
                seen.taken = seen.taken.max(header.fwd_cnt.into());
                seen.limit = seen.limit.max(seen.taken + u64::from(header.buf_alloc));
            }
            if header.op == Op::Data.number() {
                data = stream_of(seen.sent, data.len());
                let count = data.len().min(header.len as usize);
                seen.sent += count;
                *self.sent.entry(ports).or_default() += count;
            }
        }
        self.rig.ram.write(OUT, &[&header.bytes()[..], &data].concat()).expect("in RAM");
        let mut buffers = vec![Buffer::readable(OUT, HEADER as u32)];
        if !data.is_empty() {
            buffers.push(Buffer::readable(OUT + HEADER as u64, data.len() as u32));
        }
        self.rig.send(&mut self.tx, &buffers);
        work_until(self, |bench| &bench.rig, "a packet is taken", |bench| bench.tx.take_used().is_some());
        if is_known && header.op == Op::Request.number() {
            // What came of a connection with these ports came before that.
            self.take();
            let limit = if header.fwd_cnt == 0 { header.buf_alloc.into() } else { 0 };
            self.seen.insert(ports, Seen { limit, ..Seen::default() });
        }
    }

    /// The guest takes a packet, if there is one.
    fn receive(&mut self) {
        if self.rx.offered == self.rx.taken {
            self.rig.send(&mut self.rx, &[Buffer::writable(IN, (HEADER + MOST) as u32)]);
        }
        self.rig.settle();
        self.take();
    }

    /// Takes what is there.
    fn take(&mut self) {
        let Some(used) = self.rx.take_used() else { return };
        let mut bytes = vec![0; used.len as usize];
        self.rig.ram.read(IN, &mut bytes).expect("in RAM");
        let (header, data) = bytes.split_first_chunk().expect("a header");
        let header = Header::parse(header);
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
        assert_eq!(header.len as usize, data.len(), "{header:?}");
        let ports = (header.dst_port, header.src_port);
        let Some(op) = Op::from_number(header.op) else { panic!("{header:?}") };
        assert!(op == Op::Reset || header.kind == STREAM, "{header:?}");
        assert_eq!(header.flags != 0, op == Op::Shutdown, "{header:?}");
        if op == Op::Request {
            self.seen.insert(ports, Seen::default());
        }
        if op == Op::Data {
            self.check(ports, data);
        }
        self.known.retain(|known| *known != ports);
        self.known.insert(0, ports);
        self.known.truncate(8);
    }

    /// Data must be what comes next, and within some credit that the guest gave.
    fn check(&mut self, ports: (u32, u32), data: &[u8]) {
        let seen = self.seen.get_mut(&ports).expect("a connection that the guest knows");
        assert!(data == stream_of(seen.received, data.len()), "it is not what was written");
        seen.received += data.len();
        let limit = seen.limit;
        assert!(seen.received as u64 <= limit, "{} bytes came with credit for {limit}", seen.received);
    }

    fn connect(&mut self, guest: u32) {
        let (stream, theirs) = UnixStream::pair().expect("descriptors");
        stream.set_nonblocking(true).expect("a socket");
        let handle = self.handle.clone();
        let mut answer: Answer = Box::pin(async move { handle.connect(guest, theirs).await });
        // Asked at once; the answer is a refusal if it is there already.
        let answer = now(answer.as_mut()).is_pending().then_some(answer);
        self.ends.push(End { stream, guest, host: None, answer, written: 0, read: 0 });
    }

    /// Takes over what the guest has connected to.
    fn accept(&mut self) {
        while let Poll::Ready(Some(incoming)) = now(std::pin::pin!(self.listener.accept())) {
            let (stream, guest) = (incoming.stream, incoming.guest_port);
            self.ends.push(End { stream, guest, host: Some(PORT), answer: None, written: 0, read: 0 });
        }
        for end in &mut self.ends {
            let Some(answer) = &mut end.answer else { continue };
            if let Poll::Ready(result) = now(answer.as_mut()) {
                (end.answer, end.host) = (None, result.ok());
            }
        }
    }

    /// The process does something to one of its ends.
    fn process(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let (who, what, amount): (u8, u8, u16) = input.arbitrary()?;
        if self.ends.is_empty() {
            return Ok(());
        }
        let index = usize::from(who) % self.ends.len();
        let end = &mut self.ends[index];
        match what % 4 {
            0 => {
                let written = end.stream.write(&stream_of(end.written, amount.into()));
                end.written += written.unwrap_or(0);
            }
            1 => self.read(index),
            2 => {
                // It fails if the other end is gone.
                let _ = end.stream.shutdown(std::net::Shutdown::Write);
            }
            _ => drop(self.ends.swap_remove(index)),
        }
        Ok(())
    }

    /// What is read must be what the guest has sent, from its beginning.
    fn read(&mut self, index: usize) {
        let end = &mut self.ends[index];
        let mut bytes = vec![0; MOST];
        let count = end.stream.read(&mut bytes).unwrap_or(0);
        assert!(bytes[..count] == stream_of(end.read, count), "it is not what the guest sent");
        end.read += count;
        if let (Some(host), true) = (end.host, count > 0) {
            let sent = self.sent.get(&(end.guest, host)).copied().unwrap_or(0);
            assert!(end.read <= sent, "{} bytes of {sent}", end.read);
        }
    }

    fn finish(mut self) {
        (0..self.ends.len()).for_each(|index| self.read(index));
        self.rig.suspend().expect("it stops, whoever does not read");
        self.rig.resume().expect("it goes on");
        self.rig.write(register::STATUS, 0);
        let [rx, tx, _] = self.rig.bring_up(self.rig.offered()).try_into().expect("three queues");
        (self.rx, self.tx) = (rx, tx);
        // Requests that the driver before was not told of come first, and take places.
        self.ends.clear();
        let header = Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: 9,
            dst_port: PORT,
            kind: STREAM,
            op: 1,
            ..Header::default()
        };
        self.seen.clear();
        self.known.clear();
        self.send(header, 0);
        work_until(
            &mut self,
            |bench| &bench.rig,
            "the device answers",
            |bench| {
                bench.receive();
                bench.known.contains(&(9, PORT))
            },
        );
        self.rig.stop().expect("it stops");
        leave(Device::Vsock, self.rig);
    }
}

/// Polls once.
fn now<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}
