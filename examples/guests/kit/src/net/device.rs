//! A virtio network device (virtio 1.2, 5.1): its features, its configuration, its queues.

use alloc::vec::Vec;
use core::fmt;

use smoltcp::phy::{self, Checksum, ChecksumCapabilities, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

use super::control::Control;
use super::router::{self, Advertised};
use super::rx::{Frame, Rx, RxToken};
use super::tx::{Tx, TxToken};
use super::{Error, Settings, feature};
use crate::boot::Context;
use crate::virtio::{
    self, Line, Transport, drivers::transport::DeviceStatus, drivers::transport::Transport as _,
};
use crate::{cpu, time};

/// Device type (virtio 1.2, 5.1.1).
const NETWORK: u32 = 1;

/// Offsets in the configuration (virtio 1.2, 5.1.4).
mod config {
    pub(super) const MAC: usize = 0;
    pub(super) const STATUS: usize = 6;
    pub(super) const PAIRS: usize = 8;
    pub(super) const MTU: usize = 10;
}

/// `status`: the link is up.
const LINK_UP: u16 = 1;
/// Bytes of an IP packet, where the device does not say.
const MTU_DEFAULT: u16 = 1500;
/// The least that IPv4 works with (RFC 791).
const MTU_MIN: u16 = 576;

/// A network device that is up.
#[derive(Debug)]
pub(super) struct Device {
    transport: Transport,
    line: Line,
    /// The queues of packets that come in, one of each pair.
    pub(super) rx: Vec<Rx>,
    /// The one of them that is looked at next.
    turn: usize,
    pub(super) tx: Tx,
    control: Option<Control>,
    /// Pairs that the device has.
    pairs: u16,
    /// What was negotiated.
    pub(super) features: u64,
    pub(super) mac: [u8; 6],
    /// Most bytes of an IP packet.
    pub(super) mtu: u16,
    pub(super) link_up: bool,
    /// Whether it was the other way around when somebody last asked.
    link_changed: bool,
    /// What a router has said last, if somebody listens.
    advertised: Option<Advertised>,
    hears_routers: bool,
    pub(super) interrupts: u64,
    /// Set when a queue turns out to be broken: nothing moves any more.
    failed: Option<Error>,
}

impl Device {
    /// Sets up the device that the settings name, of those of the command line, and uses as many pairs of queues as they
    /// and the device have.
    pub(super) fn open(context: &Context, settings: &Settings) -> Result<Self, Error> {
        let slot = virtio::find(context, NETWORK).nth(settings.device).ok_or(Error::NoDevice)?;
        let mut transport =
            slot.open().map_err(|_| Error::Device("the device is not one that the driver knows"))?;
        let features = negotiate(&mut transport, settings)?;
        let mac = mac(&transport, features)?;
        let mtu = mtu(&transport, features)?;
        let pairs = pairs(&transport, features)?;
        let ours = pairs.min(settings.queues);
        let rx = (0..ours).map(|pair| Rx::new(&mut transport, pair, features, mtu.into()));
        let rx = rx.collect::<Result<_, _>>()?;
        let tx = Tx::new(&mut transport, ours, features, mtu.into())?;
        let control = match features & feature::MQ {
            0 => None,
            _ => Some(Control::new(&mut transport, 2 * pairs, features)?),
        };
        virtio::finish(&mut transport);
        let mut device = Self {
            transport,
            line: slot.line(),
            rx,
            turn: 0,
            tx,
            control,
            pairs,
            features,
            mac,
            mtu,
            link_up: true,
            link_changed: false,
            advertised: None,
            hears_routers: settings.asks_routers(),
            interrupts: 0,
            failed: None,
        };
        device.publish();
        device.look_at_link();
        if ours > 1 && !device.use_pairs(ours)? {
            return Err(Error::Device("the device refuses pairs of queues that it has"));
        }
        device.link_changed = false;
        Ok(device)
    }

    /// See [`Net::use_pairs`](super::Net::use_pairs).
    pub(super) fn use_pairs(&mut self, pairs: u16) -> Result<bool, Error> {
        let before = self.tx.lanes_in_use();
        // What the device does not have is its own to refuse.
        let is_missing = (self.rx.len() as u16 + 1..=self.pairs).contains(&pairs);
        if is_missing || self.control.is_none() {
            return Ok(pairs == before);
        }
        // A packet that is left in a queue that is not used would be sent when it is used again, or never.
        self.tx.use_lanes(before.min(pairs));
        self.publish();
        while !self.tx.has_left()? {
            self.halt()?;
        }
        let Some(control) = &mut self.control else { return Ok(false) };
        control.ask_for_pairs(&mut self.transport, pairs);
        let agreed = loop {
            let answer = self.control.as_mut().map_or(Ok(Some(false)), Control::answer)?;
            match answer {
                Some(agreed) => break agreed,
                None => self.halt()?,
            }
        };
        self.tx.use_lanes(if agreed { pairs } else { before });
        Ok(agreed)
    }

    /// Looks whether the link is up, which costs two exits.
    fn look_at_link(&mut self) {
        let before = self.link_up;
        if self.features & feature::STATUS != 0 {
            self.line.acknowledge_change();
            // A device that has the feature has the field; if not, the link is what it was.
            let status: Option<u16> = self.transport.read_config_space(config::STATUS).ok();
            self.link_up = status.map_or(before, |status| status & LINK_UP != 0);
        }
        self.link_changed |= self.link_up != before;
    }

    /// Whether the link has gone or come since the last call.
    pub(super) fn take_link_change(&mut self) -> bool {
        core::mem::take(&mut self.link_changed)
    }

    /// What a router has said since the last call.
    pub(super) fn take_advertised(&mut self) -> Option<Advertised> {
        self.advertised.take()
    }

    /// Shows the device everything that was sent and given back.
    pub(super) fn publish(&mut self) {
        self.tx.publish(&mut self.transport, true);
        self.rx.iter_mut().for_each(|rx| rx.publish(&mut self.transport, true));
    }

    /// What broke, if something did.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.failed.map_or(Ok(()), Err)
    }

    /// Asks for an interrupt when there is something to do; whether there is already. While there is no room to answer
    /// in, that is only the end of a packet that goes out.
    pub(super) fn listen(&mut self) -> bool {
        if self.tx.is_starved() {
            return self.tx.listen();
        }
        self.rx.iter().fold(false, |any, rx| rx.listen() | any)
    }

    /// Halts until an interrupt came, of the device or the timer; then asks for no more of the device's.
    pub(super) fn wait(&mut self) -> Result<(), Error> {
        let taken = self.line.wait();
        self.interrupts += u64::from(taken);
        let about_packets = self.rx.iter().any(Rx::has_finished) || self.tx.is_starved();
        self.hush();
        // Nothing says what an interrupt is about but the device's registers, each of which costs an exit. One that
        // came with a packet may hide a change of the link until the next that brings nothing.
        if taken == 0 || about_packets { Ok(()) } else { self.look() }
    }

    /// Halts until an interrupt came, which is about anything.
    fn halt(&mut self) -> Result<(), Error> {
        let taken = self.line.wait();
        self.interrupts += u64::from(taken);
        if taken == 0 { Ok(()) } else { self.look() }
    }

    /// Looks at what a device tells by its registers.
    fn look(&mut self) -> Result<(), Error> {
        if self.transport.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET) {
            return Err(Error::Device("the device broke down, and asks for a reset"));
        }
        self.look_at_link();
        Ok(())
    }

    pub(super) fn hush(&mut self) {
        self.rx.iter().for_each(Rx::hush);
        self.tx.hush();
    }

    /// Notes an error where it cannot be returned; there is nothing to be had any more.
    fn note<T: Default>(&mut self, result: Result<T, Error>) -> T {
        result.unwrap_or_else(|error| {
            self.failed.get_or_insert(error);
            T::default()
        })
    }

    /// The next packet that came in, of all pairs in turn, and its pair.
    fn next(&mut self) -> Option<(usize, Frame)> {
        for _ in 0..self.rx.len() {
            self.turn = (self.turn + 1) % self.rx.len();
            let rx = &mut self.rx[self.turn];
            rx.publish(&mut self.transport, false);
            let frame = rx.next();
            if let Some(frame) = self.note(frame) {
                if self.hears_routers
                    && let Some(told) = router::advertised(self.rx[self.turn].bytes(frame))
                {
                    self.advertised = Some(told);
                }
                return Some((self.turn, frame));
            }
        }
        None
    }

    fn has_room(&mut self) -> bool {
        let room = self.tx.has_room();
        self.note(room)
    }
}

/// Takes what the device has of the features that this driver knows.
fn negotiate(transport: &mut Transport, settings: &Settings) -> Result<u64, Error> {
    const PLAIN: u64 =
        feature::MAC | feature::MTU | feature::STATUS | feature::MRG_RXBUF | virtio::feature::EVENT_IDX;
    const LARGE: u64 = feature::GUEST_TSO4 | feature::GUEST_TSO6 | feature::GUEST_USO4 | feature::GUEST_USO6;
    const RECEIVED: u64 = feature::GUEST_CSUM | LARGE;
    let refused = |_| Error::Device("the device does not accept features that it offered");
    let offered = transport.read_device_features();
    let wanted = PLAIN | if settings.offloads { feature::CSUM | feature::HOST_USO | RECEIVED } else { 0 };
    // Datagrams cannot be left to be cut without their checksums (5.1.3.1).
    let wanted = if offered & feature::CSUM != 0 { wanted } else { wanted & !feature::HOST_USO };
    let several = feature::MQ | feature::CTRL_VQ;
    let wanted = wanted | if settings.queues > 1 && offered & several == several { several } else { 0 };
    // Large packets need GUEST_CSUM (5.1.3.1), and buffers of their size or MRG_RXBUF.
    let large = feature::GUEST_CSUM | feature::MRG_RXBUF;
    let wanted = if offered & large == large { wanted } else { wanted & !LARGE };
    virtio::negotiate(transport, wanted).map_err(refused)
}

/// The device's address, or one of our own (locally administered) if it has none.
fn mac(transport: &Transport, features: u64) -> Result<[u8; 6], Error> {
    let short = |_| Error::Device("the configuration is too short");
    let mut mac = [0; 6];
    if features & feature::MAC != 0 {
        for (offset, byte) in mac.iter_mut().enumerate() {
            *byte = transport.read_config_space(config::MAC + offset).map_err(short)?;
        }
        let unicast = mac[0] & 1 == 0 && mac != [0; 6];
        return if unicast { Ok(mac) } else { Err(Error::Device("the device's address is no station's")) };
    }
    mac.copy_from_slice(&random().to_le_bytes()[..6]);
    mac[0] = mac[0] & !1 | 2;
    Ok(mac)
}

fn mtu(transport: &Transport, features: u64) -> Result<u16, Error> {
    if features & feature::MTU == 0 {
        return Ok(MTU_DEFAULT);
    }
    let mtu = transport.read_config_space(config::MTU);
    let mtu: u16 = mtu.map_err(|_| Error::Device("the configuration is too short"))?;
    if mtu >= MTU_MIN { Ok(mtu) } else { Err(Error::Device("the MTU is below 576")) }
}

/// How many pairs of queues the device has.
fn pairs(transport: &Transport, features: u64) -> Result<u16, Error> {
    if features & feature::MQ == 0 {
        return Ok(1);
    }
    let pairs = transport.read_config_space(config::PAIRS);
    let pairs = pairs.map_err(|_| Error::Device("the configuration is too short"))?;
    // At most so many, and the control queue (5.1.4.1).
    if (1..0x8000).contains(&pairs) { Ok(pairs) } else { Err(Error::Device("so many queues cannot be")) }
}

/// A number that another guest, or the same at another time, does not have.
pub(super) fn random() -> u64 {
    cpu::random().unwrap_or_else(|| cpu::rdtsc().wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ time::now())
}

impl phy::Device for Device {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        // A packet may be answered: without room for that it stays where it is.
        if self.failed.is_some() || !self.has_room() {
            return None;
        }
        let (pair, frame) = self.next()?;
        Some((RxToken { rx: &mut self.rx[pair], frame }, TxToken { tx: &mut self.tx }))
    }

    fn transmit(&mut self, _: Instant) -> Option<TxToken<'_>> {
        if self.failed.is_some() || !self.has_room() {
            return None;
        }
        self.tx.publish(&mut self.transport, false);
        Some(TxToken { tx: &mut self.tx })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = super::frame_len(self.mtu.into());
        capabilities.checksum = self.checksums();
        capabilities
    }
}

impl Device {
    /// Which checksums the stack sees to.
    fn checksums(&self) -> ChecksumCapabilities {
        // With GUEST_CSUM the queue looks at those that the device has not: see `Rx::next`.
        let of_packets = match (self.features & feature::CSUM != 0, self.features & feature::GUEST_CSUM != 0)
        {
            (true, true) => Checksum::None,
            (true, false) => Checksum::Rx,
            (false, true) => Checksum::Tx,
            (false, false) => Checksum::Both,
        };
        let mut checksums = ChecksumCapabilities::default();
        checksums.tcp = of_packets;
        checksums.udp = of_packets;
        checksums
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.mac;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}, MTU {}", self.mtu)?;
        for (bit, name) in feature::NAMES {
            if self.features & bit != 0 {
                write!(f, ", {name}")?;
            }
        }
        if self.rx.len() > 1 {
            write!(f, ", {} pairs of queues", self.rx.len())?;
        }
        Ok(())
    }
}
