//! What a user-mode network has to be told of the host: who answers it for names, and where its IPv6 goes out.
//!
//! Owns reading it of the kernel and of resolv.conf(5), when a VM is assembled. Never asks anybody on a network.

use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Where passt looks for the host's resolvers.
const RESOLVERS: &str = "/etc/resolv.conf";
/// Routes and addresses of IPv6 of the thread that asks, which is the one that starts passt.
const ROUTES: &str = "/proc/thread-self/net/ipv6_route";
const ADDRESSES: &str = "/proc/thread-self/net/if_inet6";
/// Most bytes that are read of each.
const MOST: u64 = 1 << 20;

/// `RTF_UP` and `RTF_REJECT` of a route (linux/route.h).
const ROUTE_UP: u32 = 1;
const ROUTE_REJECT: u32 = 0x200;
/// `IPV6_ADDR_LINKLOCAL`, a scope (net/ipv6.h).
const LINK: &str = "20";

/// What is known of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Host {
    /// The first resolver of IPv4 is on a loopback address.
    pub(super) resolver_is_local: bool,
    /// The interface that leads to all of IPv6, if there is one and it is up.
    pub(super) ipv6: Option<String>,
}

impl Host {
    /// As it is now. What cannot be read is not there.
    pub(super) fn now() -> Self {
        let text = |path| read(path).unwrap_or_default();
        Self {
            resolver_is_local: has_local_resolver(&text(RESOLVERS)),
            ipv6: default_interface(&text(ROUTES), &text(ADDRESSES)),
        }
    }
}

/// The beginning of a file.
fn read(path: &str) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MOST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether the first resolver of IPv4 of this file (resolv.conf(5)) is on a loopback address.
fn has_local_resolver(file: &str) -> bool {
    let address = |line: &str| line.strip_prefix("nameserver")?.split_whitespace().next()?.parse().ok();
    file.lines().find_map(address).is_some_and(|address: Ipv4Addr| address.is_loopback())
}

/// The interface of the best default route, if it has the link-local address that passt takes for its own.
fn default_interface(routes: &str, addresses: &str) -> Option<String> {
    let (_, name) = routes.lines().filter_map(default_route).min_by_key(|(metric, _)| *metric)?;
    let is_its_own = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        matches!(fields[..], [_, _, _, LINK, _, interface] if interface == name)
    };
    addresses.lines().any(is_its_own).then(|| name.to_owned())
}

/// Metric and interface of a default route that leads anywhere, of a line of the kernel's (net/ipv6/route.c).
fn default_route(line: &str) -> Option<(u32, &str)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [to, "00", _, _, _, metric, _, _, flags, interface] = fields[..] else { return None };
    let number = |hex| u32::from_str_radix(hex, 16).ok();
    let is_default = u128::from_str_radix(to, 16).ok()? == 0;
    let leads = number(flags)? & (ROUTE_UP | ROUTE_REJECT) == ROUTE_UP;
    (is_default && leads).then_some((number(metric)?, interface))
}

/// The address that an interface with this Ethernet address gives itself in a network of 64 bits (RFC 4291, appendix A).
pub fn eui64(network: Ipv6Addr, [a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    let [n0, n1, n2, n3, ..] = network.segments();
    let pair = |high, low| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(n0, n1, n2, n3, pair(a ^ 2, b), pair(c, 0xFF), pair(0xFE, d), pair(e, f))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_handed_on_where_the_host_asks_itself() {
        for (file, local) in [
            ("", false),
            ("nameserver 192.0.2.1\nnameserver 127.0.0.1\n", false),
            ("# systemd\noptions edns0\nnameserver 127.0.0.53\nnameserver 192.0.2.1\n", true),
            ("nameserver ::1\nnameserver\t127.0.0.1 # it\n", true),
            ("nameserver\nnameserver 127.0.0\n#nameserver 127.0.0.1\n\u{FFFD}", false),
        ] {
            assert_eq!(has_local_resolver(file), local, "{file:?}");
        }
    }

    /// A line of /proc/net/ipv6_route.
    fn route(to: &str, len: &str, metric: &str, flags: &str, interface: &str) -> String {
        let any = "0".repeat(32);
        format!("{to:0>32} {len} {any} 00 {any} {metric} 00000001 00000000 {flags} {interface:>8}\n")
    }

    #[test]
    fn ipv6_goes_out_where_the_best_default_route_leads() {
        let lan = route("", "00", "00000400", "00000003", "eth0");
        let better = route("", "00", "00000064", "00000003", "wlan0");
        let nowhere = route("", "00", "00000001", "00200201", "lo");
        let down = route("", "00", "00000001", "00000002", "eth9");
        let other = route("fd00", "40", "00000001", "00000001", "eth8") + &route("1", "00", "1", "1", "eth7");
        let address = |scope: &str, interface: &str| format!("fe80{:028} 03 40 {scope} 80 {interface}\n", 1);
        let addresses =
            ["eth0", "wlan0", "lo", "eth9", "eth8", "eth7"].map(|name| address("20", name)).concat();
        let found = |routes: &[&str], addresses: &str| default_interface(&routes.concat(), addresses);
        let all = [&*nowhere, &other, &lan, &down, &better, "nonsense\n", "\n"];
        assert_eq!(found(&all, &addresses).as_deref(), Some("wlan0"));
        assert_eq!(found(&[&nowhere, &lan], &addresses).as_deref(), Some("eth0"));
        assert_eq!(found(&[&nowhere, &other, &down], &addresses), None);
        assert_eq!(found(&[&lan], &address("00", "eth0")), None, "no address of its link");
        assert_eq!(found(&[&lan], ""), None);
        assert_eq!(found(&[], &addresses), None);
    }

    #[test]
    fn an_address_follows_from_an_ethernet_address() {
        let mac = [0x34, 0x56, 0x78, 0x9A, 0xBC, 0xDE];
        let network = Ipv6Addr::new(0x2001, 0xDB8, 0, 1, 9, 9, 9, 9);
        assert_eq!(eui64(network, mac).to_string(), "2001:db8:0:1:3656:78ff:fe9a:bcde");
    }
}
