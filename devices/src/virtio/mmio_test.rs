//! Register files under scripts that no driver would write, and the handshake of slow writes.

use std::sync::Arc;

use proptest::prelude::*;
use ringlet_io::EngineKind;
use ringlet_metrics::GuestErrorKind;

use crate::bus::{Action, Then};
use crate::testing::{Options, Rig};
use crate::virtio::conformance_test::subject;
use crate::virtio::link::Ticket;
use crate::virtio::spec::{register, status};

fn rig() -> (Rig, Box<dyn Fn() + Send + Sync>) {
    let mut subject = subject();
    let release = subject.release.take().unwrap();
    (Rig::new(subject, Options::new(EngineKind::Epoll)), release)
}

/// Values that get somewhere more often than chance would.
fn value() -> impl Strategy<Value = u32> {
    prop_oneof![
        0..16u32,
        Just(status::ACKNOWLEDGE | status::DRIVER),
        Just(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK),
        Just(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK),
        Just(0x1000_0000),
        Just(0x1_0000),
        Just(0x1_1000),
        Just(0x1_2000),
        any::<u32>(),
    ]
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![8 => (0..0x44u64).prop_map(|n| 4 * n), 1 => 0..0x200u64]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn sec_08_any_script_of_accesses_is_survived(
        script in prop::collection::vec((offset(), value(), any::<bool>()), 1..200),
    ) {
        let (rig, release) = rig();
        release();
        for (offset, value, write) in script {
            if write {
                rig.write_bytes(offset, &value.to_le_bytes());
            } else {
                rig.read_bytes(offset, &mut [0; 4]);
            }
        }
        let mut queue = rig.bring_up(rig.offered()).swap_remove(1);
        let head = rig.send(&mut queue, &(subject().request)(&rig.ram, Rig::DATA));
        prop_assert_eq!(rig.used(&mut queue).head, head);
        prop_assert!(rig.stop().is_ok());
    }
}

#[test]
fn one_slow_write_at_a_time() {
    let (rig, release) = rig();
    let mut queue = rig.bring_up(rig.offered()).swap_remove(1);
    rig.send(&mut queue, &(subject().request)(&rig.ram, Rig::DATA));
    crate::testing::wait_until("it is in flight", || rig.metrics.in_flight.get() == 1);
    let first = rig.begin_write(register::STATUS, &[0; 4]);
    let second = rig.begin_write(register::STATUS, &[0; 4]);
    assert!(matches!(&first, Action::Wait(wait) if wait.then() == Then::Done));
    assert!(matches!(&second, Action::Wait(wait) if wait.then() == Then::Repeat));
    assert_eq!(rig.begin_write(register::INTERRUPT_ACK, &1u32.to_le_bytes()), Action::None);
    assert_eq!(rig.begin_write(register::QUEUE_NOTIFY, &1u32.to_le_bytes()), Action::None);
    assert_eq!(rig.read(register::QUEUE_NUM_MAX), 32, "reads never wait");
    release();
    rig.finish_write(&first);
    assert!(rig.is_over(&second));
}

#[test]
fn a_worker_that_has_stopped_keeps_nobody_waiting() {
    let (rig, release) = rig();
    release();
    let _ = rig.bring_up(rig.offered());
    rig.stop().unwrap();
    assert_eq!(rig.begin_write(register::STATUS, &[0; 4]), Action::None);
    assert_ne!(rig.status(), 0, "nothing changes any more");
}

/// The driver's write came after the suspension, and is never done.
#[test]
fn a_write_that_a_stopped_worker_left_undone_holds_up_no_other() {
    let (rig, release) = rig();
    release();
    let _ = rig.bring_up(rig.offered());
    rig.suspend().unwrap();
    let left = rig.begin_write(register::STATUS, &[0; 4]);
    rig.stop().unwrap();
    assert_eq!(rig.finish_write(&left), Then::Done);
    assert_eq!(rig.begin_write(register::QUEUE_RESET, &1u32.to_le_bytes()), Action::None);
    assert_ne!(rig.status(), 0, "nothing changes any more");
}

#[test]
fn the_device_sees_writes_to_its_configuration() {
    let (rig, _) = rig();
    rig.negotiate(rig.offered());
    let generation = rig.read(register::CONFIG_GENERATION);
    rig.write_bytes(register::CONFIG + 2, &[7, 8]);
    assert_eq!(rig.read(register::CONFIG), u32::from_le_bytes([0, 0, 7, 8]));
    assert_ne!(rig.read(register::CONFIG_GENERATION), generation);
    rig.write_bytes(register::CONFIG + 4, &[9]);
    assert_eq!(rig.errors(GuestErrorKind::ReadOnly), 1, "what the device refuses is counted");
    rig.write_bytes(register::CONFIG + 1, &[9, 9]);
    assert_eq!(rig.errors(GuestErrorKind::BadWidth), 1, "unaligned");
    rig.write(register::STATUS, 0);
    assert_eq!(rig.read(register::CONFIG), 0, "a reset reaches the device");
}

/// A vCPU's thread has lost its CPU while it has the registers.
#[test]
fn sec_02_a_worker_never_waits_for_a_vcpus_thread() {
    let (rig, release) = rig();
    let mut queue = rig.bring_up(rig.offered()).swap_remove(1);
    rig.send(&mut queue, &(subject().request)(&rig.ram, Rig::DATA));
    crate::testing::wait_until("it is in flight", || rig.metrics.in_flight.get() == 1);
    let reset = rig.begin_write(register::STATUS, &[0; 4]);
    let registers = rig.transport.shared.registers();
    release();
    crate::testing::wait_until("the queue has drained", || rig.metrics.in_flight.get() == 0);
    rig.settle();
    assert!(!rig.is_over(&reset));
    drop(registers);
    assert_eq!(rig.finish_write(&reset), Then::Done);
    assert_eq!(rig.status(), 0);
}

#[test]
fn a_write_that_no_worker_takes_is_over() {
    let (rig, release) = rig();
    release();
    let _ = rig.bring_up(rig.offered());
    let second = {
        let mut registers = rig.transport.shared.registers();
        // What another vCPU has asked for and not yet handed over.
        let ticket = Arc::new(Ticket::default());
        registers.pending = Some(Arc::clone(&ticket));
        ticket
    };
    let waiting = rig.begin_write(register::STATUS, &[0; 4]);
    assert!(matches!(&waiting, Action::Wait(wait) if wait.then() == Then::Repeat));
    rig.transport.nobody_takes(&second);
    assert_eq!(rig.finish_write(&waiting), Then::Repeat);
    rig.write(register::STATUS, 0);
    assert_eq!(rig.status(), 0);
}
