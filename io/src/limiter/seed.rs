//! Limits on their way to the shard that they hold on.

use std::fmt;

use super::{Gate, LimitError, Limiter};
use crate::owner::Owner;
use crate::shard::ShardContext;

type Make = dyn FnOnce(&ShardContext, &Owner) -> Result<Limiter, LimitError> + Send;

/// Makes a [`Limiter`], which is `!Send`, on its shard.
pub struct LimiterSeed(Box<Make>);

impl LimiterSeed {
    /// What `make` gives.
    pub fn new<F>(make: F) -> Self
    where
        F: FnOnce(&ShardContext, &Owner) -> Result<Limiter, LimitError> + Send + 'static,
    {
        Self(Box::new(make))
    }

    /// No limits.
    pub fn unlimited() -> Self {
        Self::new(|_, _| Ok(Limiter::unlimited()))
    }

    /// What `gate` lets through. For tests.
    pub fn gated(gate: Gate) -> Self {
        Self::new(|_, _| Ok(Limiter::gated(gate)))
    }

    /// Makes the limiter of one of `owner`'s devices.
    ///
    /// # Errors
    /// [`LimitError`]: a limit cannot be.
    pub fn plant(self, cx: &ShardContext, owner: &Owner) -> Result<Limiter, LimitError> {
        (self.0)(cx, owner)
    }
}

impl Default for LimiterSeed {
    fn default() -> Self {
        Self::unlimited()
    }
}

impl fmt::Debug for LimiterSeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimiterSeed").finish_non_exhaustive()
    }
}
