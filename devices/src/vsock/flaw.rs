//! Why a packet of the guest is not taken.

use super::credit::Lie;
use super::packet::{HOST_CID, Header, MAX_CID, Op, STREAM};

/// What is wrong with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Flaw {
    #[error("it is from context {0}, which is not the guest's")]
    Source(u64),
    #[error("it is for context {0}, which is not the host's")]
    Destination(u64),
    #[error("there are no sockets of type {0}")]
    Kind(u16),
    #[error("there is no operation {0}")]
    Operation(u16),
    #[error("it has {len} bytes of data, of which {there} are there")]
    Length { len: u32, there: u64 },
    #[error("operation {0:?} means nothing in the state of its connection")]
    Order(Op),
    #[error("flags {0:#x} mean nothing in a shutdown")]
    Flags(u32),
    #[error(transparent)]
    Credit(#[from] Lie),
    /// The kernel does not take it.
    #[error("its data is in too many pieces")]
    Pieces,
}

impl Flaw {
    /// Whether its connection, or a sender without one, is told by a reset. Who is not known is not answered.
    pub(super) const fn is_answered(&self) -> bool {
        !matches!(self, Self::Source(_) | Self::Destination(_))
    }
}

/// Checks what can be checked without a connection. `there`: bytes behind the header.
pub(super) fn judge(header: &Header, cid: u64, there: u64) -> Result<Op, Flaw> {
    debug_assert!(cid <= MAX_CID);
    if header.src_cid != cid {
        return Err(Flaw::Source(header.src_cid));
    }
    if header.dst_cid != HOST_CID {
        return Err(Flaw::Destination(header.dst_cid));
    }
    if header.kind != STREAM {
        return Err(Flaw::Kind(header.kind));
    }
    let op = Op::from_number(header.op).ok_or(Flaw::Operation(header.op))?;
    if u64::from(header.len) > there {
        return Err(Flaw::Length { len: header.len, there });
    }
    Ok(op)
}
