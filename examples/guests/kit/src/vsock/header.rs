//! The header of every packet (virtio 1.2, 5.10.6). Plain bytes and numbers, so that it can be tested anywhere.

/// Its length in bytes.
pub(super) const LEN: usize = 44;
/// The host's address (5.10.4).
pub(super) const HOST: u64 = 2;
/// `type`: a stream.
pub(super) const STREAM: u16 = 1;

/// `flags` of a shutdown: its sender takes no more, and sends no more (5.10.6.6).
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
pub(super) const SHUTDOWN_SEND: u32 = 2;
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Request,
    Response,
    Reset,
    Shutdown,
    Data,
    CreditUpdate,
    CreditRequest,
}

impl Op {
    const ALL: [Self; 7] = [
        Self::Request,
        Self::Response,
        Self::Reset,
        Self::Shutdown,
        Self::Data,
        Self::CreditUpdate,
        Self::CreditRequest,
    ];

    /// The number that stands for it: from 1 on.
    fn number(self) -> u16 {
        self as u16 + 1
    }

    fn of(number: u16) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }
}

/// Who talks to whom, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ports {
    /// The guest's port.
    pub(super) local: u32,
    /// The host's.
    pub(super) peer: u32,
}

/// What a packet of a connection says, but for who says it to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) op: Op,
    /// Bytes that follow.
    pub(super) len: u32,
    pub(super) flags: u32,
    /// Bytes that the sender has room for, and how many of those it has got are out of it again, modulo 2³².
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

/// A packet's header as it stands there, of whatever sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    pub(super) kind: u16,
    /// `None`: an operation that there is not.
    pub(super) op: Option<Op>,
    pub(super) len: u32,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

impl Header {
    /// The header at the start of `bytes`.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<LEN>()?;
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| u32::from(half(at)) | u32::from(half(at + 2)) << 16;
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        Some(Self {
            src_cid: long(0),
            dst_cid: long(8),
            src_port: word(16),
            dst_port: word(20),
            len: word(24),
            kind: half(28),
            op: Op::of(half(30)),
            flags: word(32),
            buf_alloc: word(36),
            fwd_cnt: word(40),
        })
    }

    /// The header of a packet that the guest `cid` sends.
    pub(super) fn sent(cid: u64, ports: Ports, packet: Packet) -> Self {
        Self {
            src_cid: cid,
            dst_cid: HOST,
            src_port: ports.local,
            dst_port: ports.peer,
            kind: STREAM,
            op: Some(packet.op),
            len: packet.len,
            flags: packet.flags,
            buf_alloc: packet.buf_alloc,
            fwd_cnt: packet.fwd_cnt,
        }
    }

    /// As it goes over the queue.
    pub(super) fn bytes(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.map_or(0, Op::number).to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}
