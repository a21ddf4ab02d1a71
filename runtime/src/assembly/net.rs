//! The network interfaces of a VM: how the host's side of each is opened, and the device made.

use std::os::fd::{AsRawFd, RawFd};

use ringlet_devices::net::{Filter, Mac, NetDevice, NetOptions};
use ringlet_devices::virtio::{DeviceMemory, VirtioDevice};
use ringlet_io::net::{MAX_PACKET, NetSource, Socket, SocketError, Tap, TapError, duplicate};
use ringlet_io::{Owner, ShardContext};
use ringlet_metrics::DeviceKind;
use rustix::rand::{GetRandomFlags, getrandom};

use super::virtio::{Made, Site};
use crate::config::{AntiSpoof, MacAddress, NetworkInterface, Pinning};
use crate::devices::throttle::{DeviceLimits, Together};
use crate::error::{Error, Result};

/// An interface that is to be, with its host's side open.
pub(super) struct Interface {
    pub(super) options: NetOptions,
    source: NetSource,
    limits: DeviceLimits,
}

impl Interface {
    /// Opens the host's side. Waits for the kernel. `is_tenants`: the VM is one of a tenant's, with others beside it;
    /// `together`: limits of all interfaces.
    pub(super) fn open(config: &NetworkInterface, is_tenants: bool, together: &Together) -> Result<Self> {
        let mac = Mac(match config.guest_mac {
            Some(MacAddress(mac)) => mac,
            None => random_mac()?,
        });
        let source = open(config, mac)?;
        let info = source.info();
        let own = info.mac.map_or(mac, Mac);
        let pinned = match &config.ringlet.anti_spoof {
            Some(Pinning::On(pinned)) => filter(own, pinned),
            None if is_tenants => filter(own, &AntiSpoof::default()),
            Some(Pinning::Off) | None => Filter::default(),
        };
        let options = NetOptions {
            id: config.iface_id.clone(),
            mac,
            mtu: config.mtu,
            queue_size: config.ringlet.queue_size,
            filter: Filter { no_loopback: matches!(source, NetSource::Socket(_)), ..pinned },
        };
        Ok(Self {
            options,
            source,
            limits: DeviceLimits { own: config.limits(), together: Some(together.clone()) },
        })
    }

    /// What it takes of the host's memory: a socket has a packet on its way in each direction.
    pub(super) fn memory(&self) -> DeviceMemory {
        let buffers = match &self.source {
            NetSource::Socket(_) => 3 * MAX_PACKET as u64,
            _ => 0,
        };
        self.options.memory(&self.source.info()).and(buffers, 0)
    }

    pub(super) fn make(self, site: &Site<'_>) -> Made {
        let Self { options, source, limits } = self;
        let info = source.info();
        let (identity, config) = (options.identity(&info), options.config(&info));
        let (metrics, space) = (site.metrics.register_device(&options.id, DeviceKind::Net), config.clone());
        Made {
            identity,
            config,
            device: Box::new(move |cx: &ShardContext, _: &Owner| {
                let ports = source.attach(cx)?;
                Ok(Box::new(NetDevice::new(cx, &options, &info, space, ports)?) as Box<dyn VirtioDevice>)
            }),
            metrics,
            limits,
        }
    }
}

fn open(config: &NetworkInterface, mac: Mac) -> Result<NetSource> {
    let extras = &config.ringlet;
    if let Some(name) = &config.host_dev_name {
        return Ok(NetSource::Tap(Tap::open(name, extras.queues)?));
    }
    if let Some(path) = &extras.socket {
        return Ok(NetSource::Socket(Socket::connect(path)?));
    }
    if let Some(passt) = &extras.passt {
        return Ok(NetSource::Socket(Socket::passt(&config.passt_options(passt, mac))?));
    }
    let descriptor = |fd: &i32| {
        let refused = |error| Error::config("fds", format!("descriptor {fd} cannot be used: {error}"));
        duplicate(*fd).map_err(refused)
    };
    let mut fds = extras.fds.iter().map(descriptor).collect::<Result<Vec<_>>>()?;
    // Whoever gave the descriptors does not know the copies' numbers.
    let copies: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let name_given = |number: &mut RawFd| {
        let given = copies.iter().zip(&extras.fds).find(|(copy, _)| **copy == *number);
        *number = given.map_or(*number, |(_, given)| *given);
    };
    if fds.len() == 1
        && let Some(fd) = fds.pop_if(|fd| rustix::net::sockopt::socket_domain(fd).is_ok())
    {
        let socket = Socket::from_fd(fd).map_err(|mut error| {
            if let SocketError::NotUsable { number, .. } = &mut error {
                name_given(number);
            }
            error
        });
        return Ok(NetSource::Socket(socket?));
    }
    let tap = Tap::from_fds(fds).map_err(|mut error| {
        if let TapError::NotATap { number, .. }
        | TapError::Flag { number, .. }
        | TapError::TwoTaps { number, .. } = &mut error
        {
            name_given(number);
        }
        error
    });
    Ok(NetSource::Tap(tap?))
}

fn filter(mac: Mac, pinned: &AntiSpoof) -> Filter {
    Filter { mac: Some(mac), ipv4: pinned.ipv4.clone(), ipv6: pinned.ipv6.clone(), no_loopback: false }
}

/// An address of one station, administered locally.
fn random_mac() -> Result<[u8; 6]> {
    let mut mac = [0; 6];
    getrandom(&mut mac, GetRandomFlags::empty()).map_err(Error::io("a random Ethernet address"))?;
    let [first, ..] = &mut mac;
    *first = *first & 0xFC | 2;
    Ok(mac)
}

#[cfg(test)]
#[path = "net_test.rs"]
mod tests;
