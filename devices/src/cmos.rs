//! CMOS and real-time clock (MC146818A), as far as a guest needs them to know the time.
//!
//! Owns the index register. The wall clock is a function handed in, so the time cannot be set: writes to
//! data registers are ignored. Never keeps a clock, raises an interrupt or stores CMOS memory: every
//! register that is not the time or a status register reads as 0.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use crate::bus::{Action, BusDevice};
use crate::error::GuestError;
use crate::state::{CmosState, StateError, check_version};

/// Offset of the index port; bit 7 masks NMIs on a PC and is ignored here.
const INDEX: u64 = 0;
/// Offset of the data port.
const DATA: u64 = 1;
/// Bits of the index register that select a register.
const INDEX_MASK: u8 = 0x7F;

/// Status A: 32.768 kHz time base, 1024 Hz rate, no update in progress.
const STATUS_A: u8 = 0x26;
/// Status B: 24-hour mode, BCD, no interrupts.
const STATUS_B: u8 = 0x02;
/// Status D: time and memory are valid.
const STATUS_D: u8 = 0x80;

const SECONDS_PER_DAY: u64 = 86_400;

/// CMOS with the time in UTC.
pub struct Cmos {
    index: AtomicU8,
    now: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl Cmos {
    /// First I/O port.
    pub const BASE: u64 = 0x70;
    /// Number of I/O ports.
    pub const LEN: u64 = 2;

    /// A CMOS whose time is `now`: seconds since 1970-01-01 00:00:00 UTC.
    pub fn new(now: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self { index: AtomicU8::new(0), now: Box::new(now) }
    }

    /// The state to save.
    pub fn save(&self) -> CmosState {
        CmosState { version: CmosState::VERSION, index: self.index.load(Relaxed) }
    }

    /// Continues from a saved state.
    ///
    /// # Errors
    /// If the version is unknown or the index is above 0x7F.
    pub fn restore(&self, state: &CmosState) -> Result<(), StateError> {
        self.index.store(Index::try_from(state)?.0, Relaxed);
        Ok(())
    }

    /// Value of the data register that the index register selects.
    fn data(&self) -> u8 {
        match self.index.load(Relaxed) {
            0x0A => STATUS_A,
            0x0B => STATUS_B,
            0x0D => STATUS_D,
            index @ (0x00 | 0x02 | 0x04 | 0x06..=0x09 | 0x32) => Time::at((self.now)()).register(index),
            _ => 0,
        }
    }
}

impl BusDevice for Cmos {
    fn name(&self) -> &'static str {
        "cmos"
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<Action, GuestError> {
        let [byte] = data else { return Err(GuestError::BadWidth { offset, width: data.len() }) };
        match offset {
            INDEX => return Err(GuestError::WriteOnly { offset }),
            DATA => *byte = self.data(),
            _ => return Err(GuestError::BadRegister { offset }),
        }
        Ok(Action::None)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<Action, GuestError> {
        let &[value] = data else { return Err(GuestError::BadWidth { offset, width: data.len() }) };
        match offset {
            INDEX => self.index.store(value & INDEX_MASK, Relaxed),
            DATA => {}
            _ => return Err(GuestError::BadRegister { offset }),
        }
        Ok(Action::None)
    }
}

impl fmt::Debug for Cmos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cmos").field("index", &self.index).finish_non_exhaustive()
    }
}

/// A validated index register.
struct Index(u8);

impl TryFrom<&CmosState> for Index {
    type Error = StateError;

    fn try_from(state: &CmosState) -> Result<Self, StateError> {
        check_version("cmos", state.version, CmosState::VERSION)?;
        if state.index & !INDEX_MASK != 0 {
            return Err(StateError::Field { device: "cmos", field: "index", value: state.index.into() });
        }
        Ok(Self(state.index))
    }
}

/// A point in time, split as the clock's registers want it.
#[derive(Debug, PartialEq, Eq)]
struct Time {
    second: u64,
    minute: u64,
    hour: u64,
    /// 1 = Sunday.
    weekday: u64,
    day: u64,
    month: u64,
    year: u64,
}

impl Time {
    /// Splits seconds since 1970-01-01 UTC; any value is fine.
    fn at(seconds: u64) -> Self {
        let (days, rest) = (seconds / SECONDS_PER_DAY, seconds % SECONDS_PER_DAY);
        let (year, month, day) = civil(days);
        // 1970-01-01 was a Thursday, the fifth day.
        let weekday = (days % 7 + 4) % 7 + 1;
        Self { second: rest % 60, minute: rest / 60 % 60, hour: rest / 3600, weekday, day, month, year }
    }

    /// Contents of a time register, in BCD; 0x32 is the century, where PC firmware keeps it.
    fn register(&self, index: u8) -> u8 {
        let value = match index {
            0x00 => self.second,
            0x02 => self.minute,
            0x04 => self.hour,
            0x06 => self.weekday,
            0x07 => self.day,
            0x08 => self.month,
            0x09 => self.year % 100,
            0x32 => self.year / 100 % 100,
            _ => 0,
        };
        // Below 100, so both digits fit.
        (value / 10 * 16 + value % 10) as u8
    }
}

/// Year, month and day of the Gregorian calendar, from days since 1970-01-01. Counts in 400-year cycles of
/// years that start on 1 March, so that the leap day is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    // Days from 0000-03-01 to 1970-01-01.
    let days = days + 719_468;
    let (cycle, day_of_cycle) = (days / 146_097, days % 146_097);
    let leap_days = day_of_cycle / 1_460 - day_of_cycle / 36_524 + day_of_cycle / 146_096;
    let year_of_cycle = (day_of_cycle - leap_days) / 365;
    let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (cycle * 400 + year_of_cycle + u64::from(month <= 2), month, day)
}

#[cfg(test)]
#[path = "cmos_test.rs"]
mod tests;
