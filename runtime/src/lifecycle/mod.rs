//! The life of one VM, as a task on its shard.
//!
//! The contract, in order:
//! 1. A VM is *created* with its vCPUs parked; nothing of the guest runs before `start`.
//! 2. `pause` is true when every vCPU is at rest (paused, waiting for the shard, or finished) and after that every
//!    device: its queues stopped, its requests complete, no write to guest RAM under way.
//! 3. `resume` lets the devices go on, then the vCPUs.
//! 4. The first vCPU that is seen to have ended the machine decides the outcome (of several at once, the one with the
//!    lowest number); a device that cannot go on, the host's stop and the time limit decide it only if no vCPU has.
//!    Later causes are ignored.
//! 5. Once the outcome is decided, every vCPU is asked to stop; nothing restarts one.
//! 6. When all vCPUs have finished, the devices are stopped: what they have taken from the guest completes. If that
//!    takes longer than the drain timeout, the outcome is a failure, and guest RAM that is lent to the
//!    kernel stays until the kernel has done with it, if ever.
//! 7. When the devices are stopped, the output is drained, then the outcome is published, and only then
//!    are descriptors handed to the reaper. Whoever waits for a VM never waits for its closing.
//!
//! What of this the task can see is asserted where it happens, in builds with debug assertions.
//!
//! A shard never blocks on a vCPU: the task awaits changes of status and commands, nothing else.

mod life;
mod phase;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringlet_devices::virtio::HostEvent;
use ringlet_io::ShardContext;
use ringlet_io::limiter::{LimitError, Limits};
use ringlet_metrics::VmState;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::buffers::VmBuffers;
use crate::config::LimitsConfig;
use crate::cpu;
use crate::devices::{Activity, Devices, Fault};
use crate::error::{Error, Result};
use crate::machine::Machine;
use crate::outcome::Outcome;
use crate::pumps::Pumps;
use crate::reaper::{Corpse, Reaper};
use crate::tenants::Tenant;
use crate::vcpu::VcpuControl;
use crate::vcpu::control::{Request, Status};
pub(crate) use life::Life;
use phase::{Cause, Phase};

/// How long the output of a VM that the host stops may take to drain.
const STOP_DRAIN: Duration = Duration::from_secs(1);

/// A command of the VM's handle, with the place for its answer.
pub(crate) enum VmCommand {
    Start(Reply),
    Pause(Reply),
    Resume(Reply),
    /// New limits, which are valid.
    SetLimits(Box<LimitsConfig>, Reply),
    /// New limits of one device: those that are named.
    LimitDevice {
        device: String,
        change: Limits,
        reply: Reply,
    },
    /// Something that one of the devices is to know.
    Notice {
        device: String,
        event: HostEvent,
        reply: Option<Reply>,
    },
    Stop,
}

pub(crate) type Reply = oneshot::Sender<Result<()>>;

/// Everything of a VM that its shard looks after. Plain data until [`VmTask::run`].
pub(crate) struct VmTask {
    pub(crate) life: Life,
    /// Told by the vCPU threads after each change of their status.
    pub(crate) changed: Arc<Notify>,
    pub(crate) commands: mpsc::UnboundedReceiver<VmCommand>,
    /// Nobody can send a command any more.
    pub(crate) unheld: bool,
    pub(crate) machine: Arc<Machine>,
    pub(crate) reaper: Arc<Reaper>,
    pub(crate) corpse: Corpse,
    /// From start to forced end.
    pub(crate) timeout: Option<Duration>,
    /// The VM was started while it was made.
    pub(crate) running: bool,
    /// When the time limit passes; `None` before the start and without a limit.
    pub(crate) deadline: Option<Instant>,
    /// Is there as long as its VMs.
    pub(crate) _tenant: Option<Arc<Tenant>>,
    /// What the host buffers for it.
    pub(crate) buffers: VmBuffers,
}

impl VmTask {
    /// Lives the VM's life. Returns when its outcome is published and its remains are with the reaper.
    pub(crate) async fn run(self, cx: ShardContext, pumps: Pumps, devices: Devices) {
        let mut living = Living { vm: self, devices, limits: VecDeque::new() };
        let cause = living.live(&cx).await;
        let outcome = living.conclude(cause);
        let outcome = living.stop_devices(outcome).await;
        living.drain_output(&cx, pumps, &outcome).await;
        living.end(outcome);
    }

    /// Undoes the making of a VM that found no shard.
    pub(crate) fn abandon(self) {
        drop(self.life);
        self.reaper.reap(self.corpse);
    }
}

/// A VM and its devices on the shard.
struct Living {
    vm: VmTask,
    devices: Devices,
    /// Limits that do not hold yet, because a vCPU had a look at what it has used.
    limits: VecDeque<(Box<LimitsConfig>, Reply)>,
}

impl Living {
    /// Obeys and watches until every vCPU has finished; returns why the VM ends.
    async fn live(&mut self, cx: &ShardContext) -> Cause {
        let mut phase = if self.vm.running { self.enter_running() } else { Phase::Created };
        self.vm.life.publish(phase.state());
        loop {
            let event = self.next_event(cx, &mut phase).await;
            // A vCPU that has ended the machine comes before whatever the host wants.
            phase = self.settle(phase);
            phase = self.apply(event, phase);
            phase = self.settle(phase);
            self.set_limits();
            self.vm.life.publish(phase.state());
            if let Phase::Stopping(cause) = &mut phase
                && self.vm.life.controls.iter().all(|vcpu| vcpu.status() == Status::Finished)
            {
                return std::mem::replace(cause, Cause::Host);
            }
        }
    }

    async fn next_event(&mut self, cx: &ShardContext, phase: &mut Phase) -> Event {
        let stopping = matches!(phase, Phase::Stopping(_));
        tokio::select! {
            biased;
            () = self.vm.changed.notified() => Event::Changed,
            command = self.vm.commands.recv(), if !self.vm.unheld => {
                self.vm.unheld = command.is_none();
                Event::Command(command.unwrap_or(VmCommand::Stop))
            }
            () = time_limit(cx, self.vm.deadline) => Event::TimeLimit,
            () = time_limit(cx, self.vm.machine.cpu.watch_at()) => Event::CpuWatch,
            () = cx.timer().sleep(cpu::LOCKED), if !self.limits.is_empty() => Event::Changed,
            result = phase.devices_at_rest() => Event::Suspended(result),
            fault = self.devices.fault(), if !stopping => Event::Fault(fault),
        }
    }

    /// The phase after an event.
    fn apply(&mut self, event: Event, phase: Phase) -> Phase {
        match event {
            Event::Changed => phase,
            Event::CpuWatch => {
                self.vm.machine.cpu.inspect();
                phase
            }
            Event::TimeLimit => {
                self.vm.deadline = None;
                self.begin_stop(phase, Cause::TimeLimit)
            }
            Event::Suspended(Ok(())) => self.suspended(phase),
            Event::Suspended(Err(fault)) | Event::Fault(fault) => {
                self.begin_stop(phase, Cause::Device(fault))
            }
            Event::Command(VmCommand::Stop) => self.begin_stop(phase, Cause::Host),
            Event::Command(VmCommand::Start(reply)) => self.start(phase, reply),
            Event::Command(VmCommand::Pause(reply)) => self.pause(phase, reply),
            Event::Command(VmCommand::Resume(reply)) => self.resume(phase, reply),
            Event::Command(VmCommand::SetLimits(limits, reply)) => {
                self.limits.push_back((limits, reply));
                phase
            }
            Event::Command(VmCommand::LimitDevice { device, change, reply }) => {
                let unknown = || Error::config("device", format!("the VM has no device {device:?}"));
                let done = self.devices.limit(&device, &change).map_err(|error| bad_limit(&error));
                let _ = reply.send(done.and_then(|known| known.then_some(()).ok_or_else(unknown)));
                phase
            }
            Event::Command(VmCommand::Notice { device, event, reply }) => {
                self.notice(&device, event, reply);
                phase
            }
        }
    }

    /// Makes the limits hold that were asked for, in their order. What a vCPU is in the way of is left for later.
    fn set_limits(&mut self) {
        while let Some((limits, reply)) = self.limits.pop_front() {
            // What may be refused comes first.
            if let Err(refused) = self.vm.buffers.check(limits.buffers.max) {
                let _ = reply.send(Err(refused));
                continue;
            }
            let Some(set) = self.vm.machine.cpu.set(limits.cpu) else {
                return self.limits.push_front((limits, reply));
            };
            let devices = || self.devices.limit_all(&limits).map_err(|error| bad_limit(&error));
            let buffers = || self.vm.buffers.set_max(limits.buffers.max);
            let _ = reply.send(set.and_then(|()| devices()).and_then(|()| buffers()));
        }
    }

    fn start(&mut self, phase: Phase, reply: Reply) -> Phase {
        if !matches!(phase, Phase::Created) {
            return refuse(reply, "start", phase);
        }
        self.vm.machine.phases.start();
        self.vm.life.ask_all(Request::Run);
        self.accept(VmState::Running, [reply]);
        self.enter_running()
    }

    fn enter_running(&mut self) -> Phase {
        self.vm.deadline = self.vm.timeout.and_then(|limit| Instant::now().checked_add(limit));
        Phase::Running
    }

    fn pause(&mut self, phase: Phase, reply: Reply) -> Phase {
        match phase {
            Phase::Running => {
                self.vm.life.ask_all(Request::Pause);
                Phase::Pausing(vec![reply])
            }
            Phase::Pausing(mut replies) => {
                replies.push(reply);
                Phase::Pausing(replies)
            }
            Phase::Suspending(mut replies, devices) => {
                replies.push(reply);
                Phase::Suspending(replies, devices)
            }
            Phase::Paused => {
                self.accept(VmState::Paused, [reply]);
                Phase::Paused
            }
            other => refuse(reply, "be paused", other),
        }
    }

    fn resume(&mut self, phase: Phase, reply: Reply) -> Phase {
        match phase {
            Phase::Paused | Phase::Running => {
                if matches!(phase, Phase::Paused) {
                    self.devices.resume();
                }
                self.vm.life.ask_all(Request::Run);
                self.accept(VmState::Running, [reply]);
                Phase::Running
            }
            other => refuse(reply, "be resumed", other),
        }
    }

    fn notice(&self, device: &str, event: HostEvent, reply: Option<Reply>) {
        let known = self.devices.notice(device, event);
        if let Some(reply) = reply {
            let unknown = || Error::config("device", format!("there is no {device:?}"));
            let _ = reply.send(known.then_some(()).ok_or_else(unknown));
        }
    }

    /// Looks at the vCPUs: does their status complete a pause or end the machine?
    fn settle(&mut self, phase: Phase) -> Phase {
        if !matches!(phase, Phase::Stopping(_)) {
            let ended = self.vm.life.controls.iter().find(|vcpu| vcpu.status() == Status::Finished);
            if let Some(vcpu) = ended {
                let outcome = vcpu.take_end().and_then(|end| end.outcome);
                let cause = outcome.map_or(Cause::Host, Cause::Guest);
                return self.begin_stop(phase, cause);
            }
        }
        match phase {
            Phase::Pausing(replies) if self.vcpus_parked() => {
                Phase::Suspending(replies, self.devices.suspend())
            }
            other => other,
        }
    }

    /// The devices are at rest.
    fn suspended(&mut self, phase: Phase) -> Phase {
        match phase {
            Phase::Suspending(replies, _) => {
                debug_assert!(self.vcpus_parked(), "a vCPU runs while its devices are at rest");
                self.accept(VmState::Paused, replies);
                Phase::Paused
            }
            other => other,
        }
    }

    fn vcpus_parked(&self) -> bool {
        self.vm.life.controls.iter().all(|vcpu| vcpu.is_parked())
    }

    fn begin_stop(&mut self, phase: Phase, cause: Cause) -> Phase {
        match phase {
            Phase::Stopping(first) => return Phase::Stopping(first),
            Phase::Pausing(replies) | Phase::Suspending(replies, _) => {
                for reply in replies {
                    let _ = reply.send(Err(Error::State { operation: "be paused", state: "has ended" }));
                }
            }
            Phase::Created | Phase::Running | Phase::Paused => {}
        }
        self.vm.life.ask_all(Request::Stop);
        Phase::Stopping(cause)
    }

    /// Says yes; whoever hears it finds the VM in that state.
    fn accept(&self, state: VmState, replies: impl IntoIterator<Item = Reply>) {
        self.vm.life.publish(state);
        for reply in replies {
            let _ = reply.send(Ok(()));
        }
    }

    /// All vCPUs have finished: what is the outcome?
    fn conclude(&self, cause: Cause) -> Outcome {
        let reports =
            || self.vm.life.controls.iter().filter_map(|vcpu| vcpu.take_end()).map(|end| end.report);
        match cause {
            Cause::Guest(outcome) => outcome,
            Cause::Device(fault) => Outcome::Failed { error: fault.error },
            Cause::Host => Outcome::Stopped,
            Cause::TimeLimit => Outcome::TimedOut { vcpus: reports().collect() },
        }
    }

    /// Stops the devices, in a bounded time. What the guest's requests do is done after this, or the outcome is a failure.
    async fn stop_devices(&mut self, outcome: Outcome) -> Outcome {
        let Err(fault) = self.devices.stop().await else { return outcome };
        match outcome {
            Outcome::Failed { .. } => outcome,
            _ => Outcome::Failed { error: format!("{}. Before that: {outcome}", fault.error) },
        }
    }

    /// Writes out what the guest has printed. Nothing is lost of a guest that ended by itself, however slow the
    /// reader; a VM that the host stops or whose time is over (now or meanwhile) gets a bounded time.
    async fn drain_output(&mut self, cx: &ShardContext, pumps: Pumps, outcome: &Outcome) {
        let mut draining = pumps.finish(cx);
        if !matches!(outcome, Outcome::Stopped | Outcome::TimedOut { .. }) {
            tokio::select! {
                () = draining.done() => return,
                () = stop_asked(&mut self.vm.commands) => {}
                () = time_limit(cx, self.vm.deadline) => {}
            }
        }
        tokio::select! {
            () = draining.done() => {}
            () = cx.timer().sleep(STOP_DRAIN) => draining.abandon(cx),
        }
    }

    /// Publishes the outcome, then hands over what is left. Nothing that closes a VM is dropped here.
    fn end(self, outcome: Outcome) {
        let finished = |vcpu: &Arc<VcpuControl>| vcpu.status() == Status::Finished;
        debug_assert!(self.vm.life.controls.iter().all(finished), "a vCPU outlives its VM's outcome");
        debug_assert!(self.vm.life.status.outcome.borrow().is_none(), "a VM ends twice");
        debug_assert_eq!(self.devices.activity(), Activity::Stopped, "a device outlives its VM's outcome");
        let VmTask { life, machine, reaper, corpse, .. } = self.vm;
        let place = reaper.reserve();
        life.end(outcome);
        drop((life, machine));
        place.reap(corpse);
    }
}

enum Event {
    Changed,
    Command(VmCommand),
    TimeLimit,
    /// CPU time may be used up.
    CpuWatch,
    Suspended(Result<(), Fault>),
    Fault(Fault),
}

/// Waits for a moment, such as the end of the VM's time, if there is one.
async fn time_limit(cx: &ShardContext, deadline: Option<Instant>) {
    match deadline {
        Some(at) => cx.timer().sleep(at.saturating_duration_since(Instant::now())).await,
        None => std::future::pending().await,
    }
}

/// Waits until the VM is told to stop (or its handle is gone), refusing everything else.
async fn stop_asked(commands: &mut mpsc::UnboundedReceiver<VmCommand>) {
    while let Some(command) = commands.recv().await {
        let (reply, operation) = match command {
            VmCommand::Stop => return,
            VmCommand::Start(reply) => (Some(reply), "start"),
            VmCommand::Pause(reply) => (Some(reply), "be paused"),
            VmCommand::Resume(reply) => (Some(reply), "be resumed"),
            VmCommand::SetLimits(_, reply) | VmCommand::LimitDevice { reply, .. } => {
                (Some(reply), "be limited")
            }
            VmCommand::Notice { reply, .. } => (reply, "tell a device anything"),
        };
        let Some(reply) = reply else { continue };
        let _ = reply.send(Err(Error::State { operation, state: "has ended" }));
    }
}

fn bad_limit(error: &LimitError) -> Error {
    Error::config("rate_limiter", error.to_string())
}

fn refuse(reply: Reply, operation: &'static str, phase: Phase) -> Phase {
    let _ = reply.send(Err(Error::State { operation, state: phase.describe() }));
    phase
}

#[cfg(test)]
#[path = "lifecycle_test.rs"]
pub(crate) mod tests;

#[cfg(test)]
#[path = "devices_test.rs"]
mod device_tests;
