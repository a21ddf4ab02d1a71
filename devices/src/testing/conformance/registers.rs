//! Registers: identity, features, status, queue set-up, configuration.

use ringlet_io::EngineKind;
use ringlet_metrics::GuestErrorKind;

use super::{Bench, MakeSubject};
use crate::testing::{DriverQueue, Rig};
use crate::virtio::spec::{feature, isr, register, status};

const ACK: u32 = status::ACKNOWLEDGE;
const DRIVER: u32 = ACK | status::DRIVER;
const FEATURES: u32 = DRIVER | status::FEATURES_OK;
const RUNNING: u32 = FEATURES | status::DRIVER_OK;

/// Counts what a closure adds to a kind of error.
fn errors(rig: &Rig, kind: GuestErrorKind, act: impl FnOnce()) -> u64 {
    let before = rig.errors(kind);
    act();
    rig.errors(kind) - before
}

/// Every read-only register, and what is not there.
pub fn sec_07_registers_say_what_the_device_is(engine: EngineKind, subject: MakeSubject) {
    let rig = Bench::new(engine, subject).rig;
    assert_eq!(rig.read(register::MAGIC_VALUE), 0x7472_6976);
    assert_eq!(rig.read(register::VERSION), 2, "no legacy interface");
    assert_eq!(rig.read(register::DEVICE_ID), rig.identity.device_type);
    for (index, size) in rig.identity.queue_sizes.iter().enumerate() {
        rig.write(register::QUEUE_SEL, index as u32);
        assert_eq!(rig.read(register::QUEUE_NUM_MAX), u32::from(*size));
        assert_eq!(rig.read(register::QUEUE_READY), 0);
    }
    for nobody in [rig.identity.queue_sizes.len() as u32, u32::MAX] {
        rig.write(register::QUEUE_SEL, nobody);
        assert_eq!(rig.read(register::QUEUE_NUM_MAX), 0, "there is no such queue");
    }
    for shm in
        [register::SHM_LEN_LOW, register::SHM_LEN_HIGH, register::SHM_BASE_LOW, register::SHM_BASE_HIGH]
    {
        assert_eq!(rig.read(shm), u32::MAX, "there is no shared memory");
    }
    let wrong = errors(&rig, GuestErrorKind::BadRegister, || assert_eq!(rig.read(0x028), u32::MAX));
    assert_eq!(wrong, 1, "legacy registers are not there");
    assert_eq!(
        errors(&rig, GuestErrorKind::WriteOnly, || {
            let _ = rig.read(register::QUEUE_NOTIFY);
        }),
        1
    );
    assert_eq!(errors(&rig, GuestErrorKind::ReadOnly, || rig.write(register::MAGIC_VALUE, 1)), 1);
    assert_eq!(errors(&rig, GuestErrorKind::BadWidth, || rig.write_bytes(register::STATUS, &[1])), 1);
    assert_eq!(rig.status(), 0);
}

/// FEATURES_OK is for those who take what is offered and no legacy.
pub fn sec_07_features_are_negotiated(engine: EngineKind, subject: MakeSubject) {
    let rig = Bench::new(engine, subject).rig;
    let offered = rig.offered();
    assert_eq!(offered & feature::CORE, feature::CORE);
    assert_eq!(offered & feature::ACCESS_PLATFORM, 0);
    rig.write(register::DEVICE_FEATURES_SEL, 2);
    assert_eq!(rig.read(register::DEVICE_FEATURES), 0, "there are 64 bits");
    let refused = (0..64).map(|bit| 1u64 << bit).filter(|bit| offered & bit == 0);
    for unoffered in refused {
        let wrong =
            errors(&rig, GuestErrorKind::BadFeatures, || rig.negotiate(feature::VERSION_1 | unoffered));
        assert_eq!((wrong, rig.status()), (1, DRIVER), "feature {unoffered:#x} is refused");
    }
    let legacy = errors(&rig, GuestErrorKind::BadFeatures, || rig.negotiate(offered & !feature::VERSION_1));
    assert_eq!((legacy, rig.status()), (1, DRIVER), "a legacy driver is refused");
    rig.negotiate(feature::VERSION_1);
    assert_eq!(rig.status(), FEATURES, "nothing else must be accepted");
    rig.negotiate(offered);
    assert_eq!(rig.status(), FEATURES, "all that is offered can be accepted");
    let late = errors(&rig, GuestErrorKind::BadStatus, || rig.write(register::DRIVER_FEATURES, 0));
    assert_eq!(late, 1, "features are fixed by FEATURES_OK");
}

/// Section 3.1.1, step by step, and what skips a step.
pub fn sec_07_the_order_of_the_status_is_enforced(engine: EngineKind, subject: MakeSubject) {
    let bench = Bench::new(engine, subject);
    let rig = &bench.rig;
    let refused = |values: &[u32]| {
        for value in values {
            let before = rig.status();
            let wrong = errors(rig, GuestErrorKind::BadStatus, || rig.write(register::STATUS, *value));
            assert_eq!((wrong, rig.status()), (1, before), "{value:#x} cannot follow {before:#x}");
        }
    };
    refused(&[status::DRIVER, FEATURES & !ACK, status::DRIVER_OK, 0x10, 0x100 | ACK, u32::MAX]);
    rig.write(register::STATUS, ACK);
    refused(&[status::DRIVER, ACK | status::FEATURES_OK, ACK | status::DRIVER_OK]);
    assert_eq!(errors(rig, GuestErrorKind::BadStatus, || rig.write(register::DRIVER_FEATURES, 1)), 1);
    rig.write(register::STATUS, DRIVER);
    refused(&[ACK, RUNNING, DRIVER | status::DRIVER_OK]);
    rig.negotiate(feature::VERSION_1);
    refused(&[DRIVER, status::DRIVER_OK]);
    rig.write(register::STATUS, RUNNING);
    assert_eq!(rig.status(), RUNNING);
    refused(&[FEATURES]);
    rig.write(register::STATUS, RUNNING | status::FAILED);
    assert_eq!(rig.status(), RUNNING | status::FAILED);
    rig.write(register::STATUS, 0);
    assert_eq!(rig.status(), 0);
}

/// A queue with an impossible size or address is never ready.
pub fn sec_07_queue_sizes_and_addresses_are_checked(engine: EngineKind, subject: MakeSubject) {
    let bench = Bench::new(engine, subject);
    let rig = &bench.rig;
    rig.negotiate(rig.offered());
    let good = rig.queues().swap_remove(bench.queue.into());
    let refuse = |queue: &DriverQueue, size: u32| {
        rig.program(queue);
        rig.write(register::QUEUE_NUM, size);
        let wrong = errors(rig, GuestErrorKind::BadQueueConfig, || rig.write(register::QUEUE_READY, 1));
        assert_eq!((wrong, rig.read(register::QUEUE_READY)), (1, 0), "{size:#x} of {queue:?}");
    };
    let max = u32::from(good.size);
    for size in [0, 3, max + 1, max * 2, 0x1_0000 | max, u32::MAX] {
        refuse(&good, size);
    }
    let nowhere = [4 << 20, Rig::HIGH - 16, (10 << 20) - 16, 0xD000_0000, !15, 1 << 63];
    for gpa in nowhere {
        refuse(&DriverQueue { descriptors: gpa, ..good.clone() }, max);
        refuse(&DriverQueue { driver: gpa, ..good.clone() }, max);
        refuse(&DriverQueue { device: gpa, ..good.clone() }, max);
    }
    refuse(&DriverQueue { descriptors: good.descriptors + 8, ..good.clone() }, max);
    refuse(&DriverQueue { driver: good.driver + 1, ..good.clone() }, max);
    refuse(&DriverQueue { device: good.device + 2, ..good.clone() }, max);
    refuse(&DriverQueue { driver: 0, ..good.clone() }, max);
    rig.enable(&good);
    assert_eq!(rig.read(register::QUEUE_READY), 1);
    rig.write(register::QUEUE_SEL, 1000);
    assert_eq!(errors(rig, GuestErrorKind::BadQueueConfig, || rig.write(register::QUEUE_READY, 1)), 1);
}

/// Every offset in every width, in every status; after that a reset brings a sound device.
pub fn sec_08_registers_take_any_access_at_any_time(engine: EngineKind, subject: MakeSubject) {
    let bench = Bench::new(engine, subject);
    let rig = &bench.rig;
    let assault = || {
        for offset in 0..0x200u64 {
            for width in [1usize, 2, 4, 8] {
                if offset + width as u64 <= 0x200 {
                    rig.read_bytes(offset, &mut [0; 8][..width]);
                    rig.write_bytes(offset, &[0xA5; 8][..width]);
                }
            }
        }
    };
    assault();
    rig.negotiate(rig.offered());
    assault();
    let _ = bench.up();
    assault();
    let mut queue = bench.up();
    bench.serve(&mut queue, 0);
}

/// Queue registers are for the time between FEATURES_OK and DRIVER_OK.
pub fn sec_08_queue_registers_are_closed_while_the_queue_lives(engine: EngineKind, subject: MakeSubject) {
    let bench = Bench::new(engine, subject);
    let rig = &bench.rig;
    rig.write(register::QUEUE_SEL, bench.queue.into());
    assert_eq!(errors(rig, GuestErrorKind::BadStatus, || rig.write(register::QUEUE_NUM, 1)), 1, "too early");
    rig.write(register::QUEUE_READY, 0);
    let mut queue = bench.up();
    rig.write(register::QUEUE_SEL, bench.queue.into());
    let all = [
        register::QUEUE_NUM,
        register::QUEUE_DESC_LOW,
        register::QUEUE_DRIVER_HIGH,
        register::QUEUE_DEVICE_LOW,
    ];
    for register in all {
        let wrong = errors(rig, GuestErrorKind::BadStatus, || rig.write(register, 0x1000));
        assert_eq!(wrong, 1, "{register:#x} is closed after DRIVER_OK");
    }
    bench.serve(&mut queue, 0);
}

/// Reads inside the configuration give it, others all-ones.
pub fn sec_07_the_configuration_is_read_by_its_length(engine: EngineKind, subject: MakeSubject) {
    let made = subject();
    let len = made.config.len();
    drop(made);
    let rig = Bench::new(engine, subject).rig;
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    let wrong = errors(&rig, GuestErrorKind::BadRegister, || rig.read_config(&mut bytes));
    assert_eq!(wrong, 0);
    for (offset, chunk) in (register::CONFIG..).step_by(4).zip(bytes.chunks_exact(4)) {
        assert_eq!(rig.read(offset).to_le_bytes(), chunk, "wide and narrow reads agree");
    }
    let end = register::CONFIG + len.next_multiple_of(4);
    if end < 0x200 {
        let wrong = errors(&rig, GuestErrorKind::BadRegister, || assert_eq!(rig.read(end), u32::MAX));
        assert_eq!(wrong, 1, "there is nothing after the end");
    }
    let _ = rig.read(register::CONFIG_GENERATION);
}

/// Rings without a queue behind them do nothing but count.
pub fn sec_08_a_doorbell_before_its_queue_is_ready_is_counted(engine: EngineKind, subject: MakeSubject) {
    let bench = Bench::new(engine, subject);
    let rig = &bench.rig;
    let count = rig.identity.queue_sizes.len() as u32;
    for nobody in [bench.queue.into(), count, u32::MAX] {
        let stray = errors(rig, GuestErrorKind::StrayNotify, || rig.write(register::QUEUE_NOTIFY, nobody));
        assert_eq!(stray, 1, "queue {nobody} is not running");
    }
    assert_eq!(rig.metrics.stray_notifications.get(), 3);
    rig.ring(bench.queue);
    rig.settle();
    let mut queue = bench.up();
    assert_eq!(rig.metrics.stray_notifications.get(), 4, "what the doorbell counted before is stray too");
    bench.serve(&mut queue, 0);
    let head = queue.add(&bench.buffers(1));
    rig.write(register::QUEUE_NOTIFY, bench.queue.into());
    assert_eq!(rig.used(&mut queue).head, head, "a plain notification rings the doorbell");
    assert_eq!(rig.read(register::INTERRUPT_STATUS) & !(isr::USED | isr::CONFIG), 0);
}
