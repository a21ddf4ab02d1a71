//! A driver's rings in guest memory, byte by byte, and a device that peeks, consumes and completes.
//!
//! Input: features, size and place of the queue, then operations. What the queue gives is compared with what a plain
//! reading of the specification gives, made here: every range in RAM and as the driver wrote it, readable before
//! writable, no more of them than the queue is long, no more than 2^32 - 1 bytes. Fails on a difference, on a panic,
//! if looking changes memory, and if a completion writes anything but its element and the index.

#![no_main]

use std::collections::BTreeMap;
use std::sync::OnceLock;

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use ringlet_devices::testing::Descriptor;
use ringlet_devices::virtio::spec::descriptor::{INDIRECT, NEXT, WRITE};
use ringlet_devices::virtio::spec::{MAX_PIECES, MAX_QUEUE_SIZE, feature};
use ringlet_devices::virtio::{Chain, Owed, Queue, QueueLayout, RawLayout, Token};
use ringlet_fuzz::clear;
use ringlet_io::{Backing, GuestRam, GuestRange, LeaseUse};

/// Eight regions of a page that touch, a hole, a region, a hole, and one that makes chains of 4 GiB possible.
const REGIONS: [(u64, u64); 10] = [
    (0, 0x1000),
    (0x1000, 0x1000),
    (0x2000, 0x1000),
    (0x3000, 0x1000),
    (0x4000, 0x1000),
    (0x5000, 0x1000),
    (0x6000, 0x1000),
    (0x7000, 0x1000),
    (0x1_0000, 0x2000),
    (0x10_0000, 0x400_0000),
];
/// Where the rings of a queue are that the input does not place.
const USUAL: RawLayout = RawLayout { size: 0, descriptors: 0x1000, driver: 0x2000, device: 0x2400 };
/// Where indirect tables are.
const TABLES: u64 = 0x3000;
/// Operations of one input.
const OPERATIONS: usize = 512;

fuzz_target!(|bytes: &[u8]| {
    // An input that ends early is one whose rest is zeroes.
    let _ = run(&mut Unstructured::new(bytes));
});

fn run(input: &mut Unstructured<'_>) -> Result<()> {
    static RAM: OnceLock<GuestRam> = OnceLock::new();
    let ram = RAM.get_or_init(|| GuestRam::new(&REGIONS, Backing::Pages4K).expect("RAM"));
    clear(ram);
    let flags: u8 = input.arbitrary()?;
    let mut raw = RawLayout { size: 1 << (flags >> 4), ..USUAL };
    if flags & 4 != 0 {
        let mut place = || Ok(u64::from(input.arbitrary::<u16>()?) << (flags & 8) >> 2);
        raw = RawLayout { size: raw.size, descriptors: place()?, driver: place()?, device: place()? };
    }
    let Ok(layout) = raw.check(MAX_QUEUE_SIZE, ram) else { return Ok(()) };
    check_layout(&layout);
    let bit = |mask, bit| if flags & mask != 0 { bit } else { 0 };
    let features = bit(1, feature::INDIRECT_DESC) | bit(2, feature::EVENT_IDX);
    let mut bench = Bench::new(ram, layout, features);
    for _ in 0..OPERATIONS {
        if input.is_empty() {
            break;
        }
        bench.step(input)?;
    }
    bench.finish();
    Ok(())
}

/// Whatever passes the check is usable.
fn check_layout(layout: &QueueLayout) {
    let size = u64::from(layout.size());
    assert!(size.is_power_of_two() && size <= u64::from(MAX_QUEUE_SIZE));
    assert!(layout.descriptors() % 16 == 0 && layout.driver() % 2 == 0 && layout.device() % 4 == 0);
    assert!(in_ram(layout.descriptors(), 16 * size), "{layout:?}");
    assert!(in_ram(layout.driver(), 6 + 2 * size), "{layout:?}");
    assert!(in_ram(layout.device(), 6 + 8 * size), "{layout:?}");
}

struct Bench {
    ram: GuestRam,
    layout: QueueLayout,
    features: u64,
    queue: Queue,
    /// What is in flight: the right to complete it, its chain, and its head.
    tokens: BTreeMap<u16, (Token, Chain)>,
    /// Where the queue stands, as counted here.
    next_avail: u16,
    next_used: u16,
    /// `next_used` at the last question what the driver is owed; `None` if nothing was completed since.
    asked: u16,
    completed: bool,
    broken: bool,
}

impl Bench {
    fn new(ram: &GuestRam, layout: QueueLayout, features: u64) -> Self {
        let queue = Queue::new(layout, features, ram).expect("a checked layout");
        let (next_avail, next_used, asked) = (0, 0, 0);
        let tokens = BTreeMap::new();
        let ram = ram.clone();
        let (completed, broken) = (false, false);
        Self { ram, layout, features, queue, tokens, next_avail, next_used, asked, completed, broken }
    }

    fn step(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        match input.arbitrary::<u8>()? % 13 {
            0 | 1 => {
                let index: u8 = input.arbitrary()?;
                self.put(self.layout.descriptors() + 16 * u64::from(index), descriptor(input)?);
            }
            2 => {
                let index: u16 = input.arbitrary()?;
                self.put(TABLES + 16 * u64::from(index % 0x500), descriptor(input)?);
            }
            3 => {
                let gpa = u64::from(input.arbitrary::<u16>()?);
                let bytes: [u8; 6] = input.arbitrary()?;
                // Outside RAM nothing is written.
                let _ = self.ram.write(gpa, &bytes);
            }
            4 | 5 => self.offer(input.arbitrary()?),
            6 => self.set_available(input.arbitrary()?),
            7 | 8 => self.peek(true),
            9 => self.complete(input.arbitrary()?, input.arbitrary()?),
            10 => self.ask(input.arbitrary()?),
            11 => self.resume(input.arbitrary()?),
            _ => self.link(input)?,
        }
        Ok(())
    }

    fn put(&self, gpa: u64, descriptor: Descriptor) {
        let _ = self.ram.write(gpa, &descriptor.bytes());
    }

    /// Links descriptors that follow each other, in the queue's table or in another, and offers the chain.
    fn link(&self, input: &mut Unstructured<'_>) -> Result<()> {
        let (count, first, step): (u8, u8, u16) = input.arbitrary()?;
        let model = descriptor(input)?;
        let indirect = step & 1 != 0;
        let table = if indirect { TABLES } else { self.layout.descriptors() };
        // An indirect chain starts at the start of its table.
        let from = if indirect { 0 } else { u64::from(first) };
        for n in 0..=u64::from(count) {
            let last = n == u64::from(count);
            let flags = if last { model.flags & !NEXT } else { model.flags | NEXT };
            let gpa = model.gpa.wrapping_add(n * u64::from(step & !1));
            let next = (from + n + 1) as u16;
            self.put(table + 16 * (from + n), Descriptor { gpa, flags, next, ..model });
        }
        if indirect {
            let len = 16 * (u32::from(count) + 1);
            let pointer = Descriptor { gpa: TABLES, len, flags: INDIRECT, next: 0 };
            self.put(self.layout.descriptors() + 16 * u64::from(first), pointer);
        }
        self.offer(first.into());
        Ok(())
    }

    fn offer(&self, head: u16) {
        let index = self.available();
        let slot = u64::from(index % self.layout.size());
        self.ram.write(self.layout.driver() + 4 + 2 * slot, &head.to_le_bytes()).expect("in RAM");
        self.set_available(index.wrapping_add(1));
    }

    fn set_available(&self, index: u16) {
        self.ram.write(self.layout.driver() + 2, &index.to_le_bytes()).expect("in RAM");
    }

    fn available(&self) -> u16 {
        read_u16(&self.ram, self.layout.driver() + 2)
    }

    /// Peeks twice, and consumes if `take`.
    fn peek(&mut self, take: bool) {
        self.ram.take_host_dirty();
        let expected = self.expected();
        let was = self.queue.state();
        let first = self.queue.peek();
        assert_eq!(first.is_err(), expected.is_err(), "{expected:?} {first:?}");
        assert!(self.ram.take_host_dirty().is_empty(), "looking writes nothing");
        self.broken |= expected.is_err();
        assert_eq!(self.queue.is_broken(), self.broken);
        let again = self.queue.peek();
        let Ok(expected) = expected else {
            assert!(again.expect("it is reported once").is_none(), "a broken queue finds nothing");
            return;
        };
        assert_eq!(self.queue.state(), was, "looking changes nothing");
        let (first, again) = (first.expect("checked"), again.expect("as before"));
        let Some((head, ranges, readable)) = expected else {
            assert!(first.is_none() && again.is_none(), "nothing is offered");
            return;
        };
        let (first, again) = (first.expect("a chain is offered"), again.expect("it still is"));
        for chain in [&first, &again] {
            assert_eq!(chain.head(), head);
            assert_eq!((chain.readable_ranges(), chain.writable_ranges()), ranges.split_at(readable));
        }
        check_chain(&self.ram, &first, self.layout.size());
        if take {
            self.consume(again);
        }
    }

    fn consume(&mut self, chain: Chain) {
        let token = self.queue.consume(&chain).expect("it was peeked last");
        assert!(self.queue.consume(&chain).is_err(), "nothing is taken twice");
        assert_eq!(token.head(), chain.head());
        self.next_avail = self.next_avail.wrapping_add(1);
        assert!(self.tokens.insert(chain.head(), (token, chain)).is_none());
        assert!(self.tokens.len() <= usize::from(self.layout.size()), "in flight is bounded");
    }

    /// What the next peek must give.
    fn expected(&self) -> std::result::Result<Option<(u16, Vec<GuestRange>, usize)>, &'static str> {
        if self.broken {
            return Ok(None);
        }
        let waiting = self.available().wrapping_sub(self.next_avail);
        if waiting > self.layout.size() {
            return Err("the index");
        }
        if waiting == 0 {
            return Ok(None);
        }
        let slot = u64::from(self.next_avail % self.layout.size());
        let head = read_u16(&self.ram, self.layout.driver() + 4 + 2 * slot);
        if self.tokens.contains_key(&head) {
            return Err("in flight");
        }
        let mut walk = Walk::default();
        let indirect = self.features & feature::INDIRECT_DESC != 0;
        let table = walk.follow(&self.ram, self.layout.descriptors(), self.layout.size(), head, indirect)?;
        if let Some((table, size)) = table {
            walk.follow(&self.ram, table, size, 0, false)?;
        }
        let ranges = walk.finish(self.layout.size())?;
        Ok(Some((head, ranges, walk.readable)))
    }

    fn complete(&mut self, which: u8, written: u32) {
        let Some(head) = self.tokens.keys().nth(usize::from(which) % self.tokens.len().max(1)).copied()
        else {
            return;
        };
        let (token, chain) = self.tokens.remove(&head).expect("it is there");
        let from = self.layout.device();
        let mut expected = vec![0; 6 + 8 * usize::from(self.layout.size())];
        self.ram.read(from, &mut expected).expect("in RAM");
        self.queue.complete(token, written).expect("it was in flight");
        let slot = 4 + 8 * usize::from(self.next_used % self.layout.size());
        self.next_used = self.next_used.wrapping_add(1);
        expected[slot..slot + 4].copy_from_slice(&u32::from(head).to_le_bytes());
        let len = u64::from(written).min(chain.writable_len()) as u32;
        expected[slot + 4..slot + 8].copy_from_slice(&len.to_le_bytes());
        expected[2..4].copy_from_slice(&self.next_used.to_le_bytes());
        let mut found = vec![0; expected.len()];
        self.ram.read(from, &mut found).expect("in RAM");
        assert!(found == expected, "the used ring is as it should be");
        self.completed = true;
    }

    fn ask(&mut self, how: u8) {
        match how % 3 {
            0 => {
                let owed = self.queue.take_owed().expect("rings in RAM");
                assert_eq!(owed, self.owed());
                assert_eq!(self.queue.take_owed().expect("as before"), Owed::Nothing);
            }
            1 => {
                let more = self.queue.enable_notification().expect("rings in RAM");
                assert_eq!(more, !self.broken && self.available() != self.next_avail);
            }
            _ => self.queue.disable_notification().expect("rings in RAM"),
        }
    }

    /// What the driver is owed (sections 2.7.7 and 2.7.10).
    fn owed(&mut self) -> Owed {
        if !std::mem::take(&mut self.completed) {
            return Owed::Nothing;
        }
        let old = std::mem::replace(&mut self.asked, self.next_used);
        let wanted = if self.features & feature::EVENT_IDX == 0 {
            read_u16(&self.ram, self.layout.driver()) & 1 == 0
        } else {
            let at = self.layout.driver() + 4 + 2 * u64::from(self.layout.size());
            let event = read_u16(&self.ram, at);
            self.next_used.wrapping_sub(event).wrapping_sub(1) < self.next_used.wrapping_sub(old)
        };
        if wanted { Owed::Interrupt } else { Owed::Suppressed }
    }

    /// Goes on with another queue where this one stopped, moved by what a saved state may say.
    fn resume(&mut self, moved: u8) {
        if !self.tokens.is_empty() {
            return;
        }
        let mut state = self.queue.state();
        assert_eq!((state.next_avail, state.next_used, state.broken), self.position());
        if moved & 1 != 0 {
            state.next_avail = state.next_avail.wrapping_add(u16::from(moved) << 8);
            state.next_used = state.next_used.wrapping_sub(u16::from(moved) << 5);
        }
        *self = Self::new(&self.ram, self.layout, self.features);
        (self.next_avail, self.next_used, self.broken) = (state.next_avail, state.next_used, state.broken);
        self.asked = self.next_used;
        self.queue.resume(&state);
        assert_eq!(self.queue.state(), state);
    }

    fn position(&self) -> (u16, u16, bool) {
        (self.next_avail, self.next_used, self.broken)
    }

    /// Everything that is in flight can be completed, whatever the rings hold by now.
    fn finish(mut self) {
        while !self.tokens.is_empty() {
            self.complete(0, u32::MAX);
        }
        assert_eq!(self.queue.in_flight(), 0);
    }
}

/// What every chain is, whatever its driver wrote.
fn check_chain(ram: &GuestRam, chain: &Chain, size: u16) {
    let (readable, writable) = (chain.readable_ranges(), chain.writable_ranges());
    let sum = |ranges: &[GuestRange]| ranges.iter().map(|range| u64::from(range.len)).sum::<u64>();
    assert!((1..=usize::from(size)).contains(&(readable.len() + writable.len())));
    assert_eq!((chain.readable_len(), chain.writable_len()), (sum(readable), sum(writable)));
    assert!(sum(readable) + sum(writable) <= u64::from(u32::MAX));
    for range in readable.iter().chain(writable) {
        assert!(range.len > 0 && in_ram(range.gpa, range.len.into()), "{range:?}");
    }
    for (len, part, use_) in [
        (sum(readable), chain.readable(0, sum(readable)), LeaseUse::Source),
        (sum(writable), chain.writable(0, sum(writable)), LeaseUse::Target),
    ] {
        let lease = ram.lease(&part.expect("all of it"), use_).expect("the kernel takes it in one operation");
        assert_eq!(lease.len(), len);
    }
    let mut bytes = [0; 24];
    for from in [0, sum(readable).saturating_sub(24), sum(readable), u64::MAX] {
        let fits = from.checked_add(24).is_some_and(|end| end <= sum(readable));
        assert_eq!(chain.copy_out(ram, from, &mut bytes).is_ok(), fits);
        let fits = from.checked_add(24).is_some_and(|end| end <= sum(writable));
        let part = chain.writable(from, 24);
        assert_eq!(part.is_some(), fits);
        assert!(part.is_none_or(|part| sum(&part) == 24));
    }
}

/// A chain as the specification has it (section 2.7.5), in the making.
#[derive(Default)]
struct Walk {
    buffers: Vec<(GuestRange, bool)>,
    readable: usize,
}

impl Walk {
    /// Follows one table from `index` on; gives the table, and its size, that the last descriptor points to.
    fn follow(
        &mut self,
        ram: &GuestRam,
        table: u64,
        size: u16,
        mut index: u16,
        indirect: bool,
    ) -> std::result::Result<Option<(u64, u16)>, &'static str> {
        let mut visited = vec![false; size.into()];
        loop {
            let seen = visited.get_mut(usize::from(index)).ok_or("no such descriptor")?;
            if std::mem::replace(seen, true) {
                return Err("a loop");
            }
            let mut bytes = [0; 16];
            ram.read(table + 16 * u64::from(index), &mut bytes).map_err(|_| "no table")?;
            let [gpa @ .., l0, l1, l2, l3, f0, f1, n0, n1] = bytes;
            let (gpa, len) = (u64::from_le_bytes(gpa), u32::from_le_bytes([l0, l1, l2, l3]));
            let (flags, next) = (u16::from_le_bytes([f0, f1]), u16::from_le_bytes([n0, n1]));
            if flags & INDIRECT != 0 {
                let count = len / 16;
                let sound = indirect && flags & NEXT == 0 && len % 16 == 0;
                if !sound || !(1..=u32::from(MAX_QUEUE_SIZE)).contains(&count) || !in_ram(gpa, len.into()) {
                    return Err("a table");
                }
                return Ok(Some((gpa, count as u16)));
            }
            self.buffers.push((GuestRange { gpa, len }, flags & WRITE != 0));
            if flags & NEXT == 0 {
                return Ok(None);
            }
            index = next;
        }
    }

    /// The rules that hold for a chain as a whole.
    fn finish(&mut self, size: u16) -> std::result::Result<Vec<GuestRange>, &'static str> {
        self.readable = self.buffers.iter().take_while(|(_, writable)| !writable).count();
        let sound = self.buffers.len() <= usize::from(size)
            && self.buffers.iter().all(|(range, _)| range.len > 0 && in_ram(range.gpa, range.len.into()))
            && self.buffers.iter().skip(self.readable).all(|(_, writable)| *writable)
            && self.buffers.iter().map(|(range, _)| u64::from(range.len)).sum::<u64>() <= u32::MAX.into()
            && self.buffers.iter().map(|(range, _)| pieces(range)).sum::<usize>() <= MAX_PIECES;
        if sound { Ok(self.buffers.iter().map(|(range, _)| *range).collect()) } else { Err("a buffer") }
    }
}

/// In how many regions a range lies.
fn pieces(range: &GuestRange) -> usize {
    let (from, to) = (range.gpa, range.gpa + u64::from(range.len));
    REGIONS.iter().filter(|(gpa, len)| from < gpa + len && to > *gpa).count()
}

/// True if every byte is in some region.
fn in_ram(gpa: u64, len: u64) -> bool {
    let (mut at, end) = (u128::from(gpa), u128::from(gpa) + u128::from(len));
    for (start, len) in REGIONS {
        let (start, stop) = (u128::from(start), u128::from(start + len));
        if (start..stop).contains(&at) {
            at = stop.min(end);
        }
    }
    at == end && len > 0
}

fn read_u16(ram: &GuestRam, gpa: u64) -> u16 {
    let mut bytes = [0; 2];
    ram.read(gpa, &mut bytes).expect("in RAM");
    u16::from_le_bytes(bytes)
}

/// A descriptor: mostly one that makes sense somewhere.
fn descriptor(input: &mut Unstructured<'_>) -> Result<Descriptor> {
    let (place, offset, long): (u8, u16, u8) = input.arbitrary()?;
    let (len, flags, next): (u16, u8, u8) = input.arbitrary()?;
    let offset = u64::from(offset);
    let gpa = match place % 8 {
        0..=2 => offset,
        3 => TABLES + offset % 0x1000 * 16,
        4 => 0x1_0000 + offset,
        5 => 0x10_0000 + offset * 16,
        6 => 0x410_0000 - offset,
        _ => !offset << (place >> 3),
    };
    let len = match long % 8 {
        0..=3 => u32::from(len),
        4 => u32::from(len % 0x40) * 16,
        5 => u32::from(len) << 10,
        6 => u32::from(len) << 16,
        _ => !u32::from(len),
    };
    // Also flags that mean nothing, and successors that no queue has.
    let flags = u16::from(flags & 7) | u16::from(flags & 0x80) << 8;
    let next = u16::from(next) | u16::from(long & 0x80) << 4;
    Ok(Descriptor { gpa, len, flags, next })
}
