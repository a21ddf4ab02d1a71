//! Every device under accesses that no driver would make.

use std::sync::Arc;

use proptest::prelude::*;
use ringlet_metrics::{GuestLog, VmMetrics};

use crate::ioapic::{BASE as IOAPIC_BASE, Ioapic, LEN as IOAPIC_LEN};
use crate::test_util::{Probe, install, log, metrics};
use crate::{Action, Bus, BusDevice, BusKind, Cmos, GuestPorts, I8042, Overflow, Serial, SerialOutput};

/// A VM's buses as a runtime would make them.
struct Machine {
    ports: Bus,
    mmio: Bus,
    ioapic: Arc<Ioapic>,
    output: Arc<SerialOutput>,
    serial: Arc<Serial>,
    metrics: Arc<VmMetrics>,
    log: GuestLog,
}

impl Machine {
    fn new() -> Self {
        let metrics = metrics();
        let ioapic = Arc::new(Ioapic::new());
        let (line, _) = Probe::connect(&ioapic, Serial::PIN);
        let output = Arc::new(SerialOutput::new(16, Overflow::Park, || {}, Arc::clone(&metrics)));
        let serial = Arc::new(Serial::new(line, Arc::clone(&output), || {}, Arc::clone(&metrics)));
        let mut ports = Bus::new(BusKind::Port);
        ports.insert(Serial::BASE, Serial::LEN, Arc::clone(&serial) as _).unwrap();
        ports.insert(I8042::DATA_PORT, 1, Arc::new(I8042::Data)).unwrap();
        ports.insert(I8042::COMMAND_PORT, 1, Arc::new(I8042::Command)).unwrap();
        ports.insert(Cmos::BASE, Cmos::LEN, Arc::new(Cmos::new(|| 1_700_000_000))).unwrap();
        ports.insert(GuestPorts::BASE, GuestPorts::LEN, Arc::new(GuestPorts)).unwrap();
        let mut mmio = Bus::new(BusKind::Mmio);
        mmio.insert(IOAPIC_BASE, IOAPIC_LEN, Arc::clone(&ioapic) as _).unwrap();
        let log = log(&metrics);
        Self { ports, mmio, ioapic, output, serial, metrics, log }
    }

    /// One access, and what a runtime does about it; a read must have filled its buffer.
    fn access(&self, bus: &Bus, addr: u64, write: bool, value: u64, width: usize) -> Action {
        let mut data = value.to_le_bytes();
        let data = &mut data[..width];
        let action = if write { bus.write(addr, data, &self.log) } else { bus.read(addr, data, &self.log) };
        match action {
            Action::Routes => install(&self.ioapic),
            Action::WaitForSerial => {
                assert!(self.output.take(&mut Vec::new()), "the vCPU that waits is known");
                assert_ne!(bus.write(addr, data, &self.log), Action::WaitForSerial, "there is room now");
            }
            _ => {}
        }
        action
    }

    fn both(&self, port: bool) -> &Bus {
        if port { &self.ports } else { &self.mmio }
    }
}

const WIDTHS: [usize; 4] = [1, 2, 4, 8];
const VALUES: [u64; 5] = [0, u64::MAX, 0x1_0000_0000, 0x8080_8080_8080_8080, 123];

#[test]
fn sec_07_every_port_in_every_width() {
    let machine = Machine::new();
    for addr in 0..0x1100 {
        for width in WIDTHS {
            for value in VALUES {
                let _ = machine.access(&machine.ports, addr, true, value, width);
            }
            assert_eq!(machine.access(&machine.ports, addr, false, 0, width), Action::None);
        }
    }
}

#[test]
fn sec_07_every_ioapic_offset_in_every_width() {
    let machine = Machine::new();
    for index in 0..=0xFF_u32 {
        assert_eq!(machine.ioapic.write(0, &index.to_le_bytes()), Ok(Action::None));
        // Every offset once, the registers behind the index every time.
        let offsets = if index == 0 { 0..0x1100 } else { 0x08..0x48 };
        for offset in offsets {
            for width in WIDTHS {
                for value in VALUES {
                    let _ = machine.access(&machine.mmio, IOAPIC_BASE + offset, true, value, width);
                }
                let _ = machine.access(&machine.mmio, IOAPIC_BASE + offset, false, 0, width);
            }
        }
    }
}

#[test]
fn sec_07_every_device_takes_any_offset_at_all() {
    let machine = Machine::new();
    let cmos = Cmos::new(|| 0);
    let devices: [&dyn BusDevice; 6] =
        [&*machine.serial, &*machine.ioapic, &I8042::Data, &I8042::Command, &cmos, &GuestPorts];
    for device in devices {
        for offset in (0..0x1100).chain((0..64).map(|shift| u64::MAX << shift)) {
            for width in 0..=16 {
                let _ = device.read(offset, &mut [0; 16][..width]);
                let _ = device.write(offset, &[0xA5; 16][..width]);
            }
        }
    }
}

#[test]
fn sec_09_a_refused_access_is_counted_and_an_accepted_one_is_not() {
    let machine = Machine::new();
    for (port, addr, write, value, width, errors) in [
        (true, 0x3F8, true, 0x41, 1, 0),
        (true, 0x3F8, true, 0x41, 2, 1),
        (true, 0x3FF, false, 0, 1, 0),
        (true, 0x3FF, false, 0, 2, 1),
        (true, 0x60, false, 0, 1, 0),
        (true, 0x61, false, 0, 1, 1),
        (true, 0x64, true, 0xFE, 1, 0),
        (true, 0x64, true, 0xAA, 1, 1),
        (true, 0x71, true, 0xAA, 1, 0),
        (true, 0xF4, true, 7, 4, 0),
        (true, 0xF4, true, 7, 1, 1),
        (true, 0xF5, true, 123, 1, 0),
        (true, 0xF5, true, 124, 1, 1),
        (true, 0xF4, false, 0, 4, 1),
        (false, 0xFEC0_0000, true, 0x10, 4, 0),
        (false, 0xFEC0_0010, true, 0x40, 4, 0),
        (false, 0xFEC0_0010, true, 0x240, 4, 1),
        (false, 0xFEC0_0010, true, 0x1_0240, 4, 0),
        (false, 0xFEC0_0014, false, 0, 4, 1),
        (false, 0xFEC0_1000, false, 0, 4, 1),
        (false, u64::MAX, false, 0, 8, 1),
    ] {
        let before = machine.metrics.guest_errors.total();
        let _ = machine.access(machine.both(port), addr, write, value, width);
        let counted = machine.metrics.guest_errors.total() - before;
        assert_eq!(counted, errors, "{addr:#x} write {write} {value:#x} width {width}");
    }
}

#[test]
fn sec_09_an_entry_that_is_refused_still_takes_its_route_away() {
    let machine = Machine::new();
    let write = |offset: u64, value: u64| machine.access(&machine.mmio, IOAPIC_BASE + offset, true, value, 4);
    assert_eq!((write(0, 0x18), write(0x10, 0x40)), (Action::None, Action::Routes));
    assert_eq!(machine.ioapic.routes().len(), 1);
    assert_eq!(write(0x10, 0x740), Action::Routes, "refused as ExtINT, and yet the routes changed");
    assert_eq!(machine.ioapic.routes(), []);
    let counted = machine.metrics.guest_errors.get(ringlet_metrics::GuestErrorKind::IoapicDeliveryMode);
    assert_eq!(counted, 1);
}

/// Addresses near devices, around the ends of the address space, and anywhere.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0x3F0_u64..0x408,
        2 => 0x5E_u64..0x78,
        1 => 0xF0_u64..0xFC,
        6 => prop::sample::select(vec![IOAPIC_BASE, IOAPIC_BASE + 0x10, IOAPIC_BASE + 0x40]),
        2 => IOAPIC_BASE - 8..IOAPIC_BASE + 0x48,
        1 => IOAPIC_BASE + 0xFF0..IOAPIC_BASE + 0x1008,
        1 => u64::MAX - 16..=u64::MAX,
        1 => any::<u64>(),
    ]
}

proptest! {
    #[test]
    fn sec_06_random_scripts_never_panic(
        script in prop::collection::vec(
            (any::<bool>(), address(), any::<bool>(), any::<u64>(), prop::sample::select(&WIDTHS), 0_usize..100),
            0..300,
        ),
    ) {
        let machine = Machine::new();
        for (port, addr, write, value, width, input) in script {
            let errors = machine.metrics.guest_errors.total();
            let _ = machine.access(machine.both(port), addr, write, value, width);
            prop_assert!(machine.metrics.guest_errors.total() <= errors + 1);
            if input < 10 {
                let _ = machine.serial.input(&vec![0; input * 8]);
                machine.ioapic.inject(machine.ioapic.end_of_interrupt(value as u8));
            }
        }
        prop_assert!(machine.ioapic.restore(&machine.ioapic.save()).is_ok());
        prop_assert!(machine.serial.restore(&machine.serial.save()).is_ok());
    }
}
