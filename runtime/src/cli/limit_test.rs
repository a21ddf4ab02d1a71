use ringlet::{DiskLimits, NetLimits, NetRates};

use super::*;

fn limits(args: &[&str]) -> Result<LimitsConfig, String> {
    let args = args.iter().map(|text| parse(text)).collect::<Result<Vec<_>, _>>()?;
    let mut limits = LimitsConfig::default();
    add(&mut limits, &args);
    Ok(limits)
}

#[test]
fn cpu_limits_are_understood() {
    let half = LimitsConfig::default().cpu_max(50_000, 100_000);
    assert_eq!(limits(&["cpu.max=50ms/100ms"]), Ok(half));
    assert_eq!(limits(&["cpu.max=50ms"]), Ok(half));
    assert_eq!(limits(&["cpu.max=50ms,cpu.weight=20"]), Ok(half.cpu_weight(20)));
    assert_eq!(limits(&["cpu.max=1ms/500us"]), Ok(LimitsConfig::default().cpu_max(1_000, 500)));
}

#[test]
fn the_last_of_several_counts_and_max_is_none() {
    assert_eq!(
        limits(&["cpu.max=1s,cpu.weight=1", "cpu.max=50ms"]).unwrap().cpu.max.unwrap().quota_us,
        50_000
    );
    assert_eq!(limits(&["cpu.max=50ms", "cpu.max=max"]), Ok(LimitsConfig::default()));
    assert_eq!(limits(&["cpu.max=max/100ms"]), Ok(LimitsConfig::default()));
}

#[test]
fn disk_limits_count_bytes_by_1024_and_operations_by_1000() {
    let read =
        limits(&["disk.rbps=10M,disk.wbps=1G", "disk.riops=500,disk.wiops=2k,disk.bps=7,disk.iops=1M"])
            .unwrap();
    let disk = DiskLimits {
        rbps: Some(10 << 20),
        wbps: Some(1 << 30),
        riops: Some(500),
        wiops: Some(2000),
        bps: Some(7),
        iops: Some(1_000_000),
        weight: None,
    };
    assert_eq!(read.disk, disk);
    let net = NetLimits {
        rx: NetRates { bps: Some(10 << 20), pps: Some(2000) },
        tx: NetRates { bps: Some(7), pps: None },
        weight: Some(50),
    };
    let given = ["net.rx.bps=10M,net.rx.pps=2k", "net.tx.bps=7,net.tx.pps=5", "net.tx.pps=max,net.weight=50"];
    assert_eq!(limits(&given), Ok(LimitsConfig::default().net(net)));
    assert_eq!(limits(&["disk.rbps=10M", "disk.rbps=max"]), Ok(LimitsConfig::default()));
}

#[test]
fn buffers_are_counted_by_1024() {
    assert_eq!(limits(&["buffers.max=4M"]), Ok(LimitsConfig::default().buffers_max(4 << 20)));
    assert_eq!(limits(&["buffers.max=4MiB"]), limits(&["buffers.max=4M"]));
    assert_eq!(limits(&["buffers.max=4M", "buffers.max=max"]), Ok(LimitsConfig::default()));
}

#[test]
fn mistakes_are_explained() {
    for (text, what) in [
        ("", "comma too many"),
        ("cpu.max=1s,", "comma too many"),
        ("cpu.max", "cpu.max needs a value"),
        ("cpu", "there is no limit \"cpu\"; there are cpu.max, cpu.weight, disk.rbps"),
        ("cpu.min=1", "there is no limit \"cpu.min\""),
        ("cpu.max=1s,cpu.max=2s", "cpu.max is given twice"),
        ("cpu.max=50", "write 50ms"),
        ("cpu.max=50ms/", "write 50ms"),
        ("cpu.max=1500ns", "microseconds"),
        ("cpu.weight=-1", "from 1 to 10000"),
        ("disk.bps=10X", "suffixes"),
        ("disk.bps=1.5M", "not a whole number"),
        ("disk.iops=99999999999T", "too large"),
        ("disk.iops=1MiB", "suffixes"),
        ("buffers.max=much", "not a whole number"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(what), "{text}: {error}");
    }
}
