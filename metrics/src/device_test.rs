use std::sync::Arc;

use super::*;
use crate::{ConnectionResult, DropReason, Registry, ResetReason, VmInfo, VmMetrics};

fn vm() -> (Registry, Arc<VmMetrics>) {
    let registry = Registry::new();
    let vm = registry.register_vm(VmInfo { id: "v".into(), ..VmInfo::default() });
    (registry, vm)
}

fn value(text: &str, series: &str) -> f64 {
    let lines: Vec<_> = text.lines().filter_map(|line| line.strip_prefix(&format!("{series} "))).collect();
    assert_eq!(lines.len(), 1, "{series} in\n{text}");
    lines[0].parse().unwrap()
}

#[test]
fn every_number_reaches_its_series_in_base_units() {
    let (registry, vm) = vm();
    let disk = vm.register_device("disk0", DeviceKind::Block);
    disk.completed(RequestKind::Read, RequestStatus::Ok, 4096, Duration::from_micros(15));
    disk.completed(RequestKind::Read, RequestStatus::IoError, 0, Duration::from_secs(60));
    disk.in_flight.add(3);
    disk.notifications.add(4);
    disk.stray_notifications.add(5);
    disk.interrupts.add(6);
    disk.interrupts_suppressed.add(7);
    disk.bounce_copies.add(8);
    disk.queue_resets.add(9);
    disk.broken_queues.add(10);
    let console = vm.register_device("console0", DeviceKind::Console);
    console.dropped_bytes.add(11);
    let net = vm.register_device("net0", DeviceKind::Net);
    net.dropped_packets.inc(DropReason::Spoofed);
    let vsock = vm.register_device("vsock0", DeviceKind::Vsock);
    vsock.connections.add(12);
    vsock.connection_results.inc(ConnectionResult::Refused);
    vsock.connection_resets.inc(ResetReason::Guest);
    let text = registry.encode();
    assert_eq!(value(&text, r#"ringlet_device_connections{vm="v",device="vsock0"}"#), 12.0);
    let refused = r#"ringlet_device_connections_total{vm="v",device="vsock0",result="refused"}"#;
    assert_eq!(value(&text, refused), 1.0);
    let resets = r#"ringlet_device_connection_resets_total{vm="v",device="vsock0",reason="guest"}"#;
    assert_eq!(value(&text, resets), 1.0);
    assert!(!text.contains(r#"ringlet_device_connections{vm="v",device="net0"}"#));
    for (family, labels, expected) in [
        ("device_info", r#"kind="block""#, 1.0),
        ("device_requests_total", r#"kind="read",status="ok""#, 1.0),
        ("device_requests_total", r#"kind="read",status="io_error""#, 1.0),
        ("device_requests_total", r#"kind="get_id",status="unsupported""#, 0.0),
        ("device_bytes_total", r#"kind="read""#, 4096.0),
        ("device_request_seconds_bucket", r#"kind="read",le="0.00001""#, 0.0),
        ("device_request_seconds_bucket", r#"kind="read",le="0.00002""#, 1.0),
        ("device_request_seconds_bucket", r#"kind="read",le="5""#, 1.0),
        ("device_request_seconds_count", r#"kind="read""#, 2.0),
        ("device_request_seconds_sum", r#"kind="read""#, 60.000015),
    ] {
        assert_eq!(value(&text, &format!(r#"ringlet_{family}{{vm="v",device="disk0",{labels}}}"#)), expected);
    }
    for (family, expected) in [
        ("in_flight_requests", 3.0),
        ("notifications_total", 4.0),
        ("stray_notifications_total", 5.0),
        ("interrupts_total", 6.0),
        ("interrupts_suppressed_total", 7.0),
        ("bounce_copies_total", 8.0),
        ("queue_resets_total", 9.0),
        ("broken_queues_total", 10.0),
    ] {
        assert_eq!(value(&text, &format!(r#"ringlet_device_{family}{{vm="v",device="disk0"}}"#)), expected);
    }
    let dropped = r#"ringlet_device_dropped_bytes_total{vm="v",device="console0"}"#;
    assert_eq!(value(&text, dropped), 11.0);
    for (reason, expected) in [("spoofed", 1.0), ("too_long", 0.0)] {
        let labels = format!(r#"{{vm="v",device="net0",reason="{reason}"}}"#);
        assert_eq!(value(&text, &format!("ringlet_device_dropped_packets_total{labels}")), expected);
    }
    assert!(!text.contains(r#"ringlet_device_dropped_packets_total{vm="v",device="disk0""#));
    assert!(!text.contains(r#"ringlet_device_bounce_copies_total{vm="v",device="console0"}"#));
    assert!(!text.contains(r#"ringlet_device_dropped_bytes_total{vm="v",device="disk0"}"#));
}

#[test]
fn a_device_has_the_series_of_its_own_requests_and_no_other() {
    for kind in DeviceKind::ALL {
        let (registry, vm) = vm();
        let device = vm.register_device("it", *kind);
        let text = registry.encode();
        for request in RequestKind::ALL {
            let series = format!(r#"ringlet_device_requests_total{{vm="v",device="it",kind="{request}""#);
            let shown = text.lines().filter(|line| line.starts_with(&series)).count();
            let expected = if kind.requests().contains(request) { RequestStatus::ALL.len() } else { 0 };
            assert_eq!(shown, expected, "{request} of {kind}");
        }
        assert_eq!(kind.requests().last(), Some(&RequestKind::Other), "{kind}");
        assert_eq!(device.kind(), *kind);
    }
}

#[test]
fn what_the_device_cannot_have_is_counted_as_other() {
    let (_registry, vm) = vm();
    let rng = vm.register_device("rng0", DeviceKind::Entropy);
    rng.completed(RequestKind::Flush, RequestStatus::Unsupported, 0, Duration::ZERO);
    assert_eq!(rng.requests(RequestKind::Other, RequestStatus::Unsupported), 1);
    assert_eq!(rng.requests(RequestKind::Entropy, RequestStatus::Unsupported), 0);
    assert_eq!(rng.latency(RequestKind::Other).unwrap().count, 1);
}

#[test]
fn series_live_as_long_as_the_devices_handle_and_the_vms() {
    let (registry, vm) = vm();
    let one = vm.register_device("one", DeviceKind::Entropy);
    let two = vm.register_device("two", DeviceKind::Entropy);
    drop(one);
    let text = registry.encode();
    assert!(!text.contains(r#"device="one""#) && text.contains(r#"device="two""#), "{text}");
    drop(vm);
    assert!(!registry.encode().contains("device="));
    two.notifications.inc();
}

#[test]
fn of_two_devices_with_one_id_the_later_is_told() {
    let (registry, vm) = vm();
    let old = vm.register_device("disk0", DeviceKind::Block);
    let new = vm.register_device("disk0", DeviceKind::Block);
    old.notifications.add(1);
    new.notifications.add(2);
    let series = r#"ringlet_device_notifications_total{vm="v",device="disk0"}"#;
    assert_eq!(value(&registry.encode(), series), 2.0);
    drop(new);
    assert_eq!(value(&registry.encode(), series), 1.0);
}

#[test]
fn sec_02_devices_that_come_and_go_leave_nothing_and_each_is_bounded() {
    let (registry, vm) = vm();
    for _ in 0..1000 {
        drop(vm.register_device(&"x".repeat(10_000), DeviceKind::Block));
    }
    let disk = vm.register_device("\u{1b}[2J\"\n", DeviceKind::Block);
    assert_eq!(vm.device_count(), 1);
    let total = size_of::<DeviceMetrics>() + size_of_val(&*disk.requests) + disk.id().len();
    assert!(total < 3072, "{total} bytes");
    assert!(registry.encode().chars().all(|c| c == '\n' || !c.is_control()));
}
