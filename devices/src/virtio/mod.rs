//! Virtio 1.2: queues as tasks, and the MMIO transport.
//!
//! ```text
//!  vCPU threads                            │ shard
//!  MmioTransport: registers, status, ISR ──┼─► worker ──► VirtioDevice ──► QueueTask per queue
//!  a plain notify ──► doorbell ────────────┼─────────────────────────────► peek, admit, consume, execute
//!                     interrupt line ◄─────┼────────────────────────────── complete
//! ```
//!
//! Owns everything that is the same for all virtio devices. Never knows what a request means. Devices implement
//! [`VirtioDevice`]; most hand each queue to a [`QueueTask`] with a [`RequestHandler`], those for which order matters to
//! an `OrderedTask`.

mod assemble;
mod chain;
mod config;
mod device;
mod handle;
mod interrupt;
mod layout;
mod link;
mod memory;
mod mmio;
mod ordered;
mod queue;
mod registers;
mod rules;
pub mod spec;
pub mod state;
mod task;
mod walk;
mod window;
mod worker;

pub use assemble::{AssembleError, DRAIN_DEADLINE, MakeDevice, VirtioSpec, WorkerSeed};
pub use chain::{Chain, OutsideChain, Ranges};
pub use config::ConfigSpace;
pub use device::{HostEvent, Identity, LocalBoxFuture, QueueParts, VirtioDevice};
pub use handle::{WorkerError, WorkerHandle};
pub use interrupt::QueueInterrupt;
pub use layout::{QueueLayout, RawLayout};
pub use memory::{DeviceMemory, RequestMemory};
pub use mmio::MmioTransport;
pub(crate) use ordered::{InFlight, Ordered, OrderedTask};
pub use queue::{Owed, Queue, QueueError, Token};
pub use state::{DeviceState, QueueRegisters, QueueState, TransportState, VirtioState};
pub use task::{QueueTask, RequestHandler};
pub use walk::ChainError;

#[cfg(test)]
mod conformance_test;

#[cfg(all(test, ringlet_loom))]
mod signals_loom_test;
