//! What survives a crash of the host, whatever the order in which the disk ends what it was asked for.
//!
//! Every sector holds the number of the write that it was last written by. The disk keeps what it is given in a
//! cache, makes durable by a flush only what was there when the flush began, and after a flush that failed it
//! forgets what it lost. What the driver was promised is compared with what a crash would leave.

use proptest::prelude::*;

use super::test_util::{Bench, DATA, HEADER, Job, Op, STATUS, TestDisk, UNTOUCHED};
use crate::block::Cache;

const SECTORS: usize = 6;
/// Requests at a time.
const PLACES: usize = 12;

#[derive(Debug, Clone)]
enum Step {
    Write {
        sector: usize,
    },
    Flush,
    /// The disk ends one of the operations that it has.
    End {
        which: usize,
        well: bool,
    },
    /// The driver changes the mode of the write cache.
    Mode {
        writeback: bool,
    },
}

fn steps(failures: bool) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..SECTORS).prop_map(|sector| Step::Write { sector }),
        2 => Just(Step::Flush),
        6 => (0_usize..PLACES, 0_u8..20).prop_map(move |(which, fail)| {
            Step::End { which, well: !failures || fail != 0 }
        }),
        1 => any::<bool>().prop_map(|writeback| Step::Mode { writeback }),
    ];
    prop::collection::vec(step, 0..200)
}

/// A request that the driver waits for.
struct Pending {
    job: Job,
    place: usize,
    promise: Promise,
}

/// What the driver may rely on if the request succeeds.
enum Promise {
    /// The sector holds this write; durably, if the cache was off all the time.
    Written { sector: usize, version: u32, durable: bool },
    /// These versions, complete when the flush was sent, are durable.
    Flushed { versions: Vec<u32> },
}

struct Driver {
    bench: Bench,
    writeback: bool,
    pending: Vec<Pending>,
    /// Last write of each sector that completed.
    complete: Vec<u32>,
    version: u32,
    /// Requests that were answered with OK.
    done: usize,
}

impl Driver {
    fn new(writeback: bool) -> Self {
        let bench = Bench::with(TestDisk::new(SECTORS as u64), Cache::Writeback);
        bench.disk.hold();
        bench.handler.shared.durability.set_writeback(writeback);
        let complete = vec![0; SECTORS];
        Self { bench, writeback, pending: Vec::new(), complete, version: 0, done: 0 }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write { sector } => self.write(sector),
            Step::Flush => {
                let promise = Promise::Flushed { versions: self.complete.clone() };
                self.send(4, 0, 0, promise);
            }
            Step::End { which, well } => self.end(which, well),
            Step::Mode { writeback } => self.set_mode(writeback),
        }
        self.settle();
    }

    fn set_mode(&mut self, writeback: bool) {
        self.writeback = writeback;
        self.bench.handler.shared.durability.set_writeback(writeback);
        for pending in &mut self.pending {
            if let Promise::Written { durable, .. } = &mut pending.promise {
                *durable &= !writeback;
            }
        }
    }

    fn write(&mut self, sector: usize) {
        let busy =
            |pending: &Pending| matches!(pending.promise, Promise::Written { sector: s, .. } if s == sector);
        if self.pending.iter().any(busy) {
            return;
        }
        self.version += 1;
        let promise = Promise::Written { sector, version: self.version, durable: !self.writeback };
        self.send(1, sector as u64, self.version, promise);
    }

    fn send(&mut self, kind: u32, sector: u64, version: u32, promise: Promise) {
        let free = |place: &usize| self.pending.iter().all(|pending| pending.place != *place);
        let Some(place) = (0..PLACES).find(free) else { return };
        let (data, status) = (DATA + place as u64 * 512, STATUS + place as u64);
        self.bench.header(kind, sector);
        self.bench.ram.write(data, &version.to_le_bytes().repeat(128)).unwrap();
        self.bench.fill(status, 1, UNTOUCHED);
        let parts = [(HEADER, 16, false), (data, 512, false), (status, 1, true)];
        let parts = if kind == 1 { &parts[..] } else { &[parts[0], parts[2]] };
        let job = self.bench.start(parts).1;
        self.pending.push(Pending { job, place, promise });
    }

    fn end(&mut self, which: usize, well: bool) {
        let waiting = self.bench.disk.waiting().len();
        if waiting > 0 {
            self.bench.disk.release(which % waiting, well);
        }
    }

    /// Lets everything run that can, and holds the answers to what was promised.
    fn settle(&mut self) {
        loop {
            let ended = self.pending.iter_mut().position(|pending| pending.job.poll().is_some());
            let Some(index) = ended else { return };
            let Pending { place, promise, .. } = self.pending.remove(index);
            if self.bench.bytes(STATUS + place as u64, 1) == [0] {
                self.done += 1;
                self.check(promise);
            }
        }
    }

    fn check(&mut self, promise: Promise) {
        match promise {
            Promise::Written { sector, version, durable } => {
                assert!(!durable || self.durable(sector) >= version, "write {version} would be lost");
                self.complete[sector] = version;
            }
            Promise::Flushed { versions } => {
                for (sector, version) in versions.into_iter().enumerate().filter(|(_, version)| *version > 0)
                {
                    assert!(self.durable(sector) >= version, "write {version} would be lost");
                }
            }
        }
    }

    /// The write that a sector holds after a crash; 0 if none.
    fn durable(&self, sector: usize) -> u32 {
        let bytes = self.bench.disk.after_crash(sector * 512, 512);
        let (versions, _) = bytes.as_chunks();
        let first = u32::from_le_bytes(versions[0]);
        // What the disk holds at first is no write's number.
        if first > self.version { 0 } else { first }
    }

    /// Ends everything well; no request may be left over.
    fn drain(mut self) -> usize {
        while !self.bench.disk.waiting().is_empty() {
            self.end(0, true);
            self.settle();
        }
        assert!(self.pending.is_empty(), "a request that nothing will end");
        self.done
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn what_was_promised_survives_a_crash(writeback in any::<bool>(), steps in steps(false)) {
        let mut driver = Driver::new(writeback);
        steps.into_iter().for_each(|step| driver.step(step));
        driver.drain();
    }

    #[test]
    fn nothing_is_promised_that_a_failed_flush_lost(writeback in any::<bool>(), steps in steps(true)) {
        let mut driver = Driver::new(writeback);
        steps.into_iter().for_each(|step| driver.step(step));
        driver.drain();
    }
}

#[test]
fn many_writes_in_writethrough_mode_share_flushes() {
    let mut driver = Driver::new(false);
    (0..SECTORS).for_each(|sector| driver.step(Step::Write { sector }));
    (0..SECTORS).for_each(|_| driver.step(Step::End { which: 0, well: true }));
    let disk = driver.bench.disk.clone();
    assert_eq!(driver.drain(), SECTORS);
    let flushes = disk.take_log().into_iter().filter(|op| *op == Op::Flush).count();
    assert_eq!(flushes, 2, "one for the first write, one for all that came while it ran");
}
