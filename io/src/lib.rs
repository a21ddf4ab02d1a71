//! Host I/O for Ringlet: guest RAM, event-loop shards, the ring, doorbells and timers.
//!
//! Owns every interaction with files, eventfds and io_uring. Never knows what a virtio device is.

pub mod ram;

mod budget;
mod buffers;
mod busy_poll;
mod charge;
mod clock;
mod descriptors;
pub mod disk;
pub mod doorbell;
mod engine;
mod epoll;
mod executor;
mod file;
mod helper;
mod hold;
mod irq;
mod lease;
pub mod limiter;
pub mod net;
mod nowait;
mod operation;
mod owner;
mod ready;
mod ring;
mod ring_file;
mod shard;
mod slice;
mod task;
#[cfg(test)]
mod testing;
mod timer;
pub mod unix;
mod vectored;

pub use budget::{Budget, REQUESTS_PER_TURN};
pub use buffers::{Buffers, Held, Room, Space};
pub use busy_poll::BUSY_POLL;
pub use clock::MonoTime;
pub use descriptors::{Descriptor, DescriptorShare, Descriptors, OWN_DESCRIPTORS};
pub use doorbell::{Doorbell, DoorbellListener, DoorbellSender, POLL_PERIOD};
pub use engine::{
    Engine, EngineChoice, EngineError, EngineKind, UnknownEngine, UringUnavailable, probe_uring, select,
};
pub use file::{BufResult, FILE_THREADS, FILE_THREADS_PER_OWNER, Ring, RingFile, STREAM_THREADS};
pub use hold::{Bound, Hold};
pub use irq::InterruptLine;
pub use lease::{GuestRange, Lease, LeaseUse, MAX_PIECES};
pub use limiter::{Cost, CostKind, Gate, Limiter, LimiterSeed};
pub use operation::Allocation;
pub use owner::{Draining, Owner};
pub use ram::{Backing, GuestMemory, GuestRam, PAGE_SIZE, RamError, RamRegion};
pub use shard::{Service, Shard, ShardConfig, ShardContext, ShardError, ShardSender};
pub use task::{JoinError, JoinResult, Task};
pub use timer::{Sleep, Timer};
pub use vectored::LeaseResult;
