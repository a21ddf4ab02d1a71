//! Requests of every queue of one block device: parsed, executed, answered.
//!
//! Owns the disk, what the driver negotiated, and the counting. Guest RAM is the buffer of reads and writes: it is
//! leased to the disk for the time of the operation. The status is the last byte of the writable part, written
//! once and last. Never completes a chain: it only says how much was written.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use ringlet_io::disk::{self, Disk};
use ringlet_io::{Cost, GuestRam, Lease, LeaseUse, MonoTime};
use ringlet_metrics::{DeviceMetrics, GuestLog, RequestKind};

use super::device::Serial;
use super::durability::Durability;
use super::error::{BlockError, Status};
use super::report::LogLimits;
use super::request::{
    Command, Extent, HEADER_LEN, ID_LEN, MAX_SEGMENTS, Request, Rules, STATUS_LEN, Shape, ZeroExtent,
};
use crate::virtio::{Chain, Ranges, RequestHandler};

/// What all queues of a device share.
pub(super) struct Shared {
    pub(super) disk: Rc<dyn Disk>,
    pub(super) serial: Serial,
    pub(super) rules: Cell<Rules>,
    pub(super) durability: Durability,
    pub(super) limits: LogLimits,
}

/// The requests of one queue.
pub(super) struct Handler {
    pub(super) shared: Rc<Shared>,
    pub(super) metrics: Arc<DeviceMetrics>,
    pub(super) log: Arc<GuestLog>,
}

/// What a request that succeeded did.
#[derive(Debug, Default)]
struct Done {
    /// Bytes between guest and disk.
    moved: u64,
    /// Bytes of the writable part, from its start, without the status.
    written: u64,
}

/// Bytes of the list of what a request discards.
const EXTENTS_BYTES: usize = MAX_SEGMENTS as usize * size_of::<Extent>();

impl RequestHandler for Handler {
    type Request = Request;

    const OPERATION_BYTES: u64 = disk::OPERATION_BYTES + EXTENTS_BYTES as u64;

    fn parse(&self, ram: &GuestRam, chain: &Chain) -> (Request, Cost) {
        let shape = Shape { readable: chain.readable_len(), writable: chain.writable_len() };
        let request =
            Request::parse(shape, &self.shared.rules.get(), |from, buf| Ok(chain.copy_out(ram, from, buf)?));
        let cost = self.shared.cost(&request);
        (request, cost)
    }

    async fn execute(self: Rc<Self>, ram: GuestRam, chain: Chain, request: Request) -> u32 {
        let begun = MonoTime::now();
        let kind = request.kind;
        let result = match request.command {
            Ok(command) => self.shared.run(&ram, &chain, command).await,
            Err(error) => Err(error),
        };
        let (status, done) = match result {
            Ok(done) => (Status::Ok, done),
            Err(error) => {
                self.shared.limits.report(&self.log, &self.metrics, kind, &error);
                (error.status(), Done::default())
            }
        };
        self.metrics.completed(kind, status.into(), done.moved, MonoTime::now().since(begun));
        answer(&ram, &chain, status, done.written)
    }
}

/// Writes the status; gives the number of bytes that the driver may rely on from the start of the writable part on
/// (section 2.7.8.2): with the status only if all before it was written.
fn answer(ram: &GuestRam, chain: &Chain, status: Status, written: u64) -> u32 {
    let Some(at) = chain.writable_len().checked_sub(STATUS_LEN) else { return 0 };
    let answered = chain.copy_in(ram, at, &[status as u8]).is_ok();
    let written = if answered && written == at { written + STATUS_LEN } else { written };
    u32::try_from(written).unwrap_or(u32::MAX)
}

impl Shared {
    /// What limits charge: the bytes that the host moves for it. What is refused is an operation all the same.
    fn cost(&self, request: &Request) -> Cost {
        let Extent { offset, len } = request.extent();
        match request.kind {
            RequestKind::Read => Cost::read(self.disk.bytes_to_read(offset, len)),
            RequestKind::Write | RequestKind::WriteZeroes => {
                Cost::write(self.disk.bytes_to_write(offset, len))
            }
            _ => Cost::other(),
        }
    }

    async fn run(&self, ram: &GuestRam, chain: &Chain, command: Command) -> Result<Done, BlockError> {
        match command {
            Command::Read(extent) => self.read(ram, chain, extent).await,
            Command::Write(extent) => self.write(ram, chain, extent).await,
            Command::Flush => self.flush().await,
            Command::GetId => self.get_id(ram, chain),
            Command::Discard(extents) => self.discard(&extents).await,
            Command::WriteZeroes(zero) => self.write_zeroes(zero).await,
        }
    }

    async fn read(&self, ram: &GuestRam, chain: &Chain, extent: Extent) -> Result<Done, BlockError> {
        let lease = lease(ram, chain.writable(0, extent.len), LeaseUse::Target)?;
        if !lease.is_empty() {
            self.disk.read(lease, extent.offset).await.0?;
        }
        Ok(Done { moved: extent.len, written: extent.len })
    }

    async fn write(&self, ram: &GuestRam, chain: &Chain, extent: Extent) -> Result<Done, BlockError> {
        let lease = lease(ram, chain.readable(HEADER_LEN, extent.len), LeaseUse::Source)?;
        if !lease.is_empty() {
            self.disk.write(lease, extent.offset).await.0?;
            self.settle().await?;
        }
        Ok(Done { moved: extent.len, written: 0 })
    }

    async fn flush(&self) -> Result<Done, BlockError> {
        self.durability.flush(|| self.disk.flush()).await?;
        Ok(Done::default())
    }

    fn get_id(&self, ram: &GuestRam, chain: &Chain) -> Result<Done, BlockError> {
        chain.copy_in(ram, 0, self.serial.bytes())?;
        Ok(Done { moved: 0, written: ID_LEN })
    }

    async fn discard(&self, extents: &[Extent]) -> Result<Done, BlockError> {
        let mut moved = 0;
        for extent in extents.iter().filter(|extent| extent.len != 0) {
            self.disk.discard(extent.offset, extent.len).await?;
            moved += extent.len;
        }
        self.settle().await?;
        Ok(Done { moved, written: 0 })
    }

    async fn write_zeroes(&self, zero: ZeroExtent) -> Result<Done, BlockError> {
        let Extent { offset, len } = zero.extent;
        if len != 0 {
            self.disk.write_zeroes(offset, len, zero.may_unmap).await?;
        }
        self.settle().await?;
        Ok(Done { moved: len, written: 0 })
    }

    /// What a change of the disk does before it completes.
    async fn settle(&self) -> Result<(), BlockError> {
        self.durability.settle(|| self.disk.flush()).await
    }
}

/// Lends a part of the chain to the disk. The part is there, because its length was computed from the chain's.
fn lease(ram: &GuestRam, ranges: Option<Ranges>, use_: LeaseUse) -> Result<Lease, BlockError> {
    Ok(ram.lease(&ranges.ok_or(BlockError::Chain)?, use_)?)
}

#[cfg(test)]
#[path = "handler_test.rs"]
mod tests;
