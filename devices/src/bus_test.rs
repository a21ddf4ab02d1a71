use std::sync::{Arc, Mutex};

use ringlet_metrics::GuestErrorKind;

use super::{Action, Bus, BusDevice, BusError, BusKind};
use crate::error::GuestError;
use crate::test_util::{log, metrics};

/// Remembers accesses; reads count up from 1 so that a short fill is seen; offset 7 is refused.
#[derive(Default)]
struct Recorder(Mutex<Vec<(u64, usize, bool)>>);

impl BusDevice for Recorder {
    fn name(&self) -> &'static str {
        "recorder"
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<Action, GuestError> {
        self.0.lock().unwrap().push((offset, data.len(), false));
        (1..).zip(data).for_each(|(n, byte)| *byte = n);
        if offset == 7 { Err(GuestError::WriteOnly { offset }) } else { Ok(Action::Ready) }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<Action, GuestError> {
        self.0.lock().unwrap().push((offset, data.len(), true));
        if offset == 7 { Err(GuestError::ReadOnly { offset }) } else { Ok(Action::Reset) }
    }
}

fn bus_at(kind: BusKind, base: u64, len: u64) -> (Bus, Arc<Recorder>) {
    let device = Arc::new(Recorder::default());
    let mut bus = Bus::new(kind);
    bus.insert(base, len, device.clone()).unwrap();
    (bus, device)
}

#[test]
fn an_access_inside_a_device_reaches_it_with_its_offset() {
    let (bus, device) = bus_at(BusKind::Mmio, 0x1000, 0x10);
    let log = log(&metrics());
    let mut data = [0; 4];
    assert_eq!(bus.read(0x1004, &mut data, &log), Action::Ready);
    assert_eq!(data, [1, 2, 3, 4]);
    assert_eq!(bus.write(0x100C, &[0; 4], &log), Action::Reset);
    assert_eq!(bus.write(0x100F, &[0], &log), Action::Reset);
    assert_eq!(*device.0.lock().unwrap(), [(4, 4, false), (12, 4, true), (15, 1, true)]);
}

#[test]
fn sec_07_an_access_that_leaves_its_device_is_nobodys() {
    let metrics = metrics();
    let log = log(&metrics);
    let (bus, device) = bus_at(BusKind::Mmio, 0x1000, 0x10);
    for (addr, width) in
        [(0xFFF, 2), (0x100D, 4), (0x1010, 1), (0xFFF, 8), (u64::MAX, 8), (u64::MAX, 1), (0, 8)]
    {
        let mut data = [0x55; 8];
        assert_eq!(bus.read(addr, &mut data[..width], &log), Action::None);
        assert!(data[..width].iter().all(|byte| *byte == 0xFF), "{addr:#x} {width}");
        assert_eq!(bus.write(addr, &data[..width], &log), Action::None);
    }
    assert_eq!(*device.0.lock().unwrap(), []);
    assert_eq!(metrics.guest_errors.get(GuestErrorKind::UnknownMmio), 14);
}

#[test]
fn a_device_may_end_at_the_top_of_the_address_space() {
    let (bus, device) = bus_at(BusKind::Mmio, u64::MAX - 7, 8);
    let log = log(&metrics());
    let mut data = [0; 8];
    assert_eq!(bus.read(u64::MAX - 7, &mut data, &log), Action::Ready);
    assert_eq!(bus.read(u64::MAX - 1, &mut data[..4], &log), Action::None);
    assert_eq!(*device.0.lock().unwrap(), [(0, 8, false)]);
}

#[test]
fn sec_07_widths_that_no_processor_has_are_refused() {
    let metrics = metrics();
    let log = log(&metrics);
    let (bus, device) = bus_at(BusKind::Port, 0, 0x1_0000);
    let mut data = [0; 17];
    let bad = (0..=17).filter(|width| ![1, 2, 4, 8].contains(width));
    for width in bad.clone() {
        assert_eq!(bus.read(0, &mut data[..width], &log), Action::None);
        assert_eq!(bus.write(0, &data[..width], &log), Action::None);
    }
    assert_eq!(*device.0.lock().unwrap(), []);
    assert_eq!(metrics.guest_errors.get(GuestErrorKind::BadWidth), 2 * bad.count() as u64);
}

#[test]
fn sec_09_a_refusal_reads_all_ones_and_is_counted_by_kind() {
    let metrics = metrics();
    let log = log(&metrics);
    let (bus, _) = bus_at(BusKind::Port, 0, 0x10);
    let mut data = [0; 2];
    assert_eq!(bus.read(7, &mut data, &log), Action::None);
    assert_eq!(data, [0xFF; 2]);
    assert_eq!(bus.write(7, &data, &log), Action::None);
    assert_eq!(bus.read(0x80, &mut data, &log), Action::None);
    assert_eq!(metrics.guest_errors.get(GuestErrorKind::WriteOnly), 1);
    assert_eq!(metrics.guest_errors.get(GuestErrorKind::ReadOnly), 1);
    assert_eq!(metrics.guest_errors.get(GuestErrorKind::UnknownPort), 1);
    assert_eq!(metrics.guest_errors.total(), 3);
}

#[test]
fn devices_find_their_place_in_any_order_and_never_overlap() {
    let mut bus = Bus::new(BusKind::Port);
    let device = || Arc::new(Recorder::default());
    for base in [0x60, 0x20, 0x40] {
        bus.insert(base, 0x10, device()).unwrap();
    }
    for (base, len) in [(0x20, 1), (0x1F, 2), (0x2F, 0x12), (0, 0x1_0000), (0x6F, 1)] {
        let error = bus.insert(base, len, device()).unwrap_err();
        assert_eq!(
            error,
            BusError::Overlap { device: "recorder".into(), base, len, other: "recorder".into() }
        );
    }
    bus.insert(0x30, 0x10, device()).unwrap();
    let log = log(&metrics());
    for base in [0x20, 0x30, 0x40, 0x60] {
        assert_eq!(bus.write(base, &[0], &log), Action::Reset);
    }
    assert_eq!(bus.write(0x50, &[0], &log), Action::None);
}

#[test]
fn a_range_must_be_a_range_of_its_address_space() {
    let device = || Arc::new(Recorder::default());
    for (kind, base, len) in [
        (BusKind::Port, 0, 0),
        (BusKind::Port, 0xFFFF, 2),
        (BusKind::Port, 0x1_0000, 1),
        (BusKind::Mmio, u64::MAX, 2),
        (BusKind::Mmio, 1, u64::MAX.wrapping_add(1)),
    ] {
        let error = Bus::new(kind).insert(base, len, device()).unwrap_err();
        assert_eq!(error, BusError::Range { device: "recorder".into(), base, len, kind });
    }
    Bus::new(BusKind::Port).insert(0, 0x1_0000, device()).unwrap();
    Bus::new(BusKind::Mmio).insert(1, u64::MAX, device()).unwrap();
}
