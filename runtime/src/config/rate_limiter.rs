//! Limits of one device in Firecracker's words: token buckets of bytes and of operations.
//!
//! Owns their form and ranges. What a bucket means is `docs/limits.md`'s and `ringlet_io::limiter`'s.

use std::time::Duration;

use ringlet_io::limiter::{Limits, MAX_REFILL_TIME, PerUnit, TokenBucket};
use serde::{Deserialize, Serialize};

/// The limits of a device: of bytes, of operations, or both. What is absent is not limited; in a change of limits, it
/// stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimiter {
    /// Bytes read and written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bucket>,
    /// Requests of any kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<Bucket>,
}

/// A token bucket: `size` tokens, which come back in `refill_time`. A `size` or `refill_time` of 0 is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// Tokens of the full bucket.
    pub size: u64,
    /// Tokens that are there once, besides, and are spent first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// Milliseconds in which an empty bucket fills.
    pub refill_time: u64,
}

impl Bucket {
    fn tokens(self) -> TokenBucket {
        TokenBucket {
            size: self.size,
            one_time_burst: self.one_time_burst.unwrap_or(0),
            refill_time: Duration::from_millis(self.refill_time),
        }
    }
}

impl RateLimiter {
    /// At most `per_second` bytes a second; 0 is no limit. At once, as little of a second's as whole milliseconds
    /// express exactly: a tenth to all.
    #[must_use]
    pub fn bytes(per_second: u64) -> Self {
        Self { bandwidth: Some(rate(per_second)), ops: None }
    }

    /// At most `per_second` requests a second; 0 is no limit. At once as with [`Self::bytes`].
    #[must_use]
    pub fn operations(per_second: u64) -> Self {
        Self { bandwidth: None, ops: Some(rate(per_second)) }
    }

    /// The limits that a level is to have.
    pub(crate) fn limits(&self) -> Limits {
        let bucket = |bucket: Option<Bucket>| bucket.map(Bucket::tokens);
        Limits {
            total: PerUnit { operations: bucket(self.ops), bytes: bucket(self.bandwidth) },
            ..Limits::default()
        }
    }

    /// Checks the ranges; the error says which field and why.
    pub(crate) fn validate(&self) -> Result<(), String> {
        self.limits().check().map_err(|_| {
            let longest = MAX_REFILL_TIME.as_millis();
            format!("a refill_time is longer than {longest} ms; use a smaller size instead")
        })
    }
}

/// A bucket for a rate, which is exact.
fn rate(per_second: u64) -> Bucket {
    if per_second == 0 {
        return Bucket { size: 0, one_time_burst: None, refill_time: 0 };
    }
    // Of what divides a second into whole milliseconds.
    let parts = [10, 8, 5, 4, 2].into_iter().find(|&parts| per_second.is_multiple_of(parts)).unwrap_or(1);
    Bucket { size: per_second / parts, one_time_burst: None, refill_time: 1000 / parts }
}
