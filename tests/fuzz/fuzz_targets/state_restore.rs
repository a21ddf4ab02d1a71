//! Saved states that nobody saved.
//!
//! Input: the device; bit 7: the rest is the state as JSON, else it is a list of changes to a state that was saved.
//! A state is refused, or gives a device that saves the same state, goes on with whatever is in guest memory, and works
//! after a reset. Fails if not, and on a panic.

#![no_main]

use std::sync::{Arc, OnceLock};

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use ringlet_devices::bus::BusDevice;
use ringlet_devices::state::{CmosState, IoapicState, SerialState};
use ringlet_devices::testing::{Buffer, DriverQueue, Rig};
use ringlet_devices::virtio::spec::{feature, register, status};
use ringlet_devices::virtio::{DeviceState, QueueState, VirtioState, WorkerError};
use ringlet_devices::{Cmos, Ioapic, Overflow, Serial, SerialOutput};
use ringlet_fuzz::{Device, Side, here, leave, rig, with_left, work_until};
use ringlet_io::{GuestRam, InterruptLine};
use ringlet_metrics::{Registry, VmInfo, VmMetrics};
use serde_json::from_slice;

/// Changes of one input.
const CHANGES: usize = 16;

fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else { return };
    let is_json = first & 0x80 != 0;
    match first % 0x80 % 8 {
        number @ (0..=2 | 6 | 7) => {
            let device = match number {
                6 => Device::Net,
                7 => Device::Vsock,
                number => Device::pick(number),
            };
            let state = if is_json { from_slice(rest).ok() } else { changed(device, rest).ok() };
            if let Some(state) = state {
                check(device, &state);
            }
        }
        3 => restore_ioapic(rest, is_json),
        4 => restore_serial(rest, is_json),
        _ => restore_cmos(rest, is_json),
    }
});

/// States of a device that were saved: at its start, when its features were agreed, and at work.
fn saved(device: Device) -> &'static [VirtioState; 3] {
    static SAVED: [OnceLock<[VirtioState; 3]>; Device::ALL.len()] =
        [const { OnceLock::new() }; Device::ALL.len()];
    SAVED[device as usize].get_or_init(|| {
        let (subject, _) = device.make();
        let (queue, request) = (subject.queue, subject.request);
        let rig = rig(device, subject, None);
        let save = || {
            rig.suspend().expect("it stops");
            let state = rig.save().expect("it is suspended");
            rig.resume().expect("it goes on");
            state
        };
        let new = save();
        rig.negotiate(rig.offered());
        let agreed = save();
        let mut queues = rig.bring_up(rig.offered());
        let buffers = request(&rig.ram, Rig::DATA);
        rig.send(&mut queues[usize::from(queue)], &buffers);
        rig.used(&mut queues[usize::from(queue)]);
        let live = save();
        rig.stop().expect("it stops");
        leave(device, rig);
        [new, agreed, live]
    })
}

/// A saved state, changed as the input says.
fn changed(device: Device, bytes: &[u8]) -> Result<VirtioState> {
    let mut input = Unstructured::new(bytes);
    let states = saved(device);
    let mut state = states[usize::from(input.arbitrary::<u8>()?) % states.len()].clone();
    for _ in 0..CHANGES {
        if input.is_empty() {
            break;
        }
        change(&mut state, &mut input)?;
    }
    Ok(state)
}

fn change(state: &mut VirtioState, input: &mut Unstructured<'_>) -> Result<()> {
    let (what, which): (u8, u8) = input.arbitrary()?;
    let queue = usize::from(which) % state.transport.queues.len().max(1);
    let transport = &mut state.transport;
    match what % 16 {
        0 => state.version = input.arbitrary()?,
        1 => state.device_type = input.arbitrary()?,
        2 => transport.status = which,
        3 => transport.interrupt_status = which,
        4 => transport.driver_features ^= 1 << (which % 64),
        5 => transport.device_features_sel = input.arbitrary()?,
        6 => transport.driver_features_sel = input.arbitrary()?,
        7 => transport.queue_sel = input.arbitrary()?,
        8 if which & 0x80 == 0 => transport.queues.truncate(which.into()),
        8 => transport.queues.extend(transport.queues.first().copied()),
        9..=12 => {
            if let Some(registers) = transport.queues.get_mut(queue) {
                let (value, shift): (u32, u8) = input.arbitrary()?;
                let value = u64::from(value) << (shift % 33);
                match what % 16 {
                    9 => registers.size = value as u32,
                    10 => registers.descriptors = value,
                    11 => registers.driver = value,
                    _ => registers.device = value,
                }
            }
        }
        13 => {
            if let Some(registers) = transport.queues.get_mut(queue) {
                (registers.ready, registers.reset) = (which & 0x40 != 0, which & 0x80 != 0);
            }
        }
        14 => match state.queues.get_mut(queue) {
            Some(position) if which & 0x80 == 0 => {
                let (next_avail, next_used) = input.arbitrary()?;
                *position = Some(QueueState { next_avail, next_used, broken: which & 0x40 != 0 });
            }
            Some(position) if which & 0x40 == 0 => *position = None,
            Some(_) => state.queues.truncate(queue),
            None => state.queues.push(None),
        },
        _ => {
            state.device = match which % 5 {
                0 => DeviceState::Stateless,
                1 => DeviceState::Block { writeback: which & 0x40 != 0, lost: which & 0x80 != 0 },
                2 => {
                    let (columns, rows, sent) = input.arbitrary()?;
                    DeviceState::Console { columns, rows, sent }
                }
                3 => {
                    let (mac, pairs, offloads, link_up) = input.arbitrary()?;
                    DeviceState::Net { mac, pairs, offloads, link_up }
                }
                _ => DeviceState::Vsock { cid: input.arbitrary()? },
            };
        }
    }
    Ok(())
}

fn check(device: Device, state: &VirtioState) {
    let _ = saved(device);
    let (subject, side) = device.make();
    let (queue, request) = (usize::from(subject.queue), subject.request);
    if with_left(device, |rig| rig.try_restore(device.make().0, state.clone())).is_err() {
        return;
    }
    with_left(device, |rig| check_possible(state, rig));
    let rig = rig(device, subject, Some(state.clone()));
    // What a restored queue finds: a chain, and another.
    let mut queues = rig.queues();
    for queue in &mut queues {
        let buffers = request(&rig.ram, Rig::DATA);
        queue.add(&buffers);
        queue.add(&buffers);
    }
    let mut bench = Bench { rig, side, queues };
    match bench.rig.save() {
        Ok(saved) => {
            assert_eq!(saved, here(state, &saved), "it saves what it was made of");
            bench.go_on(device);
            bench.serve(queue, request);
            bench.rig.stop().expect("it stops");
        }
        // What is the device's own is checked when its worker starts.
        Err(WorkerError::Ended { .. }) => {
            assert!(matches!(bench.rig.stop(), Err(WorkerError::State(_))), "it says why");
        }
        Err(error) => panic!("neither restored nor refused: {error}"),
    }
    assert_eq!(bench.rig.metrics.in_flight.get(), 0);
    leave(device, bench.rig);
}

/// What is not refused could have been programmed by a driver.
fn check_possible(state: &VirtioState, rig: &Rig) {
    let VirtioState { version, device_type, transport, queues, device: _ } = state;
    assert_eq!((*version, *device_type), (VirtioState::VERSION, rig.identity.device_type));
    let has = |bit| u32::from(transport.status) & bit != 0;
    let agreed = has(status::FEATURES_OK);
    assert!(!agreed || transport.driver_features & !rig.identity.offered() == 0);
    assert!(!agreed || transport.driver_features & feature::VERSION_1 != 0);
    assert!(!has(status::DRIVER_OK) || agreed && has(status::DRIVER) && has(status::ACKNOWLEDGE));
    let sizes = &rig.identity.queue_sizes;
    assert_eq!((transport.queues.len(), queues.len()), (sizes.len(), sizes.len()));
    for ((registers, position), max) in transport.queues.iter().zip(queues).zip(sizes) {
        assert_eq!(position.is_some(), registers.ready && has(status::DRIVER_OK));
        assert!(!registers.reset || has(status::DRIVER_OK));
        if registers.ready {
            let size = u64::from(registers.size);
            assert!(agreed && size.is_power_of_two() && size <= u64::from(*max));
            assert!(rig.ram.contains(registers.descriptors, 16 * size));
            assert!(rig.ram.contains(registers.driver, 6 + 2 * size));
            assert!(rig.ram.contains(registers.device, 6 + 8 * size));
        }
    }
}

struct Bench {
    rig: Rig,
    side: Side,
    queues: Vec<DriverQueue>,
}

impl Bench {
    /// Runs, stops, and saves a state that is as good.
    fn go_on(&self, device: Device) {
        self.rig.resume().expect("it goes on");
        self.rig.on_shard(|cx| async move { cx.next_turn().await });
        self.rig.suspend().expect("it stops");
        let saved = self.rig.save().expect("it is suspended");
        let text = serde_json::to_string(&saved).expect("a state is data");
        assert_eq!(from_slice::<VirtioState>(text.as_bytes()).expect("as it was written"), saved);
        self.rig.try_restore(device.make().0, saved).expect("what it saved is taken back");
        self.rig.resume().expect("it goes on");
    }

    /// Resets the device and uses it as a driver should.
    fn serve(&mut self, queue: usize, request: fn(&GuestRam, u64) -> Vec<Buffer>) {
        self.rig.write(register::STATUS, 0);
        assert_eq!(self.rig.status(), 0);
        self.queues = self.rig.bring_up(self.rig.offered());
        let buffers = request(&self.rig.ram, Rig::DATA);
        let head = self.rig.send(&mut self.queues[queue], &buffers);
        work_until(
            self,
            |bench| &bench.rig,
            "a request is served after the reset",
            |bench| {
                bench.side.act(0);
                bench.queues.iter().any(|queue| queue.used_index() != queue.taken)
            },
        );
        let used = self.queues[queue].take_used().expect("of the queue that was asked");
        let writable = buffers.iter().filter(|buffer| buffer.writable).map(|buffer| buffer.len).sum();
        assert_eq!((used.head, used.len), (head, writable));
        assert_eq!(self.rig.status() & status::NEEDS_RESET, 0);
    }
}

fn restore_ioapic(bytes: &[u8], is_json: bool) {
    let state =
        if is_json { from_slice(bytes).ok() } else { ioapic_state(&mut Unstructured::new(bytes)).ok() };
    let Some(state): Option<IoapicState> = state else { return };
    let ioapic = Ioapic::new();
    if ioapic.restore(&state).is_err() {
        assert_eq!(ioapic.save(), Ioapic::new().save(), "what is refused changes nothing");
        return;
    }
    assert_eq!(ioapic.save(), state);
    ioapic
        .install_routes(|routes| if routes.len() <= 24 { Ok(()) } else { Err("too many routes") })
        .expect("few");
    for index in 0..=u8::MAX {
        let _ = ioapic.write(0, &u32::from(index).to_le_bytes());
        let _ = ioapic.read(0x10, &mut [0; 4]);
        let _ = ioapic.end_of_interrupt(index);
    }
    assert!(Ioapic::new().restore(&ioapic.save()).is_ok(), "what it saved is taken back");
}

fn ioapic_state(input: &mut Unstructured<'_>) -> Result<IoapicState> {
    let (select, id, asserted, pending) = input.arbitrary()?;
    let mut state =
        IoapicState { version: IoapicState::VERSION, entries: [1 << 16; 24], select, id, asserted, pending };
    while !input.is_empty() {
        let (pin, entry): (u8, u64) = input.arbitrary()?;
        state.entries[usize::from(pin) % 24] = entry;
    }
    Ok(state)
}

fn restore_serial(bytes: &[u8], is_json: bool) {
    static VM: OnceLock<Arc<VmMetrics>> = OnceLock::new();
    let state = if is_json { from_slice(bytes).ok() } else { serial_state(Unstructured::new(bytes)).ok() };
    let Some(state): Option<SerialState> = state else { return };
    let vm = VM.get_or_init(|| Registry::new().register_vm(VmInfo::default()));
    let line =
        Arc::new(Ioapic::new()).line(Serial::PIN, InterruptLine::new().expect("an eventfd")).expect("a pin");
    let output = Arc::new(SerialOutput::new(64, Overflow::DropOldest, || (), Arc::clone(vm)));
    let serial = Serial::new(line, Arc::clone(&output), || (), Arc::clone(vm));
    let new = serial.save();
    if serial.restore(&state).is_err() {
        assert_eq!(serial.save(), new, "what is refused changes nothing");
        return;
    }
    assert_eq!(serial.save(), state);
    // Line and modem control as a driver sets them; then a byte each way, behind those that wait.
    let _ = serial.write(3, &[3]);
    let _ = serial.write(4, &[8]);
    let waiting = state.received.len();
    assert!(waiting + serial.room() <= 64);
    let _ = serial.write(0, b"x");
    for expected in state.received {
        assert_eq!(read_byte(&serial), expected);
    }
    assert_eq!(serial.input(b"y"), 1);
    assert_eq!(read_byte(&serial), b'y');
    for register in 0..Serial::LEN {
        let _ = serial.read(register, &mut [0]);
    }
}

fn read_byte(serial: &Serial) -> u8 {
    let mut byte = [0];
    let _ = serial.read(0, &mut byte);
    byte[0]
}

fn serial_state(mut input: Unstructured<'_>) -> Result<SerialState> {
    let (divisor, interrupt_enable, interrupt_identification) = input.arbitrary()?;
    let (line_control, modem_control, scratch) = input.arbitrary()?;
    let received = input.take_rest().to_vec();
    let version = SerialState::VERSION;
    Ok(SerialState {
        version,
        divisor,
        interrupt_enable,
        interrupt_identification,
        line_control,
        modem_control,
        scratch,
        received,
    })
}

fn restore_cmos(bytes: &[u8], is_json: bool) {
    let fields = || Some(CmosState { version: (*bytes.first()?).into(), index: *bytes.get(1)? });
    let Some(state): Option<CmosState> = (if is_json { from_slice(bytes).ok() } else { fields() }) else {
        return;
    };
    let cmos = Cmos::new(|| u64::MAX);
    if cmos.restore(&state).is_err() {
        assert_eq!(cmos.save().index, 0, "what is refused changes nothing");
        return;
    }
    assert_eq!(cmos.save(), state);
    let _ = cmos.read(1, &mut [0]);
}
