//! The device: features, configuration space, queues.
//!
//! Owns one task per running queue and what they share. Which queue is which depends on the features (virtio 1.2,
//! section 5.1.2): without MQ there is one pair, and the control queue is the third, however many there are. Never
//! sees a packet, and never waits.

use std::fmt;
use std::io;
use std::rc::Rc;

use ringlet_io::ShardContext;
use ringlet_io::net::{MAX_HEAD, NetInfo, NetPort};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ,
};

use super::config::{Layout, Mac, guest_bits, guest_offload_bits, guest_offloads, is_consistent, mtu_of};
use super::control::{MAX_COMMAND, control};
use super::filter::Filter;
use super::host::{Host, Settings};
use super::receive::{AHEAD_BYTES, Receiver};
use super::transmit::{JOINED_BYTES, Transmitter};
use crate::error::GuestError;
use crate::state::StateError;
use crate::virtio::spec::{MAX_QUEUES, device_type};
use crate::virtio::{
    ConfigSpace, DeviceMemory, DeviceState, HostEvent, Identity, LocalBoxFuture, OrderedTask, QueueParts,
    QueueState, VirtioDevice,
};

/// Most pairs of queues of an interface.
pub const MAX_PAIRS: u16 = (MAX_QUEUES - 1) / 2;
/// Longest control queue: a command is one or a few descriptors, and drivers ask one after the other.
const CONTROL_SIZE: u16 = 64;

/// What somebody who adds an interface to a VM decides. Plain data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetOptions {
    /// Identifier within the VM, such as `net0`.
    pub id: String,
    /// The guest's address, unless the host's side prescribes one.
    pub mac: Mac,
    /// Bytes of the largest packet behind the Ethernet header, if the guest is to be told another than the host's side
    /// says: at least [`MIN_MTU`](super::config::MIN_MTU).
    pub mtu: Option<u16>,
    /// Largest size of each queue: a power of two, at most
    /// [`MAX_QUEUE_SIZE`](crate::virtio::spec::MAX_QUEUE_SIZE).
    pub queue_size: u16,
    /// The addresses that the guest may send from.
    pub filter: Filter,
}

impl NetOptions {
    /// What a device with these options and such a host's side is to its driver.
    pub fn identity(&self, info: &NetInfo) -> Identity {
        let layout = self.layout(info);
        let mut queue_sizes = vec![self.queue_size; 2 * usize::from(layout.pairs)];
        queue_sizes.push(self.queue_size.min(CONTROL_SIZE));
        Identity {
            id: self.id.clone(),
            device_type: device_type::NET,
            features: layout.features(),
            queue_sizes,
        }
    }

    /// The configuration space of such a device, before a driver has seen it.
    pub fn config(&self, info: &NetInfo) -> ConfigSpace {
        let layout = self.layout(info);
        ConfigSpace::new(layout.bytes(layout.mac, true))
    }

    /// What such a device takes of the host's memory, beside what its ports take: a packet is in guest memory, but for
    /// the copy of its beginning and the lists of what goes out as one.
    pub fn memory(&self, info: &NetInfo) -> DeviceMemory {
        let pair = AHEAD_BYTES + JOINED_BYTES + 2 * MAX_HEAD;
        let pairs = usize::from(self.layout(info).pairs) * pair;
        DeviceMemory::of_chains(&self.identity(info)).and((pairs + MAX_COMMAND) as u64, 0)
    }

    fn layout(&self, info: &NetInfo) -> Layout {
        Layout {
            mac: info.mac.map_or(self.mac, Mac),
            mac_changes: info.mac.is_none() && self.filter.mac.is_none(),
            mtu: self.mtu.or(mtu_of(info)),
            pairs: info.queue_pairs.clamp(1, MAX_PAIRS),
            offloads: info.offloads,
        }
    }
}

/// A virtio network interface.
pub struct NetDevice {
    identity: Identity,
    host: Rc<Host>,
    queues: Vec<Option<Seat>>,
}

/// A queue that was started.
#[derive(Debug)]
enum Seat {
    Serving(OrderedTask),
    /// Of no use with the features that were negotiated: it stays as it is.
    Idle(QueueState),
}

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Receive(u16),
    Transmit(u16),
    Control,
}

impl NetDevice {
    /// A device on these ports that no driver has seen. `config` is what [`NetOptions::config`] gave, or a clone.
    ///
    /// # Errors
    /// `InvalidInput`: there is not a port for each pair of queues that `info` promised.
    pub fn new(
        cx: &ShardContext,
        options: &NetOptions,
        info: &NetInfo,
        config: ConfigSpace,
        ports: Vec<Rc<dyn NetPort>>,
    ) -> io::Result<Self> {
        let layout = options.layout(info);
        if ports.len() != usize::from(layout.pairs) {
            let text = format!("{} pairs of queues with {} ports", layout.pairs, ports.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let identity = options.identity(info);
        let queues = identity.queue_sizes.iter().map(|_| None).collect();
        let host = Host::new(options, layout, ports, config, cx.timer().clone());
        Ok(Self { identity, host: Rc::new(host), queues })
    }

    /// What a queue is for; `None`: nothing.
    fn role(&self, index: u16) -> Option<Role> {
        let pairs = if self.host.has(VIRTIO_NET_F_MQ) { self.host.layout.pairs } else { 1 };
        if index / 2 < pairs {
            let role = if index.is_multiple_of(2) { Role::Receive } else { Role::Transmit };
            return Some(role(index / 2));
        }
        (index == 2 * pairs && self.host.has(VIRTIO_NET_F_CTRL_VQ)).then_some(Role::Control)
    }

    /// Whether a driver can have come to these offloads of received packets.
    fn could_have(&self, offloads: u64) -> bool {
        let negotiated = guest_offload_bits(self.host.features.get());
        match self.host.has(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) {
            true => offloads & negotiated == offloads && is_consistent(offloads),
            false => offloads == negotiated,
        }
    }

    fn serve(&self, role: Role, parts: QueueParts, state: Option<QueueState>) -> Option<OrderedTask> {
        let host = Rc::clone(&self.host);
        let port = |pair: u16| self.host.ports.get(usize::from(pair)).map(Rc::clone);
        Some(match role {
            Role::Receive(pair) => {
                let port = port(pair)?;
                OrderedTask::spawn(parts, state, |queue, doorbell| {
                    Receiver::new(queue, doorbell, host, pair, port).run()
                })
            }
            Role::Transmit(pair) => {
                let port = port(pair)?;
                OrderedTask::spawn(parts, state, |queue, doorbell| {
                    Transmitter::new(queue, doorbell, host, pair, port).run()
                })
            }
            Role::Control => {
                OrderedTask::spawn(parts, state, |queue, doorbell| control(queue, doorbell, host))
            }
        })
    }
}

impl VirtioDevice for NetDevice {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn config(&self) -> &ConfigSpace {
        &self.host.config
    }

    fn negotiate(&mut self, features: u64) -> Result<(), GuestError> {
        if !is_consistent(features) {
            let reason = "one of them needs another that was not accepted";
            return Err(GuestError::BadFeatures {
                accepted: features,
                offered: self.identity.offered(),
                reason,
            });
        }
        self.host.features.set(features);
        self.host.want(Settings { offloads: guest_offloads(features), ..Settings::default() });
        Ok(())
    }

    fn start_queue(&mut self, index: u16, mut parts: QueueParts, state: Option<QueueState>) {
        let seat = match self.role(index) {
            Some(role) => self.serve(role, parts, state).map(Seat::Serving),
            None => {
                if let Some(state) = &state {
                    parts.queue.resume(state);
                }
                Some(Seat::Idle(parts.queue.state()))
            }
        };
        if let Some(slot) = self.queues.get_mut(usize::from(index)) {
            *slot = seat;
        }
    }

    fn stop_queue(&mut self, index: u16) -> LocalBoxFuture<Option<QueueState>> {
        let seat = self.queues.get_mut(usize::from(index)).and_then(Option::take);
        Box::pin(async move {
            match seat? {
                Seat::Serving(task) => task.stop().await,
                Seat::Idle(state) => Some(state),
            }
        })
    }

    fn reset(&mut self) {
        let Self { identity: _, host, queues } = self;
        queues.iter_mut().for_each(|queue| *queue = None);
        host.reset();
    }

    fn save(&self) -> DeviceState {
        let Settings { offloads, pairs } = self.host.wanted();
        let (Mac(mac), link_up) = (self.host.mac(), self.host.is_link_up());
        DeviceState::Net { mac, pairs, offloads: guest_bits(offloads), link_up }
    }

    /// The link is what it is here; a driver that knew another state is told.
    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let &DeviceState::Net { mac, pairs, offloads, link_up } = state else {
            return Err(StateError::Field { device: "net", field: "device type", value: 0 });
        };
        let impossible = |field, value| Err(StateError::Field { device: "net", field, value });
        let host = &self.host;
        let [a, b, c, d, e, f] = mac;
        let is_possible = match host.has(VIRTIO_NET_F_CTRL_MAC_ADDR) {
            true => host.may_have(Mac(mac)),
            false => Mac(mac) == host.layout.mac,
        };
        if !is_possible {
            return impossible("mac", u64::from_be_bytes([0, 0, a, b, c, d, e, f]));
        }
        let most = if host.has(VIRTIO_NET_F_MQ) { host.layout.pairs } else { 1 };
        if pairs == 0 || pairs > most {
            return impossible("pairs", pairs.into());
        }
        if !self.could_have(offloads) {
            return impossible("offloads", offloads);
        }
        host.set_mac(Mac(mac));
        host.want(Settings { offloads: guest_offloads(offloads), pairs });
        host.restore_link(link_up);
        Ok(())
    }

    fn notice(&mut self, event: HostEvent) {
        match event {
            HostEvent::LinkUp => self.host.set_link(true),
            HostEvent::LinkDown => self.host.set_link(false),
            HostEvent::BackendChanged | HostEvent::Resized { .. } => {}
        }
    }
}

impl fmt::Debug for NetDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetDevice")
            .field("identity", &self.identity)
            .field("settings", &self.host.wanted())
            .field("link_up", &self.host.is_link_up())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "device_test.rs"]
mod tests;
