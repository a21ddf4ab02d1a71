//! What tests of virtio devices share: a driver on real rings, a rig that runs a device on a real shard, and the
//! conformance tests that every device passes.
//!
//! Owns nothing that a VM uses; compiled for tests and with the feature `testing`. Panics where a test would.
//!
//! ```ignore
//! fn subject() -> Subject { … }
//! virtio_conformance!(conformance, subject);
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is test code, which fails by panicking"
)]

pub mod conformance;
mod driver;
mod options;
mod rig;
mod steps;

pub use ringlet_io::EngineKind;

pub use driver::{Buffer, Descriptor, DriverQueue, Used};
pub use options::Options;
pub use rig::{PATIENCE, Rig, Subject, wait_until};
