//! What others know of a VM, and the rules of what they may hear.

use std::sync::Arc;

use ringlet_metrics::{OutcomeKind, Registry, VmState};

use crate::outcome::Outcome;
use crate::vcpu::VcpuControl;
use crate::vcpu::control::Request;
use crate::vm::VmStatus;

/// What others know of a VM, and its vCPUs. Dropped before its end, for whatever reason, it stops them and says so:
/// nobody waits for ever.
pub(crate) struct Life {
    pub(crate) controls: Vec<Arc<VcpuControl>>,
    pub(crate) status: Arc<VmStatus>,
    registry: Registry,
}

impl Life {
    /// A VM that has been created.
    pub(crate) fn new(controls: Vec<Arc<VcpuControl>>, status: Arc<VmStatus>, registry: Registry) -> Self {
        registry.runtime().created.inc();
        registry.runtime().vms.inc(VmState::Created);
        Self { controls, status, registry }
    }

    pub(super) fn ask_all(&self, request: Request) {
        self.controls.iter().for_each(|vcpu| vcpu.ask(request));
    }

    pub(super) fn publish(&self, state: VmState) {
        let before = self.status.state.send_replace(state);
        if before != state {
            debug_assert!(may_follow(before, state), "a VM that is {before:?} cannot become {state:?}");
            let gauges = &self.registry.runtime().vms;
            gauges.inc(state);
            gauges.dec(before);
        }
    }

    pub(super) fn end(&self, outcome: Outcome) {
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

/// The states that a VM passes through, in the order of the contract.
pub(super) fn may_follow(before: VmState, after: VmState) -> bool {
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
