use super::*;
use crate::config::VmConfig;

fn config(limits: &str) -> Result<VmConfig, String> {
    let json =
        format!(r#"{{"boot-source": {{"kernel_image_path": "spin"}}, "ringlet": {{"limits": {limits}}}}}"#);
    let config: VmConfig = serde_json::from_str(&json).map_err(|e| e.to_string())?;
    config.validate().map_err(|e| e.to_string())?;
    Ok(config)
}

#[test]
fn limits_are_read_and_written() {
    let read = config(r#"{"cpu": {"max": {"quota_us": 50000, "period_us": 200000}, "weight": 50}}"#).unwrap();
    let built = VmConfig::new("spin").limits(LimitsConfig::default().cpu_max(50_000, 200_000).cpu_weight(50));
    assert_eq!(read, built);
    let written = serde_json::to_string(&built.ringlet.limits).unwrap();
    assert_eq!(config(&written).unwrap(), built);
    assert_eq!(serde_json::to_string(&LimitsConfig::default()).unwrap(), "{}");
    assert_eq!(config("{}").unwrap(), VmConfig::new("spin"));
    let default = config(r#"{"cpu": {"max": {"quota_us": 50000}}}"#).unwrap();
    assert_eq!(default.ringlet.limits.cpu.max.unwrap().period_us, 100_000);
}

#[test]
fn a_limit_of_buffers_is_a_number_of_bytes() {
    let read = config(r#"{"buffers": {"max": 4194304}}"#).unwrap();
    assert_eq!(read, VmConfig::new("spin").limits(LimitsConfig::default().buffers_max(4 << 20)));
    let written = serde_json::to_string(&read.ringlet.limits).unwrap();
    assert_eq!(written, r#"{"buffers":{"max":4194304}}"#);
}

#[test]
fn bad_limits_are_refused_with_field_and_range() {
    for (limits, what) in [
        (r#"{"cpu": {"max": {"quota_us": 999}}}"#, "cpu.max.quota_us: 999 is not in 1000..=32000000"),
        (r#"{"cpu": {"max": {"quota_us": 33000000}}}"#, "cpu.max.quota_us: 33000000 is not in"),
        (
            r#"{"cpu": {"max": {"quota_us": 1000, "period_us": 999}}}"#,
            "cpu.max.period_us: 999 is not in 1000..=1000000",
        ),
        (r#"{"cpu": {"max": {"quota_us": 1000, "period_us": 1000001}}}"#, "cpu.max.period_us: 1000001"),
        (r#"{"cpu": {"max": {"period_us": 1000}}}"#, "missing field `quota_us`"),
        (r#"{"cpu": {"weight": 0}}"#, "cpu.weight: 0 is not in 1..=10000"),
        (r#"{"cpu": {"weight": 10001}}"#, "cpu.weight: 10001"),
        (r#"{"cpu": {"shares": 1}}"#, "unknown field `shares`"),
        (r#"{"memory": {}}"#, "unknown field `memory`"),
        (r#"{"disk": {"rbps": 0}}"#, "limits.disk: rbps is 0: nothing would ever pass"),
        (r#"{"disk": {"iops": 0, "bps": 1}}"#, "limits.disk: iops is 0"),
        (r#"{"disk": {"rbytes": 1}}"#, "unknown field `rbytes`"),
        (
            r#"{"buffers": {"max": 131071}}"#,
            "buffers.max: 131071 bytes are too few; no VM takes less than 131072",
        ),
        (r#"{"buffers": {"max": 0}}"#, "buffers.max: 0 bytes are too few"),
        (r#"{"buffers": {"most": 1}}"#, "unknown field `most`"),
    ] {
        let error = config(limits).unwrap_err();
        assert!(error.contains(what), "{limits}: {error}");
    }
}

#[test]
fn limits_of_disks_are_buckets_of_a_tenth_of_a_second() {
    let limits = config(r#"{"disk": {"rbps": 10485760, "wiops": 500, "iops": 7}}"#)
        .unwrap()
        .ringlet
        .limits
        .disk
        .limits();
    let millis = Duration::from_millis;
    assert_eq!(limits.read.bytes, Some(TokenBucket::new(1 << 20, millis(100))));
    assert_eq!(limits.write.operations, Some(TokenBucket::new(50, millis(100))));
    // A whole number of tokens, however few.
    assert_eq!(limits.total.operations, Some(TokenBucket::new(1, Duration::from_nanos(142_857_143))));
    assert_eq!((limits.read.operations, limits.write.bytes, limits.total.bytes), (None, None, None));
    // A power of two has no tenth.
    assert_eq!(bucket(1 << 30), TokenBucket::new(1 << 27, millis(125)));
    for rate in [1, 9, 10, 999, 1_000_003, u64::MAX] {
        let TokenBucket { size, refill_time, .. } = bucket(rate);
        let obtained = size as f64 / refill_time.as_secs_f64();
        assert!((obtained / rate as f64 - 1.0).abs() < 1e-6, "{rate}: {obtained}");
    }
}
