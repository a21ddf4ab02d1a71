//! Network interfaces of a VM, in Firecracker's words (`network-interfaces`); what it has no words for stands under
//! `ringlet` in each.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use ringlet_devices::net::config::MIN_MTU;
use ringlet_devices::net::{MAX_PAIRS, Mac};
use ringlet_io::limiter::Limits;
use ringlet_io::net::{PasstOptions, Publish};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::devices::{DEFAULT_QUEUE_SIZE, MAX_DRIVE_ID, MAX_QUEUE_SIZE, MIN_QUEUE_SIZE, check_device_id};
use super::firecracker;
use super::rate_limiter::RateLimiter;
use crate::error::{Error, Result};

/// Longest `iface_id` in bytes.
pub const MAX_IFACE_ID: usize = MAX_DRIVE_ID;
/// Most pairs of queues of an interface.
pub const MAX_QUEUE_PAIRS: u16 = MAX_PAIRS;
/// Most ports that an interface publishes.
pub const MAX_PUBLISHED: usize = 256;
/// Smallest MTU in bytes.
pub const MIN_NET_MTU: u16 = MIN_MTU;

/// A network interface, in Firecracker's words. Its host's side is a tap, or what `ringlet` says instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct NetworkInterface {
    /// The interface's name: 1 to [`MAX_IFACE_ID`] letters, digits, `-` and `_`, its own in the VM.
    pub iface_id: String,
    /// The tap that is the host's side: it is made if there is none, which takes a privilege. Absent with
    /// [`NetExtras::fds`], [`NetExtras::socket`] or [`NetExtras::passt`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_dev_name: Option<String>,
    /// The guest's Ethernet address; a random one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<MacAddress>,
    /// Bytes of the largest packet that the guest is told of, [`MIN_NET_MTU`] or more; what the host's side says if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Limits of what the guest receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Limits of what the guest sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
    /// What Firecracker has no words for.
    #[serde(default)]
    pub ringlet: NetExtras,
}

firecracker::known_to_firecracker!(NetworkInterface, firecracker::INTERFACE);

/// What Firecracker's network interfaces have no words for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetExtras {
    /// Descriptors of this process instead of a name: those of a tap, one a pair of queues, or one of a connected Unix
    /// socket.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fds: Vec<i32>,
    /// The Unix stream socket of a user-mode network (passt's and QEMU's protocol), instead of a tap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// A user-mode network of its own, by the program passt(1), instead of a tap: it takes no privilege. Started and ended
    /// with the VM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passt: Option<Passt>,
    /// Pairs of queues, 1 to [`MAX_QUEUE_PAIRS`]; only of a tap that is opened by name. Descriptors are as many as there
    /// are, a socket is one.
    pub queues: u16,
    /// Descriptors of a queue: a power of two, [`MIN_QUEUE_SIZE`] to [`MAX_QUEUE_SIZE`].
    pub queue_size: u16,
    /// Whether the guest sends from its own addresses only: addresses, or `true` or `false`. If absent, a VM of a tenant's
    /// sends from its own Ethernet address only, and another one from any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anti_spoof: Option<Pinning>,
}

impl Default for NetExtras {
    fn default() -> Self {
        Self {
            fds: Vec::new(),
            socket: None,
            passt: None,
            queues: 1,
            queue_size: DEFAULT_QUEUE_SIZE,
            anti_spoof: None,
        }
    }
}

/// A user-mode network: the guest, whose address is 10.0.2.15 by DHCP, reaches what this user reaches, but for the
/// loopback addresses of the host; the host reaches what is published. If the host has a default route of IPv6, so has the
/// guest, with an address in fd00:10:0:2::/64 that routers and DHCPv6 tell. DHCP tells of the host's resolvers, and
/// one on a loopback address of the host answers at 10.0.2.3.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Passt {
    /// Ports of the host that lead to the guest, each written `[ADDRESS:]HOST:GUEST[/udp]`, such as `8080:80`; at most
    /// [`MAX_PUBLISHED`].
    #[serde(with = "published", skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<Publish>,
}

/// Published ports as text.
mod published {
    use ringlet_io::net::Publish;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(ports: &[Publish], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(ports.iter().map(Publish::to_string))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Publish>, D::Error> {
        let words = Vec::<String>::deserialize(from)?;
        words.iter().map(|word| word.parse().map_err(D::Error::custom)).collect()
    }
}

impl Passt {
    fn validate(&self) -> Result<(), String> {
        if self.publish.len() > MAX_PUBLISHED {
            return Err(format!("{} ports are published; {MAX_PUBLISHED} is the most", self.publish.len()));
        }
        for (index, port) in self.publish.iter().enumerate() {
            let taken = |other: &&Publish| {
                (other.host, other.transport) == (port.host, port.transport)
                    && (other.address == port.address || other.address.is_none() || port.address.is_none())
            };
            if let Some(other) = self.publish.iter().take(index).find(taken) {
                return Err(format!("{other} and {port} are one port of the host"));
            }
        }
        Ok(())
    }
}

/// The addresses that a guest may send from, besides its Ethernet address, which it can then not change. Where those of
/// IPv4 or IPv6 are pinned, it can be no server of DHCP or DHCPv6 either.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AntiSpoof {
    /// Addresses of IPv4; any if absent, none if empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<Vec<Ipv4Addr>>,
    /// Addresses of IPv6, besides the link-local one that follows from the Ethernet address; any if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Vec<Ipv6Addr>>,
}

/// Whether a guest's addresses are pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pinning {
    /// It sends from any.
    Off,
    /// It sends from its Ethernet address only, and from these.
    On(AntiSpoof),
}

impl Serialize for Pinning {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => to.serialize_bool(false),
            Self::On(addresses) => addresses.serialize(to),
        }
    }
}

impl<'de> Deserialize<'de> for Pinning {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Pinning;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false or addresses")
            }

            fn visit_bool<E>(self, on: bool) -> Result<Pinning, E> {
                Ok(if on { Pinning::On(AntiSpoof::default()) } else { Pinning::Off })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Pinning, A::Error> {
                AntiSpoof::deserialize(MapAccessDeserializer::new(map)).map(Pinning::On)
            }
        }
        from.deserialize_any(Either)
    }
}

/// An Ethernet address of one station, written `02:00:00:00:00:01`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("{text:?} is not an address of one station, such as 02:00:00:00:00:01");
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(refused)?;
            let digits = part.bytes().all(|digit| digit.is_ascii_hexdigit());
            *byte = u8::from_str_radix(part, 16).ok().filter(|_| digits).ok_or_else(refused)?;
        }
        let is_whole = parts.next().is_none() && Mac(bytes).is_station();
        is_whole.then_some(Self(bytes)).ok_or_else(refused)
    }
}

impl TryFrom<String> for MacAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Mac(self.0).fmt(f)
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

impl NetworkInterface {
    fn new(id: impl Into<String>) -> Self {
        Self {
            iface_id: id.into(),
            host_dev_name: None,
            guest_mac: None,
            mtu: None,
            rx_rate_limiter: None,
            tx_rate_limiter: None,
            ringlet: NetExtras::default(),
        }
    }

    /// An interface whose host's side is the tap of this name.
    pub fn tap(id: impl Into<String>, name: impl Into<String>) -> Self {
        Self { host_dev_name: Some(name.into()), ..Self::new(id) }
    }

    /// An interface whose host's side are these descriptors, which stay open, but become close-on-exec.
    pub fn fds(id: impl Into<String>, fds: impl IntoIterator<Item = i32>) -> Self {
        let mut interface = Self::new(id);
        interface.ringlet.fds = fds.into_iter().collect();
        interface
    }

    /// An interface whose host's side is behind a Unix stream socket.
    pub fn socket(id: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        let mut interface = Self::new(id);
        interface.ringlet.socket = Some(path.into());
        interface
    }

    /// An interface whose host's side is a user-mode network of its own.
    pub fn passt(id: impl Into<String>) -> Self {
        let mut interface = Self::new(id);
        interface.ringlet.passt = Some(Passt::default());
        interface
    }

    /// Lets a port of the host lead to the guest; only of a user-mode network of its own.
    #[must_use]
    pub fn publish(mut self, port: Publish) -> Self {
        self.ringlet.passt.get_or_insert_default().publish.push(port);
        self
    }

    /// The guest's Ethernet address.
    #[must_use]
    pub fn mac(mut self, mac: MacAddress) -> Self {
        self.guest_mac = Some(mac);
        self
    }

    /// Bytes of the largest packet that the guest is told of.
    #[must_use]
    pub fn mtu(mut self, mtu: u16) -> Self {
        self.mtu = Some(mtu);
        self
    }

    /// Pairs of queues.
    #[must_use]
    pub fn queues(mut self, pairs: u16) -> Self {
        self.ringlet.queues = pairs;
        self
    }

    /// The guest sends nothing but from these addresses.
    #[must_use]
    pub fn anti_spoof(mut self, addresses: AntiSpoof) -> Self {
        self.ringlet.anti_spoof = Some(Pinning::On(addresses));
        self
    }

    /// Limits of what the guest receives and sends.
    #[must_use]
    pub fn rate_limiters(mut self, received: RateLimiter, sent: RateLimiter) -> Self {
        (self.rx_rate_limiter, self.tx_rate_limiter) = (Some(received), Some(sent));
        self
    }

    /// What its passt is told, of a guest with this Ethernet address.
    pub(crate) fn passt_options(&self, passt: &Passt, mac: Mac) -> PasstOptions {
        PasstOptions { publish: passt.publish.clone(), mtu: self.mtu, mac: mac.0 }
    }

    /// The limits that the interface's level is to have: what is received is read, what is sent is written.
    pub(crate) fn limits(&self) -> Limits {
        let unit = |limiter: Option<RateLimiter>| limiter.unwrap_or_default().limits().total;
        Limits { read: unit(self.rx_rate_limiter), write: unit(self.tx_rate_limiter), ..Limits::default() }
    }

    /// Checks every range that does not depend on the host.
    pub(super) fn validate(&self) -> Result<()> {
        check_device_id("iface_id", &self.iface_id)?;
        let NetExtras { fds, socket, passt, queues, queue_size, .. } = &self.ringlet;
        let sides = [self.host_dev_name.is_some(), !fds.is_empty(), socket.is_some(), passt.is_some()];
        match sides.into_iter().filter(|side| *side).count() {
            0 => {
                return self.refuse(
                    "host_dev_name",
                    "is missing; or give `fds`, `socket` or `passt` under `ringlet`",
                );
            }
            1 => {}
            _ => return self.refuse("host_dev_name", "give one of host_dev_name, fds, socket and passt"),
        }
        passt.as_ref().map_or(Ok(()), Passt::validate).or_else(|why| self.refuse("publish", why))?;
        if fds.iter().any(|fd| *fd < 0) {
            return self.refuse("fds", "a descriptor is 0 or more");
        }
        if *queues != 1 && self.host_dev_name.is_none() {
            return self.refuse("queues", "only of a tap that is opened by name");
        }
        let pairs = u16::try_from(fds.len()).unwrap_or(u16::MAX).max(*queues);
        if *queues == 0 || pairs > MAX_QUEUE_PAIRS {
            return self.refuse("queues", format!("{pairs} is not in 1..={MAX_QUEUE_PAIRS}"));
        }
        if !(MIN_QUEUE_SIZE..=MAX_QUEUE_SIZE).contains(queue_size) || !queue_size.is_power_of_two() {
            let rule = format!("{queue_size} is not a power of two in {MIN_QUEUE_SIZE}..={MAX_QUEUE_SIZE}");
            return self.refuse("queue_size", rule);
        }
        if let Some(mtu) = self.mtu.filter(|mtu| *mtu < MIN_NET_MTU) {
            return self.refuse("mtu", format!("{mtu} is not in {MIN_NET_MTU}..=65535"));
        }
        for (field, limiter) in
            [("rx_rate_limiter", self.rx_rate_limiter), ("tx_rate_limiter", self.tx_rate_limiter)]
        {
            limiter.map_or(Ok(()), |limiter| limiter.validate()).or_else(|why| self.refuse(field, why))?;
        }
        Ok(())
    }

    fn refuse(&self, field: &'static str, reason: impl AsRef<str>) -> Result<()> {
        let text = format!("of network interface {:?}: {}", self.iface_id, reason.as_ref());
        Err(Error::config(field, text))
    }
}

#[cfg(test)]
#[path = "net_test.rs"]
mod tests;
