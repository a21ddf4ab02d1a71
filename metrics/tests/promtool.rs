//! What Prometheus' own linter says of our exposition.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ringlet_metrics::{
    BootPhase, BufferReading, BufferSource, DescriptorReading, DescriptorSource, DeviceKind, ExitKind,
    LimiterReading, LimiterSource, LimiterTokens, Registry, RequestKind, RequestStatus, VmInfo,
};

/// Runs `promtool check metrics` on `text`; returns whether it was content, and all that it said.
#[cfg(test)]
fn promtool(text: &str) -> (bool, String) {
    let spawned = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = spawned.unwrap_or_else(|error| {
        panic!("cannot run promtool ({error}); this test needs it: apt-get install prometheus")
    });
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[track_caller]
fn assert_clean(text: &str) {
    let (content, said) = promtool(text);
    assert!(content && said.is_empty(), "promtool says: {said}\nof:\n{text}");
}

#[test]
fn promtool_finds_what_is_wrong() {
    let (content, said) = promtool("# TYPE x counter\nx{ 1\n");
    assert!(!content && !said.is_empty(), "promtool accepts nonsense, so its consent is worth nothing");
    let (content, said) =
        promtool("# HELP x_milliseconds a\n# TYPE x_milliseconds counter\nx_milliseconds 1\n");
    assert!(!content && said.contains("_total"), "{said}");
}

#[test]
fn an_idle_registry_is_clean() {
    assert_clean(&Registry::new().encode());
}

/// A level that owes tokens.
#[derive(Debug)]
struct Level;

impl LimiterSource for Level {
    fn read(&self) -> LimiterReading {
        let tokens = LimiterTokens { meter: "bytes", left: i64::MIN, size: 1, refill_nanos: 1 };
        LimiterReading {
            operations: u64::MAX,
            bytes: u64::MAX,
            throttled: 3,
            throttled_nanos: u64::MAX,
            waiting: -1,
            tokens: vec![tokens],
        }
    }
}

/// An account that nothing limits.
#[derive(Debug)]
struct Account;

impl BufferSource for Account {
    fn read(&self) -> BufferReading {
        BufferReading { max: u64::MAX, used: 1, peak: 2, held_back: 3 }
    }
}

/// A pool that nothing limits.
#[derive(Debug)]
struct Pool;

impl DescriptorSource for Pool {
    fn read(&self) -> DescriptorReading {
        DescriptorReading { used: 1, max: Some(u64::MAX) }
    }
}

#[test]
fn every_family_is_clean() {
    let registry = Registry::new();
    let level: Arc<dyn LimiterSource> = Arc::new(Level);
    let shard = registry.register_shard(0, "io_uring");
    let other = registry.register_shard(1, "epoll");
    let vms: Vec<_> = ["plain", "quote\"", "back\\slash", "new\nline", "\u{1b}[2J", "日本", ""]
        .map(|name| VmInfo { id: name.into(), name: name.into(), image: name.into(), tenant: name.into() })
        .map(|info| registry.register_vm(info))
        .into();
    registry.register_host(Arc::clone(&level));
    let pool: Arc<dyn DescriptorSource> = Arc::new(Pool);
    registry.register_descriptors(&pool);
    for vm in &vms {
        ExitKind::ALL.iter().for_each(|kind| vm.exits.add(*kind, u64::MAX / 64));
        vm.set_vcpu_clock(0, Box::new(|| 1));
        vm.freeze_vcpu_clock(1, u64::MAX);
        vm.register_limiter(vm.id(), Arc::clone(&level));
        vm.register_buffers(Arc::new(Account));
        vm.register_descriptors(Arc::clone(&pool));
        registry.register_tenant(vm.id(), "disk", Arc::clone(&level));
    }
    let devices: Vec<_> = (vms.iter())
        .flat_map(|vm| DeviceKind::ALL.iter().map(|kind| vm.register_device(vm.id(), *kind)))
        .chain(
            DeviceKind::ALL
                .iter()
                .filter_map(|kind| Some(vms.first()?.register_device(kind.as_str(), *kind))),
        )
        .collect();
    for device in &devices {
        device.completed(RequestKind::Read, RequestStatus::Ok, u64::MAX / 64, Duration::from_millis(3));
        device.in_flight.set(-1);
    }
    for micros in [0, 1, 10, 1_000, 1_000_000, 100_000_000] {
        shard.queue_delay.observe(Duration::from_micros(micros));
        other.queue_delay.observe(Duration::from_micros(micros));
        registry.runtime().boot_phase.observe(BootPhase::Ready, Duration::from_micros(micros));
    }
    registry.runtime().reaper_backlog.set(-1);
    let text = registry.encode();
    assert_clean(&text);
    // Every family that the crate knows was there to be judged.
    assert_eq!(text.matches("# TYPE ").count(), 65, "{text}");
}

#[test]
fn a_thousand_vms_are_clean() {
    let registry = Registry::new();
    let _vms: Vec<_> = (0..1000)
        .map(|n| registry.register_vm(VmInfo { id: format!("vm-{n}"), ..VmInfo::default() }))
        .collect();
    assert_clean(&registry.encode());
}
