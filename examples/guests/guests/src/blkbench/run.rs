//! The loop: fill the queues, tell the disk, take back what is done, wait.

use alloc::alloc::{Layout, alloc_zeroed};
use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;
use core::ptr::NonNull;
use core::slice;

use ringlet_guest::interrupts::{self, TIMER_VECTOR};
use ringlet_guest::virtio::Buffer;
use ringlet_guest::virtio::drivers::transport::{DeviceStatus, Transport as _};
use ringlet_guest::{lapic, println, time};

use crate::Failure;
use crate::disk::Disk;
use crate::histogram::Histogram;
use crate::options::{Mix, Options, SECTOR};
use crate::pattern::{self, Expected};
use crate::plan::{Next, Op, Phase, Plan};
use crate::random::Random;

const SECOND: u64 = 1_000_000_000;
/// How long an interrupt may come after what it tells of. A busy host may keep the device from running between the two.
const GRACE: u64 = 10 * SECOND;
/// Turns between looks at the clock when polling.
const TURNS: u32 = 1 << 18;

/// Request types (virtio 1.2, 5.2.6).
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
/// `unmap` of a write of zeroes.
const UNMAP: u32 = 1;

const HEADER_LEN: u32 = 16;
/// A status that no device answers with.
const UNANSWERED: u8 = 0xff;

/// What a request consists of beside its data.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Cell {
    kind: u32,
    reserved: u32,
    sector: u64,
    first: u64,
    count: u32,
    flags: u32,
    status: u8,
}

/// A request under way.
#[derive(Clone, Copy)]
struct Flight {
    op: Op,
    started: u64,
}

/// What was counted in [`Phase::Main`], and over all phases.
#[derive(Debug)]
pub(crate) struct Stats {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) flushes: u64,
    pub(crate) discards: u64,
    pub(crate) zeroes: u64,
    /// Blocks whose content was checked, in all phases.
    pub(crate) verified: u64,
    pub(crate) interrupts: u64,
    pub(crate) notifications: u64,
    pub(crate) nanoseconds: u64,
    pub(crate) latency: Histogram,
}

pub(crate) struct Run {
    pub(crate) disk: Disk,
    pub(crate) stats: Stats,
    plan: Plan,
    options: Options,
    phase: Phase,
    cells: NonNull<Cell>,
    data: NonNull<u8>,
    /// Bytes between the data of two requests.
    stride: usize,
    flights: Vec<Option<Flight>>,
    /// Slots that are free: the queue and the number in it.
    free: VecDeque<(usize, u16)>,
    flying: usize,
    /// Splits buffers.
    random: Random,
    /// Nanoseconds at the last look at the clock.
    now: u64,
}

impl Run {
    pub(crate) fn new(disk: Disk, options: &Options) -> Result<Self, Failure> {
        let plan = Plan::new(&disk, options)?;
        let depth = usize::from(options.depth);
        let stride = (options.block as usize).next_multiple_of(4096);
        let data = memory(depth * stride, 4096)?;
        for slot in 0..depth {
            // SAFETY: the data of one request, which nobody else refers to.
            let words = unsafe { words(data, slot * stride, options.block) };
            pattern::fill(words, options.seed, slot as u64, 0);
        }
        let shares = usize::from(options.depth).div_ceil(disk.queues.len());
        Ok(Self {
            cells: memory(depth * size_of::<Cell>(), align_of::<Cell>())?.cast(),
            data,
            stride,
            flights: vec![None; depth],
            free: slots(shares, disk.queues.len(), depth),
            flying: 0,
            random: Random::new(!options.seed),
            now: time::now(),
            stats: Stats {
                reads: 0,
                writes: 0,
                flushes: 0,
                discards: 0,
                zeroes: 0,
                verified: 0,
                interrupts: 0,
                notifications: 0,
                nanoseconds: 0,
                latency: Histogram::new(),
            },
            disk,
            plan,
            options: options.clone(),
            phase: Phase::Main,
        })
    }

    /// All phases.
    pub(crate) fn all(&mut self) -> Result<(), Failure> {
        if !self.options.poll {
            lapic::arm_timer(SECOND);
        }
        if self.options.verify && self.options.mix == Mix::Read {
            self.run(Phase::Prefill)?;
        }
        let start = time::now();
        let outcome = self.run(Phase::Main);
        self.stats.nanoseconds = time::now() - start;
        outcome?;
        if self.options.verify {
            self.run(Phase::Sweep)?;
        }
        if self.options.verify || self.options.mix != Mix::Read {
            self.run(Phase::Finish)?;
        }
        Ok(())
    }

    fn run(&mut self, phase: Phase) -> Result<(), Failure> {
        self.phase = phase;
        self.now = time::now();
        self.plan.begin(phase, self.now);
        loop {
            let done = self.fill()?;
            self.publish();
            let progress = self.reap()?;
            if done && self.flying == 0 {
                return Ok(());
            }
            if !progress {
                self.wait()?;
            }
            self.now = time::now();
        }
    }

    /// Starts requests as long as there are free slots; whether the plan has no more.
    fn fill(&mut self) -> Result<bool, Failure> {
        while let Some(&(queue, slot)) = self.free.front() {
            match self.plan.next(self.now) {
                Next::Done => return Ok(true),
                Next::Later => return Ok(false),
                Next::Op(op) => {
                    self.free.pop_front();
                    self.start(queue, slot, op)?;
                }
            }
        }
        Ok(false)
    }

    /// The number of a slot over all queues.
    fn number(&self, queue: usize, slot: u16) -> usize {
        usize::from(slot) * self.disk.queues.len() + queue
    }

    fn start(&mut self, queue: usize, slot: u16, op: Op) -> Result<(), Failure> {
        let number = self.number(queue, slot);
        // SAFETY: the cell of a free slot, within the allocation.
        let cell = unsafe { self.cells.add(number) };
        let mut content =
            Cell { kind: IN, reserved: 0, sector: 0, first: 0, count: 0, flags: 0, status: UNANSWERED };
        let mut range = |kind, block, count, flags| {
            content.kind = kind;
            content.first = self.plan.sector(block);
            content.count = self.plan.sectors(count) as u32;
            content.flags = flags;
        };
        match op {
            Op::Read { block, .. } => content.sector = self.plan.sector(block),
            Op::Write { block, generation } => {
                (content.kind, content.sector) = (OUT, self.plan.sector(block));
                if self.options.verify {
                    // SAFETY: the data of a free slot.
                    let words = unsafe { words(self.data, number * self.stride, self.options.block) };
                    pattern::fill(words, self.options.seed, content.sector, generation);
                }
            }
            Op::Flush => content.kind = FLUSH,
            Op::Discard { block, count } => range(DISCARD, block, count, 0),
            Op::Zeroes { block, count } => range(WRITE_ZEROES, block, count, (block & 1) as u32 * UNMAP),
        }
        // SAFETY: as above.
        unsafe { cell.write_volatile(content) };
        let buffers = self.buffers(number, op);
        // SAFETY: cell and data stay allocated, and are not touched until the slot is free again.
        unsafe { self.disk.queues[queue].offer(slot, &buffers)? };
        self.flights[number] = Some(Flight { op, started: self.now });
        self.flying += 1;
        Ok(())
    }

    /// The memory of a request.
    fn buffers(&mut self, number: usize, op: Op) -> Vec<Buffer> {
        let cell = self.cells.expose_provenance().get() as u64 + (number * size_of::<Cell>()) as u64;
        let data = self.data.expose_provenance().get() as u64 + (number * self.stride) as u64;
        let mut buffers = Vec::with_capacity(self.disk.limits.pieces as usize + 2);
        buffers.push(Buffer { address: cell, len: HEADER_LEN, device_writes: false });
        match op {
            Op::Read { .. } => self.split(data, true, &mut buffers),
            Op::Write { .. } => self.split(data, false, &mut buffers),
            Op::Discard { .. } | Op::Zeroes { .. } => {
                let address = cell + core::mem::offset_of!(Cell, first) as u64;
                buffers.push(Buffer { address, len: HEADER_LEN, device_writes: false });
            }
            Op::Flush => {}
        }
        let address = cell + core::mem::offset_of!(Cell, status) as u64;
        buffers.push(Buffer { address, len: 1, device_writes: true });
        buffers
    }

    /// The data of a request, in as few pieces as it must have, or in several when that is to be tried.
    fn split(&mut self, mut address: u64, device_writes: bool, buffers: &mut Vec<Buffer>) {
        let mut left = self.options.block;
        let least = self.options.block.div_ceil(self.disk.limits.piece);
        let mut pieces = self.disk.limits.pieces;
        if self.options.verify && pieces > least {
            pieces = least + self.random.below(u64::from(pieces - least) + 1) as u32;
        }
        while left > 0 {
            let even = left.div_ceil(pieces.max(1)).next_multiple_of(SECTOR as u32);
            let len = even.min(self.disk.limits.piece).min(left);
            buffers.push(Buffer { address, len, device_writes });
            address += u64::from(len);
            left -= len;
            pieces = pieces.saturating_sub(1);
        }
    }

    /// Tells the disk what was started.
    fn publish(&mut self) {
        for (index, queue) in (0..).zip(&mut self.disk.queues) {
            if queue.publish() {
                self.disk.transport.notify(index);
                self.stats.notifications += 1;
            }
        }
    }

    /// Takes back what is done; whether there was any.
    fn reap(&mut self) -> Result<bool, Failure> {
        let mut any = false;
        for queue in 0..self.disk.queues.len() {
            while let Some((slot, written)) = self.disk.queues[queue].pop()? {
                if !any {
                    self.now = time::now();
                }
                any = true;
                self.end(queue, slot, written)?;
            }
        }
        Ok(any)
    }

    /// Looks at a request that the disk has answered.
    fn end(&mut self, queue: usize, slot: u16, written: u32) -> Result<(), Failure> {
        let number = self.number(queue, slot);
        let flight = self.flights[number].take();
        let Flight { op, started } = flight.ok_or(Failure::Device("the device answered a request twice"))?;
        self.flying -= 1;
        self.free.push_back((queue, slot));
        // SAFETY: the cell of a slot that the disk is done with.
        let status = unsafe { (&raw const (*self.cells.add(number).as_ptr()).status).read_volatile() };
        if status != 0 {
            println!("blkbench: {op:?}: status {status}");
            return Err(Failure::Io);
        }
        let expected_len = if matches!(op, Op::Read { .. }) { self.options.block + 1 } else { 1 };
        if written != expected_len {
            println!("blkbench: {op:?}: {written} bytes written instead of {expected_len}");
            return Err(Failure::Device("the used length is wrong"));
        }
        if let Op::Read { block, expected } = op {
            self.check(number, block, expected)?;
        }
        self.plan.ended(op);
        if self.phase == Phase::Main {
            self.stats.count(op, self.now.saturating_sub(started));
        }
        Ok(())
    }

    /// Checks what was read, and spoils the buffer, so that a read that brings nothing is seen.
    fn check(&mut self, number: usize, block: u64, expected: Expected) -> Result<(), Failure> {
        if expected == Expected::Anything {
            return Ok(());
        }
        // SAFETY: the data of a slot that the disk is done with.
        let words = unsafe { words(self.data, number * self.stride, self.options.block) };
        let outcome = pattern::check(words, self.options.seed, self.plan.sector(block), expected);
        words.iter_mut().step_by(SECTOR as usize / 8).for_each(|word| *word = !0);
        self.stats.verified += 1;
        outcome.map_err(|mismatch| {
            println!("blkbench: {mismatch}");
            Failure::Mismatch
        })
    }

    /// Waits until something is done.
    fn wait(&mut self) -> Result<(), Failure> {
        if self.options.poll {
            return self.poll();
        }
        if self.disk.queues.iter_mut().fold(false, |ready, queue| queue.listen() | ready) {
            return Ok(());
        }
        let taken = self.disk.line.wait();
        self.stats.interrupts += u64::from(taken);
        if taken == 0 && interrupts::take(TIMER_VECTOR) > 0 {
            self.tick()?;
        }
        self.disk.queues.iter_mut().for_each(|queue| queue.hush());
        Ok(())
    }

    /// Spins until something is done.
    fn poll(&mut self) -> Result<(), Failure> {
        self.disk.queues.iter_mut().for_each(|queue| queue.hush());
        loop {
            for _ in 0..TURNS {
                if self.disk.queues.iter().any(|queue| queue.has_finished()) {
                    return Ok(());
                }
                core::hint::spin_loop();
            }
            self.judge()?;
        }
    }

    /// Once a second: looks whether the disk, or its interrupts, fell silent.
    fn tick(&mut self) -> Result<(), Failure> {
        if self.disk.queues.iter().any(|queue| queue.has_finished()) {
            // The interrupt may be on its way.
            lapic::arm_timer(GRACE);
            if self.disk.line.wait() == 0 && interrupts::take(TIMER_VECTOR) > 0 {
                return Err(Failure::Interrupt);
            }
        }
        lapic::arm_timer(SECOND);
        self.judge()
    }

    /// Fails if the disk gave up, or a request has been under way for too long.
    fn judge(&self) -> Result<(), Failure> {
        if self.disk.transport.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET) {
            return Err(Failure::Device("the device broke down, and asks for a reset"));
        }
        let now = time::now();
        let late = |flight: &Flight| now.saturating_sub(flight.started) > self.options.timeout;
        match self.flights.iter().flatten().find(|flight| late(flight)) {
            Some(flight) => {
                println!("blkbench: {:?}: no answer", flight.op);
                Err(Failure::Stuck)
            }
            None => Ok(()),
        }
    }
}

impl Stats {
    fn count(&mut self, op: Op, nanoseconds: u64) {
        match op {
            Op::Read { .. } => self.reads += 1,
            Op::Write { .. } => self.writes += 1,
            Op::Flush => return self.flushes += 1,
            Op::Discard { .. } => return self.discards += 1,
            Op::Zeroes { .. } => return self.zeroes += 1,
        }
        self.latency.add(nanoseconds);
    }
}

/// All slots, those of different queues in turn.
fn slots(share: usize, queues: usize, depth: usize) -> VecDeque<(usize, u16)> {
    let all = (0..share).flat_map(|slot| (0..queues).map(move |queue| (queue, slot as u16)));
    all.take(depth).collect()
}

/// Zeroed memory for good.
fn memory(len: usize, align: usize) -> Result<NonNull<u8>, Failure> {
    let layout = Layout::from_size_align(len, align).map_err(|_| Failure::Memory)?;
    // SAFETY: no length here is 0.
    NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(Failure::Memory)
}

/// The data of one request.
///
/// # Safety
/// `offset` is that of a request that is not under way, `data` has that request's `len` bytes there.
unsafe fn words<'a>(data: NonNull<u8>, offset: usize, len: u32) -> &'a mut [u64] {
    // SAFETY: aligned to 4096 bytes, exclusive by the caller's promise.
    unsafe { slice::from_raw_parts_mut(data.add(offset).cast().as_ptr(), len as usize / 8) }
}
