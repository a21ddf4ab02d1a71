//! Drivers that mean harm, on real KVM: the guest `hostile-virtio` attacks every device of its VM through real registers
//! and rings, and looks for memory that was written although it was not offered, or no longer. Here it runs beside VMs
//! that use the same devices and the same event loop, and must be served all the time. Others ask for one thing
//! without end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use common::{Guest, Host, deadline, eventually, on_both_engines, rounds, within};
use ringlet::{
    Console, ConsoleBuffer, Drive, NetworkInterface, Outcome, Resources, VmConfig, Vsock, VsockListener,
};
use ringlet_metrics::GuestErrorKind;

/// Seeds of both engines together.
const SEEDS: u64 = 60;
/// Attackers at a time.
const AT_ONCE: usize = 3;
/// Devices of an attacker: three disks, a network interface, the socket device, the entropy device and the console.
const DEVICES: u32 = 7;
/// The port of the host to which attackers connect.
const PORT: u32 = 1024;

/// A file of 1 MiB.
fn disk_file() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    file
}

/// What an attacker's devices are on: a disk's file, and a network of which nobody takes a frame.
struct Ground {
    file: tempfile::NamedTempFile,
    _ours: UnixDatagram,
    theirs: UnixDatagram,
}

impl Ground {
    fn new() -> Self {
        let (_ours, theirs) = UnixDatagram::pair().unwrap();
        Self { file: disk_file(), _ours, theirs }
    }
}

/// An attacker with a device of each kind, whose connections to the host are taken and held; every third seed has two vCPUs,
/// one of which rewrites what the other offers.
fn attacker(host: &Host, seed: u64, ground: &Ground) -> (Guest, VsockListener) {
    let guest = host.create_bundled(&attacker_of(seed, ground));
    let listener = guest.vm.vsock_listen(PORT).unwrap();
    (guest, listener)
}

fn attacker_of(seed: u64, ground: &Ground) -> VmConfig {
    VmConfig::new("hostile-virtio")
        .memory_mib(64)
        .vcpus(1 + u32::from(seed % 3 == 2))
        .drive(Drive::file("file", ground.file.path()))
        .drive(Drive::memory("memory", 4 << 20).queues(2))
        .drive(Drive::null("null", 4 << 20))
        .network_interface(NetworkInterface::fds("net0", [ground.theirs.as_raw_fd()]))
        .vsock(Vsock::new())
        .entropy()
        .console()
        .timeout(deadline())
        .args([seed.to_string()])
}

/// A VM that harms nobody: it writes `total` to its disk, reads it back and compares.
fn innocent(host: &Host, total: &str) -> Guest {
    let args = ["--verify", "--mode", "randrw", "--total", total, "--block-size", "4K", "--timeout", "120"];
    let disk = Drive::memory("own", 1 << 20);
    host.bundled_with(VmConfig::new("blkbench").memory_mib(64).drive(disk).args(args))
}

/// The names of all series of the first VM.
fn series(host: &Host) -> BTreeSet<String> {
    let text = host.runtime.registry().encode();
    let ours = text.lines().filter(|line| line.contains(r#"{vm="vm-1""#));
    ours.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect()
}

on_both_engines! {
    async fn sec_02_no_guest_adds_a_metric_series(host: Host) {
        let ground = Ground::new();
        let config = attacker_of(u64::from(host.is_epoll()), &ground).vcpus(1);
        let console = Console::Buffer(ConsoleBuffer::new(1 << 16));
        let resources = Resources { console, ..Resources::default() };
        let vm = host.runtime.create(&config, resources).unwrap();
        // A vCPU is told of when its thread is there.
        eventually("the vCPU is there", || !vm.metrics().vcpu_cpu_nanos().is_empty());
        let before = series(&host);
        assert!(before.len() > 100, "{before:?}");
        vm.start().await.unwrap();
        let mut end = std::pin::pin!(within(vm.wait()));
        // Those of its devices go soon after its end.
        let mut seen = series(&host);
        let outcome = loop {
            tokio::select! {
                biased;
                outcome = &mut end => break outcome,
                () = tokio::time::sleep(Duration::from_millis(10)) => seen.extend(series(&host)),
            }
        };
        assert_eq!(*outcome, Outcome::Exited { code: 0 });
        seen.extend(series(&host));
        assert!(vm.metrics().guest_errors.total() > 100, "it was tame");
        assert_eq!(seen, before);
    }

    async fn sec_02_guests_that_keep_the_event_loop_busy_leave_it_to_the_vm_beside_them(host: Host) {
        for (what, disk) in [("bells", true), ("resets", true), ("output", false), ("timer", false)] {
            let mut config = VmConfig::new("storm").memory_mib(16).args([what]);
            if disk {
                config = config.drive(Drive::null("null", 1 << 20));
            }
            let storms = [host.bundled_with(config.clone()), host.bundled_with(config)];
            let busy = |guest: &Guest| guest.vm.metrics().shard_busy_nanos.get();
            // It is at work already.
            let begun = storms.each_ref().map(busy);
            let innocent = innocent(&host, "256K");
            assert_eq!(*innocent.outcome().await, Outcome::Exited { code: 0 }, "{what}: {}", innocent.printed());
            for (guest, begun) in storms.iter().zip(begun) {
                eventually("the event loop works for it, and tells", || busy(guest) > begun || what == "timer");
                within(guest.vm.pause()).await.unwrap();
                assert_eq!(*within(guest.vm.stop()).await, Outcome::Stopped, "{what}");
            }
        }
    }

    async fn sec_08_hostile_drivers_change_no_memory_that_they_did_not_offer_and_harm_nobody(host: Host) {
        let parity = u64::from(host.is_epoll());
        let seeds: Vec<_> = (0..rounds(SEEDS)).filter(|seed| seed % 2 == parity).collect();
        let mut malformed = 0;
        for batch in seeds.chunks(AT_ONCE) {
            let grounds: Vec<_> = batch.iter().map(|_| Ground::new()).collect();
            let attackers: Vec<_> =
                batch.iter().zip(&grounds).map(|(&seed, ground)| attacker(&host, seed, ground)).collect();
            for (guest, _) in &attackers {
                within(guest.vm.start()).await.unwrap();
            }
            let innocent = innocent(&host, "2M");
            let outcome = innocent.outcome().await;
            assert_eq!(*outcome, Outcome::Exited { code: 0 }, "{}", innocent.printed());
            for ((guest, _), seed) in attackers.iter().zip(batch) {
                let outcome = guest.outcome().await;
                let printed = guest.printed();
                assert_eq!(*outcome, Outcome::Exited { code: 0 }, "seed {seed}: {printed}");
                let verdict = format!("memory is unharmed, {DEVICES} serve");
                assert!(printed.contains(&verdict), "seed {seed}: {printed}");
                assert!(guest.vm.metrics().guest_errors.total() > 100, "seed {seed} was tame");
                malformed += guest.errors(GuestErrorKind::BadChain);
            }
        }
        // A chain that is withdrawn by a reset before the device has seen it is not counted.
        assert!(malformed >= seeds.len() as u64, "{malformed} malformed chains of {} seeds", seeds.len());
    }
}
