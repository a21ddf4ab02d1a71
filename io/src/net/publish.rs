//! A port of the host that a user-mode network hands on to a guest, in one word.
//!
//! Owns the syntax and its ranges; never opens anything.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZero;
use std::str::FromStr;

/// What a port is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the host that leads to a port of the guest, written `[ADDRESS:]HOST:GUEST[/udp]`: an address of IPv6 in
/// brackets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Publish {
    /// The host's address that is listened on; all if absent.
    pub address: Option<IpAddr>,
    /// The host's port.
    pub host: NonZero<u16>,
    /// The guest's port.
    pub guest: NonZero<u16>,
    /// Of what.
    pub transport: Transport,
}

impl Publish {
    /// A TCP port on all addresses of the host.
    pub fn tcp(host: NonZero<u16>, guest: NonZero<u16>) -> Self {
        Self { address: None, host, guest, transport: Transport::Tcp }
    }

    /// As passt's `-t` and `-u` take it.
    pub(super) fn passt_spec(&self) -> String {
        let ports = format!("{}:{}", self.host, self.guest);
        self.address.map_or(ports.clone(), |address| format!("{address}/{ports}"))
    }
}

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text).ok_or_else(|| {
            format!(
                "{text:?} is not [ADDRESS:]HOST:GUEST[/udp] with ports from 1 to 65535, such as 8080:80 or [::1]:8080:80"
            )
        })
    }
}

fn parse(text: &str) -> Option<Publish> {
    let (ports, transport) = match text.split_once('/') {
        None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), Transport::Tcp),
        Some((ports, "udp")) => (ports, Transport::Udp),
        Some(_) => return None,
    };
    let (rest, guest) = ports.rsplit_once(':')?;
    let (address, host) = match rest.rsplit_once(':') {
        Some((address, host)) => (Some(parse_address(address)?), host),
        None => (None, rest),
    };
    Some(Publish { address, host: port(host)?, guest: port(guest)?, transport })
}

/// An address of IPv6 has colons of its own.
fn parse_address(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse().ok().map(IpAddr::V6),
        None => text.parse().ok().map(IpAddr::V4),
    }
}

/// Digits only: `parse` takes a sign, too.
fn port(text: &str) -> Option<NonZero<u16>> {
    text.bytes().all(|digit| digit.is_ascii_digit()).then(|| text.parse().ok())?
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            None => {}
        }
        write!(f, "{}:{}", self.host, self.guest)?;
        f.write_str(if self.transport == Transport::Udp { "/udp" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_published_in_one_word() {
        for text in [
            "8080:80",
            "127.0.0.1:8080:80",
            "5353:53/udp",
            "10.0.0.1:1:65535/udp",
            "[::1]:8080:80",
            "[fd00::1]:1:2/udp",
        ] {
            assert_eq!(text.parse::<Publish>().unwrap().to_string(), text);
        }
        assert_eq!("8080:80/tcp".parse::<Publish>().unwrap().to_string(), "8080:80");
        let spec = |text: &str| text.parse::<Publish>().unwrap().passt_spec();
        assert_eq!(spec("8080:80"), "8080:80");
        assert_eq!(spec("127.0.0.1:5353:53/udp"), "127.0.0.1/5353:53");
        assert_eq!(spec("[::1]:8080:80"), "::1/8080:80");
    }

    #[test]
    fn what_is_no_pair_of_ports_is_refused() {
        for text in [
            "",
            "80",
            ":80",
            "80:",
            "0:80",
            "80:0",
            "65536:1",
            "+1:80",
            "1:80/sctp",
            "1:80/",
            "1:80/udp/tcp",
            "1:80/tcp/tcp",
            "localhost:1:80",
            "1.2.3:1:80",
            "::1:1:80",
            "[::1:1:80",
            "[::1]80:80",
            "[127.0.0.1]:1:80",
            "[fe80::1%eth0]:1:80",
            "~1:80",
            "1-2:80",
            "1,2:80",
            " 1:80",
            "127.0.0.1/1:80",
        ] {
            assert!(text.parse::<Publish>().unwrap_err().contains("8080:80"), "{text}");
        }
    }
}
