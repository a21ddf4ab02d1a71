//! The device behind its registers, on a shard, driven as a driver does.

use std::rc::Rc;

use ringlet_io::disk::{Disk, DiskSource};
use ringlet_io::{Buffers, Cost, EngineKind, Gate, GuestRam, LimiterSeed};
use ringlet_metrics::{RequestKind, RequestStatus};

use super::test_util::{Op, TestDisk};
use super::{BlockDevice, BlockOptions, Cache, Serial};
use crate::testing::{Buffer, DriverQueue, Options, Rig, Subject, wait_until};
use crate::virtio::HostEvent;
use crate::virtio::spec::{isr, register, status};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
/// Offset of the writeback field.
const WRITEBACK: u64 = register::CONFIG + 32;
/// Where requests have their parts, from their place on.
const DATA: u64 = 0x1000;
const STATUS: u64 = 0x3000;
const SPAN: u64 = 0x4000;
const UNTOUCHED: u8 = 0xA5;

fn options() -> BlockOptions {
    BlockOptions {
        id: "disk0".into(),
        serial: Serial::new("serial"),
        queues: 2,
        queue_size: 64,
        cache: Cache::Writeback,
    }
}

/// A read of two sectors.
fn request(ram: &GuestRam, at: u64) -> Vec<Buffer> {
    put_header(ram, at, IN, 1);
    vec![Buffer::readable(at, 16), Buffer::writable(at + DATA, 1024), Buffer::writable(at + STATUS, 1)]
}

fn put_header(ram: &GuestRam, at: u64, kind: u32, sector: u64) {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(sector.to_le_bytes());
    ram.write(at, &bytes).unwrap();
}

/// The device on a disk in the host's memory.
fn memory_subject() -> Subject {
    let source = DiskSource::Memory { size: 1 << 20, read_only: false };
    let (options, info) = (options(), source.info());
    let config = options.config(&info);
    let space = config.clone();
    Subject {
        identity: options.identity(&info),
        config,
        device: Box::new(move |cx, owner| {
            let disk = source.attach(cx, owner, || ())?;
            Ok(Box::new(BlockDevice::new(&options, space, disk)))
        }),
        queue: 1,
        request,
        release: None,
    }
}

/// The device on a disk that holds its operations until it is told to end them.
fn held_subject() -> Subject {
    let disk = TestDisk::new(2048);
    disk.hold();
    let mut subject = subject(disk.clone());
    subject.release = Some(Box::new(move || disk.release_all()));
    subject
}

fn subject(disk: TestDisk) -> Subject {
    let (options, info) = (options(), disk.info());
    let config = options.config(&info);
    let space = config.clone();
    Subject {
        identity: options.identity(&info),
        config,
        device: Box::new(move |_, _| Ok(Box::new(BlockDevice::new(&options, space, Rc::new(disk))))),
        queue: 0,
        request,
        release: None,
    }
}

crate::virtio_conformance!(conforms_on_a_memory_disk, super::memory_subject);
crate::virtio_conformance!(conforms_on_a_disk_that_holds, super::held_subject);

/// A driver of a device on a test disk.
struct Driver {
    rig: Rig,
    disk: TestDisk,
    queues: Vec<DriverQueue>,
}

impl Driver {
    fn new() -> Self {
        Self::with(LimiterSeed::unlimited(), !0)
    }

    /// A driver that accepts `features` of what is offered.
    fn with(limiter: LimiterSeed, features: u64) -> Self {
        Self::on(TestDisk::new(64), Options { limiter, ..Options::new(EngineKind::Epoll) }, features)
    }

    fn on(disk: TestDisk, options: Options, features: u64) -> Self {
        let rig = Rig::new(subject(disk.clone()), options);
        let queues = rig.bring_up(rig.offered() & features);
        Self { rig, disk, queues }
    }

    fn place(n: u64) -> u64 {
        Rig::DATA + n * SPAN
    }

    /// Sends request `n` with `len` bytes of data; gives its head.
    fn send(&mut self, queue: usize, n: u64, kind: u32, sector: u64, len: u32) -> u16 {
        let at = Self::place(n);
        put_header(&self.rig.ram, at, kind, sector);
        self.rig.ram.write(at + STATUS, &[UNTOUCHED]).unwrap();
        let mut buffers = vec![Buffer::readable(at, 16), Buffer::writable(at + STATUS, 1)];
        if len > 0 {
            buffers.insert(1, Buffer { gpa: at + DATA, len, writable: kind != OUT });
        }
        self.rig.send(&mut self.queues[queue], &buffers)
    }

    /// Makes a request and waits: status, bytes written.
    fn request(&mut self, kind: u32, sector: u64, len: u32) -> (u8, u32) {
        let head = self.send(0, 0, kind, sector, len);
        let used = self.used(0);
        assert_eq!(used.0, head);
        (self.status(0), used.1)
    }

    fn used(&mut self, queue: usize) -> (u16, u32) {
        let used = self.rig.used(&mut self.queues[queue]);
        (used.head, used.len)
    }

    fn bytes(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.rig.ram.read(gpa, &mut bytes).unwrap();
        bytes
    }

    fn status(&self, n: u64) -> u8 {
        self.bytes(Self::place(n) + STATUS, 1)[0]
    }

    /// Waits until the disk has so many operations.
    fn wait_for_disk(&self, operations: usize) {
        wait_until("the disk is asked", || self.disk.waiting().len() == operations);
    }
}

#[test]
fn every_request_through_registers_and_rings() {
    let mut driver = Driver::new();
    let at = Driver::place(0);
    driver.rig.ram.write(at + DATA, &[0x5A; 1024]).unwrap();
    assert_eq!(driver.request(OUT, 3, 1024), (0, 1));
    driver.rig.ram.write(at + DATA, &[0; 1024]).unwrap();
    assert_eq!(driver.request(IN, 4, 1024), (0, 1025));
    assert_eq!(driver.bytes(at + DATA, 1024), [vec![0x5A; 512], vec![5; 512]].concat());
    assert_eq!(driver.request(GET_ID, 0, 20), (0, 21));
    assert_eq!(driver.bytes(at + DATA, 20), Serial::new("serial").bytes());
    assert_eq!(driver.request(FLUSH, 0, 0), (0, 1));
    assert_eq!(driver.disk.after_crash(3 * 512, 1024), [0x5A; 1024]);
    assert_eq!(driver.request(IN, 64, 512), (1, 0));
    assert_eq!(driver.request(99, 0, 0), (2, 1));
    assert!(driver.rig.take_interrupts() > 0);
    let metrics = &driver.rig.metrics;
    assert_eq!((metrics.bytes(RequestKind::Write), metrics.bytes(RequestKind::Read)), (1024, 1024));
    assert_eq!(metrics.requests(RequestKind::Other, RequestStatus::Unsupported), 1);
    wait_until("nothing is in flight", || metrics.in_flight.get() == 0);
}

#[test]
fn requests_of_a_queue_run_together_and_complete_out_of_order() {
    let mut driver = Driver::new();
    driver.disk.hold();
    let heads: Vec<u16> = (0..8).map(|n| driver.send(0, n, IN, n, 512)).collect();
    driver.wait_for_disk(8);
    assert_eq!(driver.rig.metrics.in_flight.get(), 8);
    for n in (0..8).rev() {
        driver.disk.release(n, true);
        assert_eq!(driver.used(0), (heads[n], 513));
        assert_eq!(driver.bytes(Driver::place(n as u64) + DATA, 512), [n as u8; 512]);
    }
}

#[test]
fn queues_do_not_wait_for_each_other() {
    let mut driver = Driver::new();
    driver.disk.hold();
    driver.send(0, 0, IN, 1, 512);
    driver.wait_for_disk(1);
    let head = driver.send(1, 1, IN, 2, 512);
    driver.wait_for_disk(2);
    driver.disk.release(1, true);
    assert_eq!(driver.used(1), (head, 513));
    assert_eq!(driver.status(0), UNTOUCHED);
    driver.disk.release_all();
    assert_eq!(driver.used(0).1, 513);
}

#[test]
fn a_write_is_durable_at_once_without_flush_or_with_the_cache_turned_off() {
    let write = |driver: &mut Driver| {
        driver.disk.take_log();
        assert_eq!(driver.request(OUT, 0, 512), (0, 1));
        driver.disk.take_log().contains(&Op::Flush)
    };
    let mut driver = Driver::new();
    assert!(!write(&mut driver));
    driver.rig.write_bytes(WRITEBACK, &[0]);
    assert!(write(&mut driver));
    driver.rig.write_bytes(WRITEBACK, &[1]);
    assert!(!write(&mut driver));
    let mut driver = Driver::with(LimiterSeed::unlimited(), !(1 << 9));
    assert!(write(&mut driver));
    driver.rig.write_bytes(WRITEBACK, &[1]);
    assert!(write(&mut driver), "a cache that cannot be flushed stays off");
}

#[test]
fn the_limiter_is_asked_before_a_request_is_taken() {
    let gate = Gate::new();
    let mut driver = Driver::with(LimiterSeed::gated(gate.clone()), !0);
    driver.send(0, 0, IN, 0, 1024);
    driver.rig.settle();
    assert_eq!((driver.disk.take_log(), driver.rig.metrics.in_flight.get()), (Vec::new(), 0));
    gate.let_through(1);
    assert_eq!(driver.used(0).1, 1025);
    assert_eq!(gate.costs(), [Cost::read(1024)]);
}

/// A driver that has `buffers` for requests beyond the first of each queue, and how many of the shortest fit.
fn buffered(requests: u64) -> (Driver, Buffers, u64) {
    let memory = options().memory(&TestDisk::new(64).info());
    // Of two queues, which differ from the shortest request only in the length of the chain.
    let longest = memory.further / (2 * (64 - 1));
    let shortest = longest - 60 * 64;
    let buffers = Buffers::new(requests * shortest);
    let given = Options { buffers: buffers.clone(), ..Options::new(EngineKind::Epoll) };
    (Driver::on(TestDisk::new(64), given, !0), buffers, shortest)
}

#[test]
fn sec_02_a_queue_takes_no_more_requests_than_there_is_memory_for_and_goes_on_when_one_is_complete() {
    let (mut driver, buffers, shortest) = buffered(3);
    driver.disk.hold();
    for n in 0..12 {
        driver.send(0, n, IN, n, 512);
    }
    // The reserved one, and three.
    driver.wait_for_disk(4);
    driver.rig.settle();
    assert_eq!((driver.disk.waiting().len(), driver.rig.metrics.in_flight.get()), (4, 4));
    let reading = buffers.reading();
    assert_eq!((reading.used, reading.held_back), (3 * shortest, 1), "{reading:?}");
    for done in 1..=8 {
        driver.disk.release(0, true);
        driver.used(0);
        // As many are under way as before.
        driver.wait_for_disk(4);
        assert!(buffers.reading().used <= 3 * shortest, "{done} are complete");
    }
    driver.disk.release_all();
    for _ in 0..4 {
        driver.used(0);
    }
    driver.rig.settle();
    assert_eq!((buffers.reading().used, buffers.reading().peak), (0, 3 * shortest));
}

#[test]
fn sec_02_with_no_memory_left_each_queue_still_has_one_request_at_a_time() {
    let (mut driver, buffers, _) = buffered(0);
    driver.disk.hold();
    for n in 0..4 {
        driver.send(0, n, IN, n, 512);
        driver.send(1, 4 + n, IN, n, 512);
    }
    for left in (1..=4).rev() {
        driver.wait_for_disk(2);
        driver.rig.settle();
        assert_eq!(driver.disk.waiting().len(), 2, "{left} left of each");
        // The next ones are held as these were.
        driver.disk.release(1, true);
        driver.disk.release(0, true);
        driver.used(0);
        driver.used(1);
    }
    assert_eq!(buffers.reading().peak, 0);
    assert!(buffers.reading().held_back >= 2);
}

#[test]
fn what_waits_for_memory_is_given_up_by_a_reset_and_taken_again_after_a_suspension() {
    let (mut driver, buffers, _) = buffered(0);
    driver.disk.hold();
    driver.send(0, 0, IN, 0, 512);
    driver.send(0, 1, IN, 1, 512);
    driver.wait_for_disk(1);
    driver.rig.settle();
    assert_eq!(buffers.reading().held_back, 1);
    let suspended = driver.rig.begin_suspend();
    driver.rig.settle();
    driver.disk.release_all();
    suspended.recv().unwrap().unwrap();
    driver.used(0);
    assert_eq!(driver.rig.metrics.in_flight.get(), 0);
    driver.rig.resume().unwrap();
    driver.used(0);
    driver.disk.hold();
    driver.send(0, 2, IN, 0, 512);
    driver.send(0, 3, IN, 1, 512);
    driver.wait_for_disk(1);
    let reset = driver.rig.begin_write(register::STATUS, &0_u32.to_le_bytes());
    driver.disk.release_all();
    driver.rig.finish_write(&reset);
    driver.queues = driver.rig.bring_up(driver.rig.offered());
    assert_eq!(driver.request(IN, 9, 512), (0, 513));
    assert_eq!(buffers.reading().used, 0);
}

#[test]
fn a_new_size_reaches_the_driver() {
    let mut driver = Driver::new();
    assert_eq!(driver.request(IN, 100, 512), (1, 0));
    let generation = driver.rig.read(register::CONFIG_GENERATION);
    driver.rig.settle();
    driver.rig.write(register::INTERRUPT_ACK, isr::USED);
    driver.rig.take_interrupts();
    // The disk of the test has no more contents than before; that its size is told is what counts here.
    driver.disk.set_info(|info| info.size = 200 * 512);
    driver.rig.notice(HostEvent::BackendChanged);
    wait_until("the driver is told", || driver.rig.read(register::INTERRUPT_STATUS) & isr::CONFIG != 0);
    driver.rig.settle();
    assert_eq!(driver.rig.take_interrupts(), 1);
    assert_ne!(driver.rig.read(register::CONFIG_GENERATION), generation);
    let mut capacity = [0; 8];
    driver.rig.read_config(&mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 200);
    driver.disk.set_info(|info| info.size = 10 * 512);
    driver.rig.notice(HostEvent::BackendChanged);
    driver.rig.settle();
    assert_eq!(driver.request(IN, 10, 512), (1, 0), "what is gone is not read");
}

#[test]
fn sec_08_after_a_reset_nothing_of_a_read_reaches_the_guest() {
    let mut driver = Driver::new();
    driver.disk.hold();
    for n in 0..4 {
        driver.rig.ram.write(Driver::place(n) + DATA, &[UNTOUCHED; 512]).unwrap();
        driver.send(0, n, IN, n, 512);
    }
    driver.wait_for_disk(4);
    let reset = driver.rig.begin_write(register::STATUS, &0_u32.to_le_bytes());
    driver.rig.settle();
    assert!(!driver.rig.is_over(&reset), "the disk may still write guest memory");
    driver.disk.release_all();
    driver.rig.finish_write(&reset);
    assert_eq!(driver.rig.status(), 0);
    // The memory is the guest's again.
    for n in 0..4 {
        driver.rig.ram.write(Driver::place(n) + DATA, &[UNTOUCHED; 512]).unwrap();
    }
    driver.rig.settle();
    for n in 0..4 {
        assert_eq!(driver.bytes(Driver::place(n) + DATA, 512), [UNTOUCHED; 512]);
    }
    driver.queues = driver.rig.bring_up(driver.rig.offered());
    assert_eq!(driver.request(IN, 9, 512), (0, 513));
}

#[test]
fn a_suspended_device_goes_on_elsewhere() {
    let mut driver = Driver::new();
    driver.rig.ram.write(Driver::place(0) + DATA, &[0x5A; 512]).unwrap();
    assert_eq!(driver.request(OUT, 7, 512), (0, 1));
    driver.rig.write_bytes(WRITEBACK, &[0]);
    driver.rig.suspend().unwrap();
    let state = driver.rig.save().unwrap();
    let Driver { rig, disk, queues } = driver;
    let restored = Some((rig.ram.clone(), state));
    rig.stop().unwrap();
    let options = Options { restored, ..Options::new(EngineKind::Epoll) };
    let rig = Rig::new(subject(disk.clone()), options);
    rig.resume().unwrap();
    let mut driver = Driver { rig, disk, queues };
    assert_eq!(driver.rig.status() & status::DRIVER_OK, status::DRIVER_OK);
    let mut byte = [0xFF];
    driver.rig.read_bytes(WRITEBACK, &mut byte);
    assert_eq!(byte, [0], "the cache is still off");
    driver.disk.take_log();
    assert_eq!(driver.request(OUT, 8, 512), (0, 1));
    assert_eq!(driver.disk.take_log().last(), Some(&Op::Flush));
    assert_eq!(driver.request(IN, 7, 512), (0, 513));
    assert_eq!(driver.bytes(Driver::place(0) + DATA, 512), [0x5A; 512]);
}
