//! The device around the table: registers, eventfds, installation.

use std::sync::Arc;

use super::{Ioapic, LineError, Route};
use crate::state::StateError;
use crate::test_util::{Probe, install, ioapic_write, program};
use crate::{Action, BusDevice, GuestError};

fn ioapic() -> Arc<Ioapic> {
    Arc::new(Ioapic::new())
}

#[test]
fn the_window_shows_what_the_index_selects() {
    let ioapic = ioapic();
    let _ = ioapic_write(&ioapic, 0x3F, 0xAB00_0000);
    let mut word = [0; 4];
    assert_eq!(ioapic.read(0x10, &mut word), Ok(Action::None));
    assert_eq!(u32::from_le_bytes(word), 0xAB00_0000);
    assert_eq!(ioapic.read(0x00, &mut word), Ok(Action::None));
    assert_eq!(u32::from_le_bytes(word), 0x3F);
    assert_eq!(ioapic.write(0x00, &0xFFFF_FF01_u32.to_le_bytes()), Ok(Action::None));
    assert_eq!(ioapic.read(0x10, &mut word), Ok(Action::None));
    assert_eq!(u32::from_le_bytes(word), 0x0017_0020, "only the low byte of the index counts");
}

#[test]
fn sec_07_registers_are_aligned_words() {
    let ioapic = ioapic();
    for offset in [0x00, 0x10, 0x40] {
        for width in [1, 2, 8] {
            let error = GuestError::BadWidth { offset, width };
            assert_eq!(ioapic.write(offset, &[0; 8][..width]), Err(error.clone()));
            assert_eq!(ioapic.read(offset, &mut [0; 8][..width]), Err(error));
        }
    }
    for offset in (0..0x1000).filter(|offset| ![0x00, 0x10, 0x40].contains(offset)) {
        assert_eq!(ioapic.write(offset, &[0; 4]), Err(GuestError::BadRegister { offset }));
        assert_eq!(ioapic.read(offset, &mut [0; 4]), Err(GuestError::BadRegister { offset }));
    }
    assert_eq!(ioapic.read(0x40, &mut [0; 4]), Err(GuestError::WriteOnly { offset: 0x40 }));
}

#[test]
fn lines_reach_their_own_eventfd() {
    let ioapic = ioapic();
    let (line, probe) = Probe::connect(&ioapic, 5);
    let (_other, other) = Probe::connect(&ioapic, 6);
    program(&ioapic, 5, 0x45);
    program(&ioapic, 6, 0x46);
    line.assert();
    line.clone().assert();
    assert_eq!((probe.fired(), other.fired()), (1, 0));
    line.deassert();
    line.assert();
    line.pulse();
    assert_eq!((probe.fired(), other.fired()), (2, 0));
    let injection = line.update(true, true);
    assert_eq!(probe.fired(), 0, "decided, not sent");
    injection.fire();
    assert_eq!(probe.fired(), 1);
}

#[test]
fn a_pin_takes_one_device() {
    let ioapic = ioapic();
    let (line, _probe) = Probe::connect(&ioapic, 23);
    assert_eq!(line.pin(), 23);
    let interrupt = ringlet_io::InterruptLine::new().unwrap();
    assert_eq!(ioapic.line(23, interrupt.clone()).unwrap_err(), LineError::Taken(23));
    assert_eq!(ioapic.line(24, interrupt).unwrap_err(), LineError::NoSuchPin(24));
}

#[test]
fn installing_routes_injects_what_is_owed_afterwards() {
    let ioapic = ioapic();
    let (line, probe) = Probe::connect(&ioapic, 5);
    line.assert();
    assert_eq!(ioapic_write(&ioapic, 0x1A, 0x45), Action::Routes);
    let install = |routes: &[Route]| {
        assert_eq!(routes, [Route { gsi: 5, address: 0xFEE0_0000, data: 0x45 }]);
        assert_eq!(probe.fired(), 0, "not before the kernel knows");
        Ok::<(), ()>(())
    };
    ioapic.install_routes(install).unwrap();
    assert_eq!(probe.fired(), 1);
}

#[test]
fn a_failed_installation_injects_nothing_and_can_be_repeated() {
    let ioapic = ioapic();
    let (line, probe) = Probe::connect(&ioapic, 5);
    line.assert();
    let _ = ioapic_write(&ioapic, 0x1A, 0x45);
    assert_eq!(ioapic.install_routes(|_| Err("no memory")), Err("no memory"));
    line.pulse();
    assert_eq!(probe.fired(), 0);
    install(&ioapic);
    assert_eq!(probe.fired(), 1);
}

#[test]
fn the_eoi_register_ends_level_interrupts() {
    let ioapic = ioapic();
    let (line, probe) = Probe::connect(&ioapic, 5);
    program(&ioapic, 5, 0x8045);
    line.assert();
    assert_eq!(probe.fired(), 1);
    assert_eq!(ioapic.write(0x40, &0x46_u32.to_le_bytes()), Ok(Action::None));
    assert_eq!(probe.fired(), 0);
    assert_eq!(ioapic.write(0x40, &0x45_u32.to_le_bytes()), Ok(Action::None));
    assert_eq!(probe.fired(), 1, "still asserted");
    line.deassert();
    assert_eq!(ioapic.write(0x40, &0x45_u32.to_le_bytes()), Ok(Action::None));
    assert_eq!(probe.fired(), 0);
}

#[test]
fn injecting_pins_nobody_is_connected_to_does_nothing() {
    let ioapic = ioapic();
    let (_line, probe) = Probe::connect(&ioapic, 5);
    ioapic.inject(!(1 << 5));
    assert_eq!(probe.fired(), 0);
    ioapic.inject(!0);
    assert_eq!(probe.fired(), 1);
}

#[test]
fn a_restored_ioapic_is_silent_until_its_routes_are_installed() {
    let old = ioapic();
    let (line, _probe) = Probe::connect(&old, 5);
    program(&old, 5, 0x45);
    line.assert();
    let state = old.save();

    let new = ioapic();
    let (line, probe) = Probe::connect(&new, 5);
    new.restore(&state).unwrap();
    line.pulse();
    assert_eq!(probe.fired(), 0);
    install(&new);
    assert_eq!(probe.fired(), 1);

    let mut hostile = state.clone();
    hostile.version = 7;
    let error = StateError::Version { device: "ioapic", found: 7, supported: 1 };
    assert_eq!(new.restore(&hostile), Err(error));
    assert_eq!(new.save().entries, state.entries, "a refused state changes nothing");
}

/// A guest rewrites a vector and drives nothing else, two vCPUs at once, while the device pulses: the last
/// routes installed are the last written.
#[test]
fn concurrent_installations_end_with_the_newest_routes() {
    let ioapic = ioapic();
    let (line, _probe) = Probe::connect(&ioapic, 0);
    let installed = Arc::new(std::sync::Mutex::new(Vec::new()));
    let vcpu = |index: u8| {
        let (ioapic, installed) = (Arc::clone(&ioapic), Arc::clone(&installed));
        std::thread::spawn(move || {
            for n in 0..500 {
                let _ = ioapic.write(0x00, &u32::from(0x10 + 2 * index).to_le_bytes());
                let _ = ioapic.write(0x10, &(0x20_u32 + n % 100).to_le_bytes());
                let install = |routes: &[Route]| {
                    *installed.lock().unwrap() = routes.to_vec();
                    Ok::<(), ()>(())
                };
                ioapic.install_routes(install).unwrap();
            }
        })
    };
    let vcpus = [vcpu(0), vcpu(0), vcpu(1)];
    for _ in 0..500 {
        line.pulse();
    }
    vcpus.into_iter().for_each(|vcpu| vcpu.join().unwrap());
    assert_eq!(*installed.lock().unwrap(), ioapic.routes());
}
