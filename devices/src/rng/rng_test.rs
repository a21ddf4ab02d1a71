use std::cell::Cell;

use ringlet_io::{EngineKind, Gate, LimiterSeed};

use super::*;
use crate::testing::{Buffer, DriverQueue, Options, Rig, Subject};
use crate::virtio::spec::feature;

/// A source whose bytes are 1, 2, 3 … 255, 1 ….
fn counting() -> EntropySource {
    let next = Cell::new(0u8);
    Box::new(move |bytes| {
        for byte in bytes.iter_mut() {
            next.set(next.get() % 255 + 1);
            *byte = next.get();
        }
        Ok(bytes.len())
    })
}

fn counted(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 255) as u8 + 1).collect()
}

fn subject(source: EntropySource) -> Subject {
    Subject {
        identity: Rng::identity_of("rng0"),
        config: ConfigSpace::new([]),
        device: Box::new(|_, _| Ok(Box::new(Rng::new("rng0", source)))),
        queue: 0,
        request: |_, gpa| vec![Buffer::writable(gpa, 1000)],
        release: None,
    }
}

fn conforming() -> Subject {
    subject(counting())
}

crate::virtio_conformance!(conformance, conforming);

fn rig_with(source: EntropySource, limiter: LimiterSeed) -> (Rig, DriverQueue) {
    let rig = Rig::new(subject(source), Options { limiter, ..Options::new(EngineKind::Epoll) });
    let queue = rig.bring_up(feature::VERSION_1).remove(0);
    (rig, queue)
}

fn rig(source: EntropySource) -> (Rig, DriverQueue) {
    rig_with(source, LimiterSeed::unlimited())
}

/// Sends one chain and gives the number of bytes that were written.
fn ask(rig: &Rig, queue: &mut DriverQueue, buffers: &[Buffer]) -> u32 {
    let head = rig.send(queue, buffers);
    let used = rig.used(queue);
    assert_eq!(used.head, head);
    // What the task counts after a completion is there once it has had its turn.
    rig.settle();
    used.len
}

fn contents(rig: &Rig, gpa: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rig.ram.read(gpa, &mut bytes).unwrap();
    bytes
}

#[test]
fn buffers_are_filled_across_their_pieces_and_nothing_else_is_written() {
    let (rig, mut queue) = rig(counting());
    let pieces = [Buffer::writable(Rig::DATA, 100), Buffer::writable(Rig::DATA + 0x1000, 9000)];
    assert_eq!(ask(&rig, &mut queue, &pieces), 9100);
    assert_eq!(contents(&rig, Rig::DATA, 101), [counted(100), vec![0]].concat());
    assert_eq!(contents(&rig, Rig::DATA + 0x1000, 9001), [&counted(9100)[100..], &[0]].concat());
    assert_eq!(rig.metrics.requests(RequestKind::Entropy, RequestStatus::Ok), 1);
    assert_eq!(rig.metrics.bytes(RequestKind::Entropy), 9100);
    assert_eq!(rig.metrics.latency(RequestKind::Entropy).unwrap().count, 1);
}

#[test]
fn sec_02_a_request_is_given_64_kib_and_others_have_turns_between() {
    let (rig, mut queue) = rig(counting());
    let turn = || rig.on_shard(async |cx| cx.turn());
    let before = turn();
    assert_eq!(ask(&rig, &mut queue, &[Buffer::writable(Rig::DATA, 2 << 20)]), MAX_REQUEST);
    let chunks = u64::from(MAX_REQUEST) / CHUNK as u64;
    assert!(turn() - before > chunks, "fewer than {chunks} turns");
    let len = MAX_REQUEST as usize;
    assert_eq!(contents(&rig, Rig::DATA, len + 1), [counted(len), vec![0]].concat());
    assert_eq!(rig.metrics.requests(RequestKind::Entropy, RequestStatus::Ok), 1);
}

#[test]
fn sec_02_many_requests_at_once_have_no_more_of_a_turn_than_one() {
    let (rig, mut queue) = rig(counting());
    let turn = || rig.on_shard(async |cx| cx.turn());
    let before = turn();
    for _ in 0..8 {
        rig.send(&mut queue, &[Buffer::writable(Rig::DATA, 1 << 20)]);
    }
    for _ in 0..8 {
        assert_eq!(rig.used(&mut queue).len, MAX_REQUEST);
    }
    let chunks = 8 * u64::from(MAX_REQUEST) / CHUNK as u64;
    assert!(turn() - before >= chunks - 1, "{} turns for {chunks} chunks", turn() - before);
}

#[test]
fn a_chain_with_a_part_to_read_is_refused_and_the_queue_goes_on() {
    let (rig, mut queue) = rig(counting());
    let mixed = [Buffer::readable(Rig::DATA, 8), Buffer::writable(Rig::DATA + 8, 8)];
    assert_eq!(ask(&rig, &mut queue, &mixed), 0);
    assert_eq!(contents(&rig, Rig::DATA, 16), [0; 16]);
    assert_eq!(rig.errors(GuestErrorKind::BadRequest), 1);
    assert_eq!(rig.metrics.requests(RequestKind::Other, RequestStatus::IoError), 1);
    assert_eq!(ask(&rig, &mut queue, &[Buffer::writable(Rig::DATA, 8)]), 8);
}

#[test]
fn sec_12_only_bytes_of_the_source_reach_the_guest() {
    // Three bytes, then none; the rest of the buffer that it is given is scribbled on.
    let calls = Cell::new(0);
    let (rig, mut queue) = rig(Box::new(move |bytes| {
        bytes.fill(0xEE);
        calls.set(calls.get() + 1);
        match calls.get() {
            1 => Ok(3),
            2 => Err(io::Error::other("no more")),
            _ => Ok(0),
        }
    }));
    rig.ram.write(Rig::DATA, &[0x11; 64]).unwrap();
    let written = ask(&rig, &mut queue, &[Buffer::writable(Rig::DATA, 64)]);
    assert_eq!(written, 3, "what is said to be written is what was");
    assert_eq!(contents(&rig, Rig::DATA, 64), [&[0xEE; 3][..], &[0x11; 61]].concat());
    assert_eq!(ask(&rig, &mut queue, &[Buffer::writable(Rig::DATA + 32, 32)]), 0);
    assert_eq!(contents(&rig, Rig::DATA + 32, 32), [0x11; 32]);
    assert_eq!(rig.metrics.requests(RequestKind::Entropy, RequestStatus::IoError), 2);
}

#[test]
fn a_source_that_claims_too_much_is_not_believed() {
    let (rig, mut queue) = rig(Box::new(|_| Ok(usize::MAX)));
    assert_eq!(ask(&rig, &mut queue, &[Buffer::writable(Rig::DATA, 64)]), 64);
}

#[test]
fn a_limiter_holds_requests_back_and_knows_their_size() {
    let gate = Gate::new();
    let (rig, mut queue) = rig_with(counting(), LimiterSeed::gated(gate.clone()));
    rig.send(&mut queue, &[Buffer::writable(Rig::DATA, 1 << 20)]);
    rig.settle();
    rig.suspend().unwrap();
    let state = rig.save().unwrap().queues[0].unwrap();
    assert_eq!((state.next_avail, state.next_used), (0, 0), "what was not admitted is still the driver's");
    assert_eq!(queue.take_used(), None);
    gate.open();
    rig.resume().unwrap();
    assert_eq!(rig.used(&mut queue).len, MAX_REQUEST);
    assert_eq!(gate.costs(), [Cost::read(MAX_REQUEST.into())]);
}

#[test]
fn stopping_completes_what_was_taken_and_the_rest_follows() {
    let (rig, mut queue) = rig(counting());
    for n in 0..16 {
        rig.send(&mut queue, &[Buffer::writable(Rig::DATA + n * 0x1_0000, 0x1_0000)]);
    }
    rig.suspend().unwrap();
    let state = rig.save().unwrap().queues[0].unwrap();
    assert_eq!((state.next_avail, rig.metrics.in_flight.get()), (state.next_used, 0));
    assert_eq!(queue.used_index(), state.next_used);
    rig.resume().unwrap();
    for _ in 0..16 {
        assert_eq!(rig.used(&mut queue).len, 0x1_0000);
    }
}

#[test]
fn sec_10_a_state_of_another_device_is_refused() {
    let mut rng = Rng::new("rng0", counting());
    let state = rng.save();
    assert_eq!(rng.restore(&state), Ok(()));
    let other = DeviceState::Block { writeback: true, lost: false };
    assert!(matches!(rng.restore(&other), Err(StateError::Field { device: "rng", .. })));
    rng.reset();
    assert_eq!(rng.save(), state);
}
