//! Limits on their way to the shard that they hold on.

use std::fmt;

use super::{Gate, Limiter};
use crate::owner::Owner;
use crate::shard::ShardContext;

type Make = dyn FnOnce(&ShardContext, &Owner) -> Limiter + Send;

/// Makes a [`Limiter`], which is `!Send`, on its shard.
pub struct LimiterSeed(Box<Make>);

impl LimiterSeed {
    /// What `make` gives.
    pub fn new(make: impl FnOnce(&ShardContext, &Owner) -> Limiter + Send + 'static) -> Self {
        Self(Box::new(make))
    }

    /// No limits.
    pub fn unlimited() -> Self {
        Self::new(|_, _| Limiter::unlimited())
    }

    /// What `gate` lets through. For tests.
    pub fn gated(gate: Gate) -> Self {
        Self::new(|_, _| Limiter::gated(gate))
    }

    /// Makes the limiter of one of `owner`'s devices.
    pub fn plant(self, cx: &ShardContext, owner: &Owner) -> Limiter {
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
