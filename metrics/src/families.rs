//! The handles that the rest of Ringlet counts on: one for the process, one a shard, one a VM
//! (that of a device is in `device.rs`).
//!
//! Owns: the numbers, and the identity (label values) of VMs and shards. Never: knows what a VM is, formats
//! anything, or takes a lock on a hot path; locks guard the vCPU clocks, which are set when a vCPU thread starts
//! or ends, and the list of devices, which is read by a scrape.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use crate::buffers::{BufferReading, BufferSource};
use crate::counter::{BOOT_BOUNDS, Counter, Counters, DELAY_BOUNDS, Gauge, Gauges, Histogram, Histograms};
use crate::descriptors::{DescriptorReading, DescriptorSource};
use crate::device::DeviceMetrics;
use crate::escape::label_value;
use crate::labels::{BootPhase, DeviceKind, ExitKind, GuestErrorKind, OutcomeKind, VmState};
use crate::limiter::{LimiterReading, LimiterSource};
use crate::registry::{State, lock};

/// Longest label value that is exposed, in bytes, escapes included. What is longer is cut and closed with a
/// hash.
pub const MAX_LABEL_BYTES: usize = 128;

/// Who a VM is: the labels of `ringlet_vm_info`. `id` is also the label `vm` of every per-VM family.
///
/// Values are escaped (control characters) and bounded to [`MAX_LABEL_BYTES`] when the VM is registered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmInfo {
    /// Identifier, unique among live VMs. If it is not, the VM registered last is the one exposed.
    pub id: String,
    /// Name chosen by the user, or the id.
    pub name: String,
    /// Name of the image that it boots.
    pub image: String,
    /// Whom it belongs to; empty if nobody in particular.
    pub tenant: String,
}

/// [`VmInfo`] as exposed, in the order id, name, image, tenant.
#[derive(Debug)]
pub(crate) struct VmLabels {
    pub(crate) id: Box<str>,
    pub(crate) name: Box<str>,
    pub(crate) image: Box<str>,
    pub(crate) tenant: Box<str>,
}

impl From<&VmInfo> for VmLabels {
    fn from(info: &VmInfo) -> Self {
        let value = |text: &str| label_value(text, MAX_LABEL_BYTES);
        Self {
            id: value(&info.id),
            name: value(&info.name),
            image: value(&info.image),
            tenant: value(&info.tenant),
        }
    }
}

/// Numbers of one VM. Its series are exposed as long as this handle is alive, and gone at the next scrape
/// after the last `Arc` of it is dropped. Everything but the vCPU clocks is lock-free.
#[derive(Debug)]
pub struct VmMetrics {
    /// Returns from `KVM_RUN`, by kind.
    pub exits: Counters<ExitKind>,
    /// What the guest did wrong, by kind.
    pub guest_errors: Counters<GuestErrorKind>,
    /// Bytes that the guest wrote to its serial port and that were handed on.
    pub serial_sent_bytes: Counter,
    /// Bytes that the guest read from its serial port.
    pub serial_received_bytes: Counter,
    /// Serial bytes lost in either direction because the reader was too slow.
    pub serial_dropped_bytes: Counter,
    /// Event-loop time spent for this VM, in nanoseconds.
    pub shard_busy_nanos: Counter,
    /// Periods of the VM's CPU limit that have passed while it was active.
    pub cpu_periods: Counter,
    /// Those in which it was throttled.
    pub cpu_throttled_periods: Counter,
    /// Time for which it was throttled, in nanoseconds.
    pub cpu_throttled_nanos: Counter,
    /// CPU time that it used beyond its quota and that was taken off later periods, in nanoseconds.
    pub cpu_overrun_nanos: Counter,
    /// How often an exact timer of its CPU time brought a vCPU out of the guest.
    pub cpu_timer_exits: Counter,
    pub(crate) labels: VmLabels,
    clocks: Mutex<Vec<VcpuClock>>,
    /// By order of registration.
    devices: Mutex<Vec<Weak<DeviceMetrics>>>,
    limiters: Mutex<Vec<Limiter>>,
    buffers: OnceLock<Arc<dyn BufferSource>>,
    descriptors: OnceLock<Arc<dyn DescriptorSource>>,
    _registration: Registration,
}

/// A level of limits: its label and where it is read.
#[derive(Debug, Clone)]
pub(crate) struct Limiter {
    pub(crate) name: Box<str>,
    pub(crate) source: Arc<dyn LimiterSource>,
}

/// Takes the VM off the registry's list when it goes.
struct Registration {
    state: Weak<State>,
    number: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(state) = self.state.upgrade() {
            state.forget_vm(self.number);
        }
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.number)
    }
}

impl VmMetrics {
    pub(crate) fn new(info: &VmInfo, state: Weak<State>, number: u64) -> Self {
        Self {
            exits: Counters::new(),
            guest_errors: Counters::new(),
            serial_sent_bytes: Counter::new(),
            serial_received_bytes: Counter::new(),
            serial_dropped_bytes: Counter::new(),
            shard_busy_nanos: Counter::new(),
            cpu_periods: Counter::new(),
            cpu_throttled_periods: Counter::new(),
            cpu_throttled_nanos: Counter::new(),
            cpu_overrun_nanos: Counter::new(),
            cpu_timer_exits: Counter::new(),
            labels: info.into(),
            clocks: Mutex::default(),
            devices: Mutex::default(),
            limiters: Mutex::default(),
            buffers: OnceLock::new(),
            descriptors: OnceLock::new(),
            _registration: Registration { state, number },
        }
    }

    /// The VM's identifier as it appears in the label `vm`.
    pub fn id(&self) -> &str {
        &self.labels.id
    }

    /// Makes the handle of a device. Its series live as long as the handle and this one do. `id` (`disk0`) is its
    /// label `device`, escaped and bounded to [`MAX_LABEL_BYTES`]; if a live device has it already, the one
    /// registered last is exposed.
    pub fn register_device(&self, id: &str, kind: DeviceKind) -> Arc<DeviceMetrics> {
        let device = Arc::new(DeviceMetrics::new(id, kind));
        let mut devices = lock(&self.devices);
        devices.retain(|device| device.strong_count() > 0);
        devices.push(Arc::downgrade(&device));
        device
    }

    /// Live devices by order of registration, one for each id.
    pub fn live_devices(&self) -> Vec<Arc<DeviceMetrics>> {
        let mut live: Vec<Arc<DeviceMetrics>> = Vec::new();
        for device in lock(&self.devices).iter().filter_map(Weak::upgrade) {
            live.retain(|other| other.id() != device.id());
            live.push(device);
        }
        live
    }

    /// Exposes a level of the VM's limits for as long as this handle lives. `name` (`disk0`) is its label `limiter`,
    /// escaped and bounded to [`MAX_LABEL_BYTES`].
    pub fn register_limiter(&self, name: &str, source: Arc<dyn LimiterSource>) {
        let name = label_value(name, MAX_LABEL_BYTES);
        let mut limiters = lock(&self.limiters);
        limiters.retain(|limiter| limiter.name != name);
        limiters.push(Limiter { name, source });
    }

    /// What each level of the VM's limits has admitted and held back, by name, in the order of registration.
    pub fn limiters(&self) -> Vec<(String, LimiterReading)> {
        let limiters = lock(&self.limiters).clone();
        limiters.iter().map(|limiter| (limiter.name.to_string(), limiter.source.read())).collect()
    }

    /// Exposes what the host buffers for the VM, for as long as this handle lives. The first source stands.
    pub fn register_buffers(&self, source: Arc<dyn BufferSource>) {
        let _ = self.buffers.set(source);
    }

    /// What the host buffers for the VM, if that is counted.
    pub fn buffers(&self) -> Option<BufferReading> {
        self.buffers.get().map(|source| source.read())
    }

    /// Exposes the descriptors that the VM's connections have, for as long as this handle lives. The first source stands.
    pub fn register_descriptors(&self, source: Arc<dyn DescriptorSource>) {
        let _ = self.descriptors.set(source);
    }

    /// The descriptors that the VM's connections have, if it can have any.
    pub fn descriptors(&self) -> Option<DescriptorReading> {
        self.descriptors.get().map(|source| source.read())
    }

    /// Devices on the list, alive or not.
    #[cfg(test)]
    pub(crate) fn device_count(&self) -> usize {
        lock(&self.devices).len()
    }

    /// Says where vCPU `vcpu`'s CPU time is read: `source` returns the nanoseconds that its thread has run
    /// (`CLOCK_THREAD_CPUTIME_ID`). It is called by a scrape, on the scraping thread, under this VM's clock lock:
    /// it must not block, and must not call back into this handle.
    ///
    /// A second clock for the same vCPU goes on from the time that the first one showed, so the exposed
    /// counter never falls when a vCPU gets a new thread.
    pub fn set_vcpu_clock(&self, vcpu: u32, source: Box<dyn Fn() -> u64 + Send + Sync>) {
        let mut clocks = lock(&self.clocks);
        match clocks.iter_mut().find(|clock| clock.vcpu == vcpu) {
            Some(clock) => {
                clock.read();
                clock.base = clock.shown;
                clock.source = Some(source);
            }
            None => {
                clocks.reserve_exact(1);
                clocks.push(VcpuClock { vcpu, source: Some(source), base: 0, shown: 0 });
            }
        }
    }

    /// Ends vCPU `vcpu`'s clock at `final_nanos` (as its source would have said): called before the thread
    /// goes, because its clock goes with it. Without a clock set before, `final_nanos` is what is shown.
    pub fn freeze_vcpu_clock(&self, vcpu: u32, final_nanos: u64) {
        let mut clocks = lock(&self.clocks);
        match clocks.iter_mut().find(|clock| clock.vcpu == vcpu) {
            Some(clock) => {
                // A clock that is frozen already has its source's time in `shown`.
                if clock.source.take().is_some() {
                    clock.advance(final_nanos);
                }
            }
            None => clocks.push(VcpuClock { vcpu, source: None, base: 0, shown: final_nanos }),
        }
    }

    /// CPU time of every vCPU that has or had a clock: `(vcpu, nanoseconds)`, ascending by vCPU.
    pub fn vcpu_cpu_nanos(&self) -> Vec<(u32, u64)> {
        let mut clocks = lock(&self.clocks);
        let mut times: Vec<_> = clocks.iter_mut().map(|clock| (clock.vcpu, clock.read())).collect();
        times.sort_unstable();
        times
    }
}

/// CPU time of one vCPU over the threads that it had.
struct VcpuClock {
    vcpu: u32,
    /// Nanoseconds of the present thread; `None` once it has ended.
    source: Option<Box<dyn Fn() -> u64 + Send + Sync>>,
    /// Nanoseconds of the threads before.
    base: u64,
    /// The most ever shown: a source that falls back (or fails with 0) cannot make the counter fall.
    shown: u64,
}

impl VcpuClock {
    fn read(&mut self) -> u64 {
        if let Some(now) = self.source.as_ref().map(|source| source()) {
            self.advance(now);
        }
        self.shown
    }

    fn advance(&mut self, thread_nanos: u64) {
        self.shown = self.shown.max(self.base.saturating_add(thread_nanos));
    }
}

impl fmt::Debug for VcpuClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.source.is_some() { "live" } else { "frozen" };
        write!(f, "vcpu {} {state} at {} ns", self.vcpu, self.shown)
    }
}

/// Numbers of one event loop. Exposed as long as the handle is alive.
#[derive(Debug)]
pub struct ShardMetrics {
    /// Time that the loop did work rather than wait, in nanoseconds.
    pub busy_nanos: Counter,
    /// Time that it looked for work instead of sleeping, and found none yet.
    pub polling_nanos: Counter,
    /// From "could run" to "runs", for commands and tasks of this loop.
    pub queue_delay: Histogram,
    index: u32,
    engine: &'static str,
}

impl ShardMetrics {
    pub(crate) fn new(index: u32, engine: &'static str) -> Self {
        let queue_delay = Histogram::new(&DELAY_BOUNDS);
        Self { busy_nanos: Counter::new(), polling_nanos: Counter::new(), queue_delay, index, engine }
    }

    /// Index of the shard: its label `shard`.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The I/O engine that it runs on: label `engine` of `ringlet_io_engine_info`.
    pub fn engine(&self) -> &'static str {
        self.engine
    }
}

/// Numbers of the whole process.
#[derive(Debug)]
pub struct RuntimeMetrics {
    /// Live VMs by state.
    pub vms: Gauges<VmState>,
    /// VMs created.
    pub created: Counter,
    /// VMs ended, by outcome.
    pub ended: Counters<OutcomeKind>,
    /// Time of each phase of a VM's start.
    pub boot_phase: Histograms<BootPhase>,
    /// VMs whose descriptors the reaper still holds.
    pub reaper_backlog: Gauge,
}

impl RuntimeMetrics {
    pub(crate) fn new() -> Self {
        Self {
            vms: Gauges::new(),
            created: Counter::new(),
            ended: Counters::new(),
            boot_phase: Histograms::new(&BOOT_BOUNDS),
            reaper_backlog: Gauge::new(),
        }
    }
}

#[cfg(test)]
#[path = "families_test.rs"]
mod tests;
