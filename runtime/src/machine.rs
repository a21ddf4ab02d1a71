//! What the vCPUs of one VM share: the buses with their devices, interrupt routing, RAM and metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ringlet_boot::cpuid::Backend;
use ringlet_devices::Bus;
use ringlet_devices::ioapic::Ioapic;
use ringlet_devices::output::SerialOutput;
use ringlet_io::GuestRam;
use ringlet_metrics::{BootPhase, GuestLog, Registry, VmMetrics};

use crate::cpu::CpuLimiter;
use crate::kvm::routing::Routing;
use crate::meter::Meter;

/// Writes of slow registers (reset, status, queue set-up) that a guest may make at once: what setting up all the
/// devices of a VM takes.
const SLOW_WRITES: u32 = 512;
/// The time that each further one costs the guest: 250 a second. A reset and what it takes to bring a device up again are
/// three of them, and a quarter of a millisecond of the event loop.
const SLOW_WRITE_INTERVAL: Duration = Duration::from_millis(4);

/// The machine around the vCPUs. Holds no thread and no vCPU, so that it can outlive them.
pub(crate) struct Machine {
    pub(crate) ports: Bus,
    pub(crate) mmio: Bus,
    pub(crate) ioapic: Arc<Ioapic>,
    pub(crate) routing: Routing,
    pub(crate) serial_output: Arc<SerialOutput>,
    pub(crate) ram: GuestRam,
    pub(crate) backend: Backend,
    pub(crate) log: Arc<GuestLog>,
    pub(crate) metrics: Arc<VmMetrics>,
    pub(crate) phases: Arc<Phases>,
    pub(crate) slow_writes: SlowWrites,
    pub(crate) cpu: CpuLimiter,
}

/// What the guest's writes of slow registers may cost the shard.
#[derive(Debug)]
pub(crate) struct SlowWrites(Mutex<Meter>);

impl Default for SlowWrites {
    fn default() -> Self {
        Self(Mutex::new(Meter::new(SLOW_WRITES, SLOW_WRITE_INTERVAL)))
    }
}

impl Machine {
    /// Charges one write of a slow register; returns until when the vCPU that made it has to wait.
    pub(crate) fn charge_slow_write(&self, now: Instant) -> Option<Instant> {
        self.slow_writes.0.lock().unwrap_or_else(PoisonError::into_inner).charge(now)
    }

    /// What a suberror of `KVM_EXIT_INTERNAL_ERROR` means here (KVM API, section 5), in `ring` and at an instruction
    /// that is in RAM or not.
    pub(crate) fn describe_internal_error(&self, suberror: u32, ring: u16, in_ram: bool) -> String {
        match (suberror, self.backend) {
            (1, _) if !in_ram => "the guest runs code where there is no RAM".into(),
            (1, Backend::Pvm) if ring == 0 => {
                "the PVM backend of KVM cannot emulate this instruction in ring 0".into()
            }
            (1, _) => "the KVM backend cannot emulate this instruction".into(),
            (2, _) => "simultaneous exceptions".into(),
            (3, _) => "an exit while delivering an event".into(),
            (4, _) => "an unexpected exit reason from the hardware".into(),
            _ => "unknown suberror".into(),
        }
    }
}

/// When a VM passed the milestones of its start. Each counts once, however often the guest repeats it.
#[derive(Debug)]
pub(crate) struct Phases {
    registry: Registry,
    /// When the VM was asked to start.
    started: OnceLock<Instant>,
    /// Nanoseconds from the start to the first exit and to ready; 0 = not yet.
    first_exit: AtomicU64,
    ready: AtomicU64,
}

impl Phases {
    pub(crate) fn new(registry: Registry) -> Self {
        Self { registry, started: OnceLock::new(), first_exit: AtomicU64::new(0), ready: AtomicU64::new(0) }
    }

    /// The VM starts now.
    pub(crate) fn start(&self) {
        let _ = self.started.set(Instant::now());
    }

    /// A vCPU came out of the guest.
    pub(crate) fn exited(&self) {
        if self.first_exit.load(Ordering::Relaxed) == 0 {
            self.reach(&self.first_exit, BootPhase::FirstExit);
        }
    }

    /// The guest says that it is ready.
    pub(crate) fn ready(&self) {
        if self.ready.load(Ordering::Relaxed) == 0 {
            self.reach(&self.ready, BootPhase::Ready);
        }
    }

    /// From start to ready, once the guest has said so.
    pub(crate) fn time_to_ready(&self) -> Option<Duration> {
        Some(self.ready.load(Ordering::Relaxed)).filter(|&n| n > 0).map(Duration::from_nanos)
    }

    fn reach(&self, milestone: &AtomicU64, phase: BootPhase) {
        let Some(started) = self.started.get() else { return };
        let elapsed = started.elapsed();
        let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX).max(1);
        if milestone.compare_exchange(0, nanos, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.registry.runtime().boot_phase.observe(phase, elapsed);
        }
    }
}
