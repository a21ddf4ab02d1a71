//! Rings: service, notifications, malformed chains.

use ringlet_io::EngineKind;
use ringlet_metrics::GuestErrorKind;

use super::{Bench, MakeSubject};
use crate::testing::{Descriptor, DriverQueue, Rig, wait_until};
use crate::virtio::spec::descriptor::{INDIRECT, NEXT, WRITE};
use crate::virtio::spec::{feature, isr, register, status};

/// The whole way of a request.
pub fn a_request_is_served_and_interrupts(engine: EngineKind, subject: MakeSubject) {
    let bench = Bench::new(engine, subject);
    let rig = &bench.rig;
    let mut queue = bench.up_with(rig.offered() & !feature::EVENT_IDX);
    let _ = rig.take_interrupts();
    for n in 0..3 * u64::from(queue.size) {
        bench.serve(&mut queue, n);
        wait_until("an interrupt comes", || rig.read(register::INTERRUPT_STATUS) == isr::USED);
        rig.write(register::INTERRUPT_ACK, isr::USED);
    }
    assert!(rig.take_interrupts() > 0);
    assert_eq!(rig.read(register::INTERRUPT_STATUS) & isr::CONFIG, 0, "nothing went wrong");
    let longest = bench.buffers(0).iter().filter(|b| b.writable).map(|b| b.len).sum::<u32>();
    bench.ask(&mut queue, 0);
    assert!(rig.used(&mut queue).len <= longest, "no more is written than there is room");
    wait_until("nothing is in flight", || rig.metrics.in_flight.get() == 0);
}

/// NO_INTERRUPT without EVENT_IDX, and the event index with it.
pub fn interrupts_are_sent_as_the_driver_asks(engine: EngineKind, subject: MakeSubject) {
    let bench = Bench::new(engine, subject);
    let rig = &bench.rig;
    let quiet = |queue: &mut DriverQueue| {
        let _ = rig.take_interrupts();
        let suppressed = rig.metrics.interrupts_suppressed.get();
        bench.serve(queue, 0);
        wait_until("it is decided", || rig.metrics.interrupts_suppressed.get() > suppressed);
        assert_eq!(rig.take_interrupts(), 0, "the driver wants no interrupt");
    };
    let loud = |queue: &mut DriverQueue| {
        let _ = rig.take_interrupts();
        bench.serve(queue, 0);
        wait_until("an interrupt comes", || rig.take_interrupts() > 0);
    };
    let mut queue = bench.up_with(rig.offered() & !feature::EVENT_IDX);
    loud(&mut queue);
    queue.set_no_interrupt(true);
    quiet(&mut queue);
    queue.set_no_interrupt(false);
    loud(&mut queue);

    let mut queue = bench.up();
    queue.set_no_interrupt(true);
    queue.set_used_event(0);
    loud(&mut queue);
    quiet(&mut queue);
    queue.set_used_event(queue.taken + 1);
    quiet(&mut queue);
    loud(&mut queue);
}

/// The device asks for a notification only when it has looked at everything.
pub fn notifications_are_asked_for_when_the_ring_is_empty(engine: EngineKind, subject: MakeSubject) {
    let (bench, gate) = Bench::gated(engine, subject);
    let rig = &bench.rig;
    let mut queue = bench.up_with(rig.offered() & !feature::EVENT_IDX);
    rig.settle();
    wait_until("an empty ring wants notifications", || queue.used_flags() == 0);
    let head = bench.ask(&mut queue, 0);
    wait_until("the device is at it", || queue.used_flags() == 1);
    gate.open();
    assert_eq!(rig.used(&mut queue).head, head);
    wait_until("the ring is empty again", || queue.used_flags() == 0);

    let (bench, gate) = Bench::gated(engine, subject);
    let mut queue = bench.up();
    bench.ask(&mut queue, 0);
    bench.ask(&mut queue, 1);
    bench.rig.settle();
    assert_eq!(queue.available_event(), 0, "no notification is wanted while a chain waits");
    gate.open();
    bench.rig.used(&mut queue);
    bench.rig.used(&mut queue);
    wait_until("a notification of the third is wanted", || queue.available_event() == 2);
}

/// A table of descriptors, alone and after a plain descriptor (section 2.7.5.3.2).
pub fn indirect_chains_are_served(engine: EngineKind, subject: MakeSubject) {
    let bench = Bench::new(engine, subject);
    let mut queue = bench.up();
    let buffers = bench.buffers(0);
    let table = Rig::DATA + 0x20_0000;
    let head = queue.build_indirect(&buffers, table);
    queue.offer(head);
    bench.rig.ring(queue.index);
    assert_eq!(bench.rig.used(&mut queue).head, head);
    if let [first, rest @ ..] = buffers.as_slice()
        && !rest.is_empty()
    {
        let tail = queue.build_indirect(rest, table);
        let flags = NEXT | if first.writable { WRITE } else { 0 };
        let head = queue.build(&[*first]);
        queue.write(head, Descriptor { gpa: first.gpa, len: first.len, flags, next: tail });
        queue.offer(head);
        bench.rig.ring(queue.index);
        assert_eq!(bench.rig.used(&mut queue).head, head);
    }
}

/// Buffers over the border of two regions, and the same memory in two requests at once.
pub fn requests_across_regions_and_overlapping_ones_are_served(engine: EngineKind, subject: MakeSubject) {
    let bench = Bench::new(engine, subject);
    let mut queue = bench.up();
    for place in [Rig::BORDER - 1, Rig::BORDER - 8, Rig::HIGH, Rig::DATA] {
        let buffers = (bench.request)(&bench.rig.ram, place);
        let first = queue.add(&buffers);
        let second = queue.add(&buffers);
        bench.rig.ring(queue.index);
        let mut heads = [bench.rig.used(&mut queue).head, bench.rig.used(&mut queue).head];
        heads.sort_unstable();
        let mut offered = [first, second];
        offered.sort_unstable();
        assert_eq!(heads, offered);
    }
}

type Malformed = (&'static str, fn(&mut DriverQueue) -> u16);

const AT: u64 = Rig::DATA;
const TABLE: u64 = Rig::DATA + 0x20_0000;

/// Writes descriptors from 0 on; the head is 0.
fn raw(queue: &mut DriverQueue, descriptors: &[Descriptor]) -> u16 {
    for (index, descriptor) in descriptors.iter().enumerate() {
        queue.write(index as u16, *descriptor);
    }
    0
}

/// Writes an indirect table, and points descriptor 0 to its first `len` bytes.
fn table(queue: &mut DriverQueue, descriptors: &[Descriptor], len: u32, flags: u16) -> u16 {
    for (index, descriptor) in descriptors.iter().enumerate() {
        queue.ram.write(TABLE + 16 * index as u64, &descriptor.bytes()).unwrap();
    }
    queue.write(0, Descriptor { gpa: TABLE, len, flags, next: 1 });
    0
}

fn part(gpa: u64, len: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor { gpa, len, flags, next }
}

const MALFORMED: &[Malformed] = &[
    ("a head outside the table", |queue| queue.size),
    ("a head far outside", |_| u16::MAX),
    ("a successor outside the table", |queue| {
        let outside = queue.size;
        raw(queue, &[part(AT, 16, NEXT, outside)])
    }),
    ("a descriptor that follows itself", |queue| raw(queue, &[part(AT, 16, NEXT, 0)])),
    ("a circle", |queue| raw(queue, &[part(AT, 16, NEXT, 1), part(AT, 16, NEXT, 2), part(AT, 16, NEXT, 1)])),
    ("no bytes", |queue| raw(queue, &[part(AT, 16, NEXT, 1), part(AT, 0, WRITE, 0)])),
    ("memory that is not there", |queue| raw(queue, &[part(0x50_0000, 16, WRITE, 0)])),
    ("memory that ends too early", |queue| raw(queue, &[part(0x40_0000 - 8, 16, WRITE, 0)])),
    ("the device's own registers", |queue| raw(queue, &[part(Rig::BASE, 16, WRITE, 0)])),
    ("an address that wraps around", |queue| raw(queue, &[part(u64::MAX - 7, 16, WRITE, 0)])),
    ("more than RAM", |queue| raw(queue, &[part(AT, u32::MAX, WRITE, 0)])),
    ("readable after writable", |queue| raw(queue, &[part(AT, 16, WRITE | NEXT, 1), part(AT, 16, 0, 0)])),
    ("an indirect descriptor with a successor", |queue| {
        table(queue, &[part(AT, 16, WRITE, 0)], 16, INDIRECT | NEXT)
    }),
    ("a table in a table", |queue| table(queue, &[part(TABLE, 16, INDIRECT, 0)], 16, INDIRECT)),
    ("an empty table", |queue| table(queue, &[], 0, INDIRECT)),
    ("a table of one and a half", |queue| table(queue, &[part(AT, 16, WRITE, 0)], 24, INDIRECT)),
    ("a table that is too long", |queue| table(queue, &[part(AT, 16, WRITE, 0)], 16 * 257, INDIRECT)),
    ("a table that goes on after its end", |queue| {
        table(queue, &[part(AT, 16, WRITE | NEXT, 1)], 16, INDIRECT)
    }),
    ("a circle in a table", |queue| table(queue, &[part(AT, 16, WRITE | NEXT, 0)], 32, INDIRECT)),
    ("a table outside RAM", |queue| raw(queue, &[part(0x50_0000, 16, INDIRECT, 0)])),
    ("a chain longer than the queue", |queue| {
        let count = queue.size + 1;
        let mut all: Vec<Descriptor> =
            (0..count).map(|n| part(AT + 16 * u64::from(n), 16, WRITE | NEXT, n + 1)).collect();
        if let Some(last) = all.last_mut() {
            last.flags = WRITE;
        }
        table(queue, &all, 16 * u32::from(count), INDIRECT)
    }),
];

/// Waits until the device says that it is broken, and checks that it did nothing else.
fn assert_broken(bench: &Bench, queue: &DriverQueue, what: &str) {
    let rig = &bench.rig;
    wait_until(what, || rig.status() & status::NEEDS_RESET != 0);
    wait_until("the driver is told", || rig.read(register::INTERRUPT_STATUS) & isr::CONFIG != 0);
    assert_eq!(queue.used_index(), 0, "{what}: nothing was used");
    rig.ring(queue.index);
    rig.settle();
    assert_eq!(rig.errors(GuestErrorKind::BadChain) + rig.errors(GuestErrorKind::BadRing), broken(bench));
}

fn broken(bench: &Bench) -> u64 {
    bench.rig.metrics.broken_queues.get()
}

/// Each is reported once, does nothing else, and is over after a reset.
pub fn sec_07_malformed_chains_break_the_queue(engine: EngineKind, subject: MakeSubject) {
    let bench = Bench::new(engine, subject);
    for (n, (what, build)) in MALFORMED.iter().enumerate() {
        let mut queue = bench.up();
        if queue.size == 256 && *what == "a chain longer than the queue" {
            // Such a table is too long itself.
            continue;
        }
        let head = build(&mut queue);
        queue.offer(head);
        bench.rig.ring(queue.index);
        assert_broken(&bench, &queue, what);
        assert_eq!(broken(&bench), n as u64 + 1, "{what} is reported once");
    }
    let mut queue = bench.up();
    bench.serve(&mut queue, 0);
}

/// A table is only followed by agreement.
pub fn sec_07_indirect_chains_that_were_not_negotiated_break_the_queue(
    engine: EngineKind,
    subject: MakeSubject,
) {
    let bench = Bench::new(engine, subject);
    let mut queue = bench.up_with(bench.rig.offered() & !feature::INDIRECT_DESC);
    let buffers = bench.buffers(0);
    let head = queue.build_indirect(&buffers, TABLE);
    queue.offer(head);
    bench.rig.ring(queue.index);
    assert_broken(&bench, &queue, "an indirect chain");
    assert_eq!(bench.rig.errors(GuestErrorKind::BadChain), 1);
}

/// More chains than descriptors, or fewer than before.
pub fn sec_07_an_impossible_available_index_breaks_the_queue(engine: EngineKind, subject: MakeSubject) {
    let bench = Bench::new(engine, subject);
    for jump in [1u16, 2, 0x7FFF] {
        let mut queue = bench.up();
        queue.set_available(queue.size.wrapping_add(jump));
        bench.rig.ring(queue.index);
        assert_broken(&bench, &queue, "an index that is too far ahead");
    }
    let mut queue = bench.up();
    queue.set_available(u16::MAX);
    bench.rig.ring(queue.index);
    assert_broken(&bench, &queue, "an index that went back");
    assert_eq!(bench.rig.errors(GuestErrorKind::BadRing), 4);
}

/// A head is the driver's again only when it was used.
pub fn sec_07_a_chain_that_is_offered_twice_breaks_the_queue(engine: EngineKind, subject: MakeSubject) {
    let Some(bench) = Bench::held(engine, subject) else { return };
    let mut queue = bench.up();
    let head = bench.ask(&mut queue, 0);
    wait_until("it is in flight", || bench.rig.metrics.in_flight.get() == 1);
    queue.offer(head);
    bench.rig.ring(queue.index);
    wait_until("the queue is broken", || bench.rig.status() & status::NEEDS_RESET != 0);
    assert_eq!(bench.rig.errors(GuestErrorKind::BadRing), 1);
    bench.release();
    assert_eq!(bench.rig.used(&mut queue).head, head, "what was in flight is completed");
    bench.rig.settle();
    assert_eq!(queue.used_index(), 1, "once");
    let mut queue = bench.up();
    bench.serve(&mut queue, 0);
}
