//! Many VMs come and go in one process, and the process is as it was before: descriptors, threads, memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::guest::Code;
use common::process::{descriptors, resident_kib, threads_named};
use common::{Host, block_on, eventually, rounds, small};
use ringlet::{Drive, EngineChoice, ImageRef, Outcome, Resources, Vm, VmConfig, VmState, Vsock};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Memory in KiB that a thousand VMs may leave behind: what allocators and the standard library keep.
const SLACK_KIB: u64 = 4096;

/// What is counted belongs to the process, so only one test at a time may run VMs.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What this process uses now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Usage {
    descriptors: usize,
    threads: usize,
}

impl Usage {
    fn now() -> Self {
        Self { descriptors: descriptors(), threads: threads_named("ringlet-") }
    }

    /// Waits until no more than this is used again.
    #[track_caller]
    fn again(self, host: &Host) {
        settle(host);
        eventually("everything is closed", || {
            let now = Self::now();
            now.descriptors <= self.descriptors && now.threads <= self.threads
        });
    }
}

/// Waits until every VM has ended and is closed.
#[track_caller]
fn settle(host: &Host) {
    let vms = &host.runtime.registry().runtime().vms;
    eventually("every VM is closed", || {
        VmState::ALL.iter().all(|&state| vms.get(state) == 0)
            && host.backlog() == 0
            && threads_named("ringlet-vcpu") == 0
    });
}

/// The ways of a VM to live and end, by turns.
fn live(host: &Host, turn: u64, code: &Code, config: &VmConfig) {
    let launch = || host.launch_with(code, config.clone());
    match turn % 5 {
        0 => assert_eq!(*block_on(launch().vm.wait()), Outcome::Exited { code: 7 }),
        1 => drop(launch()),
        2 => drop(host.create_with(code, config)),
        3 => {
            let outcome = block_on(launch().vm.stop());
            assert!(matches!(*outcome, Outcome::Stopped | Outcome::Exited { code: 7 }), "{outcome}");
        }
        _ => {
            let guest = launch();
            let _ = block_on(guest.vm.pause());
        }
    }
}

/// A VM with one device of each sort, and a guest that sets up the first of them.
fn with_devices(file: &std::path::Path) -> (VmConfig, Code) {
    let config = small()
        .drive(Drive::file("file", file).read_only().queues(2))
        .drive(Drive::memory("memory", 1 << 20))
        .drive(Drive::null("null", 1 << 20))
        .vsock(Vsock::new())
        .entropy()
        .console();
    (config, Code::new().negotiate(0xD000_0000).print("x").exit(7))
}

fn a_thousand_vms(engine: EngineChoice, config: &VmConfig, code: &Code, descriptors: usize) {
    let _turn = alone();
    let host = Host::new(engine);
    let warm_up = rounds(200);
    (0..warm_up).for_each(|turn| live(&host, turn, code, config));
    // The loop, the reaper and what they hold are there from now on.
    settle(&host);
    let (before, memory) = (Usage::now(), resident_kib());
    let mut most = before;
    for turn in 0..rounds(1_000) {
        live(&host, turn, code, config);
        let now = Usage::now();
        most.descriptors = most.descriptors.max(now.descriptors);
        most.threads = most.threads.max(now.threads);
        // Whoever makes VMs faster than they can end is to wait, not to run out of everything.
        if now.threads > before.threads + 20 {
            eventually("VMs end", || Usage::now().threads < before.threads + 10);
        }
    }
    before.again(&host);
    let grown = resident_kib().saturating_sub(memory);
    println!("before {before:?}, most {most:?}; memory {memory} KiB, grown by {grown} KiB");
    assert!(most.descriptors < before.descriptors + 30 * descriptors, "{before:?} {most:?}");
    assert!(grown < SLACK_KIB, "{grown} KiB more than the {memory} KiB before");
}

/// Descriptors that a VM without virtio devices takes at most.
const BARE: usize = 8;

fn walk() -> Code {
    Code::new().times(5, Code::new().inb(0x64)).print("x").exit(7)
}

#[test]
fn a_thousand_vms_leave_nothing_behind_on_io_uring() {
    a_thousand_vms(EngineChoice::Uring, &small(), &walk(), BARE);
}

#[test]
fn a_thousand_vms_leave_nothing_behind_on_epoll() {
    a_thousand_vms(EngineChoice::Epoll, &small(), &walk(), BARE);
}

#[test]
fn a_thousand_vms_with_devices_leave_nothing_behind_on_io_uring() {
    a_thousand_vms_with_devices(EngineChoice::Uring);
}

#[test]
fn a_thousand_vms_with_devices_leave_nothing_behind_on_epoll() {
    a_thousand_vms_with_devices(EngineChoice::Epoll);
}

fn a_thousand_vms_with_devices(engine: EngineChoice) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let (config, code) = with_devices(file.path());
    // Six interrupts, ten doorbells, the disks' own; and VMs are closed later.
    a_thousand_vms(engine, &config, &code, BARE + 3 * (6 + 10 + 3));
}

#[test]
fn connections_that_come_and_go_leave_nothing_behind_on_io_uring() {
    connections_leave_nothing_behind(EngineChoice::Uring);
}

#[test]
fn connections_that_come_and_go_leave_nothing_behind_on_epoll() {
    connections_leave_nothing_behind(EngineChoice::Epoll);
}

/// Of connections by the library and by the path, in every state of theirs.
fn connections_leave_nothing_behind(engine: EngineChoice) {
    let _turn = alone();
    let host = Host::new(engine);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.sock");
    let guest = host.bundled_with(VmConfig::new("vsock-echo").memory_mib(64).vsock(Vsock::new().uds(&path)));
    guest.until_printed("ready on port 1024");
    (0..20).for_each(|turn| connection(&guest.vm, &path, turn));
    let idle = || {
        host.runtime
            .registry()
            .encode()
            .contains(r#"ringlet_device_connections{vm="vm-1",device="vsock0"} 0"#)
    };
    eventually("all connections are forgotten", idle);
    let (before, memory) = (Usage::now(), resident_kib());
    (0..rounds(2000)).for_each(|turn| connection(&guest.vm, &path, turn));
    eventually("all connections are forgotten", idle);
    eventually("everything is closed", || Usage::now().descriptors <= before.descriptors);
    let grown = resident_kib().saturating_sub(memory);
    assert!(grown < SLACK_KIB, "{grown} KiB more than the {memory} KiB before");
    assert_eq!(*block_on(guest.vm.stop()), Outcome::Stopped);
}

/// A stream to the guest.
fn attached(vm: &Vm) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(common::deadline())).unwrap();
    block_on(vm.vsock_attach(1024, theirs)).unwrap();
    ours
}

/// The ways of a connection to begin and end, by turns.
fn connection(vm: &Vm, path: &Path, turn: u64) {
    let by_path = |request: &str| {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(common::deadline())).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    };
    match turn % 6 {
        // It is not looked at, or refused, or broken off while it is asked for.
        0 => drop(UnixStream::connect(path).unwrap()),
        1 => assert!(block_on(vm.vsock_attach(9, UnixStream::pair().unwrap().0)).is_err()),
        2 => drop(by_path("CONNECT 1024\n")),
        // It is used, and left with something that nobody reads.
        3 => attached(vm).write_all(&[7; 30_000]).unwrap(),
        4 => {
            let mut stream = attached(vm);
            stream.write_all(b"whole").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut back = Vec::new();
            stream.read_to_end(&mut back).unwrap();
            assert_eq!(back, b"whole");
        }
        _ => {
            let mut stream = by_path("CONNECT 1024\n");
            assert_eq!(stream.read(&mut [0; 3]).unwrap(), 3);
        }
    }
}

#[test]
fn a_thousand_vms_that_cannot_be_made_leave_nothing_behind() {
    let _turn = alone();
    let host = Host::new(EngineChoice::Auto);
    // One that can, so that what is made for the first is there.
    assert_eq!(*block_on(host.bundled("exit", &[]).vm.wait()), Outcome::Exited { code: 0 });
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.elf");
    std::fs::write(&broken, &Code::new().halt().elf(true)[..0x1001]).unwrap();
    let configs = [
        VmConfig::new("nonesuch"),
        VmConfig::new(ImageRef::Path(broken)),
        VmConfig::new("hello").memory_mib(0),
        VmConfig::new("hello").vcpus(0),
        VmConfig::new("hello").memory_mib(1 << 20).vcpus(33),
        VmConfig::new("hello").initrd("/nonesuch"),
        VmConfig::new("hello").initrd("/dev/null"),
        // These fail when vCPUs and their threads are there already.
        VmConfig::new("hello").vcpus(4).cmdline("x".repeat(5_000)),
        VmConfig::new("hello").vcpus(4).cmdline("a -- b"),
        VmConfig::new("hello").vcpus(4).args(["x".repeat(5_000)]),
        VmConfig::new("hello").drive(Drive::file("a", "/nonesuch")),
        VmConfig::new("hello").drive(Drive::memory("a", 512)).drive(Drive::file("b", folder.path())),
        // This one when there are ioeventfds as well.
        VmConfig::new("hello").vcpus(4).drive(Drive::null("a", 512).queues(4)).args(["x".repeat(5_000)]),
    ];
    let attempt = |config: &VmConfig| assert!(host.runtime.launch(config, Resources::default()).is_err());
    configs.iter().for_each(attempt);
    settle(&host);
    let (before, memory) = (Usage::now(), resident_kib());
    for _ in 0..rounds(100) {
        configs.iter().for_each(attempt);
        eventually("the vCPUs are gone", || threads_named("ringlet-vcpu") == 0);
    }
    before.again(&host);
    let grown = resident_kib().saturating_sub(memory);
    assert!(grown < SLACK_KIB, "{grown} KiB more than the {memory} KiB before");
    assert_eq!(host.runtime.registry().runtime().created.get(), 1);
}

/// Each step of making a VM takes descriptors; with one more than the last time, the next step is the one that fails.
#[test]
fn a_vm_that_runs_out_of_descriptors_at_any_step_leaves_nothing_behind() {
    run_out_of_descriptors(&small().vcpus(2), &Code::new().print("x").exit(7), 4);
}

#[test]
fn a_vm_with_devices_that_runs_out_of_descriptors_at_any_step_leaves_nothing_behind() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let (config, code) = with_devices(file.path());
    // Whether the memory disk, which is made on the shard, is one more depends on what the launching thread still has.
    run_out_of_descriptors(&config, &code, 4 + 6 + 10);
}

/// `least` steps can run out of descriptors.
fn run_out_of_descriptors(config: &VmConfig, code: &Code, least: usize) {
    let _turn = alone();
    let host = Host::new(EngineChoice::Auto);
    assert_eq!(*block_on(host.launch_with(code, config.clone()).vm.wait()), Outcome::Exited { code: 7 });
    settle(&host);
    let before = Usage::now();
    let usual = getrlimit(Resource::Nofile);
    let mut failed = 0;
    let mut free = 0;
    loop {
        // Descriptors are given away from the lowest free one.
        let limit = lowest_limit_with(free);
        setrlimit(Resource::Nofile, Rlimit { current: Some(limit), ..usual }).unwrap();
        let (resources, _console) = common::buffered(code);
        let made = host.runtime.launch(config, resources);
        let outcome = made.as_ref().ok().map(|vm| block_on(vm.wait()));
        setrlimit(Resource::Nofile, usual).unwrap();
        match (made, outcome) {
            (Err(error), _) => {
                failed += 1;
                let text = error.to_string();
                println!("{free} descriptors: {text}");
                assert!(text.contains("Too many open files") || text.contains("os error 24"), "{text}");
            }
            (Ok(_), Some(outcome)) if *outcome == (Outcome::Exited { code: 7 }) => break,
            // A device that cannot be made on its shard.
            (Ok(_), Some(outcome)) => {
                failed += 1;
                println!("{free} descriptors: {outcome}");
                let Outcome::Failed { error } = &*outcome else { panic!("{outcome}") };
                assert!(error.contains("os error 24"), "{error}");
            }
            (Ok(_), None) => unreachable!(),
        }
        before.again(&host);
        free += 1;
        assert!(free < 100, "no number of descriptors is enough");
    }
    println!("{failed} steps can run out of descriptors");
    assert!(failed >= least, "only {failed} failures");
    before.again(&host);
}

/// The smallest limit on descriptor numbers under which `free` more can be had.
fn lowest_limit_with(free: usize) -> u64 {
    let taken: Vec<u64> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .filter(|fd| std::fs::exists(format!("/proc/self/fd/{fd}")).unwrap())
        .collect();
    (0..).filter(|fd| !taken.contains(fd)).nth(free).unwrap()
}

#[test]
fn runtimes_that_come_and_go_leave_nothing_behind() {
    let _turn = alone();
    let code = Code::new().print("x").exit(7);
    let live = |engine| {
        let host = Host::new(engine);
        let kept = host.launch(&Code::new().halt());
        assert_eq!(*block_on(host.launch(&code).vm.wait()), Outcome::Exited { code: 7 });
        drop(host);
        assert_eq!(*block_on(kept.vm.wait()), Outcome::Stopped);
    };
    let both = || [EngineChoice::Uring, EngineChoice::Epoll].into_iter().for_each(live);
    both();
    // A thread that was joined is listed for a moment, and the closing of a ring goes on in the kernel.
    eventually("all threads end with their runtime", || Usage::now().threads == 0);
    let (before, memory) = (Usage::now(), resident_kib());
    (0..rounds(50)).for_each(|_| both());
    eventually("everything is closed", || Usage::now() == before);
    let grown = resident_kib().saturating_sub(memory);
    assert!(grown < SLACK_KIB, "{grown} KiB more than the {memory} KiB before");
}

#[test]
fn guest_memory_is_given_back_when_its_vm_ends() {
    let _turn = alone();
    let host = Host::new(EngineChoice::Auto);
    let alloc = || {
        let guest = host.bundled_with(VmConfig::new("alloc").memory_mib(64));
        assert_eq!(*block_on(guest.vm.wait()), Outcome::Exited { code: 0 });
        assert!(guest.printed().contains("MiB touched of"), "{}", guest.printed());
    };
    alloc();
    settle(&host);
    let memory = resident_kib();
    for _ in 0..rounds(5) {
        alloc();
    }
    // Each of them had 64 MiB.
    eventually("guest memory is back", || resident_kib() < memory + (16 << 10));
}
