//! The handshakes between a vCPU and the shard under every interleaving that loom finds. Run with
//! `RUSTFLAGS="--cfg ringlet_loom" cargo test --release --lib -p ringlet-devices loom`.

use std::sync::Arc as StdArc;

use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use ringlet_io::Doorbell;
use ringlet_metrics::{DeviceKind, Registry, VmInfo};

use super::interrupt::{QueueInterrupt, Signals};
use super::link::{Link, Ticket};
use super::spec::{isr, status};
use crate::ioapic::Ioapic;
use crate::test_util::{Probe, program};

fn signals() -> (StdArc<Signals>, Probe) {
    let vm = Registry::new().register_vm(VmInfo::default());
    let ioapic = StdArc::new(Ioapic::new());
    let (line, probe) = Probe::connect(&ioapic, 5);
    program(&ioapic, 5, 0x30);
    (Signals::new(line, Doorbell::new().unwrap(), vm.register_device("loom", DeviceKind::Block)), probe)
}

/// A driver's interrupt handler: reads, acknowledges what it read, and then looks at the used ring. `late`: that is
/// seen when the register is read the next time.
fn handle(signals: &Signals, used: &AtomicU32, seen: &mut u32, late: Option<&mut bool>) {
    if let Some(late) = &late
        && **late
    {
        signals.acknowledge_unseen();
    }
    let bits = signals.read_isr();
    match late {
        Some(late) => *late = bits & isr::USED != 0,
        None => signals.acknowledge(bits),
    }
    if bits & isr::USED != 0 {
        *seen = used.load(Ordering::Acquire);
    }
}

#[test]
fn no_completion_is_overlooked() {
    no_completion_is_overlooked_if(false);
}

#[test]
fn no_completion_is_overlooked_if_acknowledgements_are_seen_late() {
    no_completion_is_overlooked_if(true);
}

fn no_completion_is_overlooked_if(acknowledged_late: bool) {
    loom::model(move || {
        let (signals, probe) = signals();
        let mut late = acknowledged_late.then_some(false);
        let used = Arc::new(AtomicU32::new(1));
        QueueInterrupt::new(&signals).used();
        let shard = thread::spawn({
            let (signals, used) = (StdArc::clone(&signals), Arc::clone(&used));
            move || {
                used.store(2, Ordering::Release);
                QueueInterrupt::new(&signals).used();
            }
        });
        let mut seen = 0;
        // The handler begins; pulses up to now are one interrupt.
        assert!(probe.fired() > 0);
        handle(&signals, &used, &mut seen, late.as_mut());
        shard.join().unwrap();
        // A pulse since then is another.
        if probe.fired() > 0 {
            handle(&signals, &used, &mut seen, late.as_mut());
        }
        assert_eq!(seen, 2);
        if late == Some(true) {
            signals.acknowledge_unseen();
        }
        assert_eq!(signals.isr(), 0);
    });
}

#[test]
fn a_broken_device_and_a_driver_that_sets_its_status_do_not_undo_each_other() {
    loom::model(|| {
        let (signals, _probe) = signals();
        signals.add_status(status::ACKNOWLEDGE);
        let shard = thread::spawn({
            let signals = StdArc::clone(&signals);
            move || QueueInterrupt::new(&signals).needs_reset()
        });
        signals.add_status(status::FAILED);
        shard.join().unwrap();
        assert_eq!(signals.status(), status::ACKNOWLEDGE | status::FAILED | status::NEEDS_RESET);
    });
}

#[test]
fn a_vcpu_that_waits_is_woken_and_sees_what_was_done() {
    loom::model(|| {
        let parked = Arc::new((Mutex::new(()), Condvar::new()));
        let done = Arc::new(AtomicU32::new(0));
        let ticket = StdArc::new(Ticket::default());
        let link = Link::new({
            let parked = Arc::clone(&parked);
            Box::new(move || {
                let _inner = parked.0.lock().unwrap();
                parked.1.notify_all();
            })
        });
        let shard = thread::spawn({
            let (link, ticket, done) = (StdArc::clone(&link), StdArc::clone(&ticket), Arc::clone(&done));
            move || {
                done.store(1, Ordering::Relaxed);
                ticket.finish();
                link.wake();
            }
        });
        let mut inner = parked.0.lock().unwrap();
        while !ticket.is_done() && !link.is_gone() {
            inner = parked.1.wait(inner).unwrap();
        }
        drop(inner);
        assert_eq!(done.load(Ordering::Relaxed), 1);
        shard.join().unwrap();
    });
}
