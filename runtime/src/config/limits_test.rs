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
        (r#"{"disk": {"rbps": 1}}"#, "disk: limits of disks are understood, but not enforced yet"),
        (r#"{"disk": {"rbytes": 1}}"#, "unknown field `rbytes`"),
    ] {
        let error = config(limits).unwrap_err();
        assert!(error.contains(what), "{limits}: {error}");
    }
}
