use super::{Cmos, Time, civil};
use crate::state::{CmosState, StateError};
use crate::{Action, BusDevice, GuestError};

fn read(cmos: &Cmos, index: u8) -> u8 {
    assert_eq!(cmos.write(0, &[index]), Ok(Action::None));
    let mut byte = [0xAA];
    assert_eq!(cmos.read(1, &mut byte), Ok(Action::None));
    byte[0]
}

#[test]
fn the_time_is_utc_in_bcd() {
    // 2024-02-29 23:59:58 UTC, a Thursday.
    let cmos = Cmos::new(|| 1_709_251_198);
    let registers = [0x00, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09, 0x32];
    assert_eq!(registers.map(|index| read(&cmos, index)), [0x58, 0x59, 0x23, 0x05, 0x29, 0x02, 0x24, 0x20]);
}

#[test]
fn status_says_valid_24_hour_bcd_and_no_update() {
    let cmos = Cmos::new(|| 0);
    let status = [0x0A, 0x0B, 0x0C, 0x0D].map(|index| read(&cmos, index));
    assert_eq!(status, [0x26, 0x02, 0x00, 0x80]);
    assert_eq!(status[0] & 0x80, 0, "update in progress");
}

#[test]
fn everything_else_is_zero_and_writes_are_ignored() {
    let cmos = Cmos::new(|| 1_709_251_198);
    let special = [0x00, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09, 0x32, 0x0A, 0x0B, 0x0D];
    for index in (0..0x80).filter(|index| !special.contains(index)) {
        assert_eq!(cmos.write(0, &[index]), Ok(Action::None));
        assert_eq!(cmos.write(1, &[0xFF]), Ok(Action::None));
        assert_eq!(read(&cmos, index), 0, "{index:#x}");
    }
}

#[test]
fn the_nmi_bit_of_the_index_is_ignored() {
    let cmos = Cmos::new(|| 0);
    assert_eq!(read(&cmos, 0x8D), 0x80);
}

#[test]
fn sec_07_only_bytes_and_only_two_ports() {
    let cmos = Cmos::new(|| 0);
    for width in [2, 4, 8] {
        let error = GuestError::BadWidth { offset: 0, width };
        assert_eq!(cmos.write(0, &[0; 8][..width]), Err(error.clone()));
        assert_eq!(cmos.read(0, &mut [0; 8][..width]), Err(error));
    }
    assert_eq!(cmos.read(0, &mut [0]), Err(GuestError::WriteOnly { offset: 0 }));
    assert_eq!(cmos.read(2, &mut [0]), Err(GuestError::BadRegister { offset: 2 }));
    assert_eq!(cmos.write(2, &[0]), Err(GuestError::BadRegister { offset: 2 }));
}

#[test]
fn days_become_dates() {
    for (days, date) in [
        (0, (1970, 1, 1)),
        (58, (1970, 2, 28)),
        (59, (1970, 3, 1)),
        (789, (1972, 2, 29)),
        (10_956, (1999, 12, 31)),
        (10_957, (2000, 1, 1)),
        (11_016, (2000, 2, 29)),
        (11_017, (2000, 3, 1)),
        (47_540, (2100, 2, 28)),
        (47_541, (2100, 3, 1)),
        (157_113, (2400, 2, 29)),
    ] {
        assert_eq!(civil(days), date, "day {days}");
    }
}

#[test]
fn every_day_of_a_cycle_follows_the_day_before() {
    let mut previous = civil(0);
    for days in 1..=146_097 {
        let (year, month, day) = civil(days);
        let leap = (previous.0.is_multiple_of(4) && !previous.0.is_multiple_of(100))
            || previous.0.is_multiple_of(400);
        let length = match previous.1 {
            2 if leap => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        let expected = match previous {
            (y, 12, 31) => (y + 1, 1, 1),
            (y, m, d) if d == length => (y, m + 1, 1),
            (y, m, d) => (y, m, d + 1),
        };
        assert_eq!((year, month, day), expected, "day {days}");
        previous = expected;
    }
}

#[test]
fn sec_06_no_host_clock_is_too_strange() {
    for seconds in [u64::MAX, u64::MAX / 2, i64::MAX as u64, 253_402_300_800] {
        let time = Time::at(seconds);
        for index in 0..=0xFF {
            let value = time.register(index);
            assert!(value & 0x0F < 10 && value >> 4 < 10, "{index:#x} {value:#x}");
        }
    }
}

#[test]
fn the_index_is_saved_and_restored() {
    let cmos = Cmos::new(|| 0);
    let _ = read(&cmos, 0x0D);
    let state = cmos.save();
    let other = Cmos::new(|| 0);
    other.restore(&state).unwrap();
    assert_eq!(other.save(), state);
    let mut byte = [0];
    assert_eq!(other.read(1, &mut byte), Ok(Action::None));
    assert_eq!(byte, [0x80]);
}

#[test]
fn sec_10_hostile_states_are_refused() {
    let cmos = Cmos::new(|| 0);
    let before = cmos.save();
    let index = CmosState { version: 1, index: 0x80 };
    assert_eq!(cmos.restore(&index), Err(StateError::Field { device: "cmos", field: "index", value: 0x80 }));
    let version = CmosState { version: 2, index: 0 };
    assert_eq!(cmos.restore(&version), Err(StateError::Version { device: "cmos", found: 2, supported: 1 }));
    assert_eq!(cmos.save(), before);
}
