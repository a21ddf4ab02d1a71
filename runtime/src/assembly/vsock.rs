//! The socket device of a VM: how the host's side is opened, and the device made.

use std::sync::Arc;

use ringlet_devices::virtio::{DeviceMemory, VirtioDevice};
use ringlet_devices::vsock::{VsockDevice, VsockHandle, VsockOptions, VsockSource};
use ringlet_io::net::duplicate;
use ringlet_io::unix::{ListenError, Listener, SocketFile};
use ringlet_io::{DescriptorShare, Owner, ShardContext};
use ringlet_metrics::DeviceKind;

use super::virtio::{Made, Site};
use crate::cids::Cid;
use crate::config::{VSOCK_ID, Vsock};
use crate::devices::throttle::DeviceLimits;
use crate::error::{Error, Result};
use crate::runtime::Inner;
use crate::vsock::VmSockets;

/// A socket device that is to be, with its host's side open.
pub(super) struct SocketDevice {
    options: VsockOptions,
    source: VsockSource,
    handle: VsockHandle,
    descriptors: DescriptorShare,
    limits: DeviceLimits,
    kept: Kept,
}

/// What a socket device has of the host until its VM is closed. Dropping it looks a path up: not on a shard.
#[derive(Debug)]
pub(super) struct Kept {
    _file: Option<SocketFile>,
    _cid: Cid,
}

impl SocketDevice {
    /// Opens the host's side. Waits for the kernel.
    pub(super) fn open(config: &Vsock, runtime: &Inner) -> Result<Self> {
        let (listener, file) = listener(config)?;
        let descriptors = runtime.descriptors.share();
        let (source, handle) = VsockSource::new(listener, config.uds_path.clone());
        let source = source.taking_from(descriptors.clone());
        let cid = Cid::take(&runtime.cids, config.guest_cid);
        let mut options = VsockOptions::new(VSOCK_ID, cid.number().into());
        options.max_connections = config.ringlet.max_connections;
        let limits = DeviceLimits { own: config.limits(), together: None };
        Ok(Self { options, source, handle, descriptors, limits, kept: Kept { _file: file, _cid: cid } })
    }

    /// What it takes of the host's memory.
    pub(super) fn memory(&self) -> DeviceMemory {
        self.options.memory()
    }

    /// Makes the device; the process's side of it, and what is to be kept, are put aside.
    pub(super) fn make(self, site: &Site<'_>, sockets: &mut Option<(VmSockets, Kept)>) -> Made {
        let Self { options, source, handle, descriptors, limits, kept } = self;
        let cid = u32::try_from(options.cid).unwrap_or(u32::MAX);
        let (identity, config) = (options.identity(), options.config());
        let metrics = site.metrics.register_device(VSOCK_ID, DeviceKind::Vsock);
        site.metrics.register_descriptors(descriptors.source());
        *sockets = Some((VmSockets { handle, cid, descriptors, metrics: Arc::clone(&metrics) }, kept));
        let (space, numbers) = (config.clone(), Arc::clone(&metrics));
        Made {
            identity,
            config,
            device: Box::new(move |cx: &ShardContext, owner: &Owner| {
                let device = VsockDevice::new(cx, owner, &options, space, source, numbers)?;
                Ok(Box::new(device) as Box<dyn VirtioDevice>)
            }),
            metrics,
            limits,
        }
    }
}

/// Where the host's connections come from: a descriptor, or a socket that is made.
fn listener(config: &Vsock) -> Result<(Option<Listener>, Option<SocketFile>)> {
    if let Some(fd) = config.ringlet.fd {
        let refused =
            |error| Error::config("fd", format!("of vsock: descriptor {fd} cannot be used: {error}"));
        let copy = duplicate(fd).map_err(refused)?;
        let listener = Listener::from_fd(copy).map_err(|mut error| {
            // Whoever gave the descriptor does not know the copy's number.
            if let ListenError::NotUsable { number, .. } = &mut error {
                *number = fd;
            }
            error
        })?;
        return Ok((Some(listener), None));
    }
    let Some(path) = &config.uds_path else { return Ok((None, None)) };
    let (listener, file) = Listener::bind(path)?;
    Ok((Some(listener), Some(file)))
}

#[cfg(test)]
#[path = "vsock_test.rs"]
mod tests;
