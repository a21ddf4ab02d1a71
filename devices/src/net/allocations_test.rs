//! A packet costs no allocation, either way: a thread's are counted, which for the device's shard are the device's.

#![expect(unsafe_code, reason = "GlobalAlloc is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::future::pending;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ringlet_io::net::{HEADER, NetFuture, NetPort, Offloads, Received, Sent};
use ringlet_io::{EngineKind, Lease};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;

use super::test_util::{info, options};
use super::{NetDevice, NetOptions};
use crate::testing::{Buffer, DriverQueue, Options, Rig, Subject, wait_until};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's, counted.
struct Counted;

// SAFETY: everything is the system allocator's; counting allocates nothing and cannot panic.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's.
        unsafe { System.realloc(place, layout, len) }
    }
}

#[global_allocator]
static COUNTED: Counted = Counted;

/// Packets of a round: fewer than the queue is long.
const PACKETS: u64 = 50;
/// What a round may cost by itself, for being begun and being counted.
const MARGIN: u64 = 20;
const PACKET: [u8; HEADER + 60] = [0; HEADER + 60];

/// Takes every packet, and has so many.
struct Port(Arc<AtomicU64>);

impl NetPort for Port {
    fn readable(&self) -> NetFuture<'_, io::Result<()>> {
        Box::pin(pending())
    }

    fn writable(&self) -> NetFuture<'_, io::Result<()>> {
        Box::pin(pending())
    }

    fn receive(&self, into: &Lease) -> io::Result<Option<Received>> {
        let one_less = |left: u64| left.checked_sub(1);
        if self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_err() {
            return Ok(None);
        }
        into.copy_in(&PACKET, 0).unwrap();
        Ok(Some(Received::Packet(PACKET.len())))
    }

    fn send(&self, head: &[u8], rest: &Lease) -> io::Result<Sent> {
        assert_eq!(head.len() as u64 + rest.len(), PACKET.len() as u64);
        Ok(Sent::Taken)
    }

    fn set_offloads(&self, _: Offloads) -> NetFuture<'_, io::Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn set_queue_pairs(&self, _: u16) -> NetFuture<'_, io::Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

fn subject(options: NetOptions, port: Port) -> Subject {
    let info = info(1);
    let config = options.config(&info);
    let space = config.clone();
    Subject {
        identity: options.identity(&info),
        config,
        device: Box::new(move |cx, _| {
            let ports = vec![Rc::new(port) as Rc<dyn NetPort>];
            Ok(Box::new(NetDevice::new(cx, &options, &info, space, ports)?))
        }),
        queue: 0,
        request: |_, _| Vec::new(),
        release: None,
    }
}

/// Allocations of the shard's thread, one of which may be that of asking.
fn allocations(rig: &Rig) -> u64 {
    rig.on_shard(|_| async { ALLOCATIONS.get() })
}

/// Has the device serve a round of chains, each offered by `offer`, and counts its allocations. The first round, in which
/// lists grow, does not count.
fn assert_none(rig: &Rig, queue: &mut DriverQueue, index: u16, offer: impl Fn(&mut DriverQueue)) {
    for is_measured in [false, true, true] {
        let before = allocations(rig);
        (0..PACKETS).for_each(|_| offer(queue));
        rig.ring(index);
        let mut used = 0;
        wait_until("all packets are used", || {
            used += u64::from(queue.take_used().is_some());
            used == PACKETS
        });
        let count = allocations(rig) - before;
        assert!(!is_measured || count < MARGIN, "{count} allocations for {PACKETS} packets");
    }
}

fn up(packets: u64) -> (Rig, Vec<DriverQueue>) {
    let port = Port(Arc::new(AtomicU64::new(packets)));
    let rig = Rig::new(subject(options(), port), Options::new(EngineKind::Epoll));
    // Without packets that take several buffers: the last of a round would be waited for.
    let queues = rig.bring_up(Rig::core_features() | 1 << VIRTIO_NET_F_MRG_RXBUF);
    (rig, queues)
}

#[test]
fn packets_are_sent_without_allocations() {
    let (rig, mut queues) = up(0);
    let at = Rig::DATA;
    let whole = [Buffer::readable(at, PACKET.len() as u32)];
    let parts =
        [Buffer::readable(at, HEADER as u32), Buffer::readable(at + 64, 20), Buffer::readable(at + 128, 40)];
    assert_none(&rig, &mut queues[1], 1, |queue| _ = queue.add(&whole));
    let (rig, mut queues) = up(0);
    assert_none(&rig, &mut queues[1], 1, |queue| {
        let head = queue.build_indirect(&parts, at + 0x1000);
        queue.offer(head);
    });
}

#[test]
fn packets_are_received_without_allocations() {
    let (rig, mut queues) = up(u64::MAX);
    let buffer = [Buffer::writable(Rig::DATA, 4096)];
    assert_none(&rig, &mut queues[0], 0, |queue| _ = queue.add(&buffer));
}
