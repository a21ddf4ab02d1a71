use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::buffers::{BufferReading, BufferSource};
use crate::descriptors::{DescriptorReading, DescriptorSource};
use crate::labels::{BootPhase, ExitKind, GuestErrorKind, OutcomeKind, VmState};
use crate::limiter::{LimiterReading, LimiterTokens};

fn info(id: &str) -> VmInfo {
    VmInfo { id: id.into(), name: format!("name of {id}"), image: "hello".into(), tenant: "acme".into() }
}

/// Samples of the family or series that begins with `prefix`.
fn samples<'a>(text: &'a str, prefix: &str) -> Vec<&'a str> {
    text.lines().filter(|line| line.starts_with(prefix)).collect()
}

fn value(text: &str, series: &str) -> f64 {
    let found = samples(text, &format!("{series} "));
    assert_eq!(found.len(), 1, "{series} in\n{text}");
    found[0].rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn known_label_sets_start_at_zero() {
    let registry = Registry::new();
    let _vm = registry.register_vm(info("v"));
    let text = registry.encode();
    for kind in ExitKind::ALL {
        assert_eq!(value(&text, &format!(r#"ringlet_vcpu_exits_total{{vm="v",kind="{kind}"}}"#)), 0.0);
    }
    for kind in GuestErrorKind::ALL {
        assert_eq!(value(&text, &format!(r#"ringlet_guest_errors_total{{vm="v",kind="{kind}"}}"#)), 0.0);
    }
    for state in VmState::ALL {
        assert_eq!(value(&text, &format!(r#"ringlet_vms{{state="{state}"}}"#)), 0.0);
    }
    for outcome in OutcomeKind::ALL {
        assert_eq!(value(&text, &format!(r#"ringlet_vms_ended_total{{outcome="{outcome}"}}"#)), 0.0);
    }
    for phase in BootPhase::ALL {
        assert_eq!(value(&text, &format!(r#"ringlet_boot_phase_seconds_count{{phase="{phase}"}}"#)), 0.0);
    }
    assert_eq!(value(&text, "ringlet_vms_created_total"), 0.0);
    assert_eq!(value(&text, "ringlet_reaper_backlog"), 0.0);
    assert_eq!(
        value(&text, concat!(r#"ringlet_build_info{version=""#, env!("CARGO_PKG_VERSION"), r#""}"#)),
        1.0
    );
}

#[derive(Debug)]
struct Account;

impl BufferSource for Account {
    fn read(&self) -> BufferReading {
        BufferReading { max: 8, used: 6, peak: 7, held_back: 9 }
    }
}

#[derive(Debug)]
struct Taken(u64, Option<u64>);

impl DescriptorSource for Taken {
    fn read(&self) -> DescriptorReading {
        DescriptorReading { used: self.0, max: self.1 }
    }
}

#[test]
fn the_descriptors_of_connections_are_told_as_long_as_somebody_counts_them() {
    let registry = Registry::new();
    let (without, with) = (registry.register_vm(info("without")), registry.register_vm(info("with")));
    assert!(!registry.encode().contains("connection_descriptors"));
    let pool: Arc<dyn DescriptorSource> = Arc::new(Taken(7, Some(512)));
    registry.register_descriptors(&pool);
    with.register_descriptors(Arc::new(Taken(5, None)));
    let text = registry.encode();
    for (series, expected) in [
        ("ringlet_connection_descriptors", 7.0),
        ("ringlet_connection_descriptors_max", 512.0),
        (r#"ringlet_vm_connection_descriptors{vm="with"}"#, 5.0),
    ] {
        assert_eq!(value(&text, series), expected, "{series}");
    }
    assert!(!text.contains(r#"ringlet_vm_connection_descriptors{vm="without"}"#));
    drop((pool, with));
    assert!(!registry.encode().contains("connection_descriptors"));
    drop(without);
}

#[test]
fn every_number_reaches_its_series_in_base_units() {
    let registry = Registry::new();
    let vm = registry.register_vm(info("v"));
    let shard = registry.register_shard(3, "io_uring");
    vm.exits.add(ExitKind::PioWrite, 5);
    vm.guest_errors.inc(GuestErrorKind::UnknownMmio);
    vm.serial_sent_bytes.add(11);
    vm.serial_received_bytes.add(12);
    vm.serial_dropped_bytes.add(13);
    vm.shard_busy_nanos.add(1_500_000_000);
    vm.cpu_periods.add(9);
    vm.cpu_throttled_periods.add(4);
    vm.cpu_throttled_nanos.add(250_000_000);
    vm.cpu_overrun_nanos.add(125_000_000);
    vm.cpu_timer_exits.add(5);
    vm.freeze_vcpu_clock(1, 250_000_000);
    vm.register_buffers(Arc::new(Account));
    shard.busy_nanos.add_duration(Duration::from_millis(2500));
    shard.polling_nanos.add(125_000_000);
    shard.queue_delay.observe(Duration::from_micros(5));
    registry.runtime().vms.inc(VmState::Paused);
    registry.runtime().created.inc();
    registry.runtime().ended.inc(OutcomeKind::TimedOut);
    registry.runtime().boot_phase.observe(BootPhase::Load, Duration::from_millis(3));
    registry.runtime().reaper_backlog.set(4);
    let text = registry.encode();
    for (series, expected) in [
        (r#"ringlet_vcpu_exits_total{vm="v",kind="pio_write"}"#, 5.0),
        (r#"ringlet_guest_errors_total{vm="v",kind="unknown_mmio"}"#, 1.0),
        (r#"ringlet_serial_sent_bytes_total{vm="v"}"#, 11.0),
        (r#"ringlet_vm_cpu_periods_total{vm="v"}"#, 9.0),
        (r#"ringlet_vm_cpu_throttled_periods_total{vm="v"}"#, 4.0),
        (r#"ringlet_vm_cpu_throttled_seconds_total{vm="v"}"#, 0.25),
        (r#"ringlet_vm_cpu_overrun_seconds_total{vm="v"}"#, 0.125),
        (r#"ringlet_vm_cpu_timer_exits_total{vm="v"}"#, 5.0),
        (r#"ringlet_vm_buffer_bytes{vm="v"}"#, 6.0),
        (r#"ringlet_vm_buffer_peak_bytes{vm="v"}"#, 7.0),
        (r#"ringlet_vm_buffer_max_bytes{vm="v"}"#, 8.0),
        (r#"ringlet_vm_buffer_held_back_total{vm="v"}"#, 9.0),
        (r#"ringlet_serial_received_bytes_total{vm="v"}"#, 12.0),
        (r#"ringlet_serial_dropped_bytes_total{vm="v"}"#, 13.0),
        (r#"ringlet_vm_event_loop_busy_seconds_total{vm="v"}"#, 1.5),
        (r#"ringlet_vcpu_cpu_seconds_total{vm="v",vcpu="1"}"#, 0.25),
        (r#"ringlet_vm_info{vm="v",name="name of v",image="hello",tenant="acme"}"#, 1.0),
        (r#"ringlet_event_loop_busy_seconds_total{shard="3"}"#, 2.5),
        (r#"ringlet_event_loop_polling_seconds_total{shard="3"}"#, 0.125),
        (r#"ringlet_event_loop_queue_delay_seconds_bucket{shard="3",le="0.000004"}"#, 0.0),
        (r#"ringlet_event_loop_queue_delay_seconds_bucket{shard="3",le="0.00001"}"#, 1.0),
        (r#"ringlet_event_loop_queue_delay_seconds_bucket{shard="3",le="+Inf"}"#, 1.0),
        (r#"ringlet_event_loop_queue_delay_seconds_sum{shard="3"}"#, 0.000005),
        (r#"ringlet_io_engine_info{shard="3",engine="io_uring"}"#, 1.0),
        (r#"ringlet_vms{state="paused"}"#, 1.0),
        ("ringlet_vms_created_total", 1.0),
        (r#"ringlet_vms_ended_total{outcome="timed_out"}"#, 1.0),
        (r#"ringlet_boot_phase_seconds_bucket{phase="load",le="0.002"}"#, 0.0),
        (r#"ringlet_boot_phase_seconds_bucket{phase="load",le="0.005"}"#, 1.0),
        (r#"ringlet_boot_phase_seconds_sum{phase="load"}"#, 0.003),
        ("ringlet_reaper_backlog", 4.0),
    ] {
        assert_eq!(value(&text, series), expected, "{series}");
    }
}

#[test]
fn series_live_as_long_as_their_handle() {
    let registry = Registry::new();
    let (one, two) = (registry.register_vm(info("one")), registry.register_vm(info("two")));
    let clone = one.clone();
    drop(one);
    assert!(!samples(&registry.encode(), r#"ringlet_vm_info{vm="one""#).is_empty());
    drop(clone);
    let text = registry.encode();
    assert!(!text.contains(r#""one""#), "{text}");
    assert!(text.contains(r#""two""#));
    drop(two);
    let text = registry.encode();
    assert!(!text.contains("vm=") && !text.contains("ringlet_vcpu_exits_total"), "{text}");
    let shard = registry.register_shard(0, "epoll");
    assert!(registry.encode().contains("epoll"));
    drop(shard);
    assert!(!registry.encode().contains("epoll"));
}

#[test]
fn nothing_is_kept_of_vms_that_nobody_scraped() {
    let registry = Registry::new();
    for n in 0..1000 {
        drop(registry.register_vm(info(&n.to_string())));
        drop(registry.register_shard(n, "epoll"));
    }
    let lists = lock(&registry.0.state.lists);
    assert_eq!((lists.vms.len(), lists.shards.len()), (0, 1));
}

#[test]
fn handles_outlive_the_registry() {
    let registry = Registry::new();
    let (vm, shard) = (registry.register_vm(info("v")), registry.register_shard(0, "epoll"));
    drop(registry.encode());
    let state = Arc::downgrade(&registry.0.state);
    drop(registry);
    assert_eq!(state.strong_count(), 0, "the collector keeps the registry's state alive");
    vm.exits.inc(ExitKind::Other);
    shard.busy_nanos.inc();
}

#[test]
fn a_scrape_changes_nothing() {
    let registry = Registry::new();
    let vm = registry.register_vm(info("v"));
    vm.exits.inc(ExitKind::PioRead);
    assert_eq!(registry.encode(), registry.encode());
}

#[test]
fn of_two_vms_with_one_id_the_later_is_told() {
    let registry = Registry::new();
    let old = registry.register_vm(info("v"));
    let new = registry.register_vm(info("v"));
    old.serial_sent_bytes.add(1);
    new.serial_sent_bytes.add(2);
    assert_eq!(value(&registry.encode(), r#"ringlet_serial_sent_bytes_total{vm="v"}"#), 2.0);
    drop(new);
    assert_eq!(value(&registry.encode(), r#"ringlet_serial_sent_bytes_total{vm="v"}"#), 1.0);
}

#[test]
fn a_registry_that_is_not_scraped_costs_microseconds() {
    let best = (0..100)
        .map(|_| {
            let begin = Instant::now();
            let registry = Registry::new();
            let took = begin.elapsed();
            assert!(registry.0.prometheus.get().is_none(), "families were made before the first scrape");
            took
        })
        .min()
        .unwrap();
    assert!(best < Duration::from_micros(50), "{best:?}");
}

#[test]
fn a_thousand_vms_have_all_their_series_and_no_other() {
    const VMS: usize = 1000;
    let registry = Registry::new();
    let vms: Vec<_> = (0..VMS).map(|n| registry.register_vm(info(&format!("vm-{n}")))).collect();
    vms.iter().for_each(|vm| vm.freeze_vcpu_clock(0, 1));
    let text = registry.encode();
    // Info, one vCPU, three serial counters, event-loop time, five of the CPU limit.
    let per_vm = ExitKind::ALL.len() + GuestErrorKind::ALL.len() + 11;
    assert_eq!(text.lines().filter(|line| line.contains(r#"{vm=""#)).count(), VMS * per_vm);
    let mut series: Vec<_> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.rsplit_once(' ').unwrap().0)
        .collect();
    let all = series.len();
    series.sort_unstable();
    series.dedup();
    assert_eq!(series.len(), all, "a series is told twice");
}

#[test]
fn sec_13_a_label_cannot_break_out_of_its_quotes_or_steer_a_terminal() {
    let registry = Registry::new();
    let hostile = "a\"} 1\nringlet_evil 1\n\\\u{1b}[2J\u{9b}31m";
    let vm = registry.register_vm(VmInfo {
        id: hostile.into(),
        name: hostile.into(),
        image: hostile.into(),
        tenant: hostile.into(),
    });
    let text = registry.encode();
    assert!(!text.contains("\nringlet_evil"), "{text}");
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    // The value as a scraper sees it: our escapes, then the format's, undone in reverse.
    let label = text.lines().find_map(|line| line.strip_prefix(r#"ringlet_vm_info{vm=""#)).unwrap();
    let mut chars = label.chars();
    let mut seen = String::new();
    while let Some(c) = chars.next().filter(|c| *c != '"') {
        seen.push(if c == '\\' { chars.next().unwrap() } else { c });
    }
    assert_eq!(seen, vm.id());
    assert_eq!(seen, "a\"} 1\\nringlet_evil 1\\n\\\\u{1b}[2J\\u{9b}31m");
}

#[test]
fn sec_02_label_values_are_bounded() {
    let registry = Registry::new();
    let long = "x".repeat(1 << 20);
    let _vm = registry.register_vm(VmInfo {
        id: long.clone(),
        name: long.clone(),
        image: long.clone(),
        tenant: long,
    });
    let longest = registry.encode().lines().map(str::len).max().unwrap();
    assert!(longest < 4 * (crate::MAX_LABEL_BYTES + 16), "{longest} bytes in a line");
}

#[test]
fn vms_come_and_go_while_others_scrape() {
    let registry = Registry::new();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for thread in 0..2 {
            let (registry, stop) = (registry.clone(), &stop);
            scope.spawn(move || {
                while !stop.load(Relaxed) {
                    let vms: Vec<_> =
                        (0..8).map(|n| registry.register_vm(info(&format!("{thread}-{n}")))).collect();
                    vms.iter().for_each(|vm| vm.exits.inc(ExitKind::Other));
                    registry.runtime().created.add(8);
                }
            });
        }
        let mut last = 0.0;
        for _ in 0..200 {
            let created = value(&registry.encode(), "ringlet_vms_created_total");
            assert!(created >= last, "a counter fell from {last} to {created}");
            last = created;
        }
        stop.store(true, Relaxed);
    });
    assert!(lock(&registry.0.state.lists).vms.is_empty());
}

/// A level that has admitted so much.
#[derive(Debug)]
struct Level(u64);

impl LimiterSource for Level {
    fn read(&self) -> LimiterReading {
        let tokens = LimiterTokens { meter: "read_bytes", left: -3, size: 10, refill_nanos: 10 };
        LimiterReading {
            operations: self.0,
            throttled_nanos: 1_500_000_000,
            tokens: vec![tokens],
            ..LimiterReading::default()
        }
    }
}

#[test]
fn limits_are_exposed_as_long_as_their_owners_live() {
    let registry = Registry::new();
    let vm = registry.register_vm(info("v"));
    let tenant: Arc<dyn LimiterSource> = Arc::new(Level(7));
    // Of two with one name the later is told.
    vm.register_limiter("disk0", Arc::new(Level(1)));
    vm.register_limiter("disk0", Arc::new(Level(2)));
    registry.register_tenant("acme", "disk", Arc::clone(&tenant));
    let net: Arc<dyn LimiterSource> = Arc::new(Level(8));
    registry.register_tenant("acme", "net", Arc::clone(&net));
    let host: Arc<dyn LimiterSource> = Arc::new(Level(9));
    registry.register_host(Arc::clone(&host));
    let text = registry.encode();
    for sample in [
        r#"ringlet_limiter_operations_total{vm="v",limiter="disk0"} 2"#,
        r#"ringlet_limiter_throttled_seconds_total{vm="v",limiter="disk0"} 1.5"#,
        r#"ringlet_limiter_tokens{vm="v",limiter="disk0",meter="read_bytes"} -3"#,
        r#"ringlet_tenant_operations_total{tenant="acme",limiter="disk"} 7"#,
        r#"ringlet_tenant_operations_total{tenant="acme",limiter="net"} 8"#,
        "ringlet_host_limit_operations_total 9",
        r#"ringlet_host_limit_tokens{meter="read_bytes"} -3"#,
    ] {
        assert!(text.contains(sample), "{sample}: {text}");
    }
    drop((vm, tenant, net, host));
    let text = registry.encode();
    assert!(!text.contains("ringlet_limiter_") && !text.contains("ringlet_tenant_"), "{text}");
    assert!(!text.contains("ringlet_host_"), "{text}");
}
