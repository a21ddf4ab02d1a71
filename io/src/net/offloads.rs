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

    /// All that there is.
    pub const ALL: Self =
        Self { checksum: true, tso4: true, tso6: true, ecn: true, ufo: true, uso4: true, uso6: true };

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

    /// As `TUNSETOFFLOAD` takes them (`TUN_F_*`): everything but `TUN_F_CSUM` needs that one, `TUN_F_TSO_ECN` a TSO, and
    /// the kernel has both kinds of USO or none. What cannot be asked for alone is left out.
    pub(super) fn tap_bits(self) -> u32 {
        if !self.checksum {
            return 0;
        }
        let tso = self.tso4 || self.tso6;
        let uso = self.uso4 && self.uso6;
        [
            (true, libc::TUN_F_CSUM),
            (self.tso4, libc::TUN_F_TSO4),
            (self.tso6, libc::TUN_F_TSO6),
            (self.ecn && tso, libc::TUN_F_TSO_ECN),
            (self.ufo, libc::TUN_F_UFO),
            (uso, libc::TUN_F_USO4 | libc::TUN_F_USO6),
        ]
        .into_iter()
        .fold(0, |bits, (has, bit)| if has { bits | bit } else { bits })
    }
}
