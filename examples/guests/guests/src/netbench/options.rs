//! Arguments.

use alloc::string::String;
use core::net::IpAddr;

use ringlet_guest::cmdline;
use ringlet_guest::net::stack::wire::IpEndpoint;
use ringlet_guest::net::{Net, Settings};
use ringlet_guest::{Context, net, println};

use crate::wire::{HEADER, PORT};
use crate::{Failure, iperf_wire};

pub(crate) const USAGE: &str =
    "usage: netbench MODE [OPTION VALUE]... [ip=ADDRESS/PREFIX] [gw=ADDRESS] [net=N] [offloads=on|off]
  serve             answer all of the following until the VM is stopped
  iperf3            answer iperf3 (-c, with -u, -R, --bidir, -P) until the VM is stopped
  tcp-send          stream to the peer, tcp-receive: from it, tcp-rr: requests and responses
  udp-send          the same with datagrams, udp-receive, udp-rr
  --to PEER         the peer's address or name, for every mode but serve and iperf3
  --port N          its port, or that of serve (5001) or iperf3 (5201)
  --duration S      seconds, 1 to 3600 (5)
  --size N          bytes of a write, a request, or a datagram (64K, 1 for tcp-rr, 1400 or 64 for UDP)
  --streams N       connections of TCP at once, 1 to 16 (1)
  --rate N          datagrams a second (as many as go)";

/// The peer's address before it is known.
const UNKNOWN: IpAddr = IpAddr::V4(core::net::Ipv4Addr::UNSPECIFIED);
const SECOND: u64 = 1_000_000_000;
const STREAMS_MAX: u64 = 16;
/// Most bytes of a write.
pub(crate) const SIZE_MAX: u64 = 64 << 10;
/// Most bytes of a datagram's payload: nothing is sent in fragments.
pub(crate) const HEADERS: u64 = 48;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Serve,
    Iperf3,
    TcpSend,
    TcpReceive,
    TcpRr,
    UdpSend,
    UdpReceive,
    UdpRr,
}

impl Mode {
    const ALL: [(&'static str, Self); 8] = [
        ("serve", Self::Serve),
        ("iperf3", Self::Iperf3),
        ("tcp-send", Self::TcpSend),
        ("tcp-receive", Self::TcpReceive),
        ("tcp-rr", Self::TcpRr),
        ("udp-send", Self::UdpSend),
        ("udp-receive", Self::UdpReceive),
        ("udp-rr", Self::UdpRr),
    ];

    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, mode)| *mode == self).map_or("", |(name, _)| name)
    }

    pub(crate) fn is_udp(self) -> bool {
        matches!(self, Self::UdpSend | Self::UdpReceive | Self::UdpRr)
    }

    fn size(self) -> u64 {
        match self {
            Self::Serve | Self::Iperf3 | Self::TcpSend | Self::TcpReceive => SIZE_MAX,
            Self::TcpRr => 1,
            Self::UdpSend | Self::UdpReceive => 1400,
            Self::UdpRr => 64,
        }
    }
}

/// The arguments, within their ranges.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) settings: Settings,
    pub(crate) mode: Mode,
    pub(crate) peer: IpEndpoint,
    /// The peer, if only its name is known.
    pub(crate) name: Option<String>,
    /// Nanoseconds.
    pub(crate) duration: u64,
    pub(crate) size: usize,
    pub(crate) streams: usize,
    /// Datagrams a second; 0: as many as go.
    pub(crate) rate: u64,
}

impl Options {
    pub(crate) fn parse(context: &Context) -> Result<Self, Failure> {
        let senseless = |senseless: net::Senseless| Failure::Usage(senseless.0);
        let mut settings = Settings::of(cmdline::words(context.cmdline())).map_err(senseless)?;
        let (mut mode, mut peer, mut name, mut size) = (None, None, None, None);
        let (mut port, mut duration, mut streams, mut rate) = (None, 5 * SECOND, 1, 0);
        let mut args = context.args();
        while let Some(argument) = args.next() {
            let word = argument.text().ok_or(Failure::Usage("an argument is no text"))?;
            if let Some((_, found)) = Mode::ALL.iter().find(|(name, _)| *name == word) {
                mode = Some(*found);
                continue;
            }
            if settings.set(&word).map_err(senseless)? {
                continue;
            }
            let value = args.next().and_then(|value| value.text());
            let value = value.ok_or(Failure::Usage("an option is unknown, or lacks its value"))?;
            match word.as_str() {
                "--to" => match value.parse::<IpAddr>() {
                    Ok(address) => (peer, name) = (Some(address), None),
                    Err(_) => (peer, name) = (Some(UNKNOWN), Some(value)),
                },
                "--port" => port = Some(number(&value, 1, u64::from(u16::MAX))? as u16),
                "--duration" => duration = number(&value, 1, 3600)? * SECOND,
                "--size" => size = Some(number(&value, 1, SIZE_MAX)?),
                "--streams" => streams = number(&value, 1, STREAMS_MAX)? as usize,
                "--rate" => rate = number(&value, 0, SECOND)?,
                _ => return Err(Failure::Usage("an option is unknown")),
            }
        }
        let mode = mode.ok_or(Failure::Usage("say what is to be done"))?;
        let port = port.unwrap_or(if mode == Mode::Iperf3 { iperf_wire::PORT } else { PORT });
        let peer = match (peer, mode) {
            (Some(peer), _) => IpEndpoint::new(peer.into(), port),
            (None, Mode::Serve | Mode::Iperf3) => IpEndpoint::new(UNKNOWN.into(), port),
            (None, _) => return Err(Failure::Usage("--to is missing")),
        };
        let size = size.unwrap_or(mode.size()) as usize;
        if mode.is_udp() && size < HEADER {
            return Err(Failure::Usage("a datagram has at least 40 bytes"));
        }
        Ok(Self { settings, mode, peer, name, duration, size, streams, rate })
    }

    /// With the peer's address, which a resolver tells if only its name is known.
    pub(crate) fn resolved(&self, net: &mut Net) -> Result<Self, Failure> {
        let mut resolved = self.clone();
        if let Some(name) = &self.name {
            let address = net.resolve(name)?.ok_or(Failure::Name)?;
            println!("netbench: {name} is {address}");
            resolved.peer.addr = address.into();
        }
        Ok(resolved)
    }

    /// Makes sure that datagrams are not longer than a packet of the network.
    pub(crate) fn fits(&self, mtu: u16) -> Result<(), Failure> {
        let fits = !self.mode.is_udp() || self.size as u64 + HEADERS <= u64::from(mtu);
        fits.then_some(()).ok_or(Failure::Usage("such datagrams are longer than the MTU"))
    }
}

fn number(value: &str, least: u64, most: u64) -> Result<u64, Failure> {
    cmdline::size(value)
        .filter(|number| (least..=most).contains(number))
        .ok_or(Failure::Usage("a number is none, or out of its range"))
}
