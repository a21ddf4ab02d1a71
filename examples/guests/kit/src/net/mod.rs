//! The network: a virtio device, and the TCP/IP stack of the crate `smoltcp` ([`stack`]) over it.
//!
//! [`Net`] is all that a guest needs: it takes packets in and sends them out when it is asked to, and halts the
//! processor until there is something to do. Nothing runs by itself, nothing polls, and nothing here is part of a guest
//! that does not use it.
//!
//! ```ignore
//! let mut net = Net::open(context, &Settings::of(words(context.cmdline()))?)?;
//! net.configure()?;
//! let socket = net.sockets().add(…);
//! loop {
//!     net.poll()?;
//!     …                   // read and write sockets
//!     net.poll()?;        // what was written goes out
//!     net.wait(None)?;
//! }
//! ```

mod bytes;
mod checksum;
mod control;
mod cut;
mod device;
mod flow;
mod header;
mod names;
mod pairs;
mod router;
mod rx;
mod segments;
mod settings;
mod tx;

use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;

pub use pairs::Pair;
pub use settings::{ADDRESSES_MAX, PAIRS_MAX, Senseless, Settings};
pub use smoltcp as stack;
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Device as _, TxToken as _};
use smoltcp::socket::{AnySocket, dhcpv4, tcp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr, IpEndpoint, Ipv6Address};

use crate::boot::Context;
use crate::interrupts::{self, TIMER_VECTOR};
use crate::virtio::drivers::transport::Transport as _;
use crate::virtio::{Broken, Transport};
use crate::{lapic, time};
use device::Device;
use router::{Advertised, Solicitor};

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// Most slots of a queue, and most bytes of its buffers.
const SLOTS_MAX: usize = 256;
const BUFFERS_MAX: usize = 1 << 20;
/// Fewest slots: less than this, and the stack would wait for single packets.
const SLOTS_MIN: usize = 4;
/// The least MTU that IPv6 works with (RFC 8200, 5).
const MTU_MIN_IPV6: u16 = 1280;
/// Most packets that [`Net::poll`] takes in.
const BUDGET: usize = 64;

/// Features of a network device (virtio 1.2, 5.1.3).
mod feature {
    pub(super) const CSUM: u64 = 1;
    pub(super) const GUEST_CSUM: u64 = 1 << 1;
    pub(super) const MTU: u64 = 1 << 3;
    pub(super) const MAC: u64 = 1 << 5;
    pub(super) const GUEST_TSO4: u64 = 1 << 7;
    pub(super) const GUEST_TSO6: u64 = 1 << 8;
    pub(super) const MRG_RXBUF: u64 = 1 << 15;
    pub(super) const STATUS: u64 = 1 << 16;
    pub(super) const CTRL_VQ: u64 = 1 << 17;
    pub(super) const MQ: u64 = 1 << 22;
    pub(super) const GUEST_USO4: u64 = 1 << 54;
    pub(super) const GUEST_USO6: u64 = 1 << 55;
    pub(super) const HOST_USO: u64 = 1 << 56;

    /// Those that make a difference to speed, by their names.
    pub(super) const NAMES: [(u64, &str); 9] = [
        (CSUM, "csum"),
        (HOST_USO, "host-uso"),
        (GUEST_CSUM, "guest-csum"),
        (GUEST_TSO4, "guest-tso4"),
        (GUEST_TSO6, "guest-tso6"),
        (GUEST_USO4, "guest-uso4"),
        (GUEST_USO6, "guest-uso6"),
        (MRG_RXBUF, "mrg-rxbuf"),
        (crate::virtio::feature::EVENT_IDX, "event-idx"),
    ];
}

/// Why there is no network, or none any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The command line names no such device.
    NoDevice,
    /// The device does not come up, or broke.
    Device(
        /// What it did.
        &'static str,
    ),
    /// The device's queues are too small.
    Queue,
    /// No memory for packets.
    Memory,
    /// No server has given an address.
    NoAddress,
    /// No router has told of a network of IPv6.
    NoRouter,
}

impl From<Broken> for Error {
    fn from(_: Broken) -> Self {
        Self::Device("the device returned a buffer that it did not have")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoDevice => "no such network device; start with --net",
            Self::Device(what) => what,
            Self::Queue => "the queues of the device are too small",
            Self::Memory => "not enough memory for packets: give the VM more",
            Self::NoAddress => "no address: DHCP has no answer; say ip=ADDRESS/PREFIX",
            Self::NoRouter => "no address of IPv6: no router advertises a network; say ip=ADDRESS/PREFIX",
        })
    }
}

/// What the device has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that came in, also those of UDP of which the device made one.
    pub rx_packets: u64,
    /// Their bytes, Ethernet headers included.
    pub rx_bytes: u64,
    /// Packets that came in and were no good: too short, with a wrong checksum, or not the datagrams that they should be.
    pub rx_dropped: u64,
    /// Packets that went out.
    pub tx_packets: u64,
    /// Their bytes, Ethernet headers included.
    pub tx_bytes: u64,
    /// Packets that were too long to be sent.
    pub tx_dropped: u64,
    /// Interrupts of the device.
    pub interrupts: u64,
    /// How often the device was told of packets to send.
    pub notifications: u64,
}

/// A network device with a TCP/IP stack.
pub struct Net {
    device: Device,
    interface: Interface,
    sockets: SocketSet<'static>,
    dhcp: Option<SocketHandle>,
    resolvers: Vec<IpAddr>,
    /// Whether resolvers are those that DHCP tells of.
    told: bool,
    /// Whom an address of IPv6 is asked of, if anybody.
    solicitor: Option<Solicitor>,
    /// Whether that is waited for, and no router has told of one.
    needs_router: bool,
    /// Nanoseconds that DHCP and routers may take.
    patience: u64,
    /// When the timer is going to fire.
    armed: Option<u64>,
}

impl Net {
    /// Sets up a device and a stack with the addresses of `settings` and the link-local one of IPv6. Addresses that
    /// DHCP and routers give come later: see [`configure`](Self::configure).
    ///
    /// # Errors
    /// There is no device, or it does not come up.
    pub fn open(context: &Context, settings: &Settings) -> Result<Self, Error> {
        let mut device = Device::open(context, settings)?;
        let mut config = Config::new(EthernetAddress(device.mac).into());
        config.random_seed = device::random();
        let mut interface = Interface::new(config, &mut device, now());
        interface.update_ip_addrs(|addresses| {
            let given =
                settings.addresses.iter().map(|&(address, prefix)| IpCidr::new(address.into(), prefix));
            // There is room for as many as settings may have.
            given.chain([own_address(router::LINK_LOCAL, device.mac)]).for_each(|address| {
                let _ = addresses.push(address);
            });
        });
        for &gateway in &settings.gateways {
            let routes = interface.routes_mut();
            let _ = match gateway {
                IpAddr::V4(gateway) => routes.add_default_ipv4_route(gateway),
                IpAddr::V6(gateway) => routes.add_default_ipv6_route(gateway),
            };
        }
        let mut sockets = SocketSet::new(Vec::new());
        let dhcp = settings.dhcp.then(|| sockets.add(dhcpv4::Socket::new()));
        let resolvers = settings.resolvers.clone();
        let (told, patience) = (resolvers.is_empty(), settings.patience);
        // Where no packet of IPv6 fits (RFC 8200, 5), there is none.
        let asks_routers = settings.asks_routers() && device.mtu >= MTU_MIN_IPV6;
        let solicitor = asks_routers.then(|| Solicitor::new(time::now()));
        let needs_router = settings.slaac;
        Ok(Self {
            device,
            interface,
            sockets,
            dhcp,
            resolvers,
            told,
            solicitor,
            needs_router,
            patience,
            armed: None,
        })
    }

    /// Waits until the interface has the addresses that it asks for and waits for, if any.
    ///
    /// # Errors
    /// Nobody gave one in time, or the device broke.
    pub fn configure(&mut self) -> Result<(), Error> {
        let end = time::now().saturating_add(self.patience);
        while let Some(missing) = self.missing() {
            if time::now() >= end {
                return Err(missing);
            }
            self.poll()?;
            if self.missing().is_some() {
                self.wait(Some(end))?;
            }
        }
        Ok(())
    }

    /// What is waited for, as an error.
    fn missing(&self) -> Option<Error> {
        if self.dhcp.is_some() && self.interface.ipv4_addr().is_none() {
            return Some(Error::NoAddress);
        }
        self.needs_router.then_some(Error::NoRouter)
    }

    /// All sockets.
    pub fn sockets(&mut self) -> &mut SocketSet<'static> {
        &mut self.sockets
    }

    /// A socket.
    pub fn socket<T: AnySocket<'static>>(&mut self, socket: SocketHandle) -> &mut T {
        self.sockets.get_mut(socket)
    }

    /// Begins a connection of a socket that is closed, from `port`.
    ///
    /// # Errors
    /// The address is none that can be reached.
    pub fn connect(
        &mut self,
        socket: SocketHandle,
        to: IpEndpoint,
        port: u16,
    ) -> Result<(), tcp::ConnectError> {
        self.sockets.get_mut::<tcp::Socket<'_>>(socket).connect(self.interface.context(), to, port)
    }

    /// Takes in one packet, if there is one; whether there was.
    ///
    /// # Errors
    /// The device broke.
    pub fn receive(&mut self) -> Result<bool, Error> {
        let result = self.interface.poll_ingress_single(now(), &mut self.device, &mut self.sockets);
        self.device.check()?;
        if let Some(told) = self.device.take_advertised() {
            self.follow(told);
        }
        Ok(!matches!(result, PollIngressSingleResult::None))
    }

    /// Sends what sockets have to send, as far as the device has room.
    ///
    /// # Errors
    /// The device broke.
    pub fn send(&mut self) -> Result<(), Error> {
        self.device.tx.reclaim()?;
        self.interface.poll_maintenance(now());
        self.solicit();
        while self.interface.poll_egress(now(), &mut self.device, &mut self.sockets) != PollResult::None {}
        self.device.publish();
        self.device.check()?;
        self.lease();
        Ok(())
    }

    /// Takes in packets, up to 64, then [sends](Self::send).
    ///
    /// # Errors
    /// The device broke.
    pub fn poll(&mut self) -> Result<(), Error> {
        for _ in 0..BUDGET {
            if !self.receive()? {
                break;
            }
        }
        self.send()
    }

    /// Halts until there may be something to do: a packet, a time at which the stack or the caller (`until`, of
    /// [`time::now`]) has to act, or any interrupt.
    ///
    /// # Errors
    /// The device broke.
    pub fn wait(&mut self, until: Option<u64>) -> Result<(), Error> {
        if self.device.listen() {
            self.device.hush();
            return Ok(());
        }
        let stack = self.interface.poll_at(now(), &self.sockets).map(nanoseconds);
        let routers = self.solicitor.and_then(|solicitor| solicitor.due());
        // What the device has no room for cannot be sent before it says so.
        let to_send = stack.into_iter().chain(routers).min().filter(|_| !self.device.tx.is_starved());
        if let Some(at) = to_send.into_iter().chain(until).min() {
            let now = time::now();
            if at <= now {
                self.device.hush();
                return Ok(());
            }
            self.arm(now, at);
        }
        self.device.wait()?;
        self.after_interrupts();
        Ok(())
    }

    /// Sees to what interrupts have told beside packets.
    fn after_interrupts(&mut self) {
        if interrupts::take(TIMER_VECTOR) > 0 {
            self.armed = None;
        }
        if self.device.take_link_change() {
            self.link_changed();
        }
    }

    /// Has the timer fire at `at` or before: one that fires too early costs less than being armed anew every time.
    fn arm(&mut self, now: u64, at: u64) {
        if self.armed.is_none_or(|armed| armed > at) {
            lapic::arm_timer(at - now);
            self.armed = Some(at);
        }
    }

    /// Begins anew with DHCP and routers when the link has come up: it may be another network.
    fn link_changed(&mut self) {
        if !self.device.link_up {
            return;
        }
        if let Some(dhcp) = self.dhcp {
            self.sockets.get_mut::<dhcpv4::Socket<'_>>(dhcp).reset();
        }
        if let Some(solicitor) = &mut self.solicitor {
            *solicitor = Solicitor::new(time::now());
        }
    }

    /// Asks routers for an address, if it is time to.
    fn solicit(&mut self) {
        let now = time::now();
        let Some(solicitor) =
            self.solicitor.as_mut().filter(|solicitor| solicitor.due().is_some_and(|at| at <= now))
        else {
            return;
        };
        let frame = router::solicitation(self.device.mac);
        if let Some(token) = self.device.transmit(Instant::ZERO) {
            token.consume(frame.len(), |room| room.copy_from_slice(&frame));
            solicitor.asked(now);
        }
    }

    /// Takes the address and the route that a router tells of, or gives them up. They stay until one says otherwise.
    fn follow(&mut self, told: Advertised) {
        let Some(solicitor) = &mut self.solicitor else { return };
        solicitor.answered();
        if let Some((network, is_there)) = told.network {
            let own = own_address(network, self.device.mac);
            self.interface.update_ip_addrs(|addresses| {
                addresses.retain(|address| *address != own);
                // Without room it is left out.
                let has_it = is_there && addresses.push(own).is_ok();
                self.needs_router &= !has_it;
            });
        }
        let routes = self.interface.routes_mut();
        if told.leads {
            let _ = routes.add_default_ipv6_route(told.router);
        } else {
            routes.update(|routes| routes.retain(|route| route.via_router != told.router.into()));
        }
    }

    /// Takes the address that DHCP gave or withdrew.
    fn lease(&mut self) {
        let Some(dhcp) = self.dhcp else { return };
        let mut resolvers = Vec::new();
        let (address, router) = match self.sockets.get_mut::<dhcpv4::Socket<'_>>(dhcp).poll() {
            None => return,
            Some(dhcpv4::Event::Configured(config)) => {
                resolvers.extend(config.dns_servers.iter().map(|&server| IpAddr::from(server)));
                (Some(config.address), config.router)
            }
            Some(dhcpv4::Event::Deconfigured) => (None, None),
        };
        if self.told {
            self.resolvers = resolvers;
        }
        self.interface.update_ip_addrs(|addresses| {
            addresses.retain(|address| !matches!(address, IpCidr::Ipv4(_)));
            if let Some(address) = address {
                let _ = addresses.insert(0, IpCidr::Ipv4(address));
            }
        });
        let routes = self.interface.routes_mut();
        routes.remove_default_ipv4_route();
        if let Some(router) = router {
            let _ = routes.add_default_ipv4_route(router);
        }
    }

    /// The addresses that the interface has now.
    #[must_use]
    pub fn addresses(&self) -> &[IpCidr] {
        self.interface.ip_addrs()
    }

    /// Most bytes of an IP packet.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.device.mtu
    }

    /// Whether the link is up, as far as it was looked at.
    #[must_use]
    pub fn link_is_up(&self) -> bool {
        self.device.link_up
    }

    /// What the device has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let Device { rx, tx, interrupts, .. } = &self.device;
        let sum = |of: fn(&rx::Rx) -> u64| rx.iter().map(of).sum();
        Counters {
            rx_packets: sum(|rx| rx.packets),
            rx_bytes: sum(|rx| rx.bytes),
            rx_dropped: sum(|rx| rx.dropped),
            tx_packets: tx.packets,
            tx_bytes: tx.bytes,
            tx_dropped: tx.dropped,
            interrupts: *interrupts,
            notifications: tx.notifications,
        }
    }
}

/// The device, the addresses and the resolvers, in one line.
impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for address in self.addresses() {
            write!(f, "{address}, ")?;
        }
        for resolver in self.resolvers() {
            write!(f, "resolver {resolver}, ")?;
        }
        write!(f, "{}", self.device)
    }
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net").field("device", &self.device).finish_non_exhaustive()
    }
}

/// Bytes of a frame that holds an IP packet of so many.
fn frame_len(mtu: usize) -> usize {
    ETHERNET + mtu
}

/// How many buffers of `size` bytes a queue gets.
fn slots(transport: &mut Transport, queue: u16, size: usize) -> Result<u16, Error> {
    let room = (BUFFERS_MAX / size).clamp(SLOTS_MIN, SLOTS_MAX);
    let slots = (transport.max_queue_size(queue) as usize).min(room);
    if slots < SLOTS_MIN { Err(Error::Queue) } else { Ok(1 << slots.ilog2()) }
}

/// One's own address in a network of IPv6.
fn own_address(network: Ipv6Address, mac: [u8; 6]) -> IpCidr {
    IpCidr::new(router::own_address(network, mac).into(), 64)
}

/// The stack's time.
fn now() -> Instant {
    Instant::from_micros((time::now() / 1000) as i64)
}

fn nanoseconds(instant: Instant) -> u64 {
    instant.total_micros().max(0) as u64 * 1000
}
