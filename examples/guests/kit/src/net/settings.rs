//! What a guest is told about its network: words of the command line, or arguments.

use alloc::vec::Vec;
use core::net::IpAddr;

/// Addresses that an interface can have, beside its link-local one.
pub const ADDRESSES_MAX: usize = 3;
/// Pairs of queues that may be used.
pub const PAIRS_MAX: u16 = 8;
/// How long DHCP and routers may take.
const PATIENCE: u64 = 15_000_000_000;

/// How the network is to be set up. Without an address of IPv4, DHCP is asked for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Addresses with the length of their network's prefix.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Where packets for other networks go.
    pub gateways: Vec<IpAddr>,
    /// Who is asked for the addresses of names; whom DHCP tells of, if there is none.
    pub resolvers: Vec<IpAddr>,
    /// Whether to ask for an address of IPv4.
    pub dhcp: bool,
    /// Whether to wait for an address of IPv6 that a router advertises.
    pub slaac: bool,
    /// Nanoseconds that these may take.
    pub patience: u64,
    /// Which network device, in the order of the command line.
    pub device: usize,
    /// Whether the device may do checksums and hand in packets larger than the MTU.
    pub offloads: bool,
    /// How many pairs of queues to set up and use, if the device has so many: 1 to [`PAIRS_MAX`].
    pub queues: u16,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            gateways: Vec::new(),
            resolvers: Vec::new(),
            dhcp: true,
            slaac: false,
            patience: PATIENCE,
            device: 0,
            offloads: true,
            queues: 1,
        }
    }
}

/// A word that is one of these, but whose value makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Senseless(
    /// What the word should be.
    pub &'static str,
);

const IP: Senseless =
    Senseless("ip= takes ADDRESS/PREFIX, dhcp, slaac, or ADDRESS::GATEWAY:NETMASK as Linux has it");
const GATEWAY: Senseless = Senseless("gw= takes an address, one of IPv4 and one of IPv6");
const DNS: Senseless = Senseless("dns= takes an address, once");
const NET: Senseless = Senseless("net= takes the number of a network device, from 0");
const QUEUES: Senseless = Senseless("queues= takes a number of pairs, 1 to 8");
const OFFLOADS: Senseless = Senseless("offloads= takes on or off");

impl Settings {
    /// What the words say that are about the network; others are ignored.
    ///
    /// # Errors
    /// One of them makes no sense.
    pub fn of<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, Senseless> {
        let mut settings = Self::default();
        for word in words {
            settings.set(word)?;
        }
        Ok(settings)
    }

    /// Whether to ask routers for an address of IPv6: where it is waited for, and where nothing is given but DHCP gives all.
    #[must_use]
    pub fn asks_routers(&self) -> bool {
        let is_given = self.addresses.iter().any(|(address, _)| address.is_ipv6());
        self.slaac || self.dhcp && !is_given && !self.gateways.iter().any(IpAddr::is_ipv6)
    }

    /// Takes a word: `ip=ADDRESS/PREFIX` (of IPv4 or IPv6, any number of times), `ip=dhcp`, `ip=slaac`, `gw=ADDRESS`,
    /// `dns=ADDRESS`, `net=N`, `queues=N`, `offloads=on|off`. Whether it was one of these.
    ///
    /// # Errors
    /// It was, but its value makes no sense.
    pub fn set(&mut self, word: &str) -> Result<bool, Senseless> {
        let Some((key, value)) = word.split_once('=') else { return Ok(false) };
        match key {
            "ip" => self.set_address(value).ok_or(IP)?,
            "gw" => self.add_gateway(value).ok_or(GATEWAY)?,
            "dns" if self.resolvers.is_empty() => self.resolvers.push(value.parse().map_err(|_| DNS)?),
            "dns" => return Err(DNS),
            "net" => self.device = value.parse().map_err(|_| NET)?,
            "queues" => {
                let pairs = value.parse().ok().filter(|pairs| (1..=PAIRS_MAX).contains(pairs));
                self.queues = pairs.ok_or(QUEUES)?;
            }
            "offloads" if value == "on" || value == "off" => self.offloads = value == "on",
            "offloads" => return Err(OFFLOADS),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn set_address(&mut self, value: &str) -> Option<()> {
        if matches!(value, "dhcp" | "on" | "any") {
            self.dhcp = true;
            return Some(());
        }
        if value == "slaac" {
            self.slaac = true;
            return Some(());
        }
        let (address, prefix) = match value.split_once('/') {
            Some((address, prefix)) => (address.parse::<IpAddr>().ok()?, prefix.parse().ok()?),
            None => self.set_as_linux(value)?,
        };
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let unicast = !address.is_multicast() && !address.is_unspecified();
        if prefix > longest || !unicast || self.addresses.len() == ADDRESSES_MAX {
            return None;
        }
        self.dhcp &= !address.is_ipv4();
        self.addresses.push((address, prefix));
        Some(())
    }

    /// One of each family.
    fn add_gateway(&mut self, value: &str) -> Option<()> {
        let gateway: IpAddr = value.parse().ok()?;
        let known = self.gateways.iter().any(|known| known.is_ipv4() == gateway.is_ipv4());
        (!known).then(|| self.gateways.push(gateway))
    }

    /// `ADDRESS:SERVER:GATEWAY:NETMASK`, and what may follow that (Documentation/admin-guide/nfs/nfsroot.rst).
    fn set_as_linux(&mut self, value: &str) -> Option<(IpAddr, u8)> {
        let mut fields = value.split(':');
        let address = fields.next()?.parse::<core::net::Ipv4Addr>().ok()?;
        let mut fields = fields.skip(1);
        let gateway = fields.next().filter(|gateway| !gateway.is_empty());
        let mask = fields.next().filter(|mask| !mask.is_empty());
        let mask = u32::from(mask?.parse::<core::net::Ipv4Addr>().ok()?);
        if let Some(gateway) = gateway {
            self.add_gateway(gateway)?;
        }
        let prefix = mask.leading_ones();
        (prefix == mask.count_ones()).then_some((address.into(), prefix as u8))
    }
}
