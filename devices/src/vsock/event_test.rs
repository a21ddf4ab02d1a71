use ringlet_io::EngineKind;
use ringlet_metrics::GuestErrorKind;

use crate::testing::{Buffer, Options, PATIENCE, Rig, wait_until};
use crate::virtio::spec::register;
use crate::virtio::{DeviceState, VirtioState};
use crate::vsock::packet::Op;
use crate::vsock::test_util::*;
use crate::vsock::{VsockOptions, VsockSource};

/// Where the driver has memory for events.
const AT: u64 = Rig::DATA + 0x8_0000;

fn saved(bench: &Bench) -> VirtioState {
    bench.rig.suspend().unwrap();
    let state = bench.rig.save().unwrap();
    bench.rig.stop().unwrap();
    state
}

/// The driver of `old` on a new device with another context ID, which is suspended.
fn restored(old: Bench, state: VirtioState, cid: u64) -> Bench {
    let (options, (source, handle)) = (VsockOptions { cid, ..options() }, VsockSource::new(None, None));
    let restored = Some((old.rig.ram.clone(), state));
    let metrics = metrics();
    let subject = subject(options, source, &metrics);
    let rig = Rig::new(subject, Options { restored, ..Options::new(EngineKind::Epoll) });
    let queues = vec![old.rx.clone(), old.tx.clone(), old.events.clone()];
    Bench::of(rig, handle, metrics, queues)
}

#[test]
fn a_restored_driver_is_told_that_its_connections_are_gone_and_reads_its_context_id() {
    let mut bench = Bench::new();
    let (_stream, _) = bench.connected();
    bench.rig.send(&mut bench.events, &[Buffer::writable(AT, 8)]);
    bench.rig.ram.write(AT, &[0xAA; 8]).unwrap();
    bench.rig.settle();
    assert_eq!(bench.events.take_used(), None, "nothing has happened yet");
    let state = saved(&bench);
    assert_eq!(state.device, DeviceState::Vsock { cid: CID });
    let mut bench = restored(bench, state, 77);
    bench.rig.settle();
    assert_eq!(bench.events.take_used(), None, "it is suspended");
    bench.rig.resume().unwrap();
    assert_eq!(bench.rig.used(&mut bench.events).len, 4);
    let mut event = [0; 8];
    bench.rig.ram.read(AT, &mut event).unwrap();
    assert_eq!(event, [0, 0, 0, 0, 0xAA, 0xAA, 0xAA, 0xAA]);
    let mut cid = [0; 8];
    bench.rig.read_config(&mut cid);
    assert_eq!((u64::from_le_bytes(cid), bench.connections()), (77, 0));
    bench.rig.send(&mut bench.events, &[Buffer::writable(AT, 8)]);
    bench.rig.suspend().unwrap();
    bench.rig.resume().unwrap();
    bench.rig.settle();
    assert_eq!(bench.events.take_used(), None, "once");
}

/// Packets wait for it, but not for a driver that takes no events.
#[test]
fn a_driver_without_room_for_events_gets_packets_and_the_event_later() {
    let bench = Bench::new();
    let state = saved(&bench);
    let mut bench = restored(bench, state, CID);
    let (_stream, _answer) = bench.connect(7);
    bench.rig.resume().unwrap();
    bench.expect(Op::Request);
    bench.rig.suspend().unwrap();
    let again = bench.rig.save().unwrap();
    assert_eq!(again.device, DeviceState::Vsock { cid: CID });
    bench.rig.resume().unwrap();
    bench.rig.send(&mut bench.events, &[Buffer::writable(AT, 4)]);
    assert_eq!(bench.rig.used(&mut bench.events).len, 4);
}

#[test]
fn a_new_driver_is_told_nothing() {
    let bench = Bench::new();
    let state = saved(&bench);
    let mut bench = restored(bench, state, CID);
    bench.rig.resume().unwrap();
    bench.rig.write(register::STATUS, 0);
    let queues = bench.rig.bring_up(bench.rig.offered());
    let [_, _, mut events] = <[_; 3]>::try_from(queues).unwrap();
    bench.rig.send(&mut events, &[Buffer::writable(AT, 4)]);
    bench.rig.settle();
    assert_eq!(events.take_used(), None);
    bench.events = events;
}

#[test]
fn sec_07_chains_without_room_for_an_event_are_refused_and_the_queue_goes_on() {
    let bench = Bench::new();
    let state = saved(&bench);
    let mut bench = restored(bench, state, CID);
    for buffers in [&[Buffer::writable(AT, 3)][..], &[Buffer::readable(AT, 4), Buffer::writable(AT + 8, 4)]] {
        bench.events.add(buffers);
    }
    bench.events.add(&[Buffer::writable(AT, 2), Buffer::writable(AT + 8, 2)]);
    bench.rig.resume().unwrap();
    let lens = [(); 3].map(|()| bench.rig.used(&mut bench.events).len);
    assert_eq!(lens, [0, 0, 4]);
    assert_eq!(bench.rig.errors(GuestErrorKind::BadRequest), 2);
}

#[test]
fn sec_10_a_saved_context_id_that_no_guest_has_is_refused() {
    for cid in [0, 2, u64::from(u32::MAX), u64::MAX] {
        let bench = Bench::new();
        let state = VirtioState { device: DeviceState::Vsock { cid }, ..saved(&bench) };
        let bench = restored(bench, state, CID);
        assert!(bench.rig.save().is_err(), "{cid} is refused");
        let _ = bench.rig.stop();
    }
}

#[test]
fn what_the_process_asked_for_before_there_was_a_driver_is_kept_for_it() {
    let mut bench = Bench::new();
    let (_stream, answer) = bench.connect(7);
    wait_until("it is asked", || bench.connections() == 1);
    bench.rig.write(register::STATUS, 0);
    let [rx, tx, events] = <[_; 3]>::try_from(bench.rig.bring_up(bench.rig.offered() & !(1 << 29))).unwrap();
    (bench.rx, bench.tx, bench.events) = (rx, tx, events);
    let (_, host) = bench.expect(Op::Request);
    bench.say(Op::Response, 7, host);
    assert_eq!(answer.recv_timeout(PATIENCE).unwrap(), Ok(host));
}
