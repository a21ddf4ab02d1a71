//! What a rig is made with.

use std::time::Duration;

use ringlet_io::limiter::{Level, Limits};
use ringlet_io::{Buffers, EngineKind, GuestRam, Limiter, LimiterSeed, MonoTime};

use crate::virtio::{DRAIN_DEADLINE, VirtioState};

/// How a rig is set up.
#[derive(Debug)]
pub struct Options {
    /// The shard's engine.
    pub engine: EngineKind,
    /// What the queues ask.
    pub limiter: LimiterSeed,
    /// What the host may buffer for the VM, without what is reserved for each queue.
    pub buffers: Buffers,
    /// How long a drain may take.
    pub drain_deadline: Duration,
    /// Memory of an earlier rig, and the state to go on from.
    pub restored: Option<(GuestRam, VirtioState)>,
}

impl Options {
    /// No limits, nothing to restore.
    pub fn new(engine: EngineKind) -> Self {
        let (limiter, buffers) = (LimiterSeed::unlimited(), Buffers::unlimited());
        Self { engine, limiter, buffers, drain_deadline: DRAIN_DEADLINE, restored: None }
    }

    /// One level of limits, full when the device is made.
    pub fn limited(engine: EngineKind, limits: Limits) -> Self {
        let limiter = LimiterSeed::new(move |cx, _| {
            Ok(Limiter::levels(cx.timer(), vec![Level::new(&limits, MonoTime::now())?]))
        });
        Self { limiter, ..Self::new(engine) }
    }
}
