//! The real buffer, lock and doorbell under every interleaving that loom finds. Run with
//! `RUSTFLAGS="--cfg ringlet_loom" cargo test --release --lib -p ringlet-devices loom`.

use std::sync::Arc as StdArc;

use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use super::{Overflow, SerialOutput};
use crate::test_util::metrics;

/// A flag that a thread sleeps on and another sets; setting it twice is setting it once, like an eventfd.
#[derive(Clone)]
struct Bell(Arc<(Mutex<bool>, Condvar)>);

impl Bell {
    fn new() -> Self {
        Self(Arc::new((Mutex::new(false), Condvar::new())))
    }

    fn ring(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_one();
    }

    fn wait(&self) {
        let mut rung = self.0.0.lock().unwrap();
        while !*rung {
            rung = self.0.1.wait(rung).unwrap();
        }
        *rung = false;
    }
}

/// Sends `bytes` as a vCPU does, sleeping on `room` while the output is full.
fn send(output: &SerialOutput, room: &Bell, bytes: &[u8]) {
    for byte in bytes {
        while output.push(*byte).is_err() {
            while !output.has_room() {
                room.wait();
            }
        }
    }
}

/// Fetches as the shard does, asleep until the doorbell rings, until `total` bytes came or were dropped.
fn receive(output: &SerialOutput, doorbell: &Bell, rooms: &[Bell], total: usize) -> Vec<u8> {
    let (mut taken, mut received) = (Vec::new(), Vec::new());
    while received.len() + (output.dropped() as usize) < total {
        doorbell.wait();
        if output.take(&mut taken) {
            rooms.iter().for_each(Bell::ring);
        }
        received.extend_from_slice(&taken);
    }
    received
}

fn output(capacity: usize, overflow: Overflow) -> (StdArc<SerialOutput>, Bell) {
    let doorbell = Bell::new();
    let ring = doorbell.clone();
    (StdArc::new(SerialOutput::new(capacity, overflow, move || ring.ring(), metrics())), doorbell)
}

#[test]
fn one_vcpu_that_parks_loses_nothing() {
    for capacity in 1..=2 {
        loom::model(move || {
            let (output, doorbell) = output(capacity, Overflow::Park);
            let room = Bell::new();
            let vcpu = thread::spawn({
                let (output, room) = (StdArc::clone(&output), room.clone());
                move || send(&output, &room, &[1, 2, 3])
            });
            assert_eq!(receive(&output, &doorbell, &[room], 3), [1, 2, 3]);
            vcpu.join().unwrap();
        });
    }
}

#[test]
fn two_vcpus_that_park_lose_nothing() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        let (output, doorbell) = output(1, Overflow::Park);
        let rooms = [Bell::new(), Bell::new()];
        let vcpus = [(0, [1, 2]), (1, [11, 12])].map(|(index, bytes)| {
            let (output, room) = (StdArc::clone(&output), rooms[index].clone());
            thread::spawn(move || send(&output, &room, &bytes))
        });
        let received = receive(&output, &doorbell, &rooms, 4);
        vcpus.into_iter().for_each(|vcpu| vcpu.join().unwrap());
        let of = |vcpu: u8| received.iter().copied().filter(|byte| byte / 10 == vcpu).collect::<Vec<_>>();
        assert_eq!((of(0), of(1)), (vec![1, 2], vec![11, 12]));
    });
}

#[test]
fn dropping_the_oldest_keeps_the_newest() {
    loom::model(|| {
        let (output, doorbell) = output(1, Overflow::DropOldest);
        let vcpu = thread::spawn({
            let output = StdArc::clone(&output);
            move || [1, 2, 3].into_iter().for_each(|byte| output.push(byte).unwrap())
        });
        let received = receive(&output, &doorbell, &[], 3);
        vcpu.join().unwrap();
        assert!(received.is_sorted() && received.last() == Some(&3), "{received:?}");
        assert_eq!(received.len() + output.dropped() as usize, 3);
    });
}
