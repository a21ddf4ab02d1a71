//! Routers of IPv6: how they are asked (RFC 4861, 6.3.7), and what one advertises (RFC 4861, 6.1.2; RFC 4862, 5.5).
//! Plain arithmetic on bytes, so that it can be tested anywhere.

use core::net::Ipv6Addr;

/// Bytes of the headers of Ethernet and IPv6.
const ETHERNET: usize = 14;
const HEADERS: usize = ETHERNET + 40;
const IPV6: [u8; 2] = [0x86, 0xdd];
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;
/// Bytes of an advertisement before its options.
const ADVERTISEMENT_LEN: usize = 16;
/// Options: the sender's address, in units of 8 bytes; a prefix, of which an address may be made.
const SOURCE: [u8; 2] = [1, 1];
const PREFIX: [u8; 2] = [3, 4];
const AUTONOMOUS: u8 = 0x40;
/// Packets of this kind are passed on by no router.
const HOP_LIMIT: u8 = 255;
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const ALL_ROUTERS_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 2];
/// The network of link-local addresses.
pub(super) const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);

/// How often routers are asked, and how many nanoseconds one has to answer.
const SOLICITATIONS: u8 = 3;
const INTERVAL: u64 = 4_000_000_000;

/// When routers are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Solicitor {
    left: u8,
    at: u64,
}

impl Solicitor {
    /// Asks from `now` on.
    pub(super) fn new(now: u64) -> Self {
        Self { left: SOLICITATIONS, at: now }
    }

    /// When to ask next, if at all.
    pub(super) fn due(&self) -> Option<u64> {
        (self.left > 0).then_some(self.at)
    }

    /// A router was asked.
    pub(super) fn asked(&mut self, now: u64) {
        self.left = self.left.saturating_sub(1);
        self.at = now + INTERVAL;
    }

    /// A router has answered: no other is asked.
    pub(super) fn answered(&mut self) {
        self.left = 0;
    }
}

/// What a router says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Advertised {
    pub(super) router: Ipv6Addr,
    /// Whether it leads to other networks.
    pub(super) leads: bool,
    /// A network of 64 bits in which everybody makes an address, and whether it is there: not, if it is there no more.
    pub(super) network: Option<(Ipv6Addr, bool)>,
}

/// The frame that asks all routers.
#[must_use]
pub(super) fn solicitation(mac: [u8; 6]) -> [u8; HEADERS + 16] {
    let source = own_address(LINK_LOCAL, mac);
    let mut frame = [0; HEADERS + 16];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    [&ALL_ROUTERS_MAC[..], &mac, &IPV6].into_iter().for_each(&mut put);
    [&[0x60, 0, 0, 0, 0, 16, ICMPV6, HOP_LIMIT], &source.octets()[..], &ALL_ROUTERS.octets()]
        .into_iter()
        .for_each(&mut put);
    [&[SOLICITATION, 0, 0, 0, 0, 0, 0, 0][..], &SOURCE, &mac].into_iter().for_each(&mut put);
    let sum = !sum(&frame[ETHERNET..]);
    frame[HEADERS + 2..HEADERS + 4].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// What a frame says, if it is a router's advertisement that may be believed.
#[must_use]
pub(super) fn advertised(frame: &[u8]) -> Option<Advertised> {
    let packet = frame.get(ETHERNET..)?;
    let [first, _, _, _, high, low, ICMPV6, HOP_LIMIT, rest @ ..] = packet else { return None };
    let is_ipv6 = frame.get(12..ETHERNET) == Some(&IPV6) && first >> 4 == 6;
    let router = Ipv6Addr::from(*rest.first_chunk::<16>()?);
    let message = rest.get(32..32 + usize::from(u16::from_be_bytes([*high, *low])))?;
    let [ADVERTISEMENT, 0, ..] = message else { return None };
    let whole = packet.get(..40 + message.len())?;
    if !is_ipv6 || !router.is_unicast_link_local() || sum(whole) != u16::MAX {
        return None;
    }
    let leads = message.get(6..8)? != [0, 0];
    let mut told = Advertised { router, leads, network: None };
    let mut options = message.get(ADVERTISEMENT_LEN..)?;
    while let [_, units, ..] = options {
        let option = options.get(..usize::from(*units) * 8).filter(|option| !option.is_empty())?;
        told.network = told.network.or_else(|| network(option));
        options = options.get(option.len()..)?;
    }
    Some(told)
}

/// The network of an option, and whether it is there.
fn network(option: &[u8]) -> Option<(Ipv6Addr, bool)> {
    let [a, b, 64, flags, v0, v1, v2, v3, _, _, _, _, _, _, _, _, prefix @ ..] = option else { return None };
    let network = Ipv6Addr::from(*prefix.first_chunk::<16>()?);
    let is_meant = [*a, *b] == PREFIX && flags & AUTONOMOUS != 0;
    let is_unicast = !network.is_multicast() && !network.is_unicast_link_local();
    (is_meant && is_unicast).then_some((network, [*v0, *v1, *v2, *v3] != [0; 4]))
}

/// One's own address in a network of 64 bits (RFC 4291, appendix A).
#[must_use]
pub(super) fn own_address(network: Ipv6Addr, [a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    let [n0, n1, n2, n3, ..] = network.segments();
    let pair = |high, low| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(n0, n1, n2, n3, pair(a ^ 2, b), pair(c, 0xff), pair(0xfe, d), pair(e, f))
}

/// Sum of a packet of ICMPv6 and its pseudo header (RFC 8200, 8.1): all ones if its checksum is right.
fn sum(packet: &[u8]) -> u16 {
    let (header, message) = packet.split_at_checked(40).unwrap_or_default();
    let addresses = header.get(8..).unwrap_or_default();
    let words = addresses.chunks(2).chain(message.chunks(2));
    let word = |chunk: &[u8]| u32::from(chunk[0]) << 8 | chunk.get(1).map_or(0, |&low| u32::from(low));
    let mut sum = words.map(word).sum::<u32>() + message.len() as u32 + u32::from(ICMPV6);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
