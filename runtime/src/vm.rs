//! A VM as the host holds it.

use std::sync::Arc;
use std::time::Duration;

use ringlet_devices::virtio::HostEvent;
use ringlet_io::limiter::Limits;
use ringlet_metrics::{DeviceKind, VmMetrics, VmState};
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::{CONSOLE_ID, LimitsConfig, RateLimiter};
use crate::console::ConsoleInput;
use crate::devices::throttle::Limitable;
use crate::error::{Error, Result};
use crate::lifecycle::{Reply, VmCommand};
use crate::machine::Phases;
use crate::outcome::Outcome;
use crate::serial::SerialInput;
use crate::vsock::{VmSockets, VsockListener, VsockStream};

/// What a VM is called, and where it is counted.
pub(crate) struct Identity {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) metrics: Arc<VmMetrics>,
    /// What its limits can be for.
    pub(crate) limitable: Limitable,
}

/// The host's ends of a VM's input.
#[derive(Debug)]
pub(crate) struct Inputs {
    pub(crate) serial: SerialInput,
    /// That of its virtio console, if it has one.
    pub(crate) console: Option<ConsoleInput>,
    /// Its socket device, if it has one.
    pub(crate) sockets: Option<VmSockets>,
}

/// What a VM tells its handle.
#[derive(Debug)]
pub(crate) struct VmStatus {
    pub(crate) phases: Arc<Phases>,
    pub(crate) state: watch::Sender<VmState>,
    pub(crate) outcome: watch::Sender<Option<Arc<Outcome>>>,
}

impl VmStatus {
    pub(crate) fn new(phases: Arc<Phases>) -> Self {
        Self { phases, state: watch::Sender::new(VmState::Created), outcome: watch::Sender::new(None) }
    }
}

/// A handle to one VM. Dropping it stops the VM.
///
/// The futures of its methods need no particular executor and may be dropped at any await: what was asked is
/// done all the same.
#[derive(Debug)]
pub struct Vm {
    id: String,
    name: String,
    commands: mpsc::UnboundedSender<VmCommand>,
    status: Arc<VmStatus>,
    metrics: Arc<VmMetrics>,
    limitable: Limitable,
    inputs: Inputs,
}

impl Vm {
    pub(crate) fn new(
        identity: Identity,
        commands: mpsc::UnboundedSender<VmCommand>,
        status: Arc<VmStatus>,
        inputs: Inputs,
    ) -> Self {
        let Identity { id, name, metrics, limitable } = identity;
        Self { id, name, commands, status, metrics, limitable, inputs }
    }

    /// The VM's identifier, unique in its runtime.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The VM's name: as configured, or its identifier.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The time from the VM's start until its guest said that it is ready (the byte 123 to I/O port 0xF5); `None`
    /// before that.
    pub fn time_to_ready(&self) -> Option<Duration> {
        self.status.phases.time_to_ready()
    }

    /// What the VM is doing now.
    pub fn state(&self) -> VmState {
        *self.status.state.borrow()
    }

    /// The VM's counters.
    pub fn metrics(&self) -> &VmMetrics {
        &self.metrics
    }

    /// The VM's serial input.
    pub fn serial_input(&self) -> SerialInput {
        self.inputs.serial.clone()
    }

    /// The input of the VM's virtio console; `None` if it has none.
    pub fn console_input(&self) -> Option<ConsoleInput> {
        self.inputs.console.clone()
    }

    /// Tells the guest the size of the terminal that its virtio console is shown on. Without effect if it has none.
    pub fn resize_console(&self, columns: u16, rows: u16) {
        let event = HostEvent::Resized { columns, rows };
        let _ = self.commands.send(VmCommand::Notice { device: CONSOLE_ID.into(), event, reply: None });
    }

    /// Looks at the size of a disk's file again, and tells the guest if it has changed. Returns when the VM has taken
    /// the order; an error if there is no such disk.
    pub async fn rescan_drive(&self, drive_id: &str) -> Result<()> {
        let device = drive_id.to_owned();
        let notice =
            |reply| VmCommand::Notice { device, event: HostEvent::BackendChanged, reply: Some(reply) };
        self.command("look at its disk", notice).await
    }

    /// The guest's address on its socket device; `None` if it has none.
    pub fn vsock_cid(&self) -> Option<u32> {
        self.inputs.sockets.as_ref().map(|sockets| sockets.cid)
    }

    /// Connects to a port of the guest. Waits until the guest has answered, ten seconds at most: one that is only starting
    /// has its time. To be called in a tokio runtime whose I/O is enabled (`enable_io`); the stream stays with that.
    ///
    /// # Errors
    /// [`Error::Connect`]: why there is no connection. [`Error::State`]: the VM has no socket device. [`Error::Io`]: there are
    /// no descriptors, or there is no tokio runtime.
    ///
    /// # Panics
    /// As tokio does, in a runtime without I/O.
    pub async fn vsock_connect(&self, port: u32) -> Result<VsockStream> {
        self.sockets()?.connect(port).await
    }

    /// As [`Self::vsock_connect`], with a socket of the caller's: what is written to the other end of `stream` goes to the
    /// guest, and what the guest sends is read there. Gives the port of the host. Needs no tokio runtime.
    ///
    /// # Errors
    /// As there; the stream is closed.
    pub async fn vsock_attach(&self, port: u32, stream: std::os::unix::net::UnixStream) -> Result<u32> {
        Ok(self.sockets()?.handle.connect(port, stream).await?)
    }

    /// Takes the guest's connections to a port of the host, which go to no socket of `uds_path` as long as the result lives.
    /// At most 128 wait to be accepted; further ones are refused.
    ///
    /// # Errors
    /// [`Error::Port`]: somebody in this process listens there already, or the VM has ended. [`Error::State`]: it has no
    /// socket device.
    pub fn vsock_listen(&self, port: u32) -> Result<VsockListener> {
        Ok(VsockListener(self.sockets()?.handle.listen(port)?))
    }

    fn sockets(&self) -> Result<&VmSockets> {
        let none = Error::State { operation: "be connected to", state: "has no socket device (`vsock`)" };
        self.inputs.sockets.as_ref().ok_or(none)
    }

    /// Lets a created VM run. An error if it was started before or has ended.
    pub async fn start(&self) -> Result<()> {
        self.command("start", VmCommand::Start).await
    }

    /// Pauses a running VM; true when no vCPU executes guest code any more, every access is complete, and so is every
    /// request that a device has taken. A vCPU that waits for its devices counts as paused. Pausing a paused VM does
    /// nothing.
    pub async fn pause(&self) -> Result<()> {
        self.command("be paused", VmCommand::Pause).await
    }

    /// Lets a paused VM run again. Resuming a running VM does nothing.
    pub async fn resume(&self) -> Result<()> {
        self.command("be resumed", VmCommand::Resume).await
    }

    /// Changes what the VM may use of the host, in any state before its end; what `limits` leaves out is not limited any
    /// more. Returns when the new limits hold.
    ///
    /// # Errors
    /// And no change: a value is out of range, or takes a privilege that this process does not have (a larger `cpu.weight`
    /// than the present one does); limits of devices that the VM does not have; a weight of one that has no tenant.
    /// [`Error::State`]: the VM has ended.
    pub async fn set_limits(&self, limits: LimitsConfig) -> Result<()> {
        limits.validate()?;
        self.limitable.check(&limits)?;
        self.command("be limited", |reply| VmCommand::SetLimits(Box::new(limits), reply)).await
    }

    /// Changes the limits of one device (a drive's `drive_id`, `rng0`, `console0`, `vsock0`), in any state before the VM's end: a
    /// bucket that `limiter` names is replaced by a full one, one of size 0 goes, what is absent stays. Returns when
    /// the new limits hold, also for requests that wait.
    pub async fn set_rate_limiter(&self, device: &str, limiter: RateLimiter) -> Result<()> {
        limiter.validate().map_err(|reason| Error::config("rate_limiter", reason))?;
        let (device, change) = (device.to_owned(), limiter.limits());
        self.command("be limited", |reply| VmCommand::LimitDevice { device, change, reply }).await
    }

    /// Changes what one network interface (its `iface_id`), or the socket device (`vsock0`), may receive and what it may send,
    /// in any state before the VM's end; buckets change as by [`Vm::set_rate_limiter`]. Returns when the new limits hold.
    ///
    /// # Errors
    /// [`Error::Config`]: a bucket is out of range, or there is no such device, or it neither receives nor sends (a disk).
    /// [`Error::State`]: the VM has ended.
    pub async fn set_net_rate_limiters(
        &self,
        iface_id: &str,
        received: RateLimiter,
        sent: RateLimiter,
    ) -> Result<()> {
        for (field, limiter) in [("rx_rate_limiter", received), ("tx_rate_limiter", sent)] {
            limiter.validate().map_err(|reason| Error::config(field, reason))?;
        }
        let has_no_directions = |kind| !matches!(kind, DeviceKind::Net | DeviceKind::Vsock);
        if self.kind_of(iface_id).is_some_and(has_no_directions) {
            let rule = format!("{iface_id:?} is no network interface and no socket device");
            return Err(Error::config("iface_id", rule));
        }
        let device = iface_id.to_owned();
        let change =
            Limits { read: received.limits().total, write: sent.limits().total, ..Limits::default() };
        self.command("be limited", |reply| VmCommand::LimitDevice { device, change, reply }).await
    }

    /// Takes the link of a network interface up or down, and tells the guest, in any state before the VM's end. While it is
    /// down nothing is received, and what is sent is dropped. A link that went down because the host's side failed can be
    /// taken up again, but fails again if that is gone. Returns when the VM has taken the order; an error if there is no
    /// such interface.
    pub async fn set_link(&self, iface_id: &str, up: bool) -> Result<()> {
        if self.kind_of(iface_id).is_some_and(|kind| kind != DeviceKind::Net) {
            return Err(Error::config("iface_id", format!("{iface_id:?} is no network interface")));
        }
        let device = iface_id.to_owned();
        let event = if up { HostEvent::LinkUp } else { HostEvent::LinkDown };
        let notice = |reply| VmCommand::Notice { device, event, reply: Some(reply) };
        self.command("change a link", notice).await
    }

    /// Asks the VM to stop, from any state, and returns at once. The outcome is [`Outcome::Stopped`] unless the
    /// guest ended before.
    pub fn request_stop(&self) {
        // If nobody receives it, the VM has ended.
        let _ = self.commands.send(VmCommand::Stop);
    }

    /// Stops the VM and waits for its outcome.
    pub async fn stop(&self) -> Arc<Outcome> {
        self.request_stop();
        self.wait().await
    }

    /// Waits until the VM has ended.
    pub async fn wait(&self) -> Arc<Outcome> {
        let mut outcome = self.status.outcome.subscribe();
        match outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone()) {
            Ok(Some(outcome)) => outcome,
            // This handle keeps the sender alive, and `wait_for` has seen a value.
            Ok(None) | Err(_) => Arc::new(Outcome::Failed { error: "the VM's task is gone".into() }),
        }
    }

    /// `None` if there is no such device, or the VM has ended.
    fn kind_of(&self, device: &str) -> Option<DeviceKind> {
        self.metrics.live_devices().iter().find(|live| live.id() == device).map(|live| live.kind())
    }

    async fn command(&self, operation: &'static str, command: impl FnOnce(Reply) -> VmCommand) -> Result<()> {
        let ended = || Error::State { operation, state: "has ended" };
        let (reply, mut answer) = oneshot::channel();
        self.commands.send(command(reply)).map_err(|_| ended())?;
        let mut outcome = self.status.outcome.subscribe();
        // A command that is sent while the VM ends may stay in the channel, neither answered nor dropped. The
        // outcome comes after every answer.
        tokio::select! {
            biased;
            answer = &mut answer => answer.unwrap_or_else(|_| Err(ended())),
            _ = outcome.wait_for(Option::is_some) => answer.try_recv().unwrap_or_else(|_| Err(ended())),
        }
    }
}
