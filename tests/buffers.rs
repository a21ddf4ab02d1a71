//! What guests can make the host buffer, on real KVM and on both engines: guests that try for more than they are allowed
//! have their requests served all the same, and the account is never above its limit.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::time::Duration;

use common::guest::Code;
use common::process::run;
use common::{Guest, Host, deadline, eventually, on_both_engines, rounds, small, within};
use ringlet::{Console, ConsoleBuffer, Drive, LimitsConfig, Outcome, Resources, VmConfig};
use ringlet_metrics::BufferReading;

fn reading(guest: &Guest) -> BufferReading {
    guest.vm.metrics().buffers().unwrap()
}

/// Reads of the disk `file` that are complete.
fn reads_of(host: &Host, guest: &Guest) -> u64 {
    let (vm, text) = (guest.vm.id(), host.runtime.registry().encode());
    let series =
        format!(r#"ringlet_device_requests_total{{vm="{vm}",device="file",kind="read",status="ok"}} "#);
    text.lines().find_map(|line| line.strip_prefix(&series)).unwrap().parse().unwrap()
}

/// What such a VM takes before it runs, and what it can take at most.
async fn taken(host: &Host, config: &VmConfig) -> (u64, u64) {
    let console = Console::Buffer(ConsoleBuffer::new(1 << 20));
    let vm = host.runtime.create(config, Resources { console, ..Resources::default() }).unwrap();
    let reading = vm.metrics().buffers().unwrap();
    // Its disks are another's then.
    within(vm.stop()).await;
    assert_eq!((reading.peak, reading.held_back), (reading.used, 0));
    (reading.used, reading.max)
}

/// The VM with `further` bytes besides what is fixed.
async fn with(host: &Host, config: VmConfig, further: u64) -> (VmConfig, u64) {
    let max = taken(host, &config).await.0 + further;
    (config.limits(LimitsConfig::default().buffers_max(max)), max)
}

/// A guest that has as many requests in flight as it can, of several disks and queues, and checks what it reads.
fn greedy(kib: u64, file: &tempfile::NamedTempFile) -> VmConfig {
    let total = format!("{kib}K");
    let args = ["--verify", "--mode", "randrw", "--total", &total, "--block-size", "4K", "--depth", "128"];
    VmConfig::new("blkbench")
        .memory_mib(64)
        .drive(Drive::file("file", file.path()).queues(4))
        .args([&args[..], &["--queues", "4", "--timeout", "200"]].concat())
}

/// A VM that harms nobody: it writes to its disk, reads it back and compares.
fn innocent(host: &Host) -> Guest {
    let args = ["--verify", "--mode", "randrw", "--total", "256K", "--block-size", "4K", "--timeout", "200"];
    host.bundled_with(
        VmConfig::new("blkbench").memory_mib(64).drive(Drive::memory("own", 1 << 20)).args(args),
    )
}

/// A file of 4 MiB.
fn disk_file() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4 << 20).unwrap();
    file
}

/// Lets the guest come to its end and looks at the account all the while; gives the last look, when all was given back.
async fn watched(guest: &Guest, max: u64) -> BufferReading {
    let mut outcome = std::pin::pin!(guest.outcome());
    let outcome = loop {
        let now = reading(guest);
        assert!(now.used <= max && now.peak <= max && now.max == max, "{now:?}");
        tokio::select! {
            biased;
            outcome = &mut outcome => break outcome,
            () = tokio::time::sleep(Duration::from_millis(1)) => {}
        }
    };
    assert_eq!(*outcome, Outcome::Exited { code: 0 }, "{}", guest.printed());
    eventually("all is given back", || reading(guest).used == 0);
    let last = reading(guest);
    assert!(last.peak <= max, "{last:?}");
    last
}

on_both_engines! {
    async fn sec_02_a_guest_makes_the_host_buffer_no_more_than_its_limit(host: Host) {
        // Nothing besides what is reserved; some requests.
        for further in [0, 24 << 10] {
            let file = disk_file();
            let config = greedy(96 + rounds(2048), &file);
            let (config, max) = with(&host, config, further).await;
            let innocent = innocent(&host);
            let guest = host.bundled_with(config);
            let last = watched(&guest, max).await;
            assert!(last.held_back > 0, "it has not tried: {last:?}");
            assert_eq!(last.peak > max - further, further > 0, "{last:?}");
            assert_eq!(*innocent.outcome().await, Outcome::Exited { code: 0 }, "{}", innocent.printed());
            assert_eq!(reading(&innocent).held_back, 0);
        }
    }

    async fn sec_02_hostile_drivers_make_the_host_buffer_no_more_than_their_limit(host: Host) {
        let seeds: Vec<_> = (0..rounds(12)).filter(|seed| seed % 2 == u64::from(host.is_epoll())).collect();
        let mut tried = seeds.is_empty();
        for seed in seeds {
            let file = disk_file();
            let attacker = VmConfig::new("hostile-virtio")
                .memory_mib(64)
                .drive(Drive::file("file", file.path()))
                .drive(Drive::memory("memory", 4 << 20).queues(2))
                .drive(Drive::null("null", 4 << 20))
                .entropy()
                .console()
                .timeout(deadline())
                .args([seed.to_string()]);
            let (config, max) = with(&host, attacker, 8 << 10).await;
            let innocent = innocent(&host);
            let guest = host.bundled_with(config);
            let last = watched(&guest, max).await;
            // However little it may have in flight: what it offered was served, and nothing else was touched.
            assert!(guest.printed().contains("memory is unharmed, 5 serve"), "seed {seed}: {}", guest.printed());
            // Now and then one is done with each request before it makes the next.
            tried |= last.peak > max - (8 << 10);
            assert_eq!(*innocent.outcome().await, Outcome::Exited { code: 0 }, "{}", innocent.printed());
        }
        assert!(tried, "none of them had more under way than what is reserved");
    }

    async fn sec_02_output_that_nobody_reads_takes_what_was_counted_for_it(host: Host) {
        // More than the pipe and what is kept for it hold, where that does not take for ever.
        let bytes = u32::try_from(rounds(140_000)).unwrap();
        let code = Code::new().print_pattern(bytes).exit(0);
        let (vm, pipe) = host.launch_piped(&code, small());
        let sent = || vm.metrics().serial_sent_bytes.get();
        eventually("it has printed what it can", || sent() >= u64::from(bytes).min(64 << 10));
        let full = vm.metrics().buffers().unwrap();
        assert_eq!((full.used, full.peak, full.max), (128 << 10, 128 << 10, 128 << 10));
        let printed = pipe.read_to_end();
        assert_eq!(*within(vm.wait()).await, Outcome::Exited { code: 0 });
        assert_eq!(printed.join().unwrap(), common::guest::pattern(bytes as usize));
    }

    async fn without_a_number_nothing_is_held_back(host: Host) {
        let file = disk_file();
        let config = greedy(96 + rounds(1024), &file);
        let (fixed, most) = taken(&host, &config).await;
        let guest = host.bundled_with(config);
        let last = watched(&guest, most).await;
        assert!(last.peak > fixed && last.held_back == 0, "{last:?}");
    }

    async fn what_does_not_fit_is_an_error_that_says_what_takes_how_much(host: Host) {
        let limits = LimitsConfig::default().buffers_max(256 << 10);
        let config = VmConfig::new("hello").drive(Drive::null("data", 512)).entropy().console().limits(limits);
        let error = host.runtime.create(&config, Resources::default()).unwrap_err().to_string();
        for what in ["buffers.max: 262144 bytes are too few", "serial port 131072", "data ", "rng0 ", "console0 "] {
            assert!(error.contains(what), "{what}: {error}");
        }
        // A VM without devices has room.
        let config = VmConfig::new("hello").memory_mib(16).limits(limits);
        let vm = host.runtime.launch(&config, Resources::default()).unwrap();
        assert_eq!(*within(vm.wait()).await, Outcome::Exited { code: 0 });
    }

    async fn the_number_changes_while_the_guest_runs(host: Host) {
        let args = ["--mode", "randread", "--depth", "128", "--total", "1T", "--timeout", "200"];
        let file = disk_file();
        let config = VmConfig::new("blkbench").memory_mib(16).drive(Drive::file("file", file.path())).args(args);
        let (fixed, most) = taken(&host, &config).await;
        let guest = host.bundled_with(config.timeout(deadline() * 10));
        let limit = |max| LimitsConfig::default().buffers_max(max);
        eventually("it has several in flight", || reading(&guest).peak > fixed + (16 << 10));
        let error = guest.vm.set_limits(limit(fixed - 1)).await.unwrap_err().to_string();
        assert!(error.contains("buffers.max"), "{error}");
        assert_eq!(reading(&guest).max, most);
        guest.vm.set_limits(limit(fixed)).await.unwrap();
        // What was taken goes back; nothing more is granted, and yet it reads.
        eventually("only what is reserved is left", || reading(&guest).used == fixed);
        let (reads, held_back) = (reads_of(&host, &guest), reading(&guest).held_back);
        eventually("it reads", || reads_of(&host, &guest) > reads + 50);
        assert!(reading(&guest).held_back > held_back + 20, "more than one at a time");
        assert_eq!(reading(&guest).used, fixed);
        guest.vm.set_limits(LimitsConfig::default()).await.unwrap();
        assert_eq!(reading(&guest).max, most);
        // At most the one that waited.
        let (reads, held_back) = (reads_of(&host, &guest), reading(&guest).held_back);
        eventually("it reads on", || reads_of(&host, &guest) > reads + 50);
        assert!(reading(&guest).held_back <= held_back + 1, "with room for all");
        assert_eq!(*within(guest.vm.stop()).await, Outcome::Stopped);
    }
}

#[test]
fn the_command_line_limits_and_reports_it() {
    let args = ["run", "blkbench", "--disk", "memory:1M", "--limit", "buffers.max=200K", "--limits-report"];
    let finished = run(&[&args[..], &["--", "--total", "400K", "--depth", "64"]].concat()).expect(0);
    assert!(finished.stderr.contains("buffers.max: asked at most 204800 bytes; "), "{}", finished.stderr);
    let refused = run(&["run", "hello", "--limit", "buffers.max=64K"]).expect(125);
    assert!(refused.stderr.contains("buffers.max: 65536 bytes are too few"), "{}", refused.stderr);
    // Every VM has lines of its own here, which take more than a stream.
    let args = ["run", "hello", "--count", "2", "--limit", "buffers.max=128K"];
    let refused = run(&args).expect(125);
    assert!(refused.stderr.contains("this VM takes"), "{}", refused.stderr);
}
