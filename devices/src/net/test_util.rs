//! A port that does what a test says, and an interface on such ports.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Poll, Waker};

use ringlet_io::net::{HEADER, MIN_FRAME, NetFuture, NetInfo, NetPort, Offloads, Received, Sent};
use ringlet_io::{EngineKind, GuestRam, Lease};

use super::{Filter, Mac, NetDevice, NetOptions};
use crate::testing::{Buffer, DriverQueue, Options, Rig, Subject};

pub(super) const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
/// Everything that can be left unfinished.
pub(super) const ALL_OFFLOADS: Offloads =
    Offloads { checksum: true, tso4: true, tso6: true, ecn: true, ufo: true, uso4: true, uso6: true };

/// The host's side of all pairs. Clones are the same host.
#[derive(Clone)]
pub(super) struct TestHost(Arc<Mutex<State>>);

pub(super) struct State {
    /// Packets for each port, header first.
    pub(super) incoming: Vec<VecDeque<Vec<u8>>>,
    /// What comes without end if nothing else does.
    pub(super) endless: Option<Vec<u8>>,
    /// What each port was sent, header first.
    pub(super) sent: Vec<Vec<Vec<u8>>>,
    /// How often each port was asked for a packet.
    pub(super) asked: Vec<u64>,
    /// What `send` does.
    pub(super) answer: Sent,
    /// The end of the port.
    pub(super) error: Option<io::ErrorKind>,
    /// What can be left unfinished.
    pub(super) on_offer: Offloads,
    /// What the host was told.
    pub(super) offloads: Vec<Offloads>,
    pub(super) pairs: Vec<u16>,
    /// How many changes of offloads or pairs were begun.
    pub(super) begun: u64,
    /// Settings wait until this is taken away.
    pub(super) held: bool,
    wakers: Vec<Waker>,
}

/// One pair's port.
struct TestPort {
    host: TestHost,
    pair: usize,
}

impl TestHost {
    pub(super) fn new(pairs: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            incoming: vec![VecDeque::new(); pairs],
            endless: None,
            sent: vec![Vec::new(); pairs],
            asked: vec![0; pairs],
            answer: Sent::Taken,
            error: None,
            on_offer: ALL_OFFLOADS,
            offloads: Vec::new(),
            pairs: Vec::new(),
            begun: 0,
            held: false,
            wakers: Vec::new(),
        })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Changes something, and wakes whoever waits for that.
    pub(super) fn change(&self, change: impl FnOnce(&mut State)) {
        let wakers = {
            let mut state = self.lock();
            change(&mut state);
            std::mem::take(&mut state.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// A frame comes at a port, with an empty header.
    pub(super) fn come(&self, pair: usize, frame: &[u8]) {
        self.change(|state| state.incoming[pair].push_back([&[0; HEADER], frame].concat()));
    }

    /// What a port was sent since the last call.
    pub(super) fn take_sent(&self, pair: usize) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.lock().sent[pair])
    }

    fn until<'a>(&'a self, ready: impl Fn(&State) -> bool + 'a) -> NetFuture<'a, io::Result<()>> {
        Box::pin(poll_fn(move |cx| {
            let mut state = self.lock();
            if ready(&state) || state.error.is_some() {
                return Poll::Ready(Ok(()));
            }
            state.wakers.push(cx.waker().clone());
            Poll::Pending
        }))
    }
}

impl NetPort for TestPort {
    fn readable(&self) -> NetFuture<'_, io::Result<()>> {
        self.host.until(|state| state.endless.is_some() || !state.incoming[self.pair].is_empty())
    }

    fn writable(&self) -> NetFuture<'_, io::Result<()>> {
        self.host.until(|state| state.answer != Sent::Later)
    }

    fn receive(&self, into: &Lease) -> io::Result<Option<Received>> {
        let mut state = self.host.lock();
        state.asked[self.pair] += 1;
        if let Some(error) = state.error {
            return Err(error.into());
        }
        let next = state.incoming[self.pair].pop_front().or_else(|| state.endless.clone());
        let Some(packet) = next else { return Ok(None) };
        if packet.len() < HEADER + MIN_FRAME {
            return Ok(Some(Received::TooShort));
        }
        if packet.len() as u64 > into.len() {
            return Ok(Some(Received::TooLong));
        }
        into.copy_in(&packet, 0).unwrap();
        Ok(Some(Received::Packet(packet.len())))
    }

    fn send(&self, head: &[u8], rest: &Lease) -> io::Result<Sent> {
        let mut state = self.host.lock();
        if let Some(error) = state.error {
            return Err(error.into());
        }
        if state.answer == Sent::Taken {
            let mut bytes = vec![0; rest.len() as usize];
            rest.copy_out(&mut bytes, 0).unwrap();
            state.sent[self.pair].push([head, &bytes].concat());
        }
        Ok(state.answer)
    }

    fn set_offloads(&self, accepted: Offloads) -> NetFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.host.lock().begun += 1;
            self.host.until(|state| !state.held).await?;
            let mut state = self.host.lock();
            state.offloads.push(accepted);
            state.error.map_or(Ok(()), |error| Err(error.into()))
        })
    }

    fn set_queue_pairs(&self, active: u16) -> NetFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.host.lock().begun += 1;
            self.host.until(|state| !state.held).await?;
            let mut state = self.host.lock();
            state.pairs.push(active);
            state.error.map_or(Ok(()), |error| Err(error.into()))
        })
    }
}

pub(super) fn options() -> NetOptions {
    NetOptions { id: "net0".into(), mac: MAC, mtu: None, queue_size: 64, filter: Filter::default() }
}

pub(super) fn info(pairs: u16) -> NetInfo {
    NetInfo { mac: None, mtu: Some(1500), queue_pairs: pairs, offloads: ALL_OFFLOADS }
}

/// An interface on `host`, driven by queue `queue`.
pub(super) fn subject(
    host: &TestHost,
    options: NetOptions,
    queue: u16,
    request: fn(&GuestRam, u64) -> Vec<Buffer>,
) -> Subject {
    let pairs = host.lock().sent.len();
    let offloads = host.lock().on_offer;
    let info = NetInfo { offloads, ..info(pairs as u16) };
    let config = options.config(&info);
    let (space, host) = (config.clone(), host.clone());
    Subject {
        identity: options.identity(&info),
        config,
        device: Box::new(move |cx, _| {
            let port = |pair| Rc::new(TestPort { host: host.clone(), pair }) as Rc<dyn NetPort>;
            let ports = (0..pairs).map(port).collect();
            Ok(Box::new(NetDevice::new(cx, &options, &info, space, ports)?))
        }),
        queue,
        request,
        release: None,
    }
}

/// A driver of an interface on a test host.
pub(super) struct Driver {
    pub(super) rig: Rig,
    pub(super) host: TestHost,
    pub(super) queues: Vec<DriverQueue>,
}

impl Driver {
    /// A driver of one pair that accepts `features` of what is offered.
    pub(super) fn new(features: u64) -> Self {
        Self::with(TestHost::new(1), options(), Options::new(EngineKind::Epoll), features)
    }

    pub(super) fn with(host: TestHost, options: NetOptions, rig: Options, features: u64) -> Self {
        let rig = Rig::new(subject(&host, options, 0, |_, _| Vec::new()), rig);
        let queues = rig.bring_up(rig.offered() & features);
        Self { rig, host, queues }
    }

    /// The rig, and one of the queues.
    pub(super) fn split(&mut self, queue: usize) -> (&Rig, &mut DriverQueue) {
        (&self.rig, &mut self.queues[queue])
    }

    /// Offers buffers for packets, each a chain: `(place, len)`, `place` counted from [`Rig::DATA`].
    pub(super) fn offer(&mut self, buffers: &[(u64, u32)]) {
        let (rig, queue) = self.split(0);
        for (place, len) in buffers {
            queue.add(&[Buffer::writable(Rig::DATA + place, *len)]);
        }
        rig.ring(0);
    }

    /// Waits for the next chain of a queue: bytes written.
    pub(super) fn used(&mut self, queue: usize) -> u32 {
        let (rig, queue) = self.split(queue);
        let used = rig.used(queue);
        rig.settle();
        used.len
    }

    pub(super) fn bytes(&self, place: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.rig.ram.read(Rig::DATA + place, &mut bytes).unwrap();
        bytes
    }

    /// Sends a packet, cut into buffers of at most `piece` bytes, and waits until it is given back.
    pub(super) fn send(&mut self, header: &[u8; HEADER], frame: &[u8], piece: usize) {
        self.post(header, frame, piece);
        assert_eq!(self.used(1), 0, "nothing is written to what is sent");
    }

    pub(super) fn post(&mut self, header: &[u8; HEADER], frame: &[u8], piece: usize) {
        let packet = [&header[..], frame].concat();
        self.rig.ram.write(Rig::DATA, &packet).unwrap();
        let starts = (0..packet.len()).step_by(piece);
        let buffers: Vec<Buffer> = starts
            .map(|at| Buffer::readable(Rig::DATA + at as u64, piece.min(packet.len() - at) as u32))
            .collect();
        let (rig, queue) = self.split(1);
        rig.send(queue, &buffers);
    }

    /// Does a command of the control queue, which is the last; gives the answer.
    pub(super) fn control(&mut self, command: &[u8]) -> u8 {
        const PLACE: u64 = 0x8_0000;
        self.rig.ram.write(Rig::DATA + PLACE, command).unwrap();
        let answer = PLACE + 0x1000;
        self.rig.ram.write(Rig::DATA + answer, &[0xA5]).unwrap();
        let mut buffers = vec![Buffer::writable(Rig::DATA + answer, 1)];
        if !command.is_empty() {
            buffers.insert(0, Buffer::readable(Rig::DATA + PLACE, command.len() as u32));
        }
        let last = self.queues.len() - 1;
        let (rig, queue) = self.split(last);
        rig.send(queue, &buffers);
        assert_eq!(self.used(last), 1);
        self.bytes(answer, 1)[0]
    }
}

/// A frame of `len` bytes that tells its place.
pub(super) fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8).collect()
}

/// All features but one.
pub(super) const fn without(feature: u32) -> u64 {
    !(1 << feature)
}
