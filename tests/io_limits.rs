//! Limits of disks and randomness on real KVM, on both engines: that a guest gets no more than its limits, that they can
//! be changed while requests wait, and that nothing waits for them that should not. How exact they are is a benchmark's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use common::process::{Running, ringlet, run};
use common::{Guest, Host, eventually, on_both_engines, rounds, within};
use ringlet::{
    Bucket, DiskLimits, Drive, EngineChoice, LimitsConfig, Outcome, RateLimiter, Resources, Runtime,
    RuntimeOptions, TenantConfig, TenantLimits, VmConfig, VmState,
};
use ringlet_metrics::LimiterReading;

/// One token, and the next in an hour.
const HARDLY: Bucket = Bucket { size: 1, one_time_burst: None, refill_time: 3_600_000 };
/// The level of all disks of a VM.
const DISKS: &str = "vm.disk";

/// A guest that makes `requests` of 4 KiB of its first disk, 64 at a time.
fn reader(drives: impl IntoIterator<Item = Drive>, requests: u64) -> VmConfig {
    let total = (requests * 4096).to_string();
    let args = ["--mode", "randread", "--depth", "64", "--total", &total];
    let mut config = VmConfig::new("blkbench").memory_mib(16).args(args);
    config.drives.extend(drives);
    config
}

/// So many reads a second of all disks together.
fn reads(per_second: u64) -> LimitsConfig {
    LimitsConfig::default().disk(DiskLimits { riops: Some(per_second), ..DiskLimits::default() })
}

fn null(limiter: Option<RateLimiter>) -> Drive {
    Drive { rate_limiter: limiter, ..Drive::null("data", 1 << 20) }
}

fn reading(guest: &Guest, level: &str) -> LimiterReading {
    of(guest, level).unwrap()
}

/// `None` until the VM's devices are there.
fn of(guest: &Guest, level: &str) -> Option<LimiterReading> {
    let limiters = guest.vm.metrics().limiters();
    limiters.into_iter().find(|(name, _)| name == level).map(|(_, reading)| reading)
}

fn until_something_waits(guest: &Guest, level: &str) {
    eventually("a request waits", || {
        guest.vm.metrics().limiters().iter().any(|(name, reading)| name == level && reading.waiting > 0)
    });
}

on_both_engines! {
    async fn sec_02_a_guest_gets_no_more_of_a_disk_than_its_limits(host: Host) {
        let requests = 64 + rounds(60);
        for (limiter, limits, level) in [
            (Some(RateLimiter::operations(100)), LimitsConfig::default(), "data"),
            (Some(RateLimiter::bytes(100 * 4096)), LimitsConfig::default(), "data"),
            (None, reads(100), DISKS),
        ] {
            let begun = Instant::now();
            let guest = host.bundled_with(reader([null(limiter)], requests).limits(limits));
            assert_eq!(*guest.outcome().await, Outcome::Exited { code: 0 }, "{}", guest.printed());
            let most = 10.0 + 100.0 * begun.elapsed().as_secs_f64() + 1.0;
            let reading = reading(&guest, level);
            assert!(reading.operations >= requests, "{reading:?}");
            assert!(reading.operations as f64 <= most, "{reading:?}, at most {most}");
            assert!(reading.throttled > 0 && reading.throttled_nanos > 0, "{reading:?}");
            assert_eq!(reading.waiting, 0);
        }
    }

    async fn sec_02_a_guest_gets_no_more_randomness_than_its_limit(host: Host) {
        let mut config = VmConfig::new("rng").memory_mib(16).args(["256K"]).entropy();
        config.entropy.as_mut().unwrap().rate_limiter =
            Some(RateLimiter { bandwidth: None, ops: Some(HARDLY) });
        let guest = host.bundled_with(config);
        until_something_waits(&guest, "rng0");
        assert_eq!(reading(&guest, "rng0").operations, 1);
        guest.vm.set_rate_limiter("rng0", RateLimiter { bandwidth: None, ops: Some(Bucket { size: 0, ..HARDLY }) })
            .await
            .unwrap();
        assert_eq!(*guest.outcome().await, Outcome::Exited { code: 0 }, "{}", guest.printed());
    }

    async fn sec_02_a_guest_prints_no_more_on_its_console_than_its_limit(host: Host) {
        let limiter = RateLimiter { bandwidth: None, ops: Some(HARDLY) };
        let config = VmConfig::new("echo").memory_mib(16).console().console_rate_limiter(limiter);
        let guest = host.bundled_with(config);
        assert!(within(guest.vm.console_input().unwrap().send(b"hello\n")).await);
        until_something_waits(&guest, "console0");
        assert_eq!(reading(&guest, "console0").operations, 1);
        let unlimited = RateLimiter { bandwidth: None, ops: Some(Bucket { size: 0, ..HARDLY }) };
        guest.vm.set_rate_limiter("console0", unlimited).await.unwrap();
        assert!(within(guest.vm.console_input().unwrap().send(b"quit\n")).await);
        assert_eq!(*guest.outcome().await, Outcome::Exited { code: 0 }, "{}", guest.printed());
    }

    async fn the_limit_of_all_disks_is_a_level_of_its_own(host: Host) {
        let mut config = reader([null(None), Drive::null("more", 1 << 20)], 64);
        config.ringlet.limits = reads(40);
        let guest = host.bundled_with(config);
        assert_eq!(*guest.outcome().await, Outcome::Exited { code: 0 }, "{}", guest.printed());
        let names: Vec<_> = guest.vm.metrics().limiters().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["data", DISKS, "more"]);
        assert_eq!(reading(&guest, "data").throttled, 0);
        assert!(reading(&guest, DISKS).throttled > 0);
    }

    async fn sec_02_the_vms_of_a_tenant_get_no_more_than_its_limits_and_share_them_by_weight(host: Host) {
        let tenant = |iops| TenantConfig {
            name: "acme".into(),
            limits: TenantLimits {
                disk: DiskLimits { iops: Some(iops), ..DiskLimits::default() },
                ..TenantLimits::default()
            },
        };
        let begun = Instant::now();
        let guests = [100, 300].map(|weight| {
            let disk = DiskLimits { weight: Some(weight), ..DiskLimits::default() };
            let config = reader([null(None)], 1_000_000).limits(LimitsConfig::default().disk(disk));
            host.bundled_with(config.tenant(tenant(40)))
        });
        let error = host.runtime.launch(&reader([], 1).tenant(tenant(7)), Resources::default()).unwrap_err();
        assert!(error.to_string().contains("\"acme\" has VMs, and other limits"), "{error}");
        let operations = || guests.each_ref().map(|guest| of(guest, DISKS).map_or(0, |reading| reading.operations));
        eventually("both have waited", || operations().iter().all(|&operations| operations > 4));
        let before = operations();
        // Slow enough for guests that are seldom run to have requests in their queues at all times.
        eventually("some requests", || operations()[0] > before[0] + 16);
        let after = operations();
        let most = 4.0 + 40.0 * begun.elapsed().as_secs_f64() + 2.0;
        assert!((after[0] + after[1]) as f64 <= most, "{after:?}, at most {most}");
        let shares = (after[1] - before[1]) as f64 / (after[0] - before[0]) as f64;
        // How exact they are is shown by benchmarks; equal weights would give 1.
        assert!((1.3..4.5).contains(&shares), "{shares}: {before:?} {after:?}");
        // More for both, while they wait.
        host.runtime.limit_tenant(&tenant(1_000_000)).unwrap();
        let before = operations();
        eventually("they go on", || operations()[0] > before[0] + 1000);
        for guest in guests {
            assert_eq!(*within(guest.vm.stop()).await, Outcome::Stopped);
            drop(guest);
        }
        eventually("nobody is left", || host.runtime.limit_tenant(&tenant(1)).is_err());
    }

    async fn sec_02_a_tenant_is_not_rid_of_what_it_owes_when_its_vms_end(host: Host) {
        const RATE: u64 = 1 << 20;
        const REQUEST: u64 = 512 << 10;
        let tenant = TenantConfig {
            name: "acme".into(),
            limits: TenantLimits {
                disk: DiskLimits { bps: Some(RATE), ..DiskLimits::default() },
                ..TenantLimits::default()
            },
        };
        let begun = Instant::now();
        let vms = rounds(5);
        for _ in 0..vms {
            // One request that is larger than the bucket: it goes at once if nothing is owed.
            let (size, depth) = (REQUEST.to_string(), "1");
            let args = ["--mode", "read", "--depth", depth, "--block-size", &size, "--total", &size];
            let mut config = VmConfig::new("blkbench").memory_mib(16).args(args);
            config.drives.push(null(None));
            let guest = host.bundled_with(config.tenant(tenant.clone()));
            assert_eq!(*guest.outcome().await, Outcome::Exited { code: 0 }, "{}", guest.printed());
            assert_eq!(reading(&guest, DISKS).bytes, REQUEST);
        }
        // A bucket is a fourth of a second at most, and the last request leaves its debt behind.
        let most = RATE as f64 * (0.25 + begun.elapsed().as_secs_f64()) + REQUEST as f64;
        assert!((vms * REQUEST) as f64 <= most, "{vms} requests, {most} bytes at most");
    }

    async fn sec_02_all_vms_get_no_more_than_the_host_allows_with_or_without_a_tenant(host: Host) {
        let shared = LimitsConfig::default().disk(DiskLimits { weight: Some(300), ..DiskLimits::default() });
        let error = host.runtime.launch(&reader([], 1).limits(shared), Resources::default()).unwrap_err();
        assert!(error.to_string().contains("limits.disk.weight: 300, but the VM has no tenant"), "{error}");
        let disk_limits = DiskLimits { iops: Some(100), ..DiskLimits::default() };
        let engine = if host.is_epoll() { EngineChoice::Epoll } else { EngineChoice::Uring };
        let options = RuntimeOptions { engine, disk_limits, ..RuntimeOptions::default() };
        let host = Host { runtime: Runtime::new(options).unwrap() };
        let begun = Instant::now();
        let tenant = TenantConfig { name: "acme".into(), limits: TenantLimits::default() };
        let guests = [
            host.bundled_with(reader([null(None)], 1_000_000).limits(shared)),
            host.bundled_with(reader([null(None)], 1_000_000)),
            host.bundled_with(reader([null(None)], 1_000_000).tenant(tenant)),
        ];
        let operations =
            || guests.each_ref().map(|guest| of(guest, DISKS).map_or(0, |reading| reading.operations));
        eventually("each has something", || operations().iter().all(|&operations| operations > 10));
        let sum: u64 = operations().iter().sum();
        let most = 10.0 + 100.0 * begun.elapsed().as_secs_f64() + 1.0;
        assert!(sum as f64 <= most, "{sum}, at most {most}");
        for guest in guests {
            assert_eq!(*within(guest.vm.stop()).await, Outcome::Stopped);
        }
    }

    async fn a_limit_that_is_lifted_lets_go_what_waits(host: Host) {
        let limiter = RateLimiter { bandwidth: None, ops: Some(HARDLY) };
        let guest = host.bundled_with(reader([null(Some(limiter))], 100));
        until_something_waits(&guest, "data");
        let error = guest.vm.set_rate_limiter("other", limiter).await.unwrap_err().to_string();
        assert!(error.contains("no device \"other\""), "{error}");
        let error = guest.vm.set_rate_limiter(DISKS, limiter).await.unwrap_err().to_string();
        assert!(error.contains("no device \"vm.disk\""), "{error}");
        let error = guest.vm.set_net_rate_limiters("data", limiter, limiter).await.unwrap_err().to_string();
        assert!(error.contains("no network interface and no socket device"), "{error}");
        // What it does not name stays.
        guest.vm.set_rate_limiter("data", RateLimiter::bytes(1 << 30)).await.unwrap();
        assert_eq!(reading(&guest, "data").operations, 1);
        let unlimited = RateLimiter { bandwidth: None, ops: Some(Bucket { size: 0, ..HARDLY }) };
        guest.vm.set_rate_limiter("data", unlimited).await.unwrap();
        assert_eq!(*guest.outcome().await, Outcome::Exited { code: 0 }, "{}", guest.printed());
        let meters: Vec<_> = reading(&guest, "data").tokens.iter().map(|tokens| tokens.meter).collect();
        assert_eq!(meters, ["bytes"]);
    }

    async fn a_vm_without_limits_can_be_given_some_and_lose_them_again(host: Host) {
        let guest = host.bundled_with(reader([null(None)], 1_000_000_000).timeout(Duration::from_secs(3600)));
        guest.until_printed("depth 64");
        let weight = DiskLimits { weight: Some(300), ..DiskLimits::default() };
        let error = guest.vm.set_limits(LimitsConfig::default().disk(weight)).await.unwrap_err().to_string();
        assert!(error.contains("give the VM a tenant"), "{error}");
        guest.vm.set_limits(reads(1)).await.unwrap();
        until_something_waits(&guest, DISKS);
        guest.vm.set_limits(reads(1_000_000_000)).await.unwrap();
        let before = reading(&guest, DISKS).operations;
        eventually("it reads again", || reading(&guest, DISKS).operations > before + 100);
        guest.vm.set_limits(LimitsConfig::default()).await.unwrap();
        assert_eq!(reading(&guest, DISKS).tokens, []);
        assert_eq!(*within(guest.vm.stop()).await, Outcome::Stopped);
        assert!(guest.vm.set_limits(LimitsConfig::default()).await.is_err());
    }

    async fn a_vm_whose_requests_wait_pauses_resumes_and_stops(host: Host) {
        let limiter = RateLimiter { bandwidth: None, ops: Some(HARDLY) };
        let guest = host.bundled_with(reader([null(Some(limiter))], 100));
        until_something_waits(&guest, "data");
        within(guest.vm.pause()).await.unwrap();
        assert_eq!(guest.vm.state(), VmState::Paused);
        // Its place is given up; what it peeked is still the driver's.
        assert_eq!(reading(&guest, "data").waiting, 0);
        within(guest.vm.resume()).await.unwrap();
        until_something_waits(&guest, "data");
        assert_eq!(reading(&guest, "data").operations, 1);
        assert_eq!(*within(guest.vm.stop()).await, Outcome::Stopped);
    }
}

#[test]
fn the_vms_of_a_tenant_of_the_command_line_have_its_limits_together() {
    // Together, each of the two waits for more than half of all.
    let total = (4096 * (100 + rounds(50))).to_string();
    let args = ["run", "blkbench", "--count", "2", "--disk", "null:1M", "--tenant", "acme,disk.iops=500"];
    let begun = Instant::now();
    run(&[&args[..], &["--", "--total", &total]].concat()).expect(0);
    let most = 50.0 + 500.0 * begun.elapsed().as_secs_f64() + 1.0;
    let least = 2 * (100 + rounds(50));
    assert!(least as f64 <= most, "{least} requests, at most {most}");
    let refused = run(&["run", "exit", "--tenant", "acme,cpu.max=50ms"]).expect(125);
    assert!(refused.stderr.contains("limits of disks and networks only"), "{}", refused.stderr);
    let refused = run(&["run", "exit", "--tenant", "a b"]).expect(125);
    assert!(refused.stderr.contains("tenant.name"), "{}", refused.stderr);
}

#[test]
fn the_command_line_limits_and_reports() {
    let total = (4096 * (64 + rounds(100))).to_string();
    let args =
        ["run", "blkbench", "--disk", "null:1M", "--limit", "disk.riops=500,disk.bps=1G", "--limits-report"];
    let finished = run(&[&args[..], &["--", "--total", &total]].concat()).expect(0);
    for what in ["limits over ", "vm.disk: asked 500.0 read operations/s, 1073741824.0 bytes/s", "waited, "] {
        assert!(finished.stderr.contains(what), "{what}: {}", finished.stderr);
    }
    let finished = run(&["run", "exit", "--limits-report", "--", "3"]).expect(3);
    assert!(finished.stderr.contains("none"), "{}", finished.stderr);
    let refused = run(&["run", "exit", "--limit", "disk.riops=0"]).expect(125);
    assert!(refused.stderr.contains("limits.disk: riops is 0"), "{}", refused.stderr);
}

#[test]
fn a_hangup_takes_the_limits_of_the_configuration_file_anew() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vm.json");
    let write = |limiter: &str| {
        let text = format!(
            r#"{{"boot-source": {{"kernel_image_path": "blkbench"}}, "drives": [{{"drive_id": "d", "is_root_device": false,
                "ringlet": {{"backend": {{"null": {{"size": 1048576}}}}}} {limiter}}}]}}"#
        );
        std::fs::write(&file, text).unwrap();
    };
    write(r#", "rate_limiter": {"ops": {"size": 1, "refill_time": 3600000}}"#);
    let path = file.to_str().unwrap();
    let mut running = Running::start(&mut ringlet(&[
        "run",
        "--config-file",
        path,
        "--",
        "--total",
        "400K",
        "--mode",
        "randread",
    ]));
    running.until_printed("randread");
    // Nonsense changes nothing, and is told.
    write(r#", "rate_limiter": {"ops": 7}"#);
    running.signal(rustix::process::Signal::HUP);
    running.until_said("the limits stay as they are");
    write("");
    running.signal(rustix::process::Signal::HUP);
    running.until_said("1 limit changed");
    running.until_printed("blkbench-result");
    assert_eq!(running.status().code(), Some(0));
}
