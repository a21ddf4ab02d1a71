//! Feature bits and configuration space of a network interface (virtio 1.2, sections 5.1.3 and 5.1.4).
//!
//! Owns their layout, and which features need which others. Pure: never knows a queue or the host.

use std::mem::offset_of;

use ringlet_io::net::{NetInfo, Offloads};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP, virtio_net_config,
};

/// Bytes of the configuration space: mac, status, max_virtqueue_pairs, mtu.
pub const CONFIG_LEN: usize = offset_of!(virtio_net_config, speed);
/// Smallest MTU that may be offered (section 5.1.4.1).
pub const MIN_MTU: u16 = 68;

/// Features of received packets, each of which the driver may turn off later (section 5.1.6.5.6.1).
const GUEST_OFFLOADS: [u32; 7] = [
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_UFO,
    VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6,
];

/// Each of these needs one of those (section 5.1.3.1).
const NEEDS: [(u32, &[u32]); 16] = [
    (VIRTIO_NET_F_GUEST_TSO4, &[VIRTIO_NET_F_GUEST_CSUM]),
    (VIRTIO_NET_F_GUEST_TSO6, &[VIRTIO_NET_F_GUEST_CSUM]),
    (VIRTIO_NET_F_GUEST_ECN, &[VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6]),
    (VIRTIO_NET_F_GUEST_UFO, &[VIRTIO_NET_F_GUEST_CSUM]),
    (VIRTIO_NET_F_GUEST_USO4, &[VIRTIO_NET_F_GUEST_CSUM]),
    (VIRTIO_NET_F_GUEST_USO6, &[VIRTIO_NET_F_GUEST_CSUM]),
    (VIRTIO_NET_F_HOST_TSO4, &[VIRTIO_NET_F_CSUM]),
    (VIRTIO_NET_F_HOST_TSO6, &[VIRTIO_NET_F_CSUM]),
    (VIRTIO_NET_F_HOST_ECN, &[VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6]),
    (VIRTIO_NET_F_HOST_UFO, &[VIRTIO_NET_F_CSUM]),
    (VIRTIO_NET_F_HOST_USO, &[VIRTIO_NET_F_CSUM]),
    (VIRTIO_NET_F_CTRL_RX, &[VIRTIO_NET_F_CTRL_VQ]),
    (VIRTIO_NET_F_CTRL_RX_EXTRA, &[VIRTIO_NET_F_CTRL_VQ]),
    (VIRTIO_NET_F_MQ, &[VIRTIO_NET_F_CTRL_VQ]),
    (VIRTIO_NET_F_CTRL_MAC_ADDR, &[VIRTIO_NET_F_CTRL_VQ]),
    (VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, &[VIRTIO_NET_F_CTRL_VQ]),
];

/// A feature bit of this device type as a mask.
pub(crate) const fn bit(feature: u32) -> u64 {
    1 << feature
}

const fn has(features: u64, feature: u32) -> bool {
    features & bit(feature) != 0
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Whether an interface may have it: it is of one station, and not all zeroes.
    pub fn is_station(self) -> bool {
        let Self([first, ..]) = self;
        first & 1 == 0 && self.0 != [0; 6]
    }
}

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self([a, b, c, d, e, g]) = self;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// What a driver can know about the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Its address.
    pub mac: Mac,
    /// The driver may give it another one.
    pub mac_changes: bool,
    /// Bytes of the largest packet behind the Ethernet header, if there is a limit to tell of.
    pub mtu: Option<u16>,
    /// Pairs of queues, at least 1.
    pub pairs: u16,
    /// What packets may leave unfinished, either way.
    pub offloads: Offloads,
}

impl Layout {
    /// The device-specific feature bits on offer.
    pub fn features(&self) -> u64 {
        let Offloads { checksum, tso4, tso6, ecn, ufo, uso4, uso6 } = match self.offloads.checksum {
            true => self.offloads,
            false => Offloads::NONE,
        };
        let offered = [
            (true, VIRTIO_NET_F_MAC),
            (true, VIRTIO_NET_F_STATUS),
            (true, VIRTIO_NET_F_MRG_RXBUF),
            (true, VIRTIO_NET_F_CTRL_VQ),
            (true, VIRTIO_NET_F_CTRL_RX),
            (true, VIRTIO_NET_F_CTRL_RX_EXTRA),
            (self.mac_changes, VIRTIO_NET_F_CTRL_MAC_ADDR),
            (self.mtu.is_some(), VIRTIO_NET_F_MTU),
            (self.pairs > 1, VIRTIO_NET_F_MQ),
            (checksum, VIRTIO_NET_F_CSUM),
            (checksum, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS),
            (tso4, VIRTIO_NET_F_HOST_TSO4),
            (tso6, VIRTIO_NET_F_HOST_TSO6),
            ((tso4 || tso6) && ecn, VIRTIO_NET_F_HOST_ECN),
            (ufo, VIRTIO_NET_F_HOST_UFO),
            (uso4 && uso6, VIRTIO_NET_F_HOST_USO),
        ];
        let bits = offered.into_iter().filter(|(offered, _)| *offered);
        bits.fold(guest_bits(self.offloads), |features, (_, feature)| features | bit(feature))
    }

    /// The configuration space. Fields of features that are not on offer are 0.
    pub fn bytes(&self, mac: Mac, link_up: bool) -> [u8; CONFIG_LEN] {
        let status = if link_up { VIRTIO_NET_S_LINK_UP as u16 } else { 0 };
        let pairs = if self.pairs > 1 { self.pairs } else { 0 };
        let fields: [(usize, &[u8]); 4] = [
            (offset_of!(virtio_net_config, mac), &mac.0),
            (offset_of!(virtio_net_config, status), &status.to_le_bytes()),
            (offset_of!(virtio_net_config, max_virtqueue_pairs), &pairs.to_le_bytes()),
            (offset_of!(virtio_net_config, mtu), &self.mtu.unwrap_or(0).to_le_bytes()),
        ];
        let mut space = [0; CONFIG_LEN];
        for (offset, bytes) in fields {
            space.iter_mut().skip(offset).zip(bytes).for_each(|(target, byte)| *target = *byte);
        }
        space
    }
}

/// The features of received packets that stand for these offloads. What needs a checksum has one, and ECN is a matter
/// of TCP segments; an offload without what it needs stands for nothing.
pub(crate) fn guest_bits(offloads: Offloads) -> u64 {
    let Offloads { checksum, tso4, tso6, ecn, ufo, uso4, uso6 } = offloads;
    let which = [checksum, tso4, tso6, ecn && (tso4 || tso6), ufo, uso4, uso6];
    let bits = GUEST_OFFLOADS.into_iter().zip(which).filter(|(_, has)| *has && checksum);
    bits.fold(0, |bits, (feature, _)| bits | bit(feature))
}

/// All features of received packets among `features`.
pub(crate) fn guest_offload_bits(features: u64) -> u64 {
    GUEST_OFFLOADS.into_iter().fold(0, |mask, feature| mask | bit(feature)) & features
}

/// The offloads that these features of received packets stand for.
pub(crate) fn guest_offloads(features: u64) -> Offloads {
    let has = |feature| has(features, feature);
    Offloads {
        checksum: has(VIRTIO_NET_F_GUEST_CSUM),
        tso4: has(VIRTIO_NET_F_GUEST_TSO4),
        tso6: has(VIRTIO_NET_F_GUEST_TSO6),
        ecn: has(VIRTIO_NET_F_GUEST_ECN),
        ufo: has(VIRTIO_NET_F_GUEST_UFO),
        uso4: has(VIRTIO_NET_F_GUEST_USO4),
        uso6: has(VIRTIO_NET_F_GUEST_USO6),
    }
}

/// Whether each feature comes with what it needs.
pub(crate) fn is_consistent(features: u64) -> bool {
    NEEDS
        .iter()
        .all(|(feature, needs)| !has(features, *feature) || needs.iter().any(|needed| has(features, *needed)))
}

/// The MTU to tell of, if the host's side has one that can be told.
pub(crate) fn mtu_of(info: &NetInfo) -> Option<u16> {
    info.mtu.filter(|mtu| *mtu >= MIN_MTU)
}

#[cfg(test)]
#[path = "config_test.rs"]
mod tests;
