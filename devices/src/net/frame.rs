//! Where things are in a frame of Ethernet that carries IP, and what they are called there: for whoever judges the
//! beginning of one.

/// Bytes of an Ethernet header.
pub(super) const ETHERNET: usize = 14;
/// Bytes of the shortest IPv4 header.
pub(super) const IPV4: usize = 20;
/// Bytes of the IPv6 header.
pub(super) const IPV6: usize = 40;

/// Where TCP (RFC 9293) and UDP (RFC 768) have their checksum.
pub(super) const TCP_CHECKSUM: u16 = 16;
pub(super) const UDP_CHECKSUM: u16 = 6;

/// The values of the EtherType field (RFC 9542).
pub(super) mod ethertype {
    pub(in crate::net) const IPV4: u16 = 0x0800;
    pub(in crate::net) const ARP: u16 = 0x0806;
    pub(in crate::net) const IPV6: u16 = 0x86DD;
}

/// The values of the protocol and next-header fields that matter.
pub(super) mod protocol {
    pub(in crate::net) const HOP_BY_HOP: u8 = 0;
    pub(in crate::net) const TCP: u8 = 6;
    pub(in crate::net) const UDP: u8 = 17;
    pub(in crate::net) const ROUTING: u8 = 43;
    pub(in crate::net) const FRAGMENT: u8 = 44;
    pub(in crate::net) const ICMPV6: u8 = 58;
    pub(in crate::net) const DESTINATION: u8 = 60;
}
