use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use super::{Buffer, Full, Overflow, SerialOutput};
use crate::test_util::{Calls, metrics};

fn output(capacity: usize, overflow: Overflow) -> (SerialOutput, Calls) {
    let calls = Calls::default();
    (SerialOutput::new(capacity, overflow, calls.callback(), metrics()), calls)
}

#[test]
fn the_doorbell_rings_only_when_the_buffer_stops_being_empty() {
    let (output, calls) = output(8, Overflow::Park);
    let mut taken = Vec::new();
    output.push(1).unwrap();
    assert_eq!(calls.take(), 1);
    output.push(2).unwrap();
    output.push(3).unwrap();
    assert_eq!(calls.take(), 0);
    assert!(!output.take(&mut taken));
    assert_eq!(taken, [1, 2, 3]);
    output.push(4).unwrap();
    assert_eq!(calls.take(), 1);
    assert!(!output.take(&mut taken));
    assert_eq!(taken, [4]);
    assert_eq!(output.metrics.serial_sent_bytes.get(), 4);
}

#[test]
fn park_refuses_what_has_no_room_and_loses_nothing() {
    let (output, _) = output(2, Overflow::Park);
    let mut taken = Vec::new();
    output.push(1).unwrap();
    output.push(2).unwrap();
    assert_eq!(output.push(3), Err(Full));
    assert!(!output.has_room());
    assert!(output.take(&mut taken), "somebody waits");
    assert_eq!(taken, [1, 2]);
    assert!(output.has_room());
    output.push(3).unwrap();
    assert!(!output.take(&mut taken), "nobody waits any more");
    assert_eq!((taken, output.dropped(), output.metrics.serial_sent_bytes.get()), (vec![3], 0, 3));
}

#[test]
fn drop_oldest_keeps_the_newest_in_order_and_counts_the_rest() {
    let (output, calls) = output(4, Overflow::DropOldest);
    let mut taken = Vec::new();
    for byte in 0..11 {
        assert!(output.has_room());
        output.push(byte).unwrap();
    }
    assert_eq!(calls.take(), 1);
    assert!(!output.take(&mut taken));
    assert_eq!((&taken[..], output.dropped()), (&[7, 8, 9, 10][..], 7));
    output.push(11).unwrap();
    assert!(!output.take(&mut taken));
    assert_eq!((&taken[..], output.dropped()), (&[11][..], 7));
}

#[test]
fn a_capacity_of_zero_is_one() {
    for overflow in [Overflow::Park, Overflow::DropOldest] {
        let (output, _) = output(0, overflow);
        assert!(output.has_room());
        output.push(1).unwrap();
        let mut taken = Vec::new();
        let _ = output.take(&mut taken);
        assert_eq!(taken, [1]);
    }
}

#[test]
fn sec_02_memory_is_allocated_late_bounded_and_given_back() {
    for overflow in [Overflow::Park, Overflow::DropOldest] {
        let capacity = 10_000;
        let mut buffer = Buffer::new(capacity, overflow);
        assert_eq!(buffer.bytes.capacity(), 0);
        for _ in 0..3 * capacity {
            let _ = buffer.push(0);
            assert!(buffer.bytes.capacity() <= capacity);
        }
        let mut taken = Vec::with_capacity(1 << 20);
        let _ = buffer.take(&mut taken);
        assert_eq!(taken.len(), capacity);
        assert!(buffer.bytes.capacity() <= Buffer::RETAINED);
    }
}

#[test]
fn steady_traffic_swaps_two_buffers_without_allocating() {
    let mut buffer = Buffer::new(SerialOutput::DEFAULT_CAPACITY, Overflow::Park);
    let mut taken = Vec::new();
    let mut seen = HashSet::new();
    for round in 0..100 {
        for byte in 0..100 {
            buffer.push(byte).unwrap();
        }
        let _ = buffer.take(&mut taken);
        if round >= 2 {
            seen.insert(taken.as_ptr() as usize);
        }
    }
    assert_eq!(seen.len(), 2);
}

/// Real threads: a producer that parks and repeats, a consumer that fetches on the doorbell.
#[test]
fn nothing_is_lost_between_threads() {
    const BYTES: u32 = 20_000;
    let consumer = std::thread::current();
    let rung = Arc::new(AtomicBool::new(false));
    let ring = {
        let rung = Arc::clone(&rung);
        move || {
            rung.store(true, SeqCst);
            consumer.unpark();
        }
    };
    let output = Arc::new(SerialOutput::new(16, Overflow::Park, ring, metrics()));
    let producer = std::thread::spawn({
        let output = Arc::clone(&output);
        move || {
            for n in 0..BYTES {
                while output.push(n as u8).is_err() {
                    while !output.has_room() {
                        std::thread::park();
                    }
                }
            }
        }
    });
    let (mut taken, mut received) = (Vec::new(), Vec::new());
    while received.len() < BYTES as usize {
        while !rung.swap(false, SeqCst) {
            std::thread::park();
        }
        if output.take(&mut taken) {
            producer.thread().unpark();
        }
        received.extend_from_slice(&taken);
    }
    producer.join().unwrap();
    assert!((0..BYTES).zip(&received).all(|(n, byte)| n as u8 == *byte));
}

/// What a vCPU thread does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Vcpu {
    /// Accesses the data register.
    Push,
    /// Its byte was the first: rings the doorbell.
    Ring,
    /// Was refused: asks for room.
    Check,
    /// Found none: sleeps until it is woken.
    Sleep,
    Done,
}

/// What the shard does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Shard {
    /// Sleeps until the doorbell rings.
    Wait,
    Take,
    /// Was told that somebody waits: wakes every vCPU.
    Wake,
}

/// The whole system between two atomic steps. `VCPUS` threads send the bytes 1 to `bytes` each, the thread's
/// number in the high half.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World<const VCPUS: usize> {
    buffer: Buffer,
    vcpus: [(Vcpu, u8); VCPUS],
    woken: [bool; VCPUS],
    shard: Shard,
    doorbell: bool,
    received: Vec<u8>,
    dropped: usize,
    bytes: u8,
}

impl<const VCPUS: usize> World<VCPUS> {
    fn new(capacity: usize, overflow: Overflow, bytes: u8) -> Self {
        Self {
            buffer: Buffer::new(capacity, overflow),
            vcpus: [(Vcpu::Push, 1); VCPUS],
            woken: [false; VCPUS],
            shard: Shard::Wait,
            doorbell: false,
            received: Vec::new(),
            dropped: 0,
            bytes,
        }
    }

    /// The world after vCPU `index` made a step, if it can.
    fn step_vcpu(&self, index: usize) -> Option<Self> {
        let mut next = self.clone();
        let (state, byte) = self.vcpus[index];
        let following = (if byte == self.bytes { Vcpu::Done } else { Vcpu::Push }, byte + 1);
        next.vcpus[index] = match state {
            Vcpu::Push => match next.buffer.push((index as u8) << 4 | byte) {
                Ok(pushed) => {
                    next.dropped += usize::from(pushed.dropped);
                    if pushed.first { (Vcpu::Ring, byte) } else { following }
                }
                Err(Full) => (Vcpu::Check, byte),
            },
            Vcpu::Ring => {
                next.doorbell = true;
                following
            }
            Vcpu::Check if next.buffer.has_room() => (Vcpu::Push, byte),
            Vcpu::Check => (Vcpu::Sleep, byte),
            Vcpu::Sleep if self.woken[index] => {
                next.woken[index] = false;
                (Vcpu::Check, byte)
            }
            Vcpu::Sleep | Vcpu::Done => return None,
        };
        Some(next)
    }

    /// The world after the shard made a step, if it can.
    fn step_shard(&self) -> Option<Self> {
        let mut next = self.clone();
        next.shard = match self.shard {
            Shard::Wait if self.doorbell => {
                next.doorbell = false;
                Shard::Take
            }
            Shard::Wait => return None,
            Shard::Take => {
                let mut taken = Vec::new();
                let waiting = next.buffer.take(&mut taken);
                next.received.extend(taken);
                if waiting { Shard::Wake } else { Shard::Wait }
            }
            Shard::Wake => {
                next.woken = [true; VCPUS];
                Shard::Wait
            }
        };
        Some(next)
    }

    /// Nothing can happen any more: everything must have arrived.
    fn check_end(&self) {
        assert!(self.vcpus.iter().all(|(state, _)| *state == Vcpu::Done), "a vCPU sleeps forever: {self:?}");
        assert!(self.buffer.bytes.is_empty(), "bytes nobody was told about: {self:?}");
        assert_eq!(self.received.len() + self.dropped, VCPUS * usize::from(self.bytes), "{self:?}");
        for vcpu in 0..VCPUS as u8 {
            let sent: Vec<u8> = self.received.iter().filter(|byte| *byte >> 4 == vcpu).copied().collect();
            assert!(sent.is_sorted_by(|a, b| a < b), "out of order: {self:?}");
        }
    }

    /// Visits every reachable world; returns how many there are.
    fn explore(self) -> usize {
        let mut seen = HashSet::from([self.clone()]);
        let mut open = vec![self];
        while let Some(world) = open.pop() {
            let next: Vec<Self> =
                (0..VCPUS).filter_map(|index| world.step_vcpu(index)).chain(world.step_shard()).collect();
            if next.is_empty() {
                world.check_end();
            }
            open.extend(next.into_iter().filter(|next| seen.insert(next.clone())));
        }
        seen.len()
    }
}

/// Every interleaving of the atomic steps of the real buffer, a doorbell and a wake-up: no byte is lost, none
/// overtakes another of its vCPU, nobody sleeps forever.
#[test]
fn model_back_pressure_in_every_interleaving() {
    for capacity in 1..=3 {
        assert!(World::<1>::new(capacity, Overflow::Park, 6).explore() > 50);
        assert!(World::<2>::new(capacity, Overflow::Park, 4).explore() > 500);
    }
    assert!(World::<3>::new(1, Overflow::Park, 2).explore() > 500);
}

/// The same for a buffer that drops: whatever is not received was counted, and no vCPU ever waits.
#[test]
fn model_drop_oldest_in_every_interleaving() {
    for capacity in 1..=3 {
        assert!(World::<1>::new(capacity, Overflow::DropOldest, 6).explore() > 20);
        assert!(World::<2>::new(capacity, Overflow::DropOldest, 4).explore() > 100);
    }
}
