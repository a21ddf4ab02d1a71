//! What packets may leave for the other side to finish: checksums and segmentation.

/// What may be left unfinished in a packet, as its header then says. The bits are those of `TUNSETOFFLOAD`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums of TCP and UDP (`TUN_F_CSUM`). All others need it.
    pub checksum: bool,
    /// Segments of TCP over IPv4 (`TUN_F_TSO4`).
    pub tso4: bool,
    /// Segments of TCP over IPv6 (`TUN_F_TSO6`).
    pub tso6: bool,
    /// Segments of TCP with ECN bits (`TUN_F_TSO_ECN`).
    pub ecn: bool,
    /// Fragments of UDP (`TUN_F_UFO`).
    pub ufo: bool,
    /// Segments of UDP over IPv4 (`TUN_F_USO4`).
    pub uso4: bool,
    /// Segments of UDP over IPv6 (`TUN_F_USO6`).
    pub uso6: bool,
}

impl Offloads {
    /// Nothing: every packet is as it goes over a wire.
    pub const NONE: Self =
        Self { checksum: false, tso4: false, tso6: false, ecn: false, ufo: false, uso4: false, uso6: false };

    /// What both have.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            checksum: self.checksum && other.checksum,
            tso4: self.tso4 && other.tso4,
            tso6: self.tso6 && other.tso6,
            ecn: self.ecn && other.ecn,
            ufo: self.ufo && other.ufo,
            uso4: self.uso4 && other.uso4,
            uso6: self.uso6 && other.uso6,
        }
    }

    /// True if `other` has all that this has.
    pub fn is_within(self, other: Self) -> bool {
        self.and(other) == self
    }
}
