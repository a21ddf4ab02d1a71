//! A script of what a driver does to a console, and of what happens at its other end.
//!
//! Input: the capacity of the output pipe, then operations. Fails on a panic, on a byte that is lost, doubled or out of
//! order in either direction, and if the device does not stop at once. After an operation that writes nonsense into
//! the transmit queue, output is not compared any more, but input is.

#![no_main]

use std::collections::VecDeque;

use libfuzzer_sys::fuzz_target;
use ringlet_devices::console::{PipeReader, PipeWriter};
use ringlet_devices::testing::{Buffer, Descriptor, DriverQueue, Rig};
use ringlet_devices::virtio::spec::register;
use ringlet_fuzz::{Device, Ends, console, leave, rig, work_until};

/// Descriptors that a script may use of each queue, which is all, so that none is used again.
const DESCRIPTORS: usize = 64;
/// Memory of one chain.
const SLOT: u64 = 0x400;
/// What is written to the configuration, and is printed in no other way.
const EMERGENCY: u8 = 0xFF;
const OUTPUT: u64 = Rig::DATA;
const INPUT: u64 = Rig::DATA + 0x8_0000;

fuzz_target!(|bytes: &[u8]| {
    let mut script = bytes.iter().copied();
    let Some(capacity) = script.next() else { return };
    let mut bench = Bench::new(capacity.into());
    while let Some(operation) = script.next() {
        bench.step(operation, &mut script);
    }
    bench.finish();
});

struct Bench {
    rig: Rig,
    rx: DriverQueue,
    tx: DriverQueue,
    typing: PipeWriter,
    /// `None` only while it is read on the shard.
    reading: Option<PipeReader>,
    printed: Vec<u8>,
    read: Vec<u8>,
    typed: Vec<u8>,
    received: Vec<u8>,
    /// Buffers for input that have not come back.
    offered: VecDeque<Buffer>,
    chains: u64,
    used: [usize; 2],
    wild: bool,
}

impl Bench {
    fn new(capacity: usize) -> Self {
        let (subject, Ends { typing, reading }) = console(capacity);
        let rig = rig(Device::Console, subject, None);
        let [rx, tx] = rig.bring_up(rig.offered()).try_into().expect("two queues");
        let [printed, read, typed, received] = [const { Vec::new() }; 4];
        let (offered, chains, used, wild) = (VecDeque::new(), 0, [0; 2], false);
        let reading = Some(reading);
        Self { rig, rx, tx, typing, reading, printed, read, typed, received, offered, chains, used, wild }
    }

    fn step(&mut self, operation: u8, script: &mut impl Iterator<Item = u8>) {
        let mut next = || script.next().unwrap_or(1);
        match operation % 8 {
            0 => self.print(next(), next()),
            1 => self.offer(next(), next()),
            2 => self.type_in(&vec![operation; next().into()]),
            3 => self.take_output(),
            4 => {
                self.rig.suspend().expect("it stops at once");
                self.rig.resume().expect("it goes on");
            }
            5 => {
                let gpa = u64::from_le_bytes([next(), next(), next(), next(), 0, 0, 0, next()]);
                let len = u32::from_le_bytes([next(), next(), next(), next()]);
                let (flags, successor) = (u16::from(next()), u16::from(next()));
                self.scribble(next(), Descriptor { gpa, len, flags, next: successor });
            }
            6 => self.rig.settle(),
            _ => self.rig.write_bytes(register::CONFIG + u64::from(next() % 16), &[EMERGENCY, 0, 0, 0]),
        }
        self.take_input();
    }

    /// Room for `pieces` more descriptors of a queue.
    fn claim(&mut self, queue: usize, pieces: usize) -> bool {
        let used = &mut self.used[queue];
        let fits = *used + pieces <= DESCRIPTORS;
        *used += if fits { pieces } else { 0 };
        fits
    }

    /// Prints `first` and `second` bytes, in one chain.
    fn print(&mut self, first: u8, second: u8) {
        let lens = [first, second].into_iter().filter(|len| *len > 0).collect::<Vec<_>>();
        if lens.is_empty() || !self.claim(1, lens.len()) {
            return;
        }
        self.chains += 1;
        let mut gpa = OUTPUT + self.chains * SLOT;
        let mut buffers = Vec::new();
        for len in lens {
            let bytes: Vec<u8> =
                (0..len).map(|n| (u64::from(n) * 7 + self.chains) as u8 % EMERGENCY).collect();
            self.rig.ram.write(gpa, &bytes).expect("in RAM");
            self.printed.extend(bytes);
            buffers.push(Buffer::readable(gpa, len.into()));
            gpa += u64::from(len);
        }
        self.rig.send(&mut self.tx, &buffers);
    }

    /// Offers a buffer for input, in two pieces that follow each other.
    fn offer(&mut self, first: u8, second: u8) {
        let (first, second) = (u32::from(first) + 1, u32::from(second) + 1);
        if !self.claim(0, 2) {
            return;
        }
        let gpa = INPUT + self.offered_so_far() * SLOT;
        let pieces = [Buffer::writable(gpa, first), Buffer::writable(gpa + u64::from(first), second)];
        self.offered.push_back(Buffer::writable(gpa, first + second));
        self.rig.send(&mut self.rx, &pieces);
    }

    fn offered_so_far(&self) -> u64 {
        u64::from(self.rx.offered)
    }

    fn type_in(&mut self, bytes: &[u8]) {
        let taken = self.typing.try_write(bytes).expect("the device reads");
        self.typed.extend(&bytes[..taken]);
    }

    fn scribble(&mut self, index: u8, descriptor: Descriptor) {
        self.wild = true;
        self.tx.write(u16::from(index) % 64, descriptor);
        self.tx.offer(index.into());
        self.rig.ring(self.tx.index);
    }

    fn take_input(&mut self) {
        while let Some(used) = self.rx.take_used() {
            let buffer = self.offered.pop_front().expect("no more comes back than was offered");
            assert!(used.len <= buffer.len && used.len > 0, "{used:?} of {buffer:?}");
            let mut bytes = vec![0; used.len as usize];
            self.rig.ram.read(buffer.gpa, &mut bytes).expect("in RAM");
            self.received.extend(bytes);
        }
    }

    fn take_output(&mut self) {
        self.reading.as_ref().expect("a reader").take(&mut self.read);
        self.read.retain(|byte| *byte != EMERGENCY);
    }

    /// Reads on the shard, at once when there is something, what is still to come.
    fn finish_output(&mut self) {
        let wanted = self.printed.len();
        let (mut read, reading) = (std::mem::take(&mut self.read), self.reading.take().expect("a reader"));
        let (read, reading) = self.rig.on_shard(move |_| async move {
            while read.len() < wanted {
                reading.read(&mut read).await;
                read.retain(|byte| *byte != EMERGENCY);
            }
            (read, reading)
        });
        (self.read, self.reading) = (read, Some(reading));
        self.rig.settle();
        self.take_output();
        assert!(self.read == self.printed, "output is not what was printed");
    }

    fn finish(mut self) {
        work_until(
            &mut self,
            |bench| &bench.rig,
            "input comes as far as there are buffers",
            |bench| {
                bench.take_input();
                bench.received.len() == bench.typed.len() || bench.offered.is_empty()
            },
        );
        assert!(self.typed.starts_with(&self.received), "input is not what was typed");
        if !self.wild {
            self.finish_output();
        }
        self.rig.stop().expect("it stops, whoever does not read");
        leave(Device::Console, self.rig);
    }
}
