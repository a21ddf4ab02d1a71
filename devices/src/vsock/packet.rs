//! Headers of packets (virtio 1.2, section 5.10.6).
//!
//! Owns their layout, and the names of what they may say. Pure.

/// Bytes of a header.
pub const HEADER: usize = 44;
/// The host's context ID.
pub const HOST_CID: u64 = 2;
/// The smallest context ID that a guest may have.
pub const MIN_CID: u64 = 3;
/// The largest: above are those that mean anybody, and those of more than 32 bits.
pub const MAX_CID: u64 = u32::MAX as u64 - 1;
/// Type of stream sockets.
pub const STREAM: u16 = 1;
/// SHUTDOWN: the sender will receive nothing more.
pub const NO_MORE_RECEIVED: u32 = 1;
/// SHUTDOWN: the sender will send nothing more.
pub const NO_MORE_SENT: u32 = 2;

/// What a packet is for (section 5.10.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Asks for a connection.
    Request,
    /// Accepts one.
    Response,
    /// Refuses or ends one.
    Reset,
    /// Ends one direction of it, or both.
    Shutdown,
    /// Data.
    Data,
    /// Tells what room the sender has.
    CreditUpdate,
    /// Asks for that.
    CreditRequest,
}

impl Op {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Request,
        Self::Response,
        Self::Reset,
        Self::Shutdown,
        Self::Data,
        Self::CreditUpdate,
        Self::CreditRequest,
    ];

    /// The number that stands for it.
    pub const fn number(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::Data => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
        }
    }

    /// What a number stands for.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|op| op.number() == number)
    }
}

/// A header, as its sender wrote it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    /// Context ID of the sender.
    pub src_cid: u64,
    /// Context ID of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes of data behind the header.
    pub len: u32,
    /// Type of the socket.
    pub kind: u16,
    /// Number of an [`Op`].
    pub op: u16,
    /// [`NO_MORE_RECEIVED`], [`NO_MORE_SENT`].
    pub flags: u32,
    /// Bytes that the sender has room for.
    pub buf_alloc: u32,
    /// Bytes that the sender has passed on so far, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Parses the bytes of a header; any are one.
    pub fn parse(bytes: &[u8; HEADER]) -> Self {
        let mut fields = Fields(bytes);
        Self {
            src_cid: u64::from_le_bytes(fields.next()),
            dst_cid: u64::from_le_bytes(fields.next()),
            src_port: u32::from_le_bytes(fields.next()),
            dst_port: u32::from_le_bytes(fields.next()),
            len: u32::from_le_bytes(fields.next()),
            kind: u16::from_le_bytes(fields.next()),
            op: u16::from_le_bytes(fields.next()),
            flags: u32::from_le_bytes(fields.next()),
            buf_alloc: u32::from_le_bytes(fields.next()),
            fwd_cnt: u32::from_le_bytes(fields.next()),
        }
    }

    /// Its bytes.
    pub fn bytes(&self) -> [u8; HEADER] {
        let fields = [
            &self.src_cid.to_le_bytes()[..],
            &self.dst_cid.to_le_bytes(),
            &self.src_port.to_le_bytes(),
            &self.dst_port.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ];
        let mut bytes = [0; HEADER];
        bytes.iter_mut().zip(fields.into_iter().flatten()).for_each(|(byte, field)| *byte = *field);
        bytes
    }

    /// The answer to a packet that belongs to no connection: a reset, of the same type of socket.
    #[must_use]
    pub fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: Op::Reset.number(),
            ..Self::default()
        }
    }
}

/// The fields of a header that are left to parse.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn next<const N: usize>(&mut self) -> [u8; N] {
        let Some((field, rest)) = self.0.split_first_chunk() else { return [0; N] };
        self.0 = rest;
        *field
    }
}

#[cfg(test)]
#[path = "packet_test.rs"]
mod tests;
