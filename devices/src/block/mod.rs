//! Virtio block device (virtio 1.2, section 5.2): a disk behind one or several queues.
//!
//! ```text
//!  chain ─► request: parsed from copied bytes ─► limiter ─► handler: lease, disk ─► status, last byte
//!                                                              └─► durability: flush, shared by who waits
//! ```
//!
//! Owns requests and their answers. Never knows where a disk is kept, and never reads a byte of guest memory
//! twice.
//!
//! Durability: once a flush completes, a crash of the host loses nothing that was complete before it. If the
//! driver did not negotiate flushes, or turned the write cache off, that holds for every write, discard and
//! write-zeroes when it completes. With [`Cache::Unsafe`] none of this holds: flushes do nothing.

pub mod config;
#[cfg(test)]
mod crash_test;
mod device;
pub mod durability;
pub mod error;
mod handler;
mod report;
pub mod request;
#[cfg(test)]
mod rig_test;
#[cfg(test)]
mod test_util;

pub use device::{BlockDevice, BlockOptions, Serial};
pub use durability::Cache;
pub use error::{BlockError, Status};
