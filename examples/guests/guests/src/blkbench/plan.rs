//! What is done next, and what every block is to hold.

use alloc::vec::Vec;

use crate::Failure;
use crate::disk::{DISCARD, Disk, FLUSH, READ_ONLY, WRITE_ZEROES};
use crate::options::{Mix, Options, SECTOR, Until};
use crate::pattern::Expected;
use crate::random::Random;

/// Blocks looked at before a full queue is waited for.
const ATTEMPTS: u64 = 64;
/// Blocks that are remembered as written lately.
const RECENT: usize = 1024;
/// Most blocks of a discard or a write of zeroes.
const RUN_MAX: u64 = 8;

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Read { block: u64, expected: Expected },
    Write { block: u64, generation: u32 },
    Flush,
    Discard { block: u64, count: u64 },
    Zeroes { block: u64, count: u64 },
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Everything is written once, so that there is something to check.
    Prefill,
    /// What the options ask for.
    Main,
    /// All that was written is read.
    Sweep,
    /// One flush.
    Finish,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Op(Op),
    /// Nothing before something that is under way has ended.
    Later,
    Done,
}

/// What is known of every block. A word is 0 for anything, 1 for zeroes, else a generation.
struct Ledger {
    words: Vec<u32>,
    busy: Vec<u64>,
    recent: Vec<u64>,
    cursor: usize,
    generation: u32,
}

pub(crate) struct Plan {
    phase: Phase,
    options: Options,
    blocks: u64,
    /// Sectors of a block.
    sectors: u64,
    /// Most blocks that one request discards, or zeroes.
    discard: u64,
    zeroes: u64,
    can_flush: bool,
    random: Random,
    position: u64,
    deadline: u64,
    bytes_left: u64,
    unflushed: u64,
    ledger: Option<Ledger>,
}

impl Plan {
    pub(crate) fn new(disk: &Disk, options: &Options) -> Result<Self, Failure> {
        if options.mix != Mix::Read && disk.has(READ_ONLY) {
            return Err(Failure::Usage("the disk is read-only"));
        }
        if options.verify && disk.has(READ_ONLY) {
            return Err(Failure::Usage("--verify writes, and the disk is read-only"));
        }
        let sectors = u64::from(options.block) / SECTOR;
        let blocks = disk.sectors.min(options.span / SECTOR) / sectors;
        if blocks == 0 {
            return Err(Failure::Usage("the disk, or --span, is smaller than a block"));
        }
        let run = |feature, limit: u32| {
            if disk.has(feature) { (u64::from(limit) / sectors).min(RUN_MAX) } else { 0 }
        };
        Ok(Self {
            phase: Phase::Main,
            options: options.clone(),
            blocks,
            sectors,
            discard: run(DISCARD, disk.limits.discard),
            zeroes: run(WRITE_ZEROES, disk.limits.zeroes),
            can_flush: disk.has(FLUSH),
            random: Random::new(options.seed),
            position: 0,
            deadline: u64::MAX,
            bytes_left: 0,
            unflushed: 0,
            ledger: if options.verify { Some(Ledger::new(blocks)?) } else { None },
        })
    }

    /// Begins a phase.
    pub(crate) fn begin(&mut self, phase: Phase, now: u64) {
        self.phase = phase;
        self.position = 0;
        match self.options.until {
            Until::Time(duration) => (self.deadline, self.bytes_left) = (now + duration, u64::MAX),
            Until::Bytes(bytes) => (self.deadline, self.bytes_left) = (u64::MAX, bytes),
        }
    }

    /// First sector of a block.
    pub(crate) fn sector(&self, block: u64) -> u64 {
        block * self.sectors
    }

    /// Sectors of so many blocks.
    pub(crate) fn sectors(&self, count: u64) -> u64 {
        count * self.sectors
    }

    pub(crate) fn next(&mut self, now: u64) -> Next {
        match self.phase {
            Phase::Prefill | Phase::Sweep => self.next_of_all(),
            Phase::Main => self.next_of_mix(now),
            Phase::Finish if self.position == 0 && self.can_flush => {
                self.position = 1;
                Next::Op(Op::Flush)
            }
            Phase::Finish => Next::Done,
        }
    }

    /// The next block in order that is to be written for the first time, or checked for the last.
    fn next_of_all(&mut self) -> Next {
        let Some(ledger) = &mut self.ledger else { return Next::Done };
        while self.position < self.blocks {
            let block = self.position;
            self.position += 1;
            let expected = ledger.expected(block);
            if self.phase == Phase::Prefill {
                ledger.set_busy(block, 1, true);
                return Next::Op(Op::Write { block, generation: ledger.next_generation() });
            }
            if expected != Expected::Anything {
                ledger.set_busy(block, 1, true);
                return Next::Op(Op::Read { block, expected });
            }
        }
        Next::Done
    }

    fn next_of_mix(&mut self, now: u64) -> Next {
        if now >= self.deadline || self.bytes_left == 0 {
            return Next::Done;
        }
        if self.options.flush_every > 0 && self.unflushed >= self.options.flush_every && self.can_flush {
            self.unflushed = 0;
            return Next::Op(Op::Flush);
        }
        if self.ledger.is_some()
            && self.options.mix != Mix::Read
            && let Some(op) = self.special()
        {
            return Next::Op(op);
        }
        let write = match self.options.mix {
            Mix::Read => false,
            Mix::Write => true,
            Mix::Both => self.random.next() & 1 == 1,
        };
        let Some(block) = self.pick(write) else { return Next::Later };
        self.bytes_left = self.bytes_left.saturating_sub(u64::from(self.options.block));
        self.unflushed += u64::from(write);
        Next::Op(match &mut self.ledger {
            None if write => Op::Write { block, generation: 0 },
            None => Op::Read { block, expected: Expected::Anything },
            Some(ledger) => {
                ledger.set_busy(block, 1, true);
                if write {
                    Op::Write { block, generation: ledger.next_generation() }
                } else {
                    Op::Read { block, expected: ledger.expected(block) }
                }
            }
        })
    }

    /// Now and then, a discard or a write of zeroes.
    fn special(&mut self) -> Option<Op> {
        let choice = self.random.below(64);
        let limit = [self.discard, self.zeroes, 0][(choice as usize).min(2)];
        if limit == 0 {
            return None;
        }
        let ledger = self.ledger.as_mut()?;
        let block = self.random.below(self.blocks);
        let count = (1 + self.random.below(limit)).min(self.blocks - block);
        if (block..block + count).any(|block| ledger.is_busy(block)) {
            return None;
        }
        ledger.set_busy(block, count, true);
        Some(if choice == 0 { Op::Discard { block, count } } else { Op::Zeroes { block, count } })
    }

    /// A block to read or write that nothing is being done to, if what is there matters.
    fn pick(&mut self, write: bool) -> Option<u64> {
        for _ in 0..ATTEMPTS {
            let block = self.candidate(write);
            if self.ledger.as_ref().is_none_or(|ledger| !ledger.is_busy(block)) {
                return Some(block);
            }
        }
        None
    }

    fn candidate(&mut self, write: bool) -> u64 {
        if !self.options.random {
            let block = self.position;
            self.position = (block + 1) % self.blocks;
            return block;
        }
        // What was just written is read soon, and sometimes overwritten.
        if let Some(ledger) = &self.ledger
            && self.random.below(4) < if write { 1 } else { 3 }
            && let Some(&block) = ledger.recent.get(self.random.below(RECENT as u64) as usize)
        {
            return block;
        }
        self.random.below(self.blocks)
    }

    /// Notes the end of a request.
    pub(crate) fn ended(&mut self, op: Op) {
        let Some(ledger) = &mut self.ledger else { return };
        match op {
            Op::Flush => {}
            Op::Read { block, .. } => ledger.set_busy(block, 1, false),
            Op::Write { block, generation } => {
                ledger.end(block, 1, generation);
                ledger.remember(block);
            }
            Op::Discard { block, count } => ledger.end(block, count, 0),
            Op::Zeroes { block, count } => ledger.end(block, count, 1),
        }
    }
}

impl Ledger {
    fn new(blocks: u64) -> Result<Self, Failure> {
        let blocks = usize::try_from(blocks).map_err(|_| Failure::Memory)?;
        Ok(Self {
            words: zeroes(blocks)?,
            busy: zeroes(blocks.div_ceil(64))?,
            recent: Vec::with_capacity(RECENT),
            cursor: 0,
            generation: 1,
        })
    }

    fn expected(&self, block: u64) -> Expected {
        match self.words[block as usize] {
            0 => Expected::Anything,
            1 => Expected::Zeroes,
            generation => Expected::Generation(generation),
        }
    }

    fn next_generation(&mut self) -> u32 {
        self.generation = self.generation.wrapping_add(1).max(2);
        self.generation
    }

    fn is_busy(&self, block: u64) -> bool {
        self.busy[(block / 64) as usize] & 1 << (block % 64) != 0
    }

    fn set_busy(&mut self, block: u64, count: u64, busy: bool) {
        for block in block..block + count {
            let word = &mut self.busy[(block / 64) as usize];
            if busy { *word |= 1 << (block % 64) } else { *word &= !(1 << (block % 64)) }
        }
    }

    /// Notes what blocks hold after a request to change them.
    fn end(&mut self, block: u64, count: u64, word: u32) {
        self.set_busy(block, count, false);
        self.words[block as usize..(block + count) as usize].fill(word);
    }

    fn remember(&mut self, block: u64) {
        if self.recent.len() < RECENT {
            self.recent.push(block);
        } else {
            self.recent[self.cursor] = block;
            self.cursor = (self.cursor + 1) % RECENT;
        }
    }
}

/// A vector of zeroes, if there is memory for it.
fn zeroes<T: Clone + Default>(len: usize) -> Result<Vec<T>, Failure> {
    let mut vector = Vec::new();
    vector.try_reserve_exact(len).map_err(|_| Failure::Memory)?;
    vector.resize(len, T::default());
    Ok(vector)
}
