//! A script of vCPUs at the registers of a device, of doorbells, of what is in guest memory, and of what the host
//! asks of the device meanwhile.
//!
//! Input: the device, then operations; bit 7 of an operation: a register write that has to wait is left waiting, as
//! that of another vCPU, and an acknowledgement of used buffers is taken by the kernel. Fails on a panic, on a wait
//! that does not end, on a status that moves as no write explains, on a saved state that is not taken back, if guest
//! memory changes that was not offered to the device (as long as the script is tame: addresses are those of its own
//! operations), and if the device cannot be reset and used in the end.

#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use ringlet_devices::testing::{Buffer, Descriptor, DriverQueue, Rig};
use ringlet_devices::virtio::spec::descriptor::{INDIRECT, NEXT, WRITE};
use ringlet_devices::virtio::spec::{isr, register, status};
use ringlet_devices::virtio::{HostEvent, VirtioState, WorkerError};
use ringlet_devices::vsock::packet::{HEADER, HOST_CID, Header, Op, STREAM};
use ringlet_devices::{Action, Then};
use ringlet_fuzz::{CID, Device, PORT, Side, here, leave, rig, work_until};

/// Operations of one input: fewer than the slow writes that the worker does without delay.
const OPERATIONS: usize = 64;
/// vCPUs that may wait.
const VCPUS: usize = 3;
/// Where indirect tables are: [`TABLES`] of them, of 1 KiB each.
const TABLE: u64 = 0x3_0000;
const TABLES: u64 = 8;
/// Bytes of the configuration and beyond that a script may reach.
const WINDOW: u16 = 0x210;
/// Registers that are accessed by number.
const REGISTERS: [u64; 16] = [
    register::STATUS,
    register::STATUS,
    register::STATUS,
    register::DRIVER_FEATURES_SEL,
    register::DRIVER_FEATURES,
    register::DEVICE_FEATURES_SEL,
    register::QUEUE_SEL,
    register::QUEUE_NUM,
    register::QUEUE_READY,
    register::QUEUE_READY,
    register::QUEUE_RESET,
    register::QUEUE_NOTIFY,
    register::INTERRUPT_ACK,
    register::SHM_SEL,
    register::CONFIG + 8,
    register::CONFIG + 32,
];
/// Values that are written by number; others are the number itself.
const VALUES: [u32; 8] = [0, 1, 3, 11, 15, 0x8F, 64, !0];

fuzz_target!(|bytes: &[u8]| {
    let mut input = Unstructured::new(bytes);
    let Ok(device) = input.arbitrary::<u8>() else { return };
    let mut bench = Bench::new(Device::pick(device));
    for _ in 0..OPERATIONS {
        if input.is_empty() || bench.step(&mut input).is_err() {
            break;
        }
    }
    bench.finish();
});

/// A write of a vCPU that waits.
struct Waiting {
    offset: u64,
    bytes: Vec<u8>,
    action: Action,
}

struct Bench {
    device: Device,
    /// `None` only while it is replaced.
    rig: Option<Rig>,
    side: Side,
    queues: Vec<DriverQueue>,
    waiting: Vec<Waiting>,
    suspended: bool,
    stopped: bool,
    status: u32,
    memory: Memory,
}

impl Bench {
    fn new(device: Device) -> Self {
        let (subject, side) = device.make();
        let rig = rig(device, subject, None);
        let queues = rig.queues();
        rig.ram.take_host_dirty();
        let (suspended, stopped, waiting) = (false, false, Vec::new());
        let (rig, status, memory) = (Some(rig), 0, Memory::default());
        Self { device, rig, side, queues, waiting, suspended, stopped, status, memory }
    }

    fn rig(&self) -> &Rig {
        self.rig.as_ref().expect("a rig")
    }

    fn step(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let operation: u8 = input.arbitrary()?;
        let wait = operation & 0x80 == 0;
        match operation % 0x80 % 20 {
            0 | 1 => {
                let (register, value): (u8, u8) = input.arbitrary()?;
                let value = VALUES.get(usize::from(value)).copied().unwrap_or(value.into());
                self.write(REGISTERS[usize::from(register) % REGISTERS.len()], &value.to_le_bytes(), wait);
            }
            2 => {
                let (offset, width, value): (u16, u8, u64) = input.arbitrary()?;
                let bytes = value.to_le_bytes();
                self.write(u64::from(offset % WINDOW), &bytes[..usize::from(width % 9)], wait);
            }
            3 => {
                let (offset, width): (u16, u8) = input.arbitrary()?;
                let mut bytes = [0; 8];
                let bytes = &mut bytes[..usize::from(width % 9)];
                self.rig().read_bytes(u64::from(offset % WINDOW), bytes);
            }
            4 => self.bring_up(input.arbitrary()?),
            5 => {
                let (queue, size): (u8, u8) = input.arbitrary()?;
                self.program(queue, 1 << (size % 7));
            }
            6..=8 => {
                let (queue, index): (u8, u8) = input.arbitrary()?;
                let queue = self.queue(queue);
                let at = queue.descriptors + 16 * u64::from(index % 64);
                self.describe(at, descriptor(input)?);
            }
            9 => {
                let (table, index): (u8, u8) = input.arbitrary()?;
                let at = TABLE + u64::from(table) % TABLES * 0x400 + 16 * u64::from(index % 64);
                self.describe(at, descriptor(input)?);
            }
            10 => {
                let (slot, kind, sector): (u8, u8, u8) = input.arbitrary()?;
                self.put_header(place(slot, 0), kind, sector);
            }
            11 | 12 => {
                let (queue, kind, sector, len): (u8, u8, u8, u16) = input.arbitrary()?;
                self.request(queue, kind, sector, len);
            }
            13 => {
                let (queue, head): (u8, u16) = input.arbitrary()?;
                self.offer(queue, head);
            }
            14 => {
                let (queue, index): (u8, u16) = input.arbitrary()?;
                let queue = self.queue(queue);
                self.poke(queue.driver + 2, &index.to_le_bytes());
                self.rig().ring(queue.index);
            }
            15 => {
                let (gpa, bytes): (u32, [u8; 8]) = input.arbitrary()?;
                self.memory.wild = true;
                // Outside RAM nothing is written.
                let _ = self.rig().ram.write(u64::from(gpa >> 8), &bytes);
            }
            16 => self.host(input.arbitrary()?),
            17 => self.save(),
            18 => self.side.act(input.arbitrary()?),
            _ => self.rig().settle(),
        }
        self.look();
        Ok(())
    }

    /// A vCPU writes; if it has to wait, it does so or is left.
    fn write(&mut self, offset: u64, bytes: &[u8], wait: bool) {
        let addresses = register::QUEUE_DESC_LOW..register::QUEUE_DEVICE_HIGH + 4;
        self.memory.wild |= addresses.contains(&offset);
        self.write_tame(offset, bytes, wait);
    }

    fn write_tame(&mut self, offset: u64, bytes: &[u8], wait: bool) {
        if self.waiting.len() >= VCPUS {
            return;
        }
        if !wait && offset == register::INTERRUPT_ACK && bytes == isr::USED.to_le_bytes() {
            return self.rig().acknowledge_used();
        }
        let action = self.rig().begin_write(offset, bytes);
        if matches!(action, Action::Wait(_)) {
            assert!(!self.stopped, "nobody waits for a worker that is gone");
            self.waiting.push(Waiting { offset, bytes: bytes.to_vec(), action });
        }
        self.explain(offset, bytes);
        if wait {
            self.finish_writes();
        }
    }

    fn write_word(&mut self, offset: u64, value: u32) {
        self.write_tame(offset, &value.to_le_bytes(), true);
    }

    /// Lets all vCPUs go on that wait, unless the device is suspended.
    fn finish_writes(&mut self) {
        while !self.suspended && !self.waiting.is_empty() {
            let Waiting { offset, bytes, action } = self.waiting.remove(0);
            let then = self.rig().finish_write(&action);
            self.explain(offset, &bytes);
            if then == Then::Repeat {
                let action = self.rig().begin_write(offset, &bytes);
                self.waiting.push(Waiting { offset, bytes: bytes.clone(), action });
                self.explain(offset, &bytes);
            }
        }
    }

    /// Checks the status, which only writes that wait, or the device, can have changed.
    fn look(&mut self) {
        let writes: Vec<(u64, Vec<u8>)> =
            self.waiting.iter().map(|waiting| (waiting.offset, waiting.bytes.clone())).collect();
        self.check_status(&writes);
    }

    /// As [`Self::look`], after another write.
    fn explain(&mut self, offset: u64, bytes: &[u8]) {
        let mut writes = vec![(offset, bytes.to_vec())];
        writes.extend(self.waiting.iter().map(|waiting| (waiting.offset, waiting.bytes.clone())));
        self.check_status(&writes);
    }

    fn check_status(&mut self, writes: &[(u64, Vec<u8>)]) {
        let new = self.rig().status();
        let old = std::mem::replace(&mut self.status, new);
        let values = writes.iter().filter(|(offset, _)| *offset == register::STATUS);
        let values =
            values.filter_map(|(_, bytes)| Some(u32::from_le_bytes(bytes.as_slice().try_into().ok()?)));
        let (mut bits, mut reset) = (status::NEEDS_RESET, false);
        for value in values {
            bits |= value;
            reset |= value == 0;
        }
        assert!(new & !(status::DRIVER_BITS | status::NEEDS_RESET) == 0, "{new:#x}: no such bit");
        assert!(new & !old & !bits == 0, "{old:#x} -> {new:#x}: nobody set that");
        assert!(reset || old & !new == 0, "{old:#x} -> {new:#x}: nobody reset the device");
        let steps = [status::ACKNOWLEDGE, status::DRIVER, status::FEATURES_OK, status::DRIVER_OK];
        assert!(
            steps.windows(2).all(|pair| new & pair[1] == 0 || new & pair[0] != 0),
            "{new:#x}: a step was left out"
        );
    }

    fn queue(&self, index: u8) -> DriverQueue {
        self.queues[usize::from(index) % self.queues.len()].clone()
    }

    /// Everything that a driver does, with the features of `mask` and of the core.
    fn bring_up(&mut self, mask: u8) {
        if !self.waiting.is_empty() || self.suspended {
            return;
        }
        let rig = self.rig();
        // The configuration does not say who asks.
        let offered = rig.identity.offered();
        let features = offered & (u64::from(mask) * 0x0101_0101 | !u64::from(u32::MAX) | 0x1000_0000);
        let status = |bits| (register::STATUS, bits);
        let (one, two) = (status::ACKNOWLEDGE, status::ACKNOWLEDGE | status::DRIVER);
        for (offset, value) in [
            status(0),
            status(one),
            status(two),
            (register::DRIVER_FEATURES_SEL, 0),
            (register::DRIVER_FEATURES, features as u32),
            (register::DRIVER_FEATURES_SEL, 1),
            (register::DRIVER_FEATURES, (features >> 32) as u32),
            status(two | status::FEATURES_OK),
        ] {
            self.write_word(offset, value);
        }
        for queue in 0..self.queues.len() {
            self.program(queue as u8, 64);
            self.write_word(register::QUEUE_READY, 1);
        }
        self.write_word(register::STATUS, two | status::FEATURES_OK | status::DRIVER_OK);
    }

    /// Gives a queue its usual place.
    fn program(&mut self, queue: u8, size: u32) {
        let queue = self.queue(queue);
        let size = size.min(self.rig().identity.queue_sizes[usize::from(queue.index)].into());
        self.write_word(register::QUEUE_SEL, queue.index.into());
        self.write_word(register::QUEUE_NUM, size);
        for (register, gpa) in [
            (register::QUEUE_DESC_LOW, queue.descriptors),
            (register::QUEUE_DRIVER_LOW, queue.driver),
            (register::QUEUE_DEVICE_LOW, queue.device),
        ] {
            self.write_word(register, gpa as u32);
            self.write_word(register + 4, 0);
        }
        self.memory.offer(queue.device, 6 + 8 * u64::from(queue.size));
    }

    fn poke(&mut self, gpa: u64, bytes: &[u8]) {
        if self.rig().ram.write(gpa, bytes).is_ok() {
            self.memory.write(gpa, bytes);
        }
    }

    fn describe(&mut self, at: u64, descriptor: Descriptor) {
        let Descriptor { gpa, len, flags, .. } = descriptor;
        if flags & WRITE != 0 && self.rig().ram.contains(gpa, len.into()) {
            self.memory.offer(gpa, len.into());
        }
        self.poke(at, &descriptor.bytes());
    }

    fn put_header(&mut self, at: u64, kind: u8, sector: u8) {
        let mut bytes = [0; 16];
        (bytes[0], bytes[8]) = (kind, sector);
        self.poke(at, &bytes);
    }

    /// The header of a packet of a guest's socket, which mostly makes sense, before `len` bytes in all.
    fn put_packet(&mut self, at: u64, kind: u8, ports: u8, len: u32) {
        let op = Op::ALL[usize::from(kind) % Op::ALL.len()];
        let header = Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: u32::from(ports % 8),
            // The one at which the process listens, or the first that it was given.
            dst_port: if ports & 0x80 == 0 { PORT } else { (1 << 30) + u32::from(ports >> 3 & 0xF) },
            len: if op == Op::Data { len.saturating_sub(HEADER as u32) } else { 0 },
            kind: STREAM,
            op: op.number(),
            flags: if op == Op::Shutdown { u32::from(kind >> 6) } else { 0 },
            buf_alloc: 0x1_0000,
            fwd_cnt: 0,
        };
        self.poke(at, &header.bytes());
    }

    /// A request as it should be, or nearly so, of three descriptors.
    fn request(&mut self, queue: u8, kind: u8, sector: u8, len: u16) {
        let index = self.queue(queue).index;
        let queue = &mut self.queues[usize::from(index)];
        let (table, size, head) = (queue.descriptors, queue.size, queue.next_descriptor);
        queue.next_descriptor = (head + 3) % size;
        let at = place((head % 61) as u8, 0);
        let data = u32::from(len) % 0x600;
        let output = match self.device {
            Device::Block | Device::Entropy => kind & 1 != 0,
            Device::Console | Device::Net => index % 2 == 1 || kind & 1 != 0,
            // Packets of any kind go out, and room is offered.
            Device::Vsock => index == 1,
        };
        let buffers = match self.device {
            Device::Block => vec![
                Buffer::readable(at, 16),
                Buffer { gpa: at + 0x40, len: data.max(1), writable: !output },
                Buffer::writable(at + 0x700, 1),
            ],
            _ => vec![Buffer { gpa: at, len: data.max(1), writable: !output }],
        };
        match self.device {
            Device::Vsock if output => self.put_packet(at, kind, sector, data),
            Device::Net if index % 2 == 1 => self.put_header(at, 0, 0),
            _ => self.put_header(at, kind, sector),
        }
        for (place, descriptor) in Descriptor::chain(&buffers, head, size) {
            self.describe(table + 16 * u64::from(place), descriptor);
        }
        self.offer(index as u8, head);
    }

    fn offer(&mut self, queue: u8, head: u16) {
        let queue = self.queue(queue);
        let mut index = [0; 2];
        self.rig().ram.read(queue.driver + 2, &mut index).expect("in RAM");
        let index = u16::from_le_bytes(index);
        self.poke(queue.driver + 4 + 2 * u64::from(index % queue.size), &head.to_le_bytes());
        self.poke(queue.driver + 2, &index.wrapping_add(1).to_le_bytes());
        self.rig().ring(queue.index);
    }

    /// What the host asks of the device.
    fn host(&mut self, what: u8) {
        if self.stopped {
            return;
        }
        match what {
            0..=15 => {
                self.finish_writes();
                self.rig().stop().expect("it stops");
                self.stopped = true;
                // Whoever waits need not any more.
                self.suspended = false;
                self.waiting.clear();
            }
            16..=95 => {
                self.rig().suspend().expect("it stops at once");
                self.suspended = true;
            }
            96..=191 => self.resume(),
            192..=207 => self.rig().notice(HostEvent::BackendChanged),
            208..=215 => self.rig().notice(HostEvent::LinkDown),
            216..=223 => self.rig().notice(HostEvent::LinkUp),
            _ => {
                let (columns, rows) = (u16::from(what), 24);
                self.rig().notice(HostEvent::Resized { columns, rows });
            }
        }
    }

    fn resume(&mut self) {
        self.rig().resume().expect("it goes on");
        self.suspended = false;
        self.finish_writes();
    }

    /// Saves the device, and goes on with one that was made of what was saved.
    fn save(&mut self) {
        if self.stopped {
            return;
        }
        let saved = match self.rig().save() {
            Err(WorkerError::NotSuspended { .. }) if !self.suspended => return,
            Err(WorkerError::Busy { .. }) if !self.waiting.is_empty() => return,
            other => other.expect("a device that is suspended is saved"),
        };
        assert!(self.suspended);
        let left = |waiting: &Waiting| {
            !self.rig().is_over(&waiting.action)
                && matches!(&waiting.action, Action::Wait(wait) if wait.then() == Then::Done)
        };
        assert!(!self.waiting.iter().any(left), "a write that is under way is in no state");
        self.look();
        // What is left has been done, or waits to be written again, and has not been.
        self.waiting.clear();
        let text = serde_json::to_string(&saved).expect("a state is data");
        let saved = serde_json::from_str(&text).expect("as it was written");
        let (subject, side) = self.device.make();
        self.rig().try_restore(self.device.make().0, saved).expect("a saved state is taken back");
        let saved = serde_json::from_str(&text).expect("as before");
        let rig = self.rig.take().expect("a rig").replace(subject, Some(saved));
        self.side = side;
        let again = rig.save().expect("it starts suspended");
        let saved: VirtioState = serde_json::from_str(&text).expect("as before");
        assert_eq!(again, here(&saved, &again));
        self.rig = Some(rig);
    }

    fn finish(mut self) {
        if self.suspended {
            self.resume();
        }
        self.finish_writes();
        if self.stopped {
            self.rig().write(register::STATUS, 0);
        } else {
            self.write_word(register::STATUS, 0);
            assert_eq!(self.status, 0, "a reset is a reset");
        }
        self.memory.check(self.rig());
        if !self.stopped {
            self.serve();
            self.rig().stop().expect("it stops");
        }
        assert_eq!(self.rig().metrics.in_flight.get(), 0);
        leave(self.device, self.rig.expect("a rig"));
    }

    /// Uses the device as a driver should.
    fn serve(&mut self) {
        let (subject, _) = self.device.make();
        let mut queues = self.rig().bring_up(self.rig().identity.offered());
        let buffers = (subject.request)(&self.rig().ram, Rig::DATA);
        let head = self.rig().send(&mut queues[usize::from(subject.queue)], &buffers);
        self.queues = queues;
        let served = |bench: &mut Self| {
            bench.side.act(0);
            bench.queues.iter().any(|queue| queue.used_index() != queue.taken)
        };
        work_until(self, Self::rig, "a request is served after the reset", served);
        let used = self.queues[usize::from(subject.queue)].take_used().expect("of the queue that was asked");
        let writable = buffers.iter().filter(|buffer| buffer.writable).map(|buffer| buffer.len).sum();
        assert_eq!((used.head, used.len), (head, writable));
    }
}

/// What the script knows of guest memory.
#[derive(Default)]
struct Memory {
    /// The script gave an address that was not checked, so anything may have been written.
    wild: bool,
    /// What the script wrote, by page.
    pages: BTreeMap<u64, Vec<u8>>,
    /// What the device may write: start and end.
    offered: Vec<(u64, u64)>,
}

impl Memory {
    fn offer(&mut self, gpa: u64, len: u64) {
        self.offered.push((gpa, gpa + len));
    }

    fn write(&mut self, gpa: u64, bytes: &[u8]) {
        for (gpa, byte) in (gpa..).zip(bytes) {
            let page = self.pages.entry(gpa & !0xFFF).or_insert_with(|| vec![0; 0x1000]);
            page[(gpa & 0xFFF) as usize] = *byte;
        }
    }

    /// Nothing else than what was offered has changed.
    fn check(&self, rig: &Rig) {
        if self.wild {
            return;
        }
        let dirty = rig.ram.take_host_dirty();
        let zeroes = vec![0; 0x1000];
        for page in &dirty {
            let expected = self.pages.get(page).unwrap_or(&zeroes);
            let mut found = vec![0; 0x1000];
            rig.ram.read(*page, &mut found).expect("a page of it");
            if found == *expected {
                continue;
            }
            for (gpa, (found, expected)) in (*page..).zip(found.iter().zip(expected)) {
                let offered = || self.offered.iter().any(|(from, to)| (*from..*to).contains(&gpa));
                assert!(found == expected || offered(), "{gpa:#x} was not offered, and was written");
            }
        }
        // To be cleared for the next input.
        for page in dirty {
            rig.ram.write(page, &[0]).expect("a page of it");
        }
    }
}

/// Where the data of a descriptor is: there are gaps, borders of regions, and places outside RAM.
fn place(slot: u8, offset: u8) -> u64 {
    let offset = u64::from(offset);
    match slot {
        0..=199 => Rig::DATA + u64::from(slot) * 0x800 + offset % 0x40,
        200..=215 => Rig::BORDER - 0x80 + offset,
        216..=231 => Rig::HIGH + Rig::BORDER - 0x100 + offset,
        232..=239 => 2 * Rig::BORDER - 0x10 + offset % 0x20,
        240..=247 => Rig::HIGH - offset,
        _ => u64::MAX - offset,
    }
}

fn descriptor(input: &mut Unstructured<'_>) -> Result<Descriptor> {
    let (slot, offset, long, flags, next): (u8, u8, u16, u8, u8) = input.arbitrary()?;
    let flags = u16::from(flags) & (NEXT | WRITE | INDIRECT);
    let gpa =
        if flags & INDIRECT == 0 { place(slot, offset) } else { TABLE + u64::from(slot) % TABLES * 0x400 };
    let len = match long {
        0xFF00.. => u32::from(long) << 16,
        _ if flags & INDIRECT != 0 => u32::from(long % 65) * 16,
        _ => u32::from(long) % 0x700,
    };
    Ok(Descriptor { gpa, len, flags, next: u16::from(next) % 65 })
}
