//! Limits of VMs on real KVM, looked at from inside. A VM that is to be throttled for ever is charged an hour of event-loop
//! time, so that no test depends on how long something takes.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use ringlet_metrics::VmState;
use rustix::process::getpriority_process;

use super::*;
use crate::config::{LimitsConfig, VmConfig};
use crate::console::Console;
use crate::lifecycle::tests::{Host, block_on, eventually, on_both_engines};
use crate::machine::Machine;
use crate::outcome::Outcome;
use crate::vcpu::control::Status;
use crate::vm::Vm;

const HOUR: u64 = 3_600_000_000_000;

fn fifth() -> LimitsConfig {
    LimitsConfig::default().cpu_max(20_000, 100_000)
}

fn spin() -> VmConfig {
    VmConfig::new("spin").memory_mib(16)
}

/// A VM, and what can be seen of it from inside.
struct Seen {
    vm: Vm,
    vcpus: Vec<Arc<VcpuControl>>,
    machine: Arc<Machine>,
}

impl Seen {
    fn launch(host: &Host, config: &VmConfig) -> Self {
        let (vm, parts) = host.assemble(config, Console::Discard);
        let (vcpus, machine) = (parts.task.life.controls.clone(), Arc::clone(&parts.task.machine));
        assert!(host.shard.send(parts).is_ok());
        Self { vm, vcpus, machine }
    }

    /// A VM whose time is used up for the next hours.
    fn throttled(host: &Host, config: &VmConfig) -> Self {
        let seen = Self::launch(host, config);
        seen.vm.metrics().shard_busy_nanos.add(HOUR);
        seen.until(Status::Throttled);
        seen
    }

    fn until(&self, status: Status) {
        eventually("all vCPUs come to that", || self.vcpus.iter().all(|vcpu| vcpu.status() == status));
    }

    fn cpu_nanos(&self) -> u64 {
        self.vm.metrics().vcpu_cpu_nanos().iter().map(|(_, nanos)| nanos).sum()
    }

    fn niceness(&self) -> Vec<i32> {
        let state = self.machine.cpu.lock();
        state.members.iter().flatten().map(|m| getpriority_process(Some(m.thread)).unwrap()).collect()
    }
}

#[test]
fn event_loop_time_is_charged_and_a_throttled_vm_can_be_paused_and_resumed() {
    on_both_engines(|host| {
        let seen = Seen::throttled(&host, &spin().vcpus(2).limits(fifth()));
        for _ in 0..3 {
            block_on(seen.vm.pause()).unwrap();
            assert_eq!(seen.vm.state(), VmState::Paused);
            assert!(seen.vcpus.iter().all(|vcpu| vcpu.is_parked()));
            block_on(seen.vm.resume()).unwrap();
            seen.until(Status::Throttled);
        }
        let before = seen.cpu_nanos();
        assert_eq!(*block_on(seen.vm.stop()), Outcome::Stopped);
        assert!(seen.cpu_nanos() - before < 20_000_000, "it ran meanwhile");
        assert!(seen.vm.metrics().cpu_throttled_periods.get() >= 1);
    });
}

#[test]
fn a_throttled_vm_ends_with_its_time_limit_its_handle_and_its_shard() {
    on_both_engines(|host| {
        let limited = spin().limits(fifth());
        let timed = Seen::throttled(&host, &limited.clone().timeout(Duration::from_secs(1)));
        assert!(matches!(*block_on(timed.vm.wait()), Outcome::TimedOut { .. }));
        let Seen { vm, vcpus, .. } = Seen::throttled(&host, &limited);
        drop(vm);
        eventually("it ends", || vcpus.iter().all(|vcpu| vcpu.status() == Status::Finished));
        let last = Seen::throttled(&host, &limited);
        host.shard.stop().unwrap();
        assert_eq!(*block_on(last.vm.wait()), Outcome::Stopped);
    });
}

#[test]
fn limits_change_while_a_vm_runs_waits_and_is_paused() {
    on_both_engines(|host| {
        let seen = Seen::launch(&host, &spin());
        seen.until(Status::Running);
        let metrics = seen.vm.metrics();
        assert!(metrics.cpu_periods.get() == 0 && !seen.machine.cpu.is_throttled());
        // It begins while the guest runs,
        block_on(seen.vm.set_limits(fifth())).unwrap();
        eventually("it is throttled", || metrics.cpu_throttled_periods.get() >= 3);
        metrics.shard_busy_nanos.add(HOUR);
        seen.until(Status::Throttled);
        // and ends while the vCPU waits for time.
        block_on(seen.vm.set_limits(LimitsConfig::default())).unwrap();
        let before = seen.cpu_nanos();
        eventually("it runs without a limit", || seen.cpu_nanos() > before + 50_000_000);
        assert!(!seen.machine.cpu.is_throttled());
        // A paused VM has its limit when it is resumed.
        block_on(seen.vm.pause()).unwrap();
        block_on(seen.vm.set_limits(fifth())).unwrap();
        let before = metrics.cpu_throttled_periods.get();
        block_on(seen.vm.resume()).unwrap();
        eventually("it is throttled again", || metrics.cpu_throttled_periods.get() > before);
        let refused = block_on(seen.vm.set_limits(fifth().cpu_weight(0))).unwrap_err().to_string();
        assert!(refused.contains("cpu.weight: 0 is not in 1..=10000"), "{refused}");
        assert_eq!(*block_on(seen.vm.stop()), Outcome::Stopped);
        assert!(block_on(seen.vm.set_limits(fifth())).is_err(), "it has ended");
    });
}

/// The timers that bring a vCPU out are its own thread's to set: each looks before it enters the guest, not only the first.
#[test]
fn sec_02_a_limit_set_during_a_pause_holds_every_vcpu() {
    on_both_engines(|host| {
        let seen = Seen::launch(&host, &VmConfig::new("burst").memory_mib(16).vcpus(2).args(["1000", "0"]));
        seen.until(Status::Running);
        for _ in 0..3 {
            block_on(seen.vm.pause()).unwrap();
            block_on(seen.vm.set_limits(LimitsConfig::default().cpu_max(1_900_000, 1_000_000))).unwrap();
            block_on(seen.vm.resume()).unwrap();
            let are_set = |state: &State| {
                let mut members = state.members.iter().flatten();
                members.all(|member| member.timers.is_some() && member.due > 0)
            };
            eventually("both have timers", || are_set(&seen.machine.cpu.lock()));
            block_on(seen.vm.set_limits(LimitsConfig::default())).unwrap();
            let are_closed =
                |state: &State| state.members.iter().flatten().all(|member| member.timers.is_none());
            eventually("both have closed them", || are_closed(&seen.machine.cpu.lock()));
        }
        assert_eq!(*block_on(seen.vm.stop()), Outcome::Stopped);
    });
}

#[test]
fn what_a_vm_owes_stays_owed_under_a_new_limit() {
    on_both_engines(|host| {
        let seen = Seen::throttled(&host, &spin().limits(fifth()));
        block_on(seen.vm.set_limits(LimitsConfig::default().cpu_max(90_000, 100_000))).unwrap();
        // A vCPU looks again.
        let far = |until: Instant| until.saturating_duration_since(Instant::now()) > Duration::from_secs(600);
        eventually("it is throttled for long", || seen.machine.cpu.throttled_until().is_some_and(far));
    });
}

#[test]
fn a_weight_is_the_niceness_of_every_vcpu() {
    on_both_engines(|host| {
        let own = getpriority_process(None).unwrap();
        let seen = Seen::launch(&host, &spin().vcpus(2).limits(LimitsConfig::default().cpu_weight(50)));
        eventually("both threads are there", || seen.niceness().len() == 2);
        assert_eq!(seen.niceness(), [weight::nice_from(own, 50); 2]);
        block_on(seen.vm.set_limits(LimitsConfig::default().cpu_weight(10))).unwrap();
        assert_eq!(seen.niceness(), [weight::nice_from(own, 10); 2]);
    });
}

/// A vCPU's thread has lost its CPU while it looks at the account.
#[test]
fn sec_02_an_event_loop_that_sets_limits_never_waits_for_a_vcpus_thread() {
    on_both_engines(|host| {
        let (seen, other) = (Seen::launch(&host, &spin()), Seen::launch(&host, &spin()));
        let account = seen.machine.cpu.lock();
        let mut first = pin!(seen.vm.set_limits(fifth()));
        let mut last = pin!(seen.vm.set_limits(LimitsConfig::default().cpu_max(30_000, 100_000)));
        for change in [&mut first, &mut last] {
            let mut cx = Context::from_waker(Waker::noop());
            assert!(change.as_mut().poll(&mut cx).is_pending(), "the command is sent now");
        }
        // The event loop serves others,
        block_on(other.vm.pause()).unwrap();
        drop(account);
        block_on(async { tokio::join!(first, last) }).0.unwrap();
        // and the order stays.
        let state = seen.machine.cpu.lock();
        let max = state.enforced.as_ref().map(|enforced| enforced.budget.max());
        assert_eq!(max, Some(Max { quota: 30_000_000, period: 100_000_000 }));
    });
}

/// A thread that has ended takes no weight.
#[test]
fn a_weight_that_not_all_threads_take_none_has() {
    if !rustix::process::geteuid().is_root() {
        // What was lowered could not be raised again.
        return;
    }
    let ended = std::thread::spawn(Member::new).join().unwrap().unwrap();
    let tried = std::thread::spawn(|| {
        // Its weights are counted from the nice value 0.
        let own = Member::new().unwrap();
        let thread = own.thread;
        set_nice(thread, 0, 50).unwrap();
        let mut state =
            State { members: vec![Some(own), None, Some(ended)], gone: 0, enforced: None, weight: 50 };
        let refused = state.set_weight(10).is_err();
        (refused, state.weight, getpriority_process(Some(thread)).unwrap())
    });
    assert_eq!(tried.join().unwrap(), (true, 50, weight::nice_from(0, 50)));
}

/// As long as it owes more than a quota, its devices' queues are left alone, too.
#[test]
fn sec_02_what_a_vm_owes_holds_its_devices() {
    on_both_engines(|host| {
        let seen = Seen::launch(&host, &spin().limits(fifth()));
        let (limiter, metrics) = (&seen.machine.cpu, seen.vm.metrics());
        let held = || limiter.hold().until(metrics.shard_busy_nanos.get());
        eventually("it is throttled now and then", || metrics.cpu_throttled_periods.get() >= 2);
        assert_eq!(held(), None, "it owes less");
        metrics.shard_busy_nanos.add(HOUR);
        let later = MonoTime::now() + Duration::from_secs(600);
        eventually("it is held for long", || held().is_some_and(|until| until > later));
        block_on(seen.vm.set_limits(LimitsConfig::default())).unwrap();
        assert_eq!(held(), None);
        assert_eq!(*block_on(seen.vm.stop()), Outcome::Stopped);
    });
}
