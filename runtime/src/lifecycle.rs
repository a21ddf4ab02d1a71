//! The life of one VM, as a task on its shard.
//!
//! The contract, in order:
//! 1. A VM is *created* with its vCPUs parked; nothing of the guest runs before `start`.
//! 2. `pause` is true when every vCPU is at rest (paused, waiting for the shard, or finished).
//! 3. The first vCPU that is seen to have ended the machine decides the outcome (of several at once, the one with the
//!    lowest number); the host's stop and the time limit decide it only if no vCPU has. Later causes are ignored.
//! 4. Once the outcome is decided, every vCPU is asked to stop; nothing restarts one.
//! 5. When all vCPUs have finished, the serial output is drained, then the outcome is published, and only then
//!    are descriptors handed to the reaper. Whoever waits for a VM never waits for its closing.
//!
//! What of this the task can see is asserted where it happens, in builds with debug assertions.
//!
//! A shard never blocks on a vCPU: the task awaits changes of status and commands, nothing else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ringlet_io::ShardContext;
use ringlet_metrics::{OutcomeKind, Registry, VmState};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::error::{Error, Result};
use crate::machine::Machine;
use crate::outcome::Outcome;
use crate::reaper::{Corpse, Reaper};
use crate::serial::SerialPumps;
use crate::vcpu::VcpuControl;
use crate::vcpu::control::{Request, Status};
use crate::vm::VmStatus;

/// How long the serial output of a VM that the host stops may take to drain.
const STOP_DRAIN: Duration = Duration::from_secs(1);

/// A command of the VM's handle, with the place for its answer.
pub(crate) enum VmCommand {
    Start(Reply),
    Pause(Reply),
    Resume(Reply),
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
}

/// What others know of a VM, and its vCPUs. Dropped before its end, for whatever reason, it stops them and says so:
/// nobody waits for ever.
pub(crate) struct Life {
    controls: Vec<Arc<VcpuControl>>,
    status: Arc<VmStatus>,
    registry: Registry,
}

impl Life {
    /// A VM that has been created.
    pub(crate) fn new(controls: Vec<Arc<VcpuControl>>, status: Arc<VmStatus>, registry: Registry) -> Self {
        registry.runtime().created.inc();
        registry.runtime().vms.inc(VmState::Created);
        Self { controls, status, registry }
    }

    fn ask_all(&self, request: Request) {
        self.controls.iter().for_each(|vcpu| vcpu.ask(request));
    }

    fn publish(&self, state: VmState) {
        let before = self.status.state.send_replace(state);
        if before != state {
            debug_assert!(may_follow(before, state), "a VM that is {before:?} cannot become {state:?}");
            let gauges = &self.registry.runtime().vms;
            gauges.inc(state);
            gauges.dec(before);
        }
    }

    fn end(&self, outcome: Outcome) {
        self.registry.runtime().ended.inc(kind(&outcome));
        self.registry.runtime().vms.dec(*self.status.state.borrow());
        self.status.outcome.send_replace(Some(Arc::new(outcome)));
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if self.status.outcome.borrow().is_none() {
            self.ask_all(Request::Stop);
            self.end(Outcome::Failed { error: "the event loop that the VM lived on is gone".into() });
        }
    }
}

/// Where a VM is in its life.
enum Phase {
    Created,
    Running,
    Pausing(Vec<Reply>),
    Paused,
    Stopping(Cause),
}

/// Why a VM ends.
enum Cause {
    Guest(Outcome),
    Host,
    TimeLimit,
}

impl Phase {
    fn state(&self) -> VmState {
        match self {
            Self::Created => VmState::Created,
            Self::Running | Self::Pausing(_) => VmState::Running,
            Self::Paused => VmState::Paused,
            Self::Stopping(_) => VmState::Stopping,
        }
    }

    /// The state as the end of a sentence.
    fn describe(&self) -> &'static str {
        match self {
            Self::Created => "has not been started",
            Self::Running => "is running",
            Self::Pausing(_) => "is being paused",
            Self::Paused => "is paused",
            Self::Stopping(_) => "is ending",
        }
    }
}

impl VmTask {
    /// Lives the VM's life. Returns when its outcome is published and its remains are with the reaper.
    pub(crate) async fn run(mut self, cx: ShardContext, pumps: SerialPumps) {
        let mut phase = if self.running { self.enter_running() } else { Phase::Created };
        self.life.publish(phase.state());
        let cause = loop {
            let event = self.next_event(&cx).await;
            // A vCPU that has ended the machine comes before whatever the host wants.
            phase = self.settle(phase);
            phase = self.apply(event, phase);
            phase = self.settle(phase);
            self.life.publish(phase.state());
            if let Phase::Stopping(cause) = &mut phase
                && self.life.controls.iter().all(|vcpu| vcpu.status() == Status::Finished)
            {
                break std::mem::replace(cause, Cause::Host);
            }
        };
        let outcome = self.conclude(cause);
        self.drain_serial(&cx, pumps, &outcome).await;
        self.end(outcome);
    }

    async fn next_event(&mut self, cx: &ShardContext) -> Event {
        tokio::select! {
            biased;
            () = self.changed.notified() => Event::Changed,
            command = self.commands.recv(), if !self.unheld => {
                self.unheld = command.is_none();
                Event::Command(command.unwrap_or(VmCommand::Stop))
            }
            () = time_limit(cx, self.deadline) => Event::TimeLimit,
        }
    }

    /// The phase after an event.
    fn apply(&mut self, event: Event, phase: Phase) -> Phase {
        match event {
            Event::Changed => phase,
            Event::TimeLimit => {
                self.deadline = None;
                self.begin_stop(phase, Cause::TimeLimit)
            }
            Event::Command(VmCommand::Stop) => self.begin_stop(phase, Cause::Host),
            Event::Command(VmCommand::Start(reply)) => self.start(phase, reply),
            Event::Command(VmCommand::Pause(reply)) => self.pause(phase, reply),
            Event::Command(VmCommand::Resume(reply)) => self.resume(phase, reply),
        }
    }

    fn start(&mut self, phase: Phase, reply: Reply) -> Phase {
        if !matches!(phase, Phase::Created) {
            return refuse(reply, "start", phase);
        }
        self.machine.phases.start();
        self.life.ask_all(Request::Run);
        self.accept(VmState::Running, [reply]);
        self.enter_running()
    }

    fn enter_running(&mut self) -> Phase {
        self.deadline = self.timeout.and_then(|limit| Instant::now().checked_add(limit));
        Phase::Running
    }

    fn pause(&mut self, phase: Phase, reply: Reply) -> Phase {
        match phase {
            Phase::Running => {
                self.life.ask_all(Request::Pause);
                Phase::Pausing(vec![reply])
            }
            Phase::Pausing(mut replies) => {
                replies.push(reply);
                Phase::Pausing(replies)
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
                self.life.ask_all(Request::Run);
                self.accept(VmState::Running, [reply]);
                Phase::Running
            }
            other => refuse(reply, "be resumed", other),
        }
    }

    /// Looks at the vCPUs: does their status complete a pause or end the machine?
    fn settle(&mut self, phase: Phase) -> Phase {
        if !matches!(phase, Phase::Stopping(_)) {
            let ended = self.life.controls.iter().find(|vcpu| vcpu.status() == Status::Finished);
            if let Some(vcpu) = ended {
                let outcome = vcpu.take_end().and_then(|end| end.outcome);
                let cause = outcome.map_or(Cause::Host, Cause::Guest);
                return self.begin_stop(phase, cause);
            }
        }
        match phase {
            Phase::Pausing(replies) if self.life.controls.iter().all(|vcpu| vcpu.is_parked()) => {
                self.accept(VmState::Paused, replies);
                Phase::Paused
            }
            other => other,
        }
    }

    fn begin_stop(&mut self, phase: Phase, cause: Cause) -> Phase {
        match phase {
            Phase::Stopping(first) => return Phase::Stopping(first),
            Phase::Pausing(replies) => {
                for reply in replies {
                    let _ = reply.send(Err(Error::State { operation: "be paused", state: "has ended" }));
                }
            }
            Phase::Created | Phase::Running | Phase::Paused => {}
        }
        self.life.ask_all(Request::Stop);
        Phase::Stopping(cause)
    }

    /// Says yes; whoever hears it finds the VM in that state.
    fn accept(&self, state: VmState, replies: impl IntoIterator<Item = Reply>) {
        self.life.publish(state);
        for reply in replies {
            let _ = reply.send(Ok(()));
        }
    }

    /// All vCPUs have finished: what is the outcome?
    fn conclude(&self, cause: Cause) -> Outcome {
        let reports = || self.life.controls.iter().filter_map(|vcpu| vcpu.take_end()).map(|end| end.report);
        match cause {
            Cause::Guest(outcome) => outcome,
            Cause::Host => Outcome::Stopped,
            Cause::TimeLimit => Outcome::TimedOut { vcpus: reports().collect() },
        }
    }

    /// Writes out what the guest has printed. Nothing is lost of a guest that ended by itself, however slow the
    /// reader; a VM that the host stops or whose time is over (now or meanwhile) gets a bounded time.
    async fn drain_serial(&mut self, cx: &ShardContext, pumps: SerialPumps, outcome: &Outcome) {
        let mut draining = pumps.finish(cx);
        if !matches!(outcome, Outcome::Stopped | Outcome::TimedOut { .. }) {
            tokio::select! {
                () = draining.done() => return,
                () = stop_asked(&mut self.commands) => {}
                () = time_limit(cx, self.deadline) => {}
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
        debug_assert!(self.life.controls.iter().all(finished), "a vCPU outlives its VM's outcome");
        debug_assert!(self.life.status.outcome.borrow().is_none(), "a VM ends twice");
        let Self { life, machine, reaper, corpse, .. } = self;
        let place = reaper.reserve();
        life.end(outcome);
        drop((life, machine));
        place.reap(corpse);
    }

    /// Undoes the making of a VM that found no shard.
    pub(crate) fn abandon(self) {
        drop(self.life);
        self.reaper.reap(self.corpse);
    }
}

enum Event {
    Changed,
    Command(VmCommand),
    TimeLimit,
}

/// Waits for the end of the VM's time, if it has one.
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
            VmCommand::Start(reply) => (reply, "start"),
            VmCommand::Pause(reply) => (reply, "be paused"),
            VmCommand::Resume(reply) => (reply, "be resumed"),
        };
        let _ = reply.send(Err(Error::State { operation, state: "has ended" }));
    }
}

fn refuse(reply: Reply, operation: &'static str, phase: Phase) -> Phase {
    let _ = reply.send(Err(Error::State { operation, state: phase.describe() }));
    phase
}

/// The states that a VM passes through, in the order of the contract.
fn may_follow(before: VmState, after: VmState) -> bool {
    match before {
        VmState::Created => true,
        VmState::Running => matches!(after, VmState::Paused | VmState::Stopping),
        VmState::Paused => matches!(after, VmState::Running | VmState::Stopping),
        VmState::Stopping => false,
    }
}

fn kind(outcome: &Outcome) -> OutcomeKind {
    match outcome {
        Outcome::Exited { .. } => OutcomeKind::Exited,
        Outcome::Reset => OutcomeKind::Reset,
        Outcome::Stopped => OutcomeKind::Stopped,
        Outcome::TimedOut { .. } => OutcomeKind::TimedOut,
        Outcome::Crashed(_) => OutcomeKind::Crashed,
        Outcome::Failed { .. } => OutcomeKind::Failed,
    }
}

#[cfg(test)]
#[path = "lifecycle_test.rs"]
mod tests;
