//! VMs on real KVM, looked at from inside: states that cannot be seen through a [`Vm`], and failures that cannot be
//! caused through one.

use std::io::{Read, Write};
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use ringlet_devices::SerialOutput;
use ringlet_io::{EngineChoice, Shard, ShardConfig, ShardContext};
use ringlet_metrics::{OutcomeKind, VmState};

use crate::assembly::{Resources, VmParts, assemble};
use crate::config::VmConfig;
use crate::console::Console;
use crate::error::Result;
use crate::machine::Machine;
use crate::outcome::{Outcome, VcpuReport};
use crate::runtime::{Runtime, RuntimeOptions};
use crate::service::VmService;
use crate::vcpu::control::Status;
use crate::vcpu::{VcpuControl, VcpuEnd};
use crate::vm::{Vm, VmStatus};

/// A deadline that only a hanging test meets.
const DEADLINE: Duration = Duration::from_secs(60);

/// What the pipe holds that a waiting VM prints into, in bytes.
const PIPE: usize = 4096;

/// A runtime, and a shard of the test's own, which a test can do without.
pub(crate) struct Host {
    pub(crate) runtime: Runtime,
    pub(crate) shard: Shard<Box<VmParts>>,
}

impl Host {
    pub(crate) fn new(engine: EngineChoice) -> Self {
        let runtime =
            Runtime::new(RuntimeOptions { engine, shards: NonZero::new(1), ..RuntimeOptions::default() })
                .unwrap();
        let kind = runtime.engine().kind;
        let metrics = runtime.registry().register_shard(1, kind.as_str());
        let service = |_: &ShardContext| VmService::on_this_thread();
        let shard = Shard::spawn(ShardConfig::new(1, kind, metrics), service).unwrap();
        Self { runtime, shard }
    }

    pub(crate) fn assemble(&self, config: &VmConfig, console: Console) -> (Vm, Box<VmParts>) {
        let resources = Resources { console, ..Resources::default() };
        assemble(self.runtime.inner(), config, resources, true).unwrap()
    }

    pub(crate) fn create(&self, config: &VmConfig, console: Console) -> (Vm, Box<VmParts>) {
        let resources = Resources { console, ..Resources::default() };
        assemble(self.runtime.inner(), config, resources, false).unwrap()
    }

    /// A VM that nothing ends and that no shard looks after yet.
    pub(crate) fn spinner(&self) -> (Vm, Box<VmParts>) {
        self.assemble(&VmConfig::new("spin").memory_mib(16), Console::Discard)
    }

    /// A VM that waits for its shard before it has printed a byte, because its output is full and nobody reads it.
    fn waiting(&self, config: &VmConfig) -> Waiting {
        let (reader, mut writer) = std::io::pipe().unwrap();
        rustix::pipe::fcntl_setpipe_size(&writer, PIPE).unwrap();
        writer.write_all(&[b'.'; PIPE]).unwrap();
        let stream = Console::Stream(crate::StreamConsole::new(OwnedFd::from(writer)));
        let (vm, parts) = self.create(config, stream);
        let (vcpu, machine) = (Arc::clone(&parts.task.life.controls[0]), Arc::clone(&parts.task.machine));
        assert!(self.shard.send(parts).is_ok());
        // More than the buffer holds means that the pump has taken some, which it cannot get rid of.
        let mut sent = 0;
        eventually("the pump is stuck", || {
            sent += fill(&machine);
            sent > SerialOutput::DEFAULT_CAPACITY
        });
        fill(&machine);
        block_on(vm.start()).unwrap();
        eventually("the vCPU waits for its shard", || vcpu.status() == Status::WaitingForShard);
        Waiting { vm, vcpu, machine, reader }
    }
}

struct Waiting {
    vm: Vm,
    vcpu: Arc<VcpuControl>,
    machine: Arc<Machine>,
    reader: std::io::PipeReader,
}

pub(crate) fn idle() -> VmConfig {
    VmConfig::new("idle").memory_mib(16)
}

/// Prints until there is no room; returns how much.
fn fill(machine: &Machine) -> usize {
    std::iter::repeat_with(|| machine.serial_output.push(b'.')).take_while(Result::is_ok).count()
}

#[track_caller]
pub(crate) fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !happened() {
        assert!(begun.elapsed() < DEADLINE, "never: {what}");
        // Between two looks at what tells nobody when it happens.
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let executor = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    executor.block_on(async { tokio::time::timeout(DEADLINE, future).await.expect("it hangs") })
}

pub(crate) fn on_both_engines(test: impl Fn(Host)) {
    for engine in [EngineChoice::Uring, EngineChoice::Epoll] {
        test(Host::new(engine));
    }
}

/// A vCPU without a thread, which ends when the test says so.
pub(crate) fn puppet() -> Arc<VcpuControl> {
    Arc::new(VcpuControl::new(Box::new(|| ())))
}

pub(crate) fn end(outcome: Outcome) -> VcpuEnd {
    VcpuEnd { outcome: Some(outcome), report: VcpuReport::default() }
}

#[test]
fn a_vcpu_that_waits_for_its_shard_is_paused_at_once_and_prints_only_after_the_resume() {
    on_both_engines(|host| {
        let Waiting { vm, vcpu, machine, mut reader } = host.waiting(&idle());
        block_on(vm.pause()).unwrap();
        assert_eq!((vm.state(), vcpu.status()), (VmState::Paused, Status::WaitingForShard));
        // Somebody reads everything: there is room, and the vCPU is told so, but it is paused.
        let collector = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            bytes
        });
        eventually("there is room", || machine.serial_output.has_room());
        assert_eq!((vm.state(), vcpu.status()), (VmState::Paused, Status::WaitingForShard));
        assert_eq!(vm.time_to_ready(), None);
        block_on(vm.resume()).unwrap();
        eventually("the guest is ready", || vm.time_to_ready().is_some());
        let printed = usize::try_from(vm.metrics().serial_sent_bytes.get()).unwrap();
        assert_eq!(*block_on(vm.stop()), Outcome::Stopped);
        drop((vm, host, machine));
        let read = collector.join().unwrap();
        assert_eq!(read.len(), PIPE + printed);
        assert!(read.ends_with(b".idle\n") && read[..read.len() - 5].iter().all(|&byte| byte == b'.'));
    });
}

#[test]
fn a_vcpu_that_waits_for_its_shard_is_stopped_at_once() {
    on_both_engines(|host| {
        let Waiting { vm, vcpu, reader: _unread, .. } = host.waiting(&idle());
        vm.request_stop();
        eventually("the vCPU ends", || vcpu.status() == Status::Finished);
        assert_eq!(*block_on(vm.wait()), Outcome::Stopped);
        assert!(vm.metrics().serial_dropped_bytes.get() > 0);
    });
}

#[test]
fn a_vcpu_that_waits_for_its_shard_ends_with_the_time_limit() {
    on_both_engines(|host| {
        let waiting = host.waiting(&idle().timeout(Duration::from_secs(1)));
        let outcome = block_on(waiting.vm.wait());
        let Outcome::TimedOut { vcpus } = &*outcome else { panic!("{outcome}") };
        assert_eq!(vcpus[0].last_exits, ["write to port 0x3f8/1"]);
    });
}

#[test]
fn a_vcpu_that_waits_for_its_shard_ends_with_its_handle() {
    on_both_engines(|host| {
        let Waiting { vm, vcpu, reader: _unread, .. } = host.waiting(&idle());
        drop(vm);
        eventually("the vCPU ends", || vcpu.status() == Status::Finished);
    });
}

#[test]
fn a_vcpu_that_waits_for_its_shard_ends_with_the_shard() {
    on_both_engines(|host| {
        let Waiting { vm, vcpu, reader: _unread, .. } = host.waiting(&idle());
        host.shard.stop().unwrap();
        assert_eq!(vcpu.status(), Status::Finished);
        assert_eq!(*block_on(vm.wait()), Outcome::Stopped);
    });
}

#[test]
fn a_vm_that_lost_its_handle_does_not_hold_up_its_shard() {
    on_both_engines(|host| {
        let (vm, mut parts) = host.spinner();
        let (slow, bell) = (puppet(), Arc::clone(&parts.task.changed));
        parts.task.life.controls.push(Arc::clone(&slow));
        assert!(host.shard.send(parts).is_ok());
        drop(vm);
        // One vCPU has not finished yet; another VM on the same shard lives its whole life meanwhile.
        let (other, parts) = host.assemble(&VmConfig::new("exit").memory_mib(16), Console::Discard);
        assert!(host.shard.send(parts).is_ok());
        assert_eq!(*block_on(other.wait()), Outcome::Exited { code: 0 });
        slow.finish(end(Outcome::Stopped));
        bell.notify_one();
        host.shard.stop().unwrap();
    });
}

#[test]
fn a_vm_whose_event_loop_is_gone_ends_as_failed() {
    let host = Host::new(EngineChoice::Auto);
    let (vm, parts) = host.spinner();
    let vcpu = Arc::clone(&parts.task.life.controls[0]);
    let waiting = std::thread::spawn(move || {
        let outcome = block_on(vm.wait());
        assert!(block_on(vm.pause()).is_err());
        outcome
    });
    drop(parts);
    let outcome = waiting.join().unwrap();
    assert!(matches!(&*outcome, Outcome::Failed { error } if error.contains("event loop")), "{outcome}");
    eventually("the vCPU ends", || vcpu.status() == Status::Finished);
    let metrics = host.runtime.registry().runtime();
    assert_eq!(metrics.ended.get(OutcomeKind::Failed), 1);
    assert!(VmState::ALL.iter().all(|&state| metrics.vms.get(state) == 0));
}

#[test]
fn the_first_end_of_a_vcpu_decides_and_comes_before_the_hosts_stop() {
    on_both_engines(|host| {
        let (vm, mut parts) = host.spinner();
        let (first, bell) = (puppet(), Arc::clone(&parts.task.changed));
        first.finish(end(Outcome::Exited { code: 9 }));
        parts.task.life.controls.push(first);
        // The host's stop is in the channel before the task has looked at anything.
        vm.request_stop();
        bell.notify_one();
        assert!(host.shard.send(parts).is_ok());
        assert_eq!(*block_on(vm.wait()), Outcome::Exited { code: 9 });
    });
}

#[test]
fn an_end_without_a_notification_is_seen_with_the_next_command() {
    on_both_engines(|host| {
        let (vm, mut parts) = host.spinner();
        let first = puppet();
        first.finish(end(Outcome::Reset));
        parts.task.life.controls.push(first);
        vm.request_stop();
        assert!(host.shard.send(parts).is_ok());
        assert_eq!(*block_on(vm.wait()), Outcome::Reset);
    });
}

#[test]
fn a_pause_waits_for_the_slowest_vcpu() {
    on_both_engines(|host| {
        let (vm, mut parts) = host.spinner();
        let (slow, bell) = (puppet(), Arc::clone(&parts.task.changed));
        slow.ask(super::Request::Run);
        assert_eq!(slow.park(), crate::vcpu::control::Flow::Run);
        parts.task.life.controls.push(Arc::clone(&slow));
        assert!(host.shard.send(parts).is_ok());
        block_on(async {
            let mut pause = std::pin::pin!(vm.pause());
            assert!(tokio::time::timeout(Duration::from_millis(20), &mut pause).await.is_err());
            assert_eq!(vm.state(), VmState::Running);
            // It waits for the host: that is rest enough.
            let thread = std::thread::spawn(move || {
                let flow = slow.park();
                slow.finish(end(Outcome::Stopped));
                flow
            });
            bell.notify_one();
            while tokio::time::timeout(Duration::from_millis(1), &mut pause).await.is_err() {
                bell.notify_one();
            }
            assert_eq!(vm.state(), VmState::Paused);
            vm.request_stop();
            thread.join().unwrap();
            bell.notify_one();
            assert_eq!(*vm.wait().await, Outcome::Stopped);
        });
    });
}

/// Notes the state of a VM at the very moment at which an answer wakes whoever waits for it.
struct Probe {
    status: Arc<VmStatus>,
    seen: Sender<VmState>,
}

impl Wake for Probe {
    fn wake(self: Arc<Self>) {
        let _ = self.seen.send(*self.status.state.borrow());
    }
}

#[test]
fn whoever_hears_an_answer_finds_the_vm_in_that_state() {
    on_both_engines(|host| {
        let (vm, parts) = host.create(&VmConfig::new("spin").memory_mib(16), Console::Discard);
        let (seen, states) = channel();
        let waker = Waker::from(Arc::new(Probe { status: Arc::clone(&parts.task.life.status), seen }));
        let state_at_answer = |command: Pin<&mut dyn Future<Output = Result<()>>>, send: &mut dyn FnMut()| {
            let pending = command.poll(&mut Context::from_waker(&waker)).is_pending();
            send();
            if pending { states.recv_timeout(DEADLINE).expect("no answer") } else { vm.state() }
        };
        // The command is there before anybody answers it.
        let mut parts = Some(parts);
        let mut send = || assert!(parts.take().is_none_or(|parts| host.shard.send(parts).is_ok()));
        assert_eq!(state_at_answer(pin!(vm.start()), &mut send), VmState::Running);
        for _ in 0..20 {
            assert_eq!(state_at_answer(pin!(vm.pause()), &mut || ()), VmState::Paused);
            assert_eq!(state_at_answer(pin!(vm.resume()), &mut || ()), VmState::Running);
        }
    });
}
