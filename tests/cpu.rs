//! CPU limits of VMs on real KVM. What is asserted is what was used and counted, never how long something took: a busy
//! machine gives a VM less than its limit, and nothing more.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use common::{Guest, Host, deadline, eventually, on_both_engines};
use ringlet::{Drive, LimitsConfig, VmConfig, VmMetrics};
use ringlet_metrics::ExitKind;

const MS: u64 = 1_000_000;

fn limited(guest: &str, quota_ms: u64, period_ms: u64) -> VmConfig {
    let limits = LimitsConfig::default().cpu_max(quota_ms * 1000, period_ms * 1000);
    VmConfig::new(guest).memory_mib(16).limits(limits)
}

/// CPU time that counts, in nanoseconds.
fn used(metrics: &VmMetrics) -> u64 {
    let threads: u64 = metrics.vcpu_cpu_nanos().iter().map(|(_, nanos)| nanos).sum();
    threads + metrics.shard_busy_nanos.get()
}

/// Runs a guest that wants more than its quota until it was throttled `times`, and stops it. Asserts that it had no more
/// than a quota for each period that had begun. What a stop was late by is paid back, so that is true again and again,
/// however late the machine is; of a guest that gets more than its quota, it is true never more.
async fn no_more_than(host: &Host, config: VmConfig, times: u64) -> Guest {
    let max = config.ringlet.limits.cpu.max.unwrap();
    let (quota, period) = (max.quota_us * 1000, max.period_us * 1000);
    let begun = Instant::now();
    let guest = host.bundled_with(config);
    let metrics = guest.vm.metrics();
    eventually("it is throttled so often", || metrics.cpu_throttled_periods.get() >= times);
    eventually("it has had no more than its quotas", || {
        let used = used(metrics);
        let periods = u64::try_from(begun.elapsed().as_nanos()).unwrap() / period + 1;
        used <= periods * quota
    });
    guest.vm.stop().await;
    let used = used(metrics);
    // A period in which it was throttled is one whose quota it had used, now or before.
    assert!(used >= times * quota / 2, "{used} ns, though it was throttled {times} times");
    assert!(metrics.cpu_throttled_nanos.get() > 0);
    assert!(metrics.cpu_throttled_periods.get() <= metrics.cpu_periods.get() + 1);
    guest
}

on_both_engines! {
    async fn sec_02_a_vm_gets_no_more_cpu_than_its_quota(host: Host) {
        let guest = no_more_than(&host, limited("spin", 20, 100), 12).await;
        // The suite is run by root, who has exact timers.
        assert!(guest.vm.metrics().cpu_timer_exits.get() >= 12);
        no_more_than(&host, limited("spin", 2, 10), 30).await;
    }

    async fn sec_02_all_vcpus_share_one_quota(host: Host) {
        let config = limited("burst", 20, 100).vcpus(2).args(["1000", "0"]);
        let guest = no_more_than(&host, config, 12).await;
        let each = guest.vm.metrics().vcpu_cpu_nanos();
        assert!(each.len() == 2 && each.iter().all(|(_, nanos)| *nanos > 10 * MS), "{each:?}");
    }

    async fn sec_02_a_vm_that_sleeps_between_bursts_gets_no_more_either(host: Host) {
        no_more_than(&host, limited("burst", 5, 50).vcpus(2).args(["700", "300"]), 12).await;
    }

    async fn sec_02_the_event_loops_time_counts_towards_the_quota(host: Host) {
        let endless = ["--mode", "randread", "--depth", "64", "--total", "1T", "--timeout", "600"];
        for (guest, args) in [("storm", &["bells"][..]), ("blkbench", &endless)] {
            let config = limited(guest, 10, 50).drive(Drive::null("null", 1 << 20)).args(args.iter().copied());
            let guest = no_more_than(&host, config, 12).await;
            let busy = guest.vm.metrics().shard_busy_nanos.get();
            assert!(busy > MS, "the event loop had only {busy} ns for it");
        }
    }

    async fn a_vm_that_wants_less_than_its_quota_is_never_throttled(host: Host) {
        let guest = host.bundled_with(limited("burst", 50, 100).args(["100", "20000"]));
        eventually("it has run for a while", || guest.vm.metrics().cpu_periods.get() >= 5);
        assert_eq!(guest.vm.metrics().cpu_throttled_periods.get(), 0);
        assert_eq!(guest.vm.metrics().cpu_overrun_nanos.get(), 0);
    }

    async fn a_halted_vm_is_woken_at_most_once_a_period_and_without_a_limit_never(host: Host) {
        let idle = [
            (host.bundled_with(limited("idle", 5, 20)), 5, 20),
            (host.bundled_with(limited("idle", 100, 100)), 100, 100),
            (host.bundled_with(VmConfig::new("idle").memory_mib(16)), u64::MAX / MS, u64::MAX / MS),
        ];
        for (guest, quota_ms, period_ms) in &idle {
            guest.until_printed("idle");
            let metrics = guest.vm.metrics();
            let counts = || (metrics.exits.get(ExitKind::Interrupted), used(metrics));
            // It comes to rest some time after its last word: until then it is counted anew.
            let begun = Instant::now();
            loop {
                let (since, before) = (Instant::now(), counts());
                tokio::time::sleep(Duration::from_millis(500)).await;
                let after = counts();
                let (woken, cost) = (after.0 - before.0, after.1 - before.1);
                let took = since.elapsed();
                println!("woken {woken} times in {took:?}, for {cost} ns of CPU time");
                // And the one that had begun before.
                let most = u64::try_from(took.as_millis()).unwrap() / period_ms;
                // Where being woken takes an eighth of the quota, as in an emulated machine, it passes for work.
                if woken <= most + u64::from(most > 0) || cost / woken >= quota_ms * MS / 8 {
                    break;
                }
                assert!(begun.elapsed() < deadline(), "woken {woken} times in {took:?} for {cost} ns");
            }
        }
    }
}

/// Root without any capability may still use `/dev/kvm`, as its owner.
#[test]
fn sec_02_a_process_without_privilege_holds_its_vms_to_their_quotas_too() {
    let run = |guest: &[&str]| {
        let output = std::process::Command::new("setpriv")
            .args(["--bounding-set=-all", "--inh-caps=-all", "--", env!("CARGO_BIN_EXE_ringlet")])
            .args(guest)
            .output()
            .expect("setpriv of util-linux");
        String::from_utf8(output.stderr).unwrap()
    };
    let check = std::process::Command::new("setpriv")
        .args(["--bounding-set=-all", "--inh-caps=-all", "--", env!("CARGO_BIN_EXE_ringlet"), "check"])
        .output()
        .expect("setpriv of util-linux");
    let check = String::from_utf8(check.stdout).unwrap();
    assert!(
        check.contains("at the scheduler's ticks"),
        "set kernel.perf_event_paranoid=2 to test without: {check}"
    );
    for (vcpus, turns) in [("1", ["1000", "0"]), ("2", ["1000", "0"]), ("2", ["3000", "2000"])] {
        let limit = ["--memory", "16M", "--limit", "cpu.max=10ms/50ms", "--limits-report", "--timeout", "3s"];
        let guest = [&["run", "burst", "--vcpus", vcpus][..], &limit, &["--"], &turns].concat();
        let report = run(&guest);
        // "cpu.max: …; obtained 0.603 s (20.1 %); throttled in 60 of 60 periods, for 2.402 s"
        let number = |after: &str| -> f64 {
            let (_, rest) = report.split_once(after).unwrap_or_else(|| panic!("no `{after}` in {report}"));
            rest.split_whitespace().next().unwrap().parse().unwrap()
        };
        let (seconds, obtained) = (number("limits over "), number("obtained "));
        // A quota for each period that began, and what the last stop may have been late by.
        assert!(obtained <= 0.010 * (seconds / 0.050 + 1.0) + 0.1, "{report}");
        assert!(number("throttled in ") > 5.0, "{report}");
    }
}
