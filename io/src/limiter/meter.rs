//! One meter: how many tokens there are, and when there will be enough.
//!
//! Pure arithmetic: the time is an argument, nothing waits, nothing is rounded in favour of whoever asks.
//! A token is `refill_time` (in ns) units and each nanosecond brings `size` units, so every rate is exact.

use std::time::Duration;

use crate::clock::MonoTime;

/// The longest time that a bucket may take to fill: 2⁶² ns, 146 years.
pub const MAX_REFILL_TIME: Duration = Duration::from_nanos(1 << 62);

/// A limit of one resource, in tokens: bytes or operations. The fields are those of Firecracker's `TokenBucket`.
///
/// The rate is `size / refill_time`. A bucket starts full. If `size` or `refill_time` is zero there is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TokenBucket {
    /// Tokens that the bucket holds: what may be taken at once after idleness.
    pub size: u64,
    /// Tokens beyond `size` that are there once, are spent first, and do not come back.
    pub one_time_burst: u64,
    /// Time that an empty bucket takes to be full, at most [`MAX_REFILL_TIME`].
    pub refill_time: Duration,
}

impl TokenBucket {
    /// No limit.
    pub const ZERO: Self = Self { size: 0, one_time_burst: 0, refill_time: Duration::ZERO };

    /// A bucket without a burst.
    pub const fn new(size: u64, refill_time: Duration) -> Self {
        Self { size, one_time_burst: 0, refill_time }
    }

    /// Whether this is no limit at all.
    pub const fn is_zero(&self) -> bool {
        self.size == 0 || self.refill_time.is_zero()
    }

    /// The refill time in ns, not 0; `None`: no limit.
    fn checked(&self) -> Result<Option<u64>, LimitError> {
        if self.is_zero() {
            return Ok(None);
        }
        match u64::try_from(self.refill_time.as_nanos()) {
            Ok(nanos) if self.refill_time <= MAX_REFILL_TIME => Ok(Some(nanos)),
            _ => Err(LimitError::RefillTime(self.refill_time)),
        }
    }

    /// Looks whether there can be such a limit.
    ///
    /// # Errors
    /// [`LimitError::RefillTime`].
    pub fn check(&self) -> Result<(), LimitError> {
        self.checked().map(|_| ())
    }
}

/// Why a limit, or the saved state of one, is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LimitError {
    /// The bucket takes too long to fill.
    #[error("a refill time of {0:?} is more than 146 years")]
    RefillTime(Duration),
    /// A level below a tenant.
    #[error("there are two levels of limits above a VM, and this would be a third")]
    Depth,
    /// A saved state that this bucket cannot have come to.
    #[error("the saved state of a limit has an impossible {field}")]
    State {
        /// Which of its fields.
        field: &'static str,
    },
}

/// What a meter was at when it was saved. Plain data, not trusted when it comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MeterState {
    /// Tokens left of the one-time burst.
    pub burst: u64,
    /// The balance `elapsed` before the saving, in tokens times the refill time in ns; may be negative.
    pub balance: i128,
    /// Nanoseconds whose refill is not in `balance` yet.
    pub elapsed: u64,
}

/// Where the tokens of a charge came from; gives them back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[must_use]
pub struct Taken {
    burst: u64,
    balance: u64,
}

/// A token bucket at work.
///
/// A request of n is admitted when the balance is at least min(n, size), after what the burst pays for; then
/// all of n is charged, so that the balance may become negative, by less than a request. In charges of any time
/// T there is therefore never more than `one_time_burst + size + T · rate` and the overdraft of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meter {
    bucket: TokenBucket,
    /// Units of one token: the refill time in ns, 1 ..= 2⁶².
    unit: u64,
    burst: u64,
    /// In units, at `last`; at most `size · unit` < 2¹²⁶.
    balance: i128,
    last: MonoTime,
}

impl Meter {
    /// A full meter; `None` if the bucket is no limit.
    ///
    /// # Errors
    /// [`LimitError::RefillTime`].
    pub fn new(bucket: TokenBucket, now: MonoTime) -> Result<Option<Self>, LimitError> {
        Ok(bucket.checked()?.map(|unit| {
            let full = units(bucket.size, unit).cast_signed();
            Self { bucket, unit, burst: bucket.one_time_burst, balance: full, last: now }
        }))
    }

    /// A meter that goes on from a saved state; `None` if the bucket is no limit. The time since the saving does
    /// not count.
    ///
    /// # Errors
    /// [`LimitError::RefillTime`], or [`LimitError::State`]: the bucket cannot be in this state.
    pub fn restore(
        bucket: TokenBucket,
        state: MeterState,
        now: MonoTime,
    ) -> Result<Option<Self>, LimitError> {
        let Some(mut meter) = Self::new(bucket, now)? else { return Ok(None) };
        if state.burst > bucket.one_time_burst {
            return Err(LimitError::State { field: "burst" });
        }
        // Admission leaves no deeper debt than the largest request less what had to be there.
        let deepest = units(u64::MAX, meter.unit).cast_signed();
        if state.balance > meter.balance || state.balance < -deepest {
            return Err(LimitError::State { field: "balance" });
        }
        (meter.burst, meter.balance) = (state.burst, state.balance);
        meter.gain(state.elapsed);
        Ok(Some(meter))
    }

    /// What [`Meter::restore`] needs to go on as this meter would.
    pub fn save(&self, now: MonoTime) -> MeterState {
        MeterState { burst: self.burst, balance: self.balance, elapsed: now.nanos_since(self.last) }
    }

    /// The bucket that it was made of.
    pub fn bucket(&self) -> TokenBucket {
        self.bucket
    }

    /// Tokens left of the one-time burst.
    pub fn burst(&self) -> u64 {
        self.burst
    }

    /// The first instant, not before the last charge, at which a request of `n` is admitted if nobody else takes
    /// anything; the end of the clock if that is beyond it. A request of 0 is admitted when nothing is owed.
    pub fn earliest(&self, n: u64) -> MonoTime {
        let need = units(n.saturating_sub(self.burst).min(self.bucket.size), self.unit);
        // Below 2¹²⁶ + 2¹²⁷.
        let missing = match u128::try_from(self.balance) {
            Ok(balance) => need.saturating_sub(balance),
            Err(_) => need + self.balance.unsigned_abs(),
        };
        self.after(missing)
    }

    /// When the bucket is full if nobody takes anything.
    pub fn full_at(&self) -> MonoTime {
        self.after(self.missing())
    }

    /// Whether it has all that it can have, its burst, too.
    pub fn is_as_new(&self, now: MonoTime) -> bool {
        self.full_at() <= now && self.burst == self.bucket.one_time_burst
    }

    /// Takes `n` tokens at the instant `at`, whether they are there or not. Callers wait for
    /// [`Meter::earliest`] first. An instant before the last charge counts as that of the last charge.
    pub fn charge(&mut self, n: u64, at: MonoTime) {
        let _ = self.take(n, at);
    }

    /// As [`Meter::charge`], and says what can be given back.
    pub fn take(&mut self, n: u64, at: MonoTime) -> Taken {
        self.gain(at.nanos_since(self.last));
        self.last = self.last.max(at);
        let burst = n.min(self.burst);
        self.burst -= burst;
        let balance = n - burst;
        // Reached only by debts of more than 2⁶⁴ tokens, which admission never leaves.
        self.balance = self.balance.saturating_sub_unsigned(units(balance, self.unit));
        Taken { burst, balance }
    }

    /// Undoes a charge: everything is as if it had not been. Only for a charge of this very meter.
    pub fn give_back(&mut self, taken: Taken) {
        self.burst = self.burst.saturating_add(taken.burst).min(self.bucket.one_time_burst);
        self.add(units(taken.balance, self.unit));
    }

    /// Nanoseconds, times 2²⁰ and rounded up, that a request of `n` takes of the rate. Saturates.
    pub fn length(&self, n: u64) -> u128 {
        let units = units(n, self.unit);
        let scaled = units.saturating_mul(1 << 20);
        scaled.div_ceil(u128::from(self.bucket.size))
    }

    /// Adds the refill of `nanos`.
    fn gain(&mut self, nanos: u64) {
        self.add(units(self.bucket.size, nanos));
    }

    fn add(&mut self, units: u128) {
        let missing = self.missing();
        // What is not more than missing leads to the full bucket at most, which fits.
        self.balance = self.balance.saturating_add_unsigned(units.min(missing));
    }

    /// Units up to the full bucket, below 2¹²⁶ + 2¹²⁷.
    fn missing(&self) -> u128 {
        let full = units(self.bucket.size, self.unit);
        match u128::try_from(self.balance) {
            Ok(balance) => full.saturating_sub(balance),
            Err(_) => full + self.balance.unsigned_abs(),
        }
    }

    /// When so many units more will have come, from the last charge on.
    fn after(&self, missing: u128) -> MonoTime {
        if missing == 0 {
            return self.last; // without the division
        }
        let nanos = missing.div_ceil(u128::from(self.bucket.size));
        self.last + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// A product of two u64 always fits.
fn units(a: u64, b: u64) -> u128 {
    u128::from(a) * u128::from(b)
}

#[cfg(test)]
#[path = "meter_test.rs"]
mod tests;
