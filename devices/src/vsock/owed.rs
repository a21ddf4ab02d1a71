//! What a connection is to tell its guest, but for data: each sort of packet once, in a fixed order.
//!
//! Owns the set. Pure.

use super::packet::Op;

/// Packets without data that are to be sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Owed(u16);

impl Owed {
    /// In the order in which they are sent.
    const ORDER: [Op; 6] =
        [Op::Request, Op::Response, Op::CreditUpdate, Op::CreditRequest, Op::Shutdown, Op::Reset];

    pub(super) fn add(&mut self, op: Op) {
        self.0 |= 1 << op.number();
    }

    pub(super) fn has(self, op: Op) -> bool {
        self.0 >> op.number() & 1 == 1
    }

    pub(super) fn take(&mut self) -> Option<Op> {
        let op = Self::ORDER.into_iter().find(|op| self.has(*op))?;
        self.0 &= !(1 << op.number());
        Some(op)
    }
}
