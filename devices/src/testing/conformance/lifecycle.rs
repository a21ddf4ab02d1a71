//! Reset, suspend, stop, save and restore, at every await point of a request.

use std::time::Duration;

use ringlet_io::{EngineKind, LimiterSeed};

use super::{Bench, MakeSubject};
use crate::bus::Then;
use crate::testing::{DriverQueue, Options, PATIENCE, wait_until};
use crate::virtio::spec::{register, status};
use crate::virtio::{DeviceState, VirtioState, WorkerError};

/// How many requests are in flight where some must be.
const SOME: u64 = 3;

/// What the driver offers meanwhile stays its own.
pub fn sec_02_without_cpu_time_nothing_is_begun_and_nothing_waits_for_that(
    engine: EngineKind,
    subject: MakeSubject,
) {
    let bench = Bench::new(engine, subject);
    let rig = &bench.rig;
    let mut queue = bench.up();
    bench.serve(&mut queue, 0);
    // Until it looks for the next, or it may have begun that.
    rig.settle();
    rig.take_cpu_time();
    bench.ask(&mut queue, 1);
    rig.settle();
    assert_eq!(queue.used_index(), 1, "it waits");
    rig.suspend().unwrap();
    rig.resume().unwrap();
    rig.write(register::STATUS, 0);
    assert_eq!(queue.used_index(), 1);
    let mut queue = bench.up();
    let head = bench.ask(&mut queue, 2);
    rig.settle();
    assert_eq!(queue.used_index(), 0, "it waits again");
    rig.give_cpu_time();
    assert_eq!(rig.used(&mut queue).head, head);
}

/// A chain that was only peeked is still the driver's.
pub fn sec_08_a_reset_takes_back_what_waits_for_admission(engine: EngineKind, subject: MakeSubject) {
    let (bench, gate) = Bench::gated(engine, subject);
    let rig = &bench.rig;
    let mut queue = bench.up();
    bench.ask(&mut queue, 0);
    bench.ask(&mut queue, 1);
    rig.settle();
    rig.write(register::STATUS, 0);
    assert_eq!((rig.status(), gate.admissions()), (0, 0));
    gate.open();
    bench.assert_memory_rests();
    assert_eq!((queue.used_index(), gate.admissions()), (0, 0), "nothing was begun");
    let mut queue = bench.up();
    bench.serve(&mut queue, 0);
}

/// The reset is complete when nothing can write guest memory any more.
pub fn sec_08_a_reset_waits_for_what_is_in_flight(engine: EngineKind, subject: MakeSubject) {
    let Some(bench) = Bench::held(engine, subject) else { return };
    let rig = &bench.rig;
    let mut queue = bench.up();
    bench.hold(&mut queue, SOME);
    let reset = rig.begin_write(register::STATUS, &0u32.to_le_bytes());
    rig.settle();
    assert!(!rig.is_over(&reset), "requests are in flight");
    assert_ne!(rig.status(), 0);
    let other = rig.begin_write(register::QUEUE_SEL, &0u32.to_le_bytes());
    assert!(!rig.is_over(&other), "another vCPU's write waits");
    bench.release();
    assert_eq!(rig.finish_write(&reset), Then::Done);
    assert_eq!(rig.finish_write(&other), Then::Repeat);
    assert_eq!(rig.status(), 0);
    bench.assert_memory_rests();
    assert_eq!(queue.used_index(), SOME as u16, "what was in flight was completed");
    let mut queue = bench.up();
    bench.serve(&mut queue, 0);
}

/// The same for one queue.
pub fn sec_08_a_queue_reset_waits_for_what_is_in_flight(engine: EngineKind, subject: MakeSubject) {
    let Some(bench) = Bench::held(engine, subject) else { return };
    let rig = &bench.rig;
    let mut queue = bench.up();
    bench.hold(&mut queue, SOME);
    rig.write(register::QUEUE_SEL, queue.index.into());
    let reset = rig.begin_write(register::QUEUE_RESET, &1u32.to_le_bytes());
    rig.settle();
    assert!(!rig.is_over(&reset), "requests are in flight");
    assert_eq!((rig.read(register::QUEUE_RESET), rig.read(register::QUEUE_READY)), (1, 1));
    bench.release();
    assert_eq!(rig.finish_write(&reset), Then::Done);
    assert_eq!((rig.read(register::QUEUE_RESET), rig.read(register::QUEUE_READY)), (0, 0));
    bench.assert_memory_rests();
}

/// By QueueReset, and by QueueReady = 0.
pub fn a_queue_that_was_reset_starts_anew(engine: EngineKind, subject: MakeSubject) {
    let bench = Bench::new(engine, subject);
    let rig = &bench.rig;
    let mut queue = bench.up();
    bench.serve(&mut queue, 0);
    for (register, value) in [(register::QUEUE_RESET, 1), (register::QUEUE_READY, 0)] {
        rig.write(register::QUEUE_SEL, queue.index.into());
        rig.write(register, value);
        assert_eq!(rig.read(register::QUEUE_READY), 0);
        let offered = queue.used_index();
        bench.ask(&mut queue, 1);
        rig.settle();
        assert_eq!(queue.used_index(), offered, "a stopped queue takes nothing");
        queue = DriverQueue::new(&rig.ram, queue.index, queue.size / 2, queue.descriptors);
        rig.enable(&queue);
        assert_eq!(rig.read(register::QUEUE_READY), 1);
        bench.serve(&mut queue, 2);
    }
}

/// Suspended at the limiter, resumed, served.
pub fn suspending_takes_back_what_waits_for_admission(engine: EngineKind, subject: MakeSubject) {
    let (bench, gate) = Bench::gated(engine, subject);
    let rig = &bench.rig;
    let mut queue = bench.up();
    let first = bench.ask(&mut queue, 0);
    rig.settle();
    rig.suspend().unwrap();
    rig.suspend().unwrap();
    let second = bench.ask(&mut queue, 1);
    gate.open();
    bench.assert_memory_rests();
    assert_eq!((queue.used_index(), gate.admissions()), (0, 0), "nothing happens while it is suspended");
    let _ = rig.take_interrupts();
    rig.resume().unwrap();
    let mut heads = [rig.used(&mut queue).head, rig.used(&mut queue).head];
    heads.sort_unstable();
    assert!(heads == [first, second] || heads == [second, first]);
    wait_until("an interrupt comes, be it spurious", || rig.take_interrupts() > 0);
}

/// Suspended when nothing is in flight, and the driver has been told.
pub fn suspending_completes_what_is_in_flight(engine: EngineKind, subject: MakeSubject) {
    let Some(bench) = Bench::held(engine, subject) else { return };
    let rig = &bench.rig;
    let mut queue = bench.up();
    bench.hold(&mut queue, SOME);
    let _ = rig.take_interrupts();
    let suspended = rig.begin_suspend();
    rig.settle();
    assert!(suspended.try_recv().is_err(), "requests are in flight");
    bench.release();
    suspended.recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!((queue.used_index(), rig.metrics.in_flight.get()), (SOME as u16, 0));
    assert!(rig.take_interrupts() > 0, "the driver was told");
    let write = rig.begin_write(register::STATUS, &0u32.to_le_bytes());
    rig.settle();
    assert!(!rig.is_over(&write), "a driver's command waits for the resume");
    assert!(matches!(rig.save(), Err(WorkerError::Busy { .. })));
    rig.resume().unwrap();
    assert_eq!(rig.finish_write(&write), Then::Done);
    assert_eq!(rig.status(), 0);
}

/// Stopped for good, with everything completed.
pub fn stopping_completes_what_is_in_flight(engine: EngineKind, subject: MakeSubject) {
    let (bench, gate) = Bench::gated(engine, subject);
    let mut queue = bench.up();
    bench.ask(&mut queue, 0);
    bench.rig.settle();
    bench.rig.stop().unwrap();
    gate.open();
    bench.assert_memory_rests();
    bench.rig.write(register::STATUS, 0);
    let Some(bench) = Bench::held(engine, subject) else { return };
    let mut queue = bench.up();
    bench.hold(&mut queue, SOME);
    bench.release();
    bench.rig.stop().unwrap();
    assert_eq!(queue.used_index(), SOME as u16);
}

/// Requests that never end: the VM is lost, and the driver never hears that its reset is complete.
pub fn a_drain_that_takes_too_long_is_unrecoverable(engine: EngineKind, subject: MakeSubject) {
    let options = Options { drain_deadline: Duration::from_millis(20), ..Options::new(engine) };
    let bench = Bench::with(subject, options);
    if bench.release.is_none() {
        return;
    }
    let mut queue = bench.up();
    bench.hold(&mut queue, SOME);
    let reset = bench.rig.begin_write(register::STATUS, &0u32.to_le_bytes());
    let error = bench.rig.stop().unwrap_err();
    assert!(matches!(error, WorkerError::Unrecoverable { .. }), "{error}");
    assert!(!bench.rig.is_over(&reset), "the vCPU waits until it is stopped");
    assert_eq!(queue.used_index(), 0);
}

/// The state after restoring is the state that was saved, and the rings go on.
pub fn a_saved_device_goes_on_where_it_was(engine: EngineKind, subject: MakeSubject) {
    let (bench, gate) = Bench::gated(engine, subject);
    let mut queue = bench.up();
    gate.let_through(2);
    bench.serve(&mut queue, 0);
    bench.serve(&mut queue, 1);
    let waiting = bench.ask(&mut queue, 2);
    bench.rig.settle();
    assert!(matches!(bench.rig.save(), Err(WorkerError::NotSuspended { .. })));
    bench.rig.suspend().unwrap();
    let saved = bench.rig.save().unwrap();
    let json = serde_json::to_string(&saved).unwrap();
    bench.rig.stop().unwrap();

    let read: VirtioState = serde_json::from_str(&json).unwrap();
    let restored = Some((bench.rig.ram.clone(), read));
    let next =
        Bench::with(subject, Options { restored, limiter: LimiterSeed::unlimited(), ..Options::new(engine) });
    next.release();
    assert_eq!(next.rig.save().unwrap(), saved);
    assert_eq!(serde_json::to_string(&next.rig.save().unwrap()).unwrap(), json, "the same bytes");
    assert_eq!(next.rig.status(), bench.rig.status());
    next.rig.resume().unwrap();
    assert_eq!(next.rig.used(&mut queue).head, waiting, "it looks at its ring by itself");
    wait_until("an interrupt comes, be it spurious", || next.rig.take_interrupts() > 0);
    next.serve(&mut queue, 3);
    next.rig.write(register::STATUS, 0);
    let mut queue = next.up();
    next.serve(&mut queue, 0);
}

type Crafted = (&'static str, fn(&mut VirtioState));

const CRAFTED: &[Crafted] = &[
    ("version", |state| state.version += 1),
    ("type", |state| state.device_type += 1),
    ("status bits", |state| state.transport.status |= 0x10),
    ("status order", |state| state.transport.status &= !(status::ACKNOWLEDGE as u8)),
    ("features without FEATURES_OK", |state| state.transport.status &= !(status::FEATURES_OK as u8)),
    ("interrupt bits", |state| state.transport.interrupt_status = 4),
    ("features", |state| state.transport.driver_features |= 1 << 33),
    ("legacy", |state| state.transport.driver_features &= !(1 << 32)),
    ("fewer queues", |state| state.transport.queues.clear()),
    ("more queues", |state| state.transport.queues.push(state.transport.queues[0])),
    ("fewer positions", |state| state.queues.clear()),
    ("no position", |state| state.queues[0] = None),
    ("size 0", |state| state.transport.queues[0].size = 0),
    ("odd size", |state| state.transport.queues[0].size = 3),
    ("size", |state| state.transport.queues[0].size = 0x1_0000),
    ("rings outside RAM", |state| state.transport.queues[0].device = 0xD000_0000),
    ("rings that wrap", |state| state.transport.queues[0].descriptors = !15),
    ("alignment", |state| state.transport.queues[0].driver += 1),
    ("a position of a queue that is not ready", |state| state.transport.queues[0].ready = false),
];

/// What no driver could have programmed is refused, and what it could is harmless.
pub fn sec_10_a_crafted_state_is_refused(engine: EngineKind, subject: MakeSubject) {
    let bench = Bench::new(engine, subject);
    let mut queue = bench.up();
    bench.serve(&mut queue, 0);
    bench.rig.suspend().unwrap();
    let saved = bench.rig.save().unwrap();
    for (what, craft) in CRAFTED {
        let mut state = saved.clone();
        craft(&mut state);
        assert!(bench.rig.try_restore(subject(), state).is_err(), "{what} is refused");
    }
    assert!(bench.rig.try_restore(subject(), saved.clone()).is_ok());

    let mut other = saved.clone();
    other.device = match other.device {
        DeviceState::Stateless => DeviceState::Block { writeback: true, lost: false },
        _ => DeviceState::Stateless,
    };
    let restored = Some((bench.rig.ram.clone(), other));
    let next = Bench::with(subject, Options { restored, ..Options::new(engine) });
    assert!(next.rig.save().is_err() && next.rig.stop().is_err(), "another device's state is refused");

    let mut state = saved;
    for queue in state.queues.iter_mut().flatten() {
        queue.next_avail = queue.next_avail.wrapping_add(0x4000);
    }
    let restored = Some((bench.rig.ram.clone(), state));
    let next = Bench::with(subject, Options { restored, ..Options::new(engine) });
    next.rig.resume().unwrap();
    wait_until("a position that does not fit breaks the queue", || {
        next.rig.status() & status::NEEDS_RESET != 0
    });
    let mut queue = next.up();
    next.release();
    next.serve(&mut queue, 0);
}
