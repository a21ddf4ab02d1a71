//! A vCPU thread's CPU time, as a metric.

use std::sync::Arc;

use rustix::time::{ClockId, clock_gettime};

use super::VcpuSeed;
use crate::machine::Machine;

/// Publishes the thread's CPU time as a metric while it lives, and its last value after that.
pub(super) struct CpuClock {
    machine: Arc<Machine>,
    index: u32,
}

impl CpuClock {
    pub(super) fn start(seed: &VcpuSeed) -> Self {
        let tid = rustix::thread::gettid().as_raw_nonzero();
        let path = format!("/proc/self/task/{tid}/schedstat");
        seed.machine.metrics.set_vcpu_clock(seed.index, Box::new(move || cpu_nanos(&path)));
        Self { machine: Arc::clone(&seed.machine), index: seed.index }
    }
}

impl Drop for CpuClock {
    fn drop(&mut self) {
        self.machine.cpu.leave(self.index);
        // The same time, without a file.
        let time = clock_gettime(ClockId::ThreadCPUTime);
        let nanos = i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
        self.machine.metrics.freeze_vcpu_clock(self.index, u64::try_from(nanos).unwrap_or(0));
    }
}

/// Nanoseconds on a CPU: the first number of a task's `schedstat` (Documentation/scheduler/sched-stats.rst).
fn cpu_nanos(schedstat: &str) -> u64 {
    let text = std::fs::read_to_string(schedstat).unwrap_or_default();
    text.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
}
