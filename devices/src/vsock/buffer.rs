//! Where the data of a packet is: in a chain of the guest, or kept here until a socket takes it.
//!
//! Owns what is kept. Data in guest memory is moved by the kernel, or copied once.

use std::io;
use std::mem::take;

use ringlet_io::unix::{Scratch, Stream};
use ringlet_io::{GuestRam, LeaseUse};

use super::flaw::Flaw;
use super::packet::HEADER;
use crate::virtio::Chain;

/// Most bytes of data in one packet to the guest, however long its buffer is: a turn is not worth more.
const MAX_DATA: u64 = 64 << 10;

/// Bytes on their way to the socket, of which the first `gone` have gone.
#[derive(Debug, Default)]
pub(super) struct Pending {
    bytes: Vec<u8>,
    gone: usize,
}

impl Pending {
    pub(super) fn rest(&self) -> &[u8] {
        self.bytes.get(self.gone..).unwrap_or_default()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest().is_empty()
    }

    /// Adds `len` bytes; gives where they belong.
    pub(super) fn add(&mut self, len: usize) -> &mut [u8] {
        self.bytes.drain(..take(&mut self.gone));
        let end = self.bytes.len();
        // No more than is needed, which is within what is counted for the connection.
        self.bytes.reserve_exact(len);
        self.bytes.resize(end + len, 0);
        self.bytes.get_mut(end..).unwrap_or_default()
    }

    pub(super) fn has_gone(&mut self, count: usize) {
        self.gone = self.gone.saturating_add(count);
        if self.is_empty() {
            *self = Self::default();
        }
    }
}

/// The data of a packet of the guest: what follows the header in a chain, which is long enough.
pub(super) struct Data<'a> {
    pub(super) ram: &'a GuestRam,
    pub(super) chain: &'a Chain,
    pub(super) scratch: &'a mut Scratch,
}

impl Data<'_> {
    /// Sends as much as the socket takes at once of the first `len` bytes.
    pub(super) fn send(&mut self, stream: &Stream, len: u32) -> Result<io::Result<u32>, Flaw> {
        let ranges = self.chain.readable(HEADER as u64, len.into()).ok_or(Flaw::Pieces)?;
        let lease = self.ram.lease(&ranges, LeaseUse::Source).map_err(|_| Flaw::Pieces)?;
        let sent = stream.send(self.scratch, &lease);
        Ok(sent.map(|count| count.map_or(0, |count| u32::try_from(count).unwrap_or(len))))
    }

    /// Copies what follows the first `from` bytes.
    pub(super) fn copy(&self, from: u32, bytes: &mut [u8]) -> Result<(), Flaw> {
        self.chain.copy_out(self.ram, HEADER as u64 + u64::from(from), bytes).map_err(|_| Flaw::Pieces)
    }
}

/// A buffer of the guest for a packet, which has room for a header and more.
pub(super) struct RoomFor<'a> {
    pub(super) ram: &'a GuestRam,
    pub(super) chain: &'a Chain,
    pub(super) scratch: &'a mut Scratch,
}

/// A buffer is in more pieces than the kernel takes.
#[derive(Debug)]
pub(super) struct Unfit;

impl RoomFor<'_> {
    pub(super) fn receive(
        &mut self,
        stream: &Stream,
        allowed: u32,
    ) -> Result<io::Result<Option<usize>>, Unfit> {
        let room = self.chain.writable_len().saturating_sub(HEADER as u64);
        let len = room.min(allowed.into()).min(MAX_DATA);
        let ranges = self.chain.writable(HEADER as u64, len).ok_or(Unfit)?;
        let lease = self.ram.lease(&ranges, LeaseUse::Target).map_err(|_| Unfit)?;
        Ok(stream.receive(self.scratch, &lease))
    }
}
