//! Host I/O for Ringlet: guest RAM, event-loop shards, the ring, doorbells and timers.
//!
//! Owns every interaction with files, eventfds and io_uring. Never knows what a virtio device is.

pub mod ram;

pub use ram::{Backing, GuestMemory, GuestRam, PAGE_SIZE, RamError, RamRegion};
