//! Virtio devices on real KVM, on both engines, driven by guests made by hand: what a VM's life and its devices have to
//! do with each other. What each device does is tested where it is, in `devices/`.
//!
//! `RINGLET_TEST_DISK_TOTAL=10G cargo test --release --test devices every_byte` verifies that much instead of 64 MiB, on
//! a file of 1 GiB, with ten pauses a second; every pause stops the disk's queues, and every resume starts them again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use common::guest::Code;
use common::{Guest, Host, on_both_engines, rounds, small, within};
use ringlet::{CacheType, Drive, Outcome, Resources, VmConfig, VmState};
use ringlet_metrics::{ExitKind, GuestErrorKind};

/// Registers of the first device.
const DEVICE: u32 = 0xD000_0000;
const NEXT: u32 = 0x1000;
const MAGIC: u32 = 0x000;
const DEVICE_ID: u32 = 0x008;
const QUEUE_NOTIFY: u32 = 0x050;
const STATUS: u32 = 0x070;
/// emerg_wr of a console's configuration: prints a byte by way of the shard.
const EMERGENCY: u32 = 0x108;

const VIRT: u32 = 0x7472_6976;
const BLOCK: u32 = 2;
const CONSOLE: u32 = 3;
const ENTROPY: u32 = 4;

/// Two writes that take the shard: one that sets up the first device, and one that resets it.
fn reset_once() -> Code {
    Code::new().negotiate(DEVICE).write32(DEVICE + STATUS, 0)
}

/// A guest that resets its first device for ever.
fn reset_forever() -> Code {
    Code::new().ready().forever(reset_once())
}

fn until_mmio(guest: &Guest, writes: u64) {
    common::eventually("the guest writes registers", || {
        guest.vm.metrics().exits.get(ExitKind::MmioWrite) >= writes
    });
}

/// A file of `mib` MiB.
fn disk_file(mib: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(mib << 20).unwrap();
    file
}

/// A guest that writes to its disk, and checks what it reads and at the end everything again.
fn verifier(drive: Drive, total: &str) -> VmConfig {
    let args = ["--verify", "--mode", "randrw", "--total", total, "--block-size", "16K", "--timeout", "900"];
    VmConfig::new("blkbench").memory_mib(64).drive(drive).args(args)
}

on_both_engines! {
    async fn each_device_is_found_where_the_command_line_says(host: Host) {
        let config = small().drive(Drive::memory("a", 1 << 20)).entropy().console();
        let mut code = Code::new();
        for (index, device) in (0..).zip([BLOCK, ENTROPY, CONSOLE]) {
            let base = DEVICE + NEXT * index;
            code = code.read32(base + MAGIC).expect(VIRT, 1).read32(base + DEVICE_ID).expect(device, 2);
        }
        // Nobody is behind the last.
        let code = code.read32(DEVICE + 3 * NEXT).expect(u32::MAX, 3).exit(0);
        let guest = host.launch_with(&code, config);
        assert_eq!(*guest.outcome().await, Outcome::Exited { code: 0 });
        assert_eq!(guest.errors(GuestErrorKind::UnknownMmio), 1);
    }

    async fn as_many_devices_as_there_are_interrupts_can_be_had(host: Host) {
        let config = (0..17).fold(small(), |config, n| config.drive(Drive::null(format!("d{n}"), 512)));
        let code = (0..17).fold(Code::new(), |code, n| {
            code.read32(DEVICE + NEXT * n + DEVICE_ID).expect(BLOCK, 1)
        });
        let guest = host.launch_with(&code.exit(0), config.clone());
        assert_eq!(*guest.outcome().await, Outcome::Exited { code: 0 });
        let error = host.runtime.create(&config.entropy(), Resources::default()).unwrap_err();
        assert!(error.to_string().contains("18 devices are too many"), "{error}");
    }

    async fn a_slow_register_write_is_done_when_the_guest_goes_on(host: Host) {
        let code = Code::new().negotiate(DEVICE)
            .read32(DEVICE + STATUS)
            .expect(11, 1)
            .write32(DEVICE + STATUS, 0)
            .read32(DEVICE + STATUS)
            .expect(0, 2)
            .exit(0);
        let guest = host.launch_with(&code, small().entropy());
        assert_eq!(*guest.outcome().await, Outcome::Exited { code: 0 });
    }

    async fn what_a_guest_prints_through_the_shard_is_printed_before_its_end(host: Host) {
        let text = "hello, console";
        let start = Code::new().negotiate(DEVICE);
        let code = text.bytes().fold(start, |code, byte| code.write32(DEVICE + EMERGENCY, byte.into()));
        let guest = host.launch_with(&code.exit(0), small().console());
        assert_eq!(*guest.outcome().await, Outcome::Exited { code: 0 });
        assert_eq!(guest.printed(), text);
    }

    async fn a_guest_that_writes_slow_registers_can_be_paused_and_stopped_at_any_moment(host: Host) {
        let guest = host.launch_with(&reset_forever(), small().entropy());
        for round in 0..rounds(200) {
            until_mmio(&guest, round);
            within(guest.vm.pause()).await.unwrap();
            let paused = guest.vm.metrics().exits.total();
            assert_eq!(guest.vm.state(), VmState::Paused);
            assert_eq!(guest.vm.metrics().exits.total(), paused);
            within(guest.vm.resume()).await.unwrap();
        }
        assert_eq!(*within(guest.vm.stop()).await, Outcome::Stopped);
        for round in 0..rounds(50) {
            let guest = host.launch_with(&reset_forever(), small().entropy());
            until_mmio(&guest, round);
            assert_eq!(*within(guest.vm.stop()).await, Outcome::Stopped);
        }
    }

    async fn a_guest_that_writes_slow_registers_ends_with_its_time_and_with_its_handle(host: Host) {
        let limit = Duration::from_millis(50);
        let guest = host.launch_with(&reset_forever(), small().entropy().timeout(limit));
        assert!(matches!(*guest.outcome().await, Outcome::TimedOut { .. }));
        drop(host.launch_with(&reset_forever(), small().entropy()));
        common::eventually("every VM is closed", || {
            let vms = &host.runtime.registry().runtime().vms;
            host.backlog() == 0 && VmState::ALL.iter().all(|&state| vms.get(state) == 0)
        });
    }

    async fn sec_02_slow_register_writes_have_a_rate_that_the_guest_pays(host: Host) {
        let writes = 1_000;
        let begun = Instant::now();
        let code = Code::new().times(writes / 2, reset_once()).exit(0);
        let guest = host.launch_with(&code, small().entropy());
        assert_eq!(*guest.outcome().await, Outcome::Exited { code: 0 });
        // 512 are free, and each further one costs a millisecond.
        let (spent, least) = (begun.elapsed(), Duration::from_millis(u64::from(writes) - 512));
        assert!(spent >= least, "{writes} writes in {spent:?}");
        // A slow machine never brings the guest above the rate.
        let held_back = guest.errors(GuestErrorKind::SlowWriteRate) > 0;
        assert!(held_back || spent > 2 * least, "{writes} writes in {spent:?}, none held back");
    }

    async fn notifications_do_not_leave_the_guest_not_even_of_a_queue_that_does_not_run(host: Host) {
        let body = Code::new().write32(DEVICE + QUEUE_NOTIFY, 0);
        let guest = host.launch_with(&Code::new().times(10_000, body).exit(0), small().entropy());
        assert_eq!(*guest.outcome().await, Outcome::Exited { code: 0 });
        assert_eq!(guest.vm.metrics().exits.get(ExitKind::MmioWrite), 0);
        // A number that no queue has is nobody's doorbell.
        let code = Code::new().write32(DEVICE + QUEUE_NOTIFY, 7).exit(0);
        let guest = host.launch_with(&code, small().entropy());
        assert_eq!(*guest.outcome().await, Outcome::Exited { code: 0 });
        assert_eq!(guest.errors(GuestErrorKind::StrayNotify), 1);
    }

    async fn randomness_arrives_however_often_the_vm_is_paused(host: Host) {
        let guest = host.bundled_with(VmConfig::new("rng").memory_mib(16).entropy());
        let mut pauses = 0;
        while guest.vm.pause().await.is_ok() {
            pauses += 1;
            guest.vm.resume().await.unwrap();
        }
        assert_eq!(*guest.outcome().await, Outcome::Exited { code: 0 });
        assert!(guest.printed().contains("rng: 4096 bytes"), "{}", guest.printed());
        println!("{pauses} pauses");
    }

    async fn a_disk_keeps_every_byte_through_pauses(host: Host) {
        let long = std::env::var("RINGLET_TEST_DISK_TOTAL").ok();
        let total = long.clone().unwrap_or_else(|| format!("{}M", rounds(64)));
        let file = disk_file(if long.is_some() { 1024 } else { 32 });
        let guest = host.bundled_with(verifier(Drive::file("a", file.path()), &total));
        let mut pauses = 0;
        while within(guest.vm.pause()).await.is_ok() {
            pauses += 1;
            // Nothing is under way: neither the guest nor what the file holds changes any more.
            let metrics = guest.vm.metrics();
            let (exits, contents) = (metrics.exits.total(), long.is_none().then(|| std::fs::read(&file).unwrap()));
            tokio::time::sleep(Duration::from_millis(2)).await;
            assert_eq!(metrics.exits.total(), exits);
            assert!(contents.is_none_or(|contents| std::fs::read(&file).unwrap() == contents), "the file changed");
            within(guest.vm.resume()).await.unwrap();
            let next = if long.is_some() { 100 } else { pauses % 7 };
            tokio::time::sleep(Duration::from_millis(next)).await;
        }
        println!("{pauses} pauses: {}", guest.printed());
        assert_eq!(*guest.outcome().await, Outcome::Exited { code: 0 }, "{}", guest.printed());
    }

    async fn a_vm_with_requests_in_flight_stops_and_its_disk_can_be_used_again(host: Host) {
        let file = disk_file(32);
        for round in 0..rounds(20) {
            let drive = Drive::file("a", file.path()).queues(2);
            let guest = host.bundled_with(verifier(drive, "100G"));
            common::eventually("it prints", || !guest.printed().is_empty());
            tokio::time::sleep(Duration::from_millis(round * 5)).await;
            assert_eq!(*within(guest.vm.stop()).await, Outcome::Stopped);
            // The lock goes with the disk, which ended before its VM.
        }
    }
}

mod disks {
    use super::*;

    #[test]
    fn a_file_is_one_vms_to_write_and_many_vms_to_read() {
        common::on(ringlet::EngineChoice::Auto, async |host: Host| {
            let file = disk_file(1);
            let code = Code::new().ready().halt();
            let launch = |drive: Drive| {
                let resources = Resources { image: Some(code.image()), ..Resources::default() };
                host.runtime.launch(&small().drive(drive), resources)
            };
            let writer = launch(Drive::file("a", file.path())).unwrap();
            for drive in [Drive::file("a", file.path()), Drive::file("a", file.path()).read_only()] {
                let error = launch(drive).unwrap_err().to_string();
                assert!(error.contains("in use") && error.contains(file.path().to_str().unwrap()), "{error}");
            }
            within(writer.stop()).await;
            let readers: Vec<_> =
                (0..3).map(|_| launch(Drive::file("a", file.path()).read_only()).unwrap()).collect();
            assert!(launch(Drive::file("a", file.path())).unwrap_err().to_string().contains("in use"));
            for reader in readers {
                within(reader.stop()).await;
            }
        });
    }

    #[test]
    fn a_disk_that_cannot_be_opened_is_an_error_that_names_it() {
        common::on(ringlet::EngineChoice::Auto, async |host: Host| {
            let folder = tempfile::tempdir().unwrap();
            let refused = |drive: Drive, what: &str| {
                let config = VmConfig::new("spin").drive(drive);
                let error = host.runtime.create(&config, Resources::default()).unwrap_err();
                assert!(error.to_string().contains(what), "{error}");
            };
            refused(Drive::file("a", folder.path().join("none")), "none: No such file");
            refused(Drive::file("a", folder.path()), "it is a folder");
            let odd = disk_file(1);
            odd.as_file().set_len(513).unwrap();
            refused(Drive::file("a", odd.path()), "513 bytes");
        });
    }

    #[test]
    fn the_size_of_a_disk_is_looked_at_again_when_asked() {
        common::on(ringlet::EngineChoice::Auto, async |host: Host| {
            let file = disk_file(1);
            // Waits until the capacity has grown to 4096 sectors; the low word is enough.
            let code = Code::new()
                .ready()
                .forever(Code::new().read32(DEVICE + 0x100).raw(&[0x3D, 0, 0x10, 0, 0, 0x75, 14]).exit(0));
            let drive = Drive::file("a", file.path()).cache(CacheType::Unsafe);
            let guest = host.launch_with(&code, small().drive(drive));
            common::eventually("it is ready", || guest.vm.time_to_ready().is_some());
            file.as_file().set_len(2 << 20).unwrap();
            within(guest.vm.rescan_drive("a")).await.unwrap();
            assert_eq!(*guest.outcome().await, Outcome::Exited { code: 0 });
            let known = VmConfig::new("spin").memory_mib(16).drive(Drive::null("a", 512));
            let other = host.bundled_with(known);
            let error = within(other.vm.rescan_drive("b")).await.unwrap_err().to_string();
            assert!(error.contains("there is no \"b\""), "{error}");
        });
    }
}
