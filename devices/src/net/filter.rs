//! Which frames a guest may send: those with its own addresses, to others.
//!
//! Owns the rules of what is pinned: the source of the Ethernet header, the sender of ARP (RFC 826), the source of IPv4
//! (RFC 791) and IPv6 (RFC 8200), and what neighbour discovery says of addresses (RFC 4861). Pure: judges a copy
//! of the frame's beginning, which must be what is sent, and never keeps anything of it. Knows no state, so it
//! says nothing about what a guest may answer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ringlet_io::net::eui64;

use super::config::Mac;
use super::frame::{ETHERNET, IPV4, IPV6, TCP_CHECKSUM, UDP_CHECKSUM, ethertype, protocol};

/// Bytes of a frame's beginning that are judged: enough for the longest IPv4 header and the ports behind it, or for
/// IPv6 with some extension headers and a neighbour advertisement.
pub const JUDGED: usize = 192;

/// Ports from which addresses are given out by DHCP (RFC 2131) and DHCPv6 (RFC 8415).
const DHCP_SERVER: u16 = 67;
const DHCPV6_SERVER: u16 = 547;

/// Types of ICMPv6 messages that say where an address or a router is (RFC 4861, section 4).
mod icmpv6 {
    pub(super) const ROUTER_ADVERTISEMENT: u8 = 134;
    pub(super) const NEIGHBOUR_SOLICITATION: u8 = 135;
    pub(super) const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    pub(super) const REDIRECT: u8 = 137;
}

/// The addresses that a guest may use. `None`: any.
///
/// Where addresses of IPv4 or IPv6 are pinned, the guest gives none to others either (it is no DHCP server), and asks of
/// none but its own whether it is free. Frames that are neither IPv4, IPv6 nor ARP are refused, with a VLAN tag
/// too: they could carry anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// The Ethernet address.
    pub mac: Option<Mac>,
    /// Addresses of IPv4. With none, no IPv4 at all.
    pub ipv4: Option<Vec<Ipv4Addr>>,
    /// Addresses of IPv6; the link-local one that follows from `mac` (RFC 4291, appendix A) is always one. With none,
    /// nothing but that.
    pub ipv6: Option<Vec<Ipv6Addr>>,
    /// Nothing to addresses that are never on a link, since they mean the host itself there (127.0.0.0/8 and 0.0.0.0/8,
    /// RFC 1122, section 3.2.1.3; `::`, `::1`, and those of IPv4 in IPv6, RFC 4291, section 2.5). A user-mode network
    /// may take them for its own host's.
    pub no_loopback: bool,
}

/// Why a frame is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Spoof {
    /// It has another Ethernet source than the guest's.
    #[error("a frame from {0}")]
    Mac(Mac),
    /// It is ARP that says something about another's address, or asks whether that is free.
    #[error("ARP about {address} at {mac}")]
    Arp {
        /// Sender's Ethernet address.
        mac: Mac,
        /// Sender's address, or, if it has none, the one that it asks about.
        address: Ipv4Addr,
    },
    /// It has another IPv4 source.
    #[error("IPv4 from {0}")]
    Ipv4(Ipv4Addr),
    /// It is for the host itself.
    #[error("IP to {0}, which is on no link")]
    Loopback(IpAddr),
    /// It has another IPv6 source.
    #[error("IPv6 from {0}")]
    Ipv6(Ipv6Addr),
    /// It says that an address is the guest's, or the guest a router, or where another router is.
    #[error("ICMPv6 of type {0} about an address that is not the guest's")]
    Neighbour(u8),
    /// It gives addresses to others, as a DHCP server.
    #[error("UDP from port {0}, a DHCP server's")]
    Server(u16),
    /// It is of a protocol that could carry any address.
    #[error("a frame of type {0:#06x}")]
    Type(u16),
    /// Its checksum, which the host is to write, is neither TCP's nor UDP's: it would change what was judged.
    #[error(
        "a checksum of what is from byte {start} on, put at {offset} from there, where TCP and UDP have none"
    )]
    Checksum {
        /// csum_start.
        start: u16,
        /// csum_offset.
        offset: u16,
    },
    /// It ends, or its headers do, before what must be judged.
    #[error("headers that are cut off or too long")]
    Truncated,
}

/// Bytes of a frame's beginning.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    /// `N` bytes from `at` on.
    fn get<const N: usize>(self, at: usize) -> Result<[u8; N], Spoof> {
        let found = self.0.get(at..).and_then(|rest| rest.first_chunk());
        found.copied().ok_or(Spoof::Truncated)
    }

    fn u8(self, at: usize) -> Result<u8, Spoof> {
        self.get(at).map(|[byte]| byte)
    }

    fn u16(self, at: usize) -> Result<u16, Spoof> {
        self.get(at).map(u16::from_be_bytes)
    }

    fn mac(self, at: usize) -> Result<Mac, Spoof> {
        self.get(at).map(Mac)
    }

    fn ipv4(self, at: usize) -> Result<Ipv4Addr, Spoof> {
        self.get::<4>(at).map(Ipv4Addr::from)
    }

    fn ipv6(self, at: usize) -> Result<Ipv6Addr, Spoof> {
        self.get::<16>(at).map(Ipv6Addr::from)
    }

    fn after(self, at: usize) -> Bytes<'a> {
        Bytes(self.0.get(at..).unwrap_or_default())
    }
}

impl Filter {
    /// Whether anything is pinned.
    pub fn is_open(&self) -> bool {
        let Self { mac, ipv4, ipv6, no_loopback } = self;
        mac.is_none() && ipv4.is_none() && ipv6.is_none() && !no_loopback
    }

    /// Judges a frame by its beginning: its first [`JUDGED`] bytes, or all of it.
    ///
    /// # Errors
    /// Why it must not be sent.
    pub fn judge(&self, beginning: &[u8]) -> Result<(), Spoof> {
        let frame = Bytes(beginning);
        let source = frame.mac(6)?;
        if self.mac.is_some_and(|mac| mac != source) {
            return Err(Spoof::Mac(source));
        }
        let (kind, packet) = (frame.u16(12)?, frame.after(ETHERNET));
        match kind {
            ethertype::ARP => self.judge_arp(packet),
            ethertype::IPV4 => self.judge_ipv4(packet),
            ethertype::IPV6 => self.judge_ipv6(packet),
            _ if self.ipv4.is_none() && self.ipv6.is_none() => Ok(()),
            kind => Err(Spoof::Type(kind)),
        }
    }

    /// Judges where the host is asked to write a checksum (from byte `start` of the frame on, at `offset` from there) in
    /// a frame that passes: after that, so it must be where nothing was judged. In IP that is the checksum of TCP or
    /// UDP, in ARP nowhere; in what is not looked into, anywhere behind the Ethernet header.
    ///
    /// # Errors
    /// It is elsewhere, or not to be found.
    pub fn judge_checksum(&self, beginning: &[u8], start: u16, offset: u16) -> Result<(), Spoof> {
        let frame = Bytes(beginning);
        let packet = frame.after(ETHERNET);
        let transport = match frame.u16(12)? {
            ethertype::IPV4 => ipv4_transport(packet)?,
            ethertype::IPV6 => ipv6_transport(packet)?,
            ethertype::ARP => None,
            _ => return Ok(()),
        };
        let is_there = transport.is_some_and(|Transport { protocol, at }| {
            let place = match protocol {
                protocol::TCP => TCP_CHECKSUM,
                protocol::UDP => UDP_CHECKSUM,
                _ => return false,
            };
            usize::from(start) == ETHERNET + at && offset == place
        });
        if is_there { Ok(()) } else { Err(Spoof::Checksum { start, offset }) }
    }

    /// ARP for Ethernet and IPv4. A sender without an address asks whether one is free (RFC 5227).
    fn judge_arp(&self, packet: Bytes<'_>) -> Result<(), Spoof> {
        if self.mac.is_none() && self.ipv4.is_none() {
            return Ok(());
        }
        let (mac, sender) = (packet.mac(8)?, packet.ipv4(14)?);
        let is_ethernet = packet.get(0)? == [0, 1, 8, 0, 6, 4];
        let address = if sender.is_unspecified() { packet.ipv4(24)? } else { sender };
        let is_own = |own: &Vec<Ipv4Addr>| own.contains(&address);
        let mac_is_own = self.mac.is_none_or(|own| own == mac);
        if is_ethernet && mac_is_own && self.ipv4.as_ref().is_none_or(is_own) {
            return Ok(());
        }
        Err(Spoof::Arp { mac, address })
    }

    fn judge_ipv4(&self, packet: Bytes<'_>) -> Result<(), Spoof> {
        if self.no_loopback {
            let destination = packet.ipv4(16)?;
            if let [0 | 127, ..] = destination.octets() {
                return Err(Spoof::Loopback(destination.into()));
            }
        }
        let Some(own) = &self.ipv4 else { return Ok(()) };
        let source = packet.ipv4(12)?;
        let is_version_4 = packet.u8(0)? >> 4 == 4;
        if !is_version_4 || !(own.contains(&source) || is_dhcp_request(packet)?) {
            return Err(Spoof::Ipv4(source));
        }
        // The ports are in the first fragment.
        let is_udp = packet.u8(9)? == protocol::UDP && packet.u16(6)? & 0x1FFF == 0;
        if is_udp && packet.after(ipv4_header(packet)?).u16(0)? == DHCP_SERVER {
            return Err(Spoof::Server(DHCP_SERVER));
        }
        Ok(())
    }

    fn judge_ipv6(&self, packet: Bytes<'_>) -> Result<(), Spoof> {
        if self.no_loopback {
            let destination = packet.ipv6(24)?;
            if means_the_host(destination) {
                return Err(Spoof::Loopback(destination.into()));
            }
        }
        let Some(own) = &self.ipv6 else { return Ok(()) };
        let is_own = |address: Ipv6Addr| own.contains(&address) || self.link_local() == Some(address);
        let source = packet.ipv6(8)?;
        let is_version_6 = packet.u8(0)? >> 4 == 6;
        // Without an address it asks whether one is free (RFC 4862), and says nothing else about any.
        if !is_version_6 || !(is_own(source) || source.is_unspecified()) {
            return Err(Spoof::Ipv6(source));
        }
        // What is in a later fragment is ignored where it says anything about neighbours (RFC 6980).
        let Some(Transport { protocol, at }) = ipv6_transport(packet)? else { return Ok(()) };
        let message = packet.after(at);
        match protocol {
            protocol::ICMPV6 => {}
            protocol::UDP if message.u16(0)? == DHCPV6_SERVER => return Err(Spoof::Server(DHCPV6_SERVER)),
            _ => return Ok(()),
        }
        match message.u8(0)? {
            kind @ (icmpv6::ROUTER_ADVERTISEMENT | icmpv6::REDIRECT) => Err(Spoof::Neighbour(kind)),
            kind @ icmpv6::NEIGHBOUR_ADVERTISEMENT if !is_own(message.ipv6(8)?) => {
                Err(Spoof::Neighbour(kind))
            }
            // Whoever uses that address would give it up.
            kind @ icmpv6::NEIGHBOUR_SOLICITATION if source.is_unspecified() && !is_own(message.ipv6(8)?) => {
                Err(Spoof::Neighbour(kind))
            }
            _ => Ok(()),
        }
    }

    /// The address that an interface gives itself (RFC 4291, appendix A).
    fn link_local(&self) -> Option<Ipv6Addr> {
        self.mac.map(|Mac(mac)| eui64(Ipv6Addr::new(0xFE80, 0, 0, 0, 0, 0, 0, 0), mac))
    }
}

/// Whether an IPv4 packet asks for an address (RFC 2131): from nobody, UDP from port 68 to 67, in one piece.
fn is_dhcp_request(packet: Bytes<'_>) -> Result<bool, Spoof> {
    let is_whole = packet.u16(6)? & 0x3FFF == 0;
    if !packet.ipv4(12)?.is_unspecified() || packet.u8(9)? != protocol::UDP || !is_whole {
        return Ok(false);
    }
    let ports = packet.after(ipv4_header(packet)?);
    Ok((ports.u16(0)?, ports.u16(2)?) == (68, 67))
}

/// Whether an IPv6 address is that of nobody or of the host itself, or may be taken for one of IPv4 that is: `::/96` of
/// these, and all of `::ffff:0:0/96`, which are not for use on a link (RFC 4291, section 2.5).
fn means_the_host(address: Ipv6Addr) -> bool {
    match address.segments() {
        [0, 0, 0, 0, 0, 0xFFFF, ..] => true,
        [0, 0, 0, 0, 0, 0, high, _] => matches!(high >> 8, 0 | 127),
        _ => false,
    }
}

/// What an IP packet carries.
struct Transport {
    protocol: u8,
    /// Where it begins in the packet.
    at: usize,
}

/// Bytes that an IPv4 packet says its header has.
fn ipv4_header(packet: Bytes<'_>) -> Result<usize, Spoof> {
    packet.u8(0).map(|first| usize::from(first & 0xF) * 4)
}

/// What an IPv4 packet carries, if it is not a fragment.
fn ipv4_transport(packet: Bytes<'_>) -> Result<Option<Transport>, Spoof> {
    let (first, at) = (packet.u8(0)?, ipv4_header(packet)?);
    let is_whole = first >> 4 == 4 && at >= IPV4 && packet.u16(6)? & 0x3FFF == 0;
    let protocol = packet.u8(9)?;
    Ok(is_whole.then_some(Transport { protocol, at }))
}

/// What an IPv6 packet carries behind its extension headers, if it is not a later fragment.
fn ipv6_transport(packet: Bytes<'_>) -> Result<Option<Transport>, Spoof> {
    let (mut protocol, mut at) = (packet.u8(6)?, IPV6);
    loop {
        let header = packet.after(at);
        let len = match protocol {
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION => {
                usize::from(header.u8(1)?) * 8 + 8
            }
            protocol::FRAGMENT if header.u16(2)? & 0xFFF8 != 0 => return Ok(None),
            protocol::FRAGMENT => 8,
            _ => return Ok(Some(Transport { protocol, at })),
        };
        protocol = header.u8(0)?;
        // Ends: every header takes at least eight bytes of what there is.
        at += len;
    }
}

#[cfg(test)]
#[path = "filter_test.rs"]
mod tests;
