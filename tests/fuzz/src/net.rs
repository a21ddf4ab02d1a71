//! A network interface on ports whose packets are what the script says, and what is sent is forgotten.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::mem::take;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use ringlet_devices::net::{Filter, Mac, NetDevice, NetOptions};
use ringlet_devices::testing::{Buffer, Subject};
use ringlet_io::Lease;
use ringlet_io::net::{HEADER, MIN_FRAME, NetFuture, NetInfo, NetPort, Offloads, Received, Sent};

use crate::FILLER;

/// Pairs of queues.
const PAIRS: u16 = 2;
/// Packets that may wait.
const WAITING: usize = 16;
/// What the host leaves unfinished, and the guest may.
const OFFLOADS: Offloads =
    Offloads { checksum: true, tso4: true, tso6: true, ecn: true, ufo: true, uso4: true, uso6: true };

/// The host's side of an interface. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Network(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Packets that come, header first, wherever the guest looks first.
    coming: VecDeque<Vec<u8>>,
    wakers: Vec<Waker>,
}

impl Network {
    /// A frame comes that is so much longer than the shortest, eight bytes for each; nothing if many wait.
    pub fn send(&self, len: u8) {
        let mut state = self.lock();
        if state.coming.len() < WAITING {
            let frame = vec![FILLER; MIN_FRAME + 8 * usize::from(len)];
            state.coming.push_back([vec![0; HEADER], frame].concat());
        }
        let wakers = take(&mut state.wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NetPort for Network {
    fn readable(&self) -> NetFuture<'_, io::Result<()>> {
        Box::pin(poll_fn(|cx| {
            let mut state = self.lock();
            if !state.coming.is_empty() {
                return Poll::Ready(Ok(()));
            }
            state.wakers.retain(|waker| !waker.will_wake(cx.waker()));
            state.wakers.push(cx.waker().clone());
            Poll::Pending
        }))
    }

    fn writable(&self) -> NetFuture<'_, io::Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn receive(&self, into: &Lease) -> io::Result<Option<Received>> {
        let Some(packet) = self.lock().coming.pop_front() else { return Ok(None) };
        if packet.len() as u64 > into.len() {
            return Ok(Some(Received::TooLong));
        }
        into.copy_in(&packet, 0).expect("it fits");
        Ok(Some(Received::Packet(packet.len())))
    }

    fn send(&self, _head: &[u8], rest: &Lease) -> io::Result<Sent> {
        let mut bytes = vec![0; usize::try_from(rest.len()).expect("a packet")];
        rest.copy_out(&mut bytes, 0).expect("it is there");
        Ok(Sent::Taken)
    }

    fn set_offloads(&self, _accepted: Offloads) -> NetFuture<'_, io::Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn set_queue_pairs(&self, _active: u16) -> NetFuture<'_, io::Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

/// An interface, and its host's side.
pub(crate) fn net() -> (Subject, Network) {
    let network = Network::default();
    let mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    let options = NetOptions { id: "it".into(), mac, mtu: None, queue_size: 64, filter: Filter::default() };
    let info = NetInfo { mac: None, mtu: Some(1500), queue_pairs: PAIRS, offloads: OFFLOADS };
    let config = options.config(&info);
    let (space, host) = (config.clone(), network.clone());
    let subject = Subject {
        identity: options.identity(&info),
        config,
        device: Box::new(move |cx, _| {
            let port = |_| Rc::new(host.clone()) as Rc<dyn NetPort>;
            let ports = (0..PAIRS).map(port).collect();
            Ok(Box::new(NetDevice::new(cx, &options, &info, space, ports)?))
        }),
        queue: 1,
        request: |ram, at| {
            ram.write(at, &[0; HEADER + 60]).expect("in RAM");
            vec![Buffer::readable(at, (HEADER + 60) as u32)]
        },
        release: None,
    };
    (subject, network)
}
