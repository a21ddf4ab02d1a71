//! The life of a VM on real KVM, under a written list of interleavings, on both engines.
//!
//! | what happens | while | test |
//! |---|---|---|
//! | drop, stop, pause, resume, time limit | created | `a_created_vm_…`, `a_time_limit_runs_from_the_start_…` |
//! | stop, drop, pause | booting, at each of its first exits | `stop_at_any_exit_…`, `drop_at_any_exit_…`, `pause_at_any_exit_…` |
//! | pause, stop | the guest ends, at each exit before its last | `a_pause_that_races_…`, `a_stop_that_races_…` |
//! | pause and resume, 1,000 times | spinning, halted, several vCPUs | `kicks_…` |
//! | pause, resume, stop from several threads | spinning | `commands_from_several_threads_…` |
//! | pause and resume, stop, drop | waiting for its shard (serial output full) | `…_while_the_output_is_full…` |
//! | stop | running, halted, being paused, paused, ended | `a_stop_…` |
//! | time limit | booting, running, halted, paused | `a_time_limit_…` |
//! | pause, stop, time limit | ended, its output not read yet | `…_while_the_last_output_waits…` |
//! | start again, any command | running, paused, ended | `a_second_start_…`, `an_ended_vm_…` |
//! | drop of the runtime | VMs in every state | `the_end_of_the_runtime_…` |
//! | crash, exit, stop, time limit | neighbours on the same shard | `each_vm_has_its_own_end` |
//!
//! A VM that waits for its shard is looked at from inside in `runtime/src/lifecycle/lifecycle_test.rs`, where that state can be
//! seen; what one vCPU and its controller do between two instructions is in the loom models of
//! `runtime/src/vcpu/control_loom_test.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::num::NonZero;
use std::time::{Duration, Instant};

use common::guest::{Code, pattern};
use common::{Host, block_on, on_both_engines, rounds, small, until_exits, until_output_is_full, within};
use ringlet::{
    BootProtocol, CrashCause, Error, MAX_SHARDS, Outcome, Resources, Result, Runtime, RuntimeOptions, Vm,
    VmConfig, VmState,
};
use ringlet_metrics::{ExitKind, OutcomeKind};

/// An I/O port that reads without effect: a way to the host and back.
const ANY_PORT: u16 = 0x64;

/// A guest that makes `exits` exits and ends with code 7.
fn walk(exits: u32) -> Code {
    Code::new().times(exits, Code::new().inb(ANY_PORT)).exit(7)
}

/// A guest that runs for ever, mostly inside.
fn spin() -> Code {
    Code::new().forever(Code::new().spin(1_000).inb(ANY_PORT))
}

/// Asserts that a command was refused, and why.
#[track_caller]
fn refused(result: Result<()>, operation: &str, because: &str) {
    match result {
        Err(Error::State { operation: o, state }) => assert_eq!((o, state), (operation, because)),
        other => panic!("{other:?}"),
    }
}

/// Returns how often the VM could be paused.
async fn pause_and_resume_until_it_ends(vm: &Vm) -> u32 {
    let mut pauses = 0;
    while vm.pause().await.is_ok() {
        pauses += 1;
        vm.resume().await.unwrap();
    }
    pauses
}

fn port_reads(vm: &Vm) -> u64 {
    vm.metrics().exits.get(ExitKind::PioRead)
}

on_both_engines! {
    async fn an_image_not_made_by_this_project_boots_by_either_entry(host: Host) {
        let code = Code::new().print("hi\n").reset();
        for protocol in [BootProtocol::Pvh, BootProtocol::Linux64] {
            let guest = host.launch_with(&code, small().boot_protocol(protocol));
            assert_eq!(*guest.outcome().await, Outcome::Reset, "{protocol:?}");
            assert_eq!(guest.printed(), "hi\n");
        }
    }

    async fn a_created_vm_runs_nothing_until_it_is_started(host: Host) {
        let guest = host.create(&Code::new().print("ran").exit(5));
        assert_eq!(guest.vm.state(), VmState::Created);
        refused(guest.vm.pause().await, "be paused", "has not been started");
        refused(guest.vm.resume().await, "be resumed", "has not been started");
        assert_eq!(guest.vm.metrics().exits.total(), 0);
        guest.vm.start().await.unwrap();
        assert_eq!(*guest.outcome().await, Outcome::Exited { code: 5 });
        assert_eq!(guest.printed(), "ran");
    }

    async fn a_created_vm_that_is_dropped_or_stopped_never_runs(host: Host) {
        let code = Code::new().print("ran").exit(5);
        for _ in 0..rounds(20) {
            let guest = host.create(&code);
            drop(guest.vm);
            let stopped = host.create(&code);
            assert_eq!(*stopped.vm.stop().await, Outcome::Stopped);
            assert_eq!(stopped.printed() + &String::from_utf8(guest.console.contents()).unwrap(), "");
        }
        let registry = host.runtime.registry().clone();
        drop(host);
        assert_eq!(registry.runtime().ended.get(OutcomeKind::Stopped), 2 * rounds(20));
        assert!(VmState::ALL.iter().all(|&state| registry.runtime().vms.get(state) == 0));
    }

    async fn a_second_start_is_refused(host: Host) {
        let guest = host.create(&spin());
        guest.vm.start().await.unwrap();
        assert_eq!(guest.vm.state(), VmState::Running);
        refused(guest.vm.start().await, "start", "is running");
        guest.vm.pause().await.unwrap();
        refused(guest.vm.start().await, "start", "is paused");
        let launched = host.launch(&spin());
        refused(launched.vm.start().await, "start", "is running");
    }

    async fn stop_at_any_exit_of_the_boot_ends_the_vm(host: Host) {
        for exits in 0..rounds(60) {
            let guest = host.bundled("spin", &[]);
            until_exits(&guest.vm, exits % 6);
            assert_eq!(*within(guest.vm.stop()).await, Outcome::Stopped, "at exit {exits}");
        }
    }

    async fn drop_at_any_exit_of_the_boot_ends_the_vm(host: Host) {
        for exits in 0..rounds(60) {
            let guest = host.bundled("spin", &[]);
            until_exits(&guest.vm, exits % 6);
        }
        let registry = host.runtime.registry().clone();
        drop(host);
        assert_eq!(registry.runtime().ended.get(OutcomeKind::Stopped), rounds(60));
        assert!(VmState::ALL.iter().all(|&state| registry.runtime().vms.get(state) == 0));
    }

    async fn pause_at_any_exit_of_the_boot_changes_nothing_for_the_guest(host: Host) {
        let undisturbed = host.bundled("hello", &["a"]);
        assert_eq!(*undisturbed.outcome().await, Outcome::Exited { code: 0 });
        let total = undisturbed.vm.metrics().exits.total();
        assert!(undisturbed.printed().contains("primes below 10000: 1229"));
        for exits in (0..total).step_by(1 + (total / rounds(40)) as usize) {
            let guest = host.bundled("hello", &["a"]);
            until_exits(&guest.vm, exits);
            if guest.vm.pause().await.is_ok() {
                guest.vm.resume().await.unwrap();
            }
            assert_eq!(*guest.outcome().await, Outcome::Exited { code: 0 }, "at exit {exits}");
            assert_eq!(guest.printed(), undisturbed.printed(), "at exit {exits}");
        }
    }

    async fn a_pause_that_races_the_exit_never_changes_the_outcome(host: Host) {
        for exits in 0..rounds(120) {
            let guest = host.launch(&walk(20));
            until_exits(&guest.vm, exits % 21);
            match guest.vm.pause().await {
                Ok(()) => {
                    assert_eq!(guest.vm.state(), VmState::Paused);
                    guest.vm.resume().await.unwrap();
                }
                Err(error) => assert!(matches!(error, Error::State { .. }), "{error}"),
            }
            assert_eq!(*guest.outcome().await, Outcome::Exited { code: 7 }, "at exit {exits}");
        }
    }

    async fn a_stop_that_races_the_exit_ends_in_one_of_the_two_ways(host: Host) {
        for exits in 0..rounds(120) {
            let guest = host.launch(&walk(20));
            until_exits(&guest.vm, exits % 21);
            let outcome = within(guest.vm.stop()).await;
            assert!(matches!(*outcome, Outcome::Stopped | Outcome::Exited { code: 7 }), "{outcome}");
        }
    }

    async fn kicks_of_a_spinning_guest_are_never_lost_and_it_goes_on(host: Host) {
        let guest = host.launch(&spin());
        for _ in 0..rounds(1_000) {
            guest.vm.pause().await.unwrap();
            assert_eq!(guest.vm.state(), VmState::Paused);
            let exits = port_reads(&guest.vm);
            assert_eq!(guest.vm.metrics().exits.get(ExitKind::PioRead), exits);
            guest.vm.resume().await.unwrap();
            assert_eq!(guest.vm.state(), VmState::Running);
        }
        let exits = port_reads(&guest.vm);
        until_exits(&guest.vm, guest.vm.metrics().exits.total() + 10);
        assert!(port_reads(&guest.vm) > exits);
        assert_eq!(*guest.vm.stop().await, Outcome::Stopped);
    }

    async fn kicks_do_not_keep_a_computing_guest_from_its_result(host: Host) {
        let mut pauses = 0;
        while pauses < 10 {
            let guest = host.bundled("spin", &["50"]);
            pauses += pause_and_resume_until_it_ends(&guest.vm).await;
            assert_eq!(*guest.outcome().await, Outcome::Exited { code: 0 });
            assert!(guest.printed().contains("50 million iterations"), "{}", guest.printed());
        }
    }

    async fn kicks_of_a_halted_guest_leave_it_halted(host: Host) {
        let guest = host.launch(&Code::new().print("!").halt());
        guest.until_printed("!");
        for _ in 0..rounds(1_000) {
            guest.vm.pause().await.unwrap();
            guest.vm.resume().await.unwrap();
        }
        assert_eq!(guest.vm.metrics().exits.get(ExitKind::PioWrite), 1);
        assert_eq!(*guest.vm.stop().await, Outcome::Stopped);
    }

    async fn a_paused_guest_executes_nothing(host: Host) {
        let guest = host.launch(&spin());
        until_exits(&guest.vm, 100);
        guest.vm.pause().await.unwrap();
        guest.vm.pause().await.unwrap();
        let exits = guest.vm.metrics().exits.total();
        // Another VM lives a whole life in the meantime.
        assert_eq!(*host.launch(&walk(200)).outcome().await, Outcome::Exited { code: 7 });
        assert_eq!(guest.vm.metrics().exits.total(), exits);
        guest.vm.resume().await.unwrap();
        guest.vm.resume().await.unwrap();
        until_exits(&guest.vm, exits + 100);
    }

    async fn commands_from_several_threads_leave_the_vm_in_order(host: Host) {
        let guest = host.launch(&spin());
        let vm = &guest.vm;
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| block_on(async {
                    for _ in 0..rounds(100) {
                        let refused = [vm.pause().await, vm.resume().await].into_iter().filter_map(Result::err);
                        refused.for_each(|error| assert!(matches!(error, Error::State { .. }), "{error}"));
                    }
                }));
            }
        });
        // Whatever the last command was, the VM obeys the next ones.
        vm.pause().await.unwrap();
        assert_eq!(vm.state(), VmState::Paused);
        vm.resume().await.unwrap();
        until_exits(vm, vm.metrics().exits.total() + 100);
        assert_eq!(*vm.stop().await, Outcome::Stopped);
    }

    async fn a_pause_while_the_output_is_full_loses_nothing(host: Host) {
        const BYTES: usize = 90_000;
        let (vm, pipe) = host.launch_piped(&Code::new().print_pattern(BYTES as u32).exit(3), small());
        until_output_is_full(&vm);
        vm.pause().await.unwrap();
        assert_eq!(vm.state(), VmState::Paused);
        let (sent, exits) = (vm.metrics().serial_sent_bytes.get(), vm.metrics().exits.total());
        // The reader makes room, but a paused guest does not use it.
        let reader = pipe.read_to_end();
        assert_eq!(*host.launch(&walk(200)).outcome().await, Outcome::Exited { code: 7 });
        assert_eq!((vm.metrics().serial_sent_bytes.get(), vm.metrics().exits.total()), (sent, exits));
        vm.resume().await.unwrap();
        assert_eq!(*within(vm.wait()).await, Outcome::Exited { code: 3 });
        drop((vm, host));
        assert!(reader.join().unwrap() == pattern(BYTES));
    }

    async fn a_stop_while_the_output_is_full_keeps_what_was_printed_and_gives_up_in_time(host: Host) {
        let code = Code::new().print_pattern(1 << 30).exit(3);
        let (vm, pipe) = host.launch_piped(&code, small());
        let (dropped, dropped_pipe) = host.launch_piped(&code, small());
        until_output_is_full(&vm);
        until_output_is_full(&dropped);
        drop(dropped);
        assert_eq!(*within(vm.stop()).await, Outcome::Stopped);
        let (sent, lost) = (vm.metrics().serial_sent_bytes.get(), vm.metrics().serial_dropped_bytes.get());
        assert!(lost > 0, "nobody reads, so something is left behind");
        drop((vm, host));
        for pipe in [pipe, dropped_pipe] {
            let read = pipe.read_to_end().join().unwrap();
            assert!(read == pattern(read.len()) && read.len() as u64 <= sent, "{} of {sent}", read.len());
        }
    }

    async fn what_a_guest_printed_last_arrives_however_late_the_reader(host: Host) {
        const BYTES: usize = 6_000;
        let (vm, pipe) = host.launch_piped(&Code::new().print_pattern(BYTES as u32).exit(3), small());
        common::eventually("the guest ends", || vm.state() == VmState::Stopping);
        assert!(tokio::time::timeout(Duration::from_millis(50), vm.wait()).await.is_err());
        refused(vm.pause().await, "be paused", "has ended");
        let reader = pipe.read_to_end();
        assert_eq!(*within(vm.wait()).await, Outcome::Exited { code: 3 });
        drop((vm, host));
        assert!(reader.join().unwrap() == pattern(BYTES));
    }

    async fn a_stop_while_the_last_output_waits_does_not_change_the_outcome(host: Host) {
        let (vm, _unread) = host.launch_piped(&Code::new().print_pattern(6_000).exit(3), small());
        common::eventually("the guest ends", || vm.state() == VmState::Stopping);
        assert_eq!(*within(vm.stop()).await, Outcome::Exited { code: 3 });
        assert!(vm.metrics().serial_dropped_bytes.get() > 0);
    }

    async fn a_time_limit_while_the_last_output_waits_ends_the_wait_with_the_guests_outcome(host: Host) {
        let code = Code::new().print_pattern(6_000).exit(3);
        // How long the guest takes depends on the machine, so it is tried; the limit is to come after its end.
        let begun = Instant::now();
        let (tried, _unread) = host.launch_piped(&code, small());
        common::eventually("the guest ends", || tried.state() == VmState::Stopping);
        let config = small().timeout(begun.elapsed() * 4 + Duration::from_secs(1));
        let (vm, _unread) = host.launch_piped(&code, config);
        assert_eq!(*within(vm.wait()).await, Outcome::Exited { code: 3 });
        assert!(vm.metrics().serial_dropped_bytes.get() > 0);
    }

    async fn a_stop_ends_a_vm_from_every_state_and_twice_is_once(host: Host) {
        let running = host.launch(&spin());
        let halted = host.launch(&Code::new().halt());
        let paused = host.launch(&spin());
        paused.vm.pause().await.unwrap();
        let pausing = host.launch(&spin());
        // What was asked is done, even if nobody waits for it.
        let _ = tokio::time::timeout(Duration::ZERO, pausing.vm.pause()).await;
        for guest in [&running, &halted, &paused, &pausing] {
            guest.vm.request_stop();
            assert_eq!(*within(guest.vm.stop()).await, Outcome::Stopped);
            assert_eq!(*within(guest.vm.stop()).await, Outcome::Stopped);
        }
        assert_eq!(host.runtime.registry().runtime().ended.get(OutcomeKind::Stopped), 4);
    }

    async fn a_pause_that_a_stop_overtakes_is_answered(host: Host) {
        for _ in 0..rounds(50) {
            let guest = host.launch(&spin());
            let (paused, outcome) = within(async { tokio::join!(guest.vm.pause(), guest.vm.stop()) }).await;
            assert!(paused.is_ok() || matches!(paused, Err(Error::State { .. })), "{paused:?}");
            assert_eq!(*outcome, Outcome::Stopped);
        }
    }

    async fn an_ended_vm_refuses_every_command_and_keeps_its_outcome(host: Host) {
        let guest = host.launch(&walk(1));
        assert_eq!(*guest.outcome().await, Outcome::Exited { code: 7 });
        for _ in 0..2 {
            refused(guest.vm.start().await, "start", "has ended");
            refused(guest.vm.pause().await, "be paused", "has ended");
            refused(guest.vm.resume().await, "be resumed", "has ended");
            assert_eq!(*within(guest.vm.stop()).await, Outcome::Exited { code: 7 });
        }
        assert!(!guest.vm.serial_input().send(b"x".to_vec()).await);
    }

    async fn a_time_limit_tells_where_the_guest_was(host: Host) {
        let guest = host.launch_with(&spin(), small().timeout(Duration::from_millis(100)));
        let Outcome::TimedOut { vcpus } = &*guest.outcome().await else { panic!("not timed out") };
        assert_eq!(vcpus.len(), 1);
        let rip = vcpus[0].registers.rip;
        assert!((0x10_0000..0x10_0040).contains(&rip), "{rip:#x}");
        let last = vcpus[0].last_exits.last().unwrap();
        assert!(last.starts_with("read of port 0x64/1 ×"), "{last}");
    }

    async fn a_time_limit_ends_a_guest_that_boots_halts_or_is_paused(host: Host) {
        let limit = |millis| small().timeout(Duration::from_millis(millis));
        let guests = [
            host.launch_with(&spin(), limit(1)),
            host.launch_with(&Code::new().halt(), limit(50)),
            host.launch_with(&spin(), limit(300)),
        ];
        guests[2].vm.pause().await.unwrap();
        for guest in &guests {
            assert!(matches!(*guest.outcome().await, Outcome::TimedOut { .. }));
        }
        assert_eq!(host.runtime.registry().runtime().ended.get(OutcomeKind::TimedOut), 3);
    }

    async fn a_time_limit_runs_from_the_start_and_not_from_the_creation(host: Host) {
        let (resources, _console) = common::buffered(&walk(1));
        let limit = Duration::from_secs(1);
        let vm = host.runtime.create(&small().timeout(limit), resources).unwrap();
        let until = tokio::time::timeout(limit * 3 / 2, vm.wait()).await;
        assert!(until.is_err(), "a VM that is not started has ended: {until:?}");
        vm.start().await.unwrap();
        assert_eq!(*within(vm.wait()).await, Outcome::Exited { code: 7 });
    }

    async fn exit_codes_have_32_bits(host: Host) {
        for code in [0, 1, 255, 256, 300, u32::MAX] {
            let outcome = host.launch(&Code::new().exit(code)).outcome().await;
            assert_eq!(*outcome, Outcome::Exited { code });
            assert_eq!(u32::from(outcome.exit_status()), code.min(255));
        }
        assert_eq!(*host.bundled("exit", &["300"]).outcome().await, Outcome::Exited { code: 300 });
    }

    async fn a_triple_fault_is_a_crash_that_tells_where(host: Host) {
        let code = Code::new().inb(ANY_PORT).triple_fault();
        let outcome = host.launch_with(&code, small().boot_protocol(BootProtocol::Linux64)).outcome().await;
        let Outcome::Crashed(crash) = &*outcome else { panic!("{outcome}") };
        assert_eq!(crash.cause, CrashCause::TripleFault);
        assert_eq!(crash.vcpu.last_exits[0], "read of port 0x64/1");
        assert_eq!(outcome.exit_status(), 134);
        let outcome = host.bundled("fault", &["triple"]).outcome().await;
        assert!(matches!(&*outcome, Outcome::Crashed(c) if c.cause == CrashCause::TripleFault), "{outcome}");
    }

    async fn code_in_device_memory_is_an_internal_error_that_tells_where(host: Host) {
        let code = Code::new().jump(0xD000_0000);
        let outcome = host.launch_with(&code, small().boot_protocol(BootProtocol::Linux64)).outcome().await;
        let Outcome::Crashed(crash) = &*outcome else { panic!("{outcome}") };
        assert!(matches!(crash.cause, CrashCause::InternalError { suberror: 1, .. }), "{outcome}");
        assert_eq!(crash.vcpu.registers.rip, 0xD000_0000, "{outcome}");
        assert!(outcome.to_string().contains("RIP 0xd0000000"), "{outcome}");
    }

    async fn each_vm_has_its_own_end(host: Host) {
        let limited = host.launch_with(&spin(), small().timeout(Duration::from_millis(50)));
        let exits = host.launch(&Code::new().times(300, Code::new().inb(ANY_PORT)).print("fine").exit(9));
        let crashes = host.launch(&Code::new().triple_fault());
        let resets = host.launch(&Code::new().reset());
        let stopped = host.launch(&spin());
        assert_eq!(*stopped.vm.stop().await, Outcome::Stopped);
        assert!(matches!(*crashes.outcome().await, Outcome::Crashed(_)));
        assert_eq!(*exits.outcome().await, Outcome::Exited { code: 9 });
        assert_eq!(exits.printed(), "fine");
        assert_eq!(*resets.outcome().await, Outcome::Reset);
        assert!(matches!(*limited.outcome().await, Outcome::TimedOut { .. }));
        let ended = &host.runtime.registry().runtime().ended;
        let kinds = [OutcomeKind::Exited, OutcomeKind::Reset, OutcomeKind::Stopped, OutcomeKind::TimedOut];
        assert!(kinds.into_iter().all(|kind| ended.get(kind) == 1));
        assert_eq!((ended.get(OutcomeKind::Crashed), ended.get(OutcomeKind::Failed)), (1, 0));
    }

    async fn several_vcpus_pause_and_resume_together(host: Host) {
        let undisturbed = host.bundled_with(VmConfig::new("smp").memory_mib(16).vcpus(4));
        assert_eq!(*undisturbed.outcome().await, Outcome::Exited { code: 0 }, "{}", undisturbed.printed());
        let mut pauses = 0;
        while pauses < 5 {
            let guest = host.bundled_with(VmConfig::new("smp").memory_mib(16).vcpus(4));
            pauses += pause_and_resume_until_it_ends(&guest.vm).await;
            assert_eq!(*guest.outcome().await, Outcome::Exited { code: 0 }, "{}", guest.printed());
            assert!(guest.printed().contains("on 4 cpus"), "{}", guest.printed());
        }
    }

    async fn a_time_limit_tells_where_each_vcpu_was(host: Host) {
        let config = small().vcpus(3).timeout(Duration::from_millis(50));
        let Outcome::TimedOut { vcpus } = &*host.launch_with(&spin(), config).outcome().await else {
            panic!("not timed out")
        };
        assert_eq!(vcpus.iter().map(|vcpu| vcpu.index).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(vcpus[1..].iter().all(|vcpu| vcpu.last_exits.is_empty()), "they wait for a start-up interrupt");
    }

    async fn the_end_of_the_runtime_ends_vms_in_every_state(host: Host) {
        // First, while nobody else computes: it has a way to go.
        let (waiting, _unread) = host.launch_piped(&Code::new().print_pattern(1 << 30), small());
        until_exits(&waiting, 10_000);
        let created = host.create(&spin());
        let running: Vec<_> = (0..10).map(|_| host.launch(&spin())).collect();
        let halted = host.launch(&Code::new().halt());
        let paused = host.launch(&spin());
        paused.vm.pause().await.unwrap();
        let ended = host.launch(&walk(1));
        assert_eq!(*ended.outcome().await, Outcome::Exited { code: 7 });
        drop(host);
        for vm in running.iter().chain([&created, &halted, &paused]).map(|guest| &guest.vm).chain([&waiting]) {
            assert_eq!(*within(vm.wait()).await, Outcome::Stopped);
            refused(vm.resume().await, "be resumed", "has ended");
        }
        assert_eq!(*ended.outcome().await, Outcome::Exited { code: 7 });
    }

    async fn whoever_waits_is_told_when_the_runtime_goes(host: Host) {
        let guest = host.launch(&spin());
        let waiting = std::thread::spawn(move || block_on(guest.vm.wait()));
        drop(host);
        assert_eq!(*waiting.join().unwrap(), Outcome::Stopped);
    }

    async fn a_vm_that_was_made_of_a_stocked_shell_is_like_any_other(host: Host) {
        host.runtime.stock_shells(3).unwrap();
        for _ in 0..5 {
            assert_eq!(*host.launch(&walk(1)).outcome().await, Outcome::Exited { code: 7 });
        }
    }

    async fn ready_is_told_once(host: Host) {
        let guest = host.create(&Code::new().ready().ready().exit(0));
        assert_eq!(guest.vm.time_to_ready(), None);
        guest.vm.start().await.unwrap();
        assert_eq!(*guest.outcome().await, Outcome::Exited { code: 0 });
        assert!(guest.vm.time_to_ready().is_some_and(|time| time > Duration::ZERO));
        let text = host.runtime.registry().encode();
        assert!(text.contains("ringlet_boot_phase_seconds_count{phase=\"ready\"} 1"), "{text}");
    }

    async fn what_cannot_be_made_is_an_error_that_names_the_field(host: Host) {
        for (config, what) in [
            (VmConfig::new("nonesuch"), "nonesuch"),
            (VmConfig::new("hello").memory_mib(3), "mem_size_mib"),
            (VmConfig::new("hello").vcpus(33), "vcpu_count"),
            (VmConfig::new("hello").name("a b"), "name"),
            (VmConfig::new("hello").initrd("/nonesuch"), "/nonesuch"),
            (VmConfig::new("hello").cmdline("x".repeat(5_000)), "command line"),
        ] {
            let error = host.runtime.launch(&config, Resources::default()).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
        assert_eq!(host.runtime.registry().runtime().created.get(), 0);
    }
}

#[test]
fn more_event_loops_than_a_process_can_have_are_refused() {
    let options = RuntimeOptions { shards: NonZero::new(MAX_SHARDS + 1), ..RuntimeOptions::default() };
    let error = Runtime::new(options).unwrap_err().to_string();
    assert_eq!(error, "shards: 257 is not in 1..=256");
}
