//! Virtio block device (virtio 1.2, section 5.2): a disk behind one or several queues.
//!
//! Owns requests: their parsing from copied bytes, and the answers. Never knows where a disk is kept, and
//! never reads a byte of guest memory twice.

pub mod config;
pub mod durability;
pub mod error;
pub mod request;

pub use durability::Cache;
pub use error::{BlockError, Status};
