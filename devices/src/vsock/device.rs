//! The device: configuration space, queues, saved state.
//!
//! Owns a task for each queue that runs, those of the host's ways in, and what they share. Never sees a packet, and never
//! waits.

use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use ringlet_io::unix::Scratch;
use ringlet_io::{Owner, ShardContext};
use ringlet_metrics::DeviceMetrics;

use super::accept::{accept, connect_out, take_over};
use super::config::VsockOptions;
use super::connection::Job;
use super::event::{Events, tell};
use super::host::VsockSource;
use super::linger::see_to_what_lingers;
use super::packet::{MAX_CID, MIN_CID};
use super::receive::Receiver;
use super::switch::Switch;
use super::transmit::Transmitter;
use crate::state::StateError;
use crate::virtio::{
    ConfigSpace, DeviceState, Identity, LocalBoxFuture, OrderedTask, QueueParts, QueueState, VirtioDevice,
};

/// Number of the queue of packets to the guest, ...
pub(super) const RECEIVE: u16 = 0;
/// ... and of those from it; the third is for events (virtio 1.2, section 5.10.2).
pub(super) const TRANSMIT: u16 = 1;

/// A virtio socket device.
pub struct VsockDevice {
    identity: Identity,
    config: ConfigSpace,
    pub(super) switch: Rc<Switch>,
    events: Rc<Events>,
    queues: [Option<OrderedTask>; 3],
    _jobs: Vec<Job>,
}

impl VsockDevice {
    /// A device that no driver has seen, which takes connections of the host from now on. `config` is what
    /// [`VsockOptions::config`] gave, or a clone.
    ///
    /// # Errors
    /// `InvalidInput`: a guest cannot have that context ID. The kernel refuses to watch the listening socket.
    pub fn new(
        cx: &ShardContext,
        owner: &Owner,
        options: &VsockOptions,
        config: ConfigSpace,
        source: VsockSource,
        metrics: Arc<DeviceMetrics>,
    ) -> io::Result<Self> {
        if !is_guest(options.cid) {
            let text = format!("context ID {}: {MIN_CID} to {MAX_CID} are possible", options.cid);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let VsockSource { commands, door, listener, path, descriptors } = source;
        let acceptor = listener.map(|listener| listener.attach()).transpose()?;
        let calls_out = path.is_some();
        let switch = Switch::new(cx, owner, options, (door, path, descriptors), metrics);
        let mut jobs = vec![
            switch.spawn(take_over(Rc::clone(&switch), commands)),
            switch.spawn(see_to_what_lingers(Rc::clone(&switch))),
        ];
        if let Some(acceptor) = acceptor {
            jobs.push(switch.spawn(accept(Rc::clone(&switch), acceptor)));
        }
        if calls_out {
            jobs.push(switch.spawn(connect_out(Rc::clone(&switch))));
        }
        let (identity, events) = (options.identity(), Rc::default());
        Ok(Self { identity, config, switch, events, queues: Default::default(), _jobs: jobs })
    }
}

/// Whether a guest may have a context ID.
fn is_guest(cid: u64) -> bool {
    (MIN_CID..=MAX_CID).contains(&cid)
}

impl VirtioDevice for VsockDevice {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn start_queue(&mut self, index: u16, parts: QueueParts, state: Option<QueueState>) {
        let (switch, events, scratch) =
            (Rc::clone(&self.switch), Rc::clone(&self.events), Scratch::default());
        let task = match index {
            RECEIVE => OrderedTask::spawn(parts, state, |queue, doorbell| {
                Receiver { queue, doorbell, switch, events, scratch }.run()
            }),
            TRANSMIT => OrderedTask::spawn(parts, state, |queue, doorbell| {
                Transmitter { queue, doorbell, switch, scratch }.run()
            }),
            _ => OrderedTask::spawn(parts, state, |queue, doorbell| tell(queue, doorbell, events)),
        };
        if let Some(slot) = self.queues.get_mut(usize::from(index)) {
            *slot = Some(task);
        }
    }

    fn stop_queue(&mut self, index: u16) -> LocalBoxFuture<Option<QueueState>> {
        let task = self.queues.get_mut(usize::from(index)).and_then(Option::take);
        Box::pin(async move { task?.stop().await })
    }

    fn reset(&mut self) {
        let Self { identity: _, config: _, switch, events, queues, _jobs: _ } = self;
        queues.iter_mut().for_each(|queue| *queue = None);
        switch.reset();
        events.set_reset(false);
    }

    fn save(&self) -> DeviceState {
        DeviceState::Vsock { cid: self.switch.options.cid }
    }

    /// Connections are not saved: the driver is told that they are gone, and asked to read its context ID again.
    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        match *state {
            DeviceState::Vsock { cid } if is_guest(cid) => {
                self.events.set_reset(true);
                Ok(())
            }
            DeviceState::Vsock { cid } => {
                Err(StateError::Field { device: "vsock", field: "cid", value: cid })
            }
            _ => Err(StateError::Field { device: "vsock", field: "device type", value: 0 }),
        }
    }
}

impl Drop for VsockDevice {
    /// The tasks of connections have what is shared: it goes with them.
    fn drop(&mut self) {
        self.switch.close();
    }
}

impl fmt::Debug for VsockDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VsockDevice").field("identity", &self.identity).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "device_test.rs"]
mod tests;
