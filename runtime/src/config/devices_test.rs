use super::*;
use crate::config::{Bucket, RateLimiter};

fn drives(json: &str) -> Result<VmConfig, String> {
    let text = format!(r#"{{"boot-source": {{"kernel_image_path": "hello"}}, "drives": {json}}}"#);
    let config: VmConfig = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    config.validate().map_err(|e| e.to_string())?;
    Ok(config)
}

#[test]
fn firecracker_drives_are_understood() {
    let config = drives(
        r#"[{"drive_id": "rootfs", "path_on_host": "/d.img", "is_root_device": true, "is_read_only": true,
             "cache_type": "Unsafe", "io_engine": "Async", "partuuid": "0eaa91a0-01"},
            {"drive_id": "data", "path_on_host": "/e.img",
             "ringlet": {"direct": true, "queues": 4, "queue_size": 64, "serial": "A 1"}},
            {"drive_id": "tmp", "ringlet": {"backend": {"memory": {"size": 1048576}}}},
            {"drive_id": "none", "ringlet": {"backend": {"null": {"size": 512}}}}]"#,
    )
    .unwrap();
    let mut root = Drive::file("rootfs", "/d.img").read_only().cache(CacheType::Unsafe);
    root.is_root_device = true;
    root.io_engine = Some(DriveIoEngine::Async);
    root.partuuid = Some("0eaa91a0-01".into());
    let built = VmConfig::new("hello")
        .drive(root)
        .drive(Drive::file("data", "/e.img").direct().queues(4).queue_size(64).serial("A 1"))
        .drive(Drive::memory("tmp", 1 << 20))
        .drive(Drive::null("none", 512));
    assert_eq!(config, built);
    let written = serde_json::to_string(&built).unwrap();
    assert_eq!(serde_json::from_str::<VmConfig>(&written).unwrap(), built);
}

#[test]
fn a_disk_that_does_not_say_keeps_what_was_flushed() {
    let config = drives(r#"[{"drive_id": "d", "path_on_host": "/d"}]"#).unwrap();
    assert_eq!(config.drives, [Drive::file("d", "/d")]);
    let drive = &config.drives[0];
    assert_eq!(drive.cache_type, CacheType::Writeback);
    assert!(!drive.is_read_only && !drive.is_root_device);
    assert_eq!((drive.ringlet.queues, drive.ringlet.queue_size), (1, 256));
}

#[test]
fn entropy_may_have_a_rate_limiter() {
    let parse = |json: &str| {
        let text = format!(r#"{{"boot-source": {{"kernel_image_path": "hello"}}, "entropy": {json}}}"#);
        serde_json::from_str::<VmConfig>(&text).map_err(|e| e.to_string())
    };
    assert_eq!(parse("{}").unwrap(), VmConfig::new("hello").entropy());
    let limited = parse(r#"{"rate_limiter": {"bandwidth": {"size": 1000, "refill_time": 100}}}"#).unwrap();
    let bucket = Bucket { size: 1000, one_time_burst: None, refill_time: 100 };
    let limiter = limited.entropy.unwrap().rate_limiter.unwrap();
    assert_eq!(limiter, RateLimiter { bandwidth: Some(bucket), ops: None });
    assert!(parse(r#"{"seed": 1}"#).unwrap_err().contains("unknown field `seed`"));
}

#[test]
fn sec_07_disks_out_of_range_are_refused_with_disk_field_and_range() {
    let file = r#""drive_id": "d", "path_on_host": "/d""#;
    for (json, what) in [
        (r#"[{"drive_id": "d"}]"#.to_owned(), "path_on_host: of drive \"d\": is missing"),
        (r#"[{"drive_id": "d", "path_on_host": ""}]"#.into(), "is empty"),
        (r#"[{"drive_id": "", "path_on_host": "/d"}]"#.into(), "drive_id: \"\" is not 1 to 64"),
        (r#"[{"drive_id": "a b", "path_on_host": "/d"}]"#.into(), "drive_id: \"a b\" is not"),
        (format!(r#"[{{"drive_id": "{}", "path_on_host": "/d"}}]"#, "x".repeat(65)), "is not 1 to 64"),
        (r#"[{"drive_id": "rng0", "path_on_host": "/d"}]"#.into(), "the name of another device"),
        (format!("[{{{file}}}, {{{file}}}]"), "drive_id: \"d\" is the name of two drives"),
        (
            format!(r#"[{{{file}, "ringlet": {{"queues": 0}}}}]"#),
            "queues: of drive \"d\": 0 is not in 1..=16",
        ),
        (format!(r#"[{{{file}, "ringlet": {{"queues": 17}}}}]"#), "17 is not in 1..=16"),
        (format!(r#"[{{{file}, "ringlet": {{"queue_size": 3}}}}]"#), "not a power of two in 4..=256"),
        (format!(r#"[{{{file}, "ringlet": {{"queue_size": 2}}}}]"#), "not a power of two in 4..=256"),
        (format!(r#"[{{{file}, "ringlet": {{"queue_size": 512}}}}]"#), "not a power of two in 4..=256"),
        (format!(r#"[{{{file}, "ringlet": {{"serial": ""}}}}]"#), "serial: of drive \"d\""),
        (format!(r#"[{{{file}, "ringlet": {{"serial": "ä"}}}}]"#), "printable ASCII"),
        (format!(r#"[{{{file}, "ringlet": {{"serial": "{}"}}}}]"#, "x".repeat(21)), "1 to 20"),
        (format!(r#"[{{{file}, "partuuid": "a b"}}]"#), "partuuid: of drive \"d\""),
        (format!(r#"[{{{file}, "cache_type": "Fast"}}]"#), "unknown variant `Fast`"),
        (format!(r#"[{{{file}, "rate_limiter": {{"iops": 1}}}}]"#), "unknown field `iops`"),
        (format!(r#"[{{{file}, "rate_limiter": {{"ops": {{"size": 1}}}}}}]"#), "missing field `refill_time`"),
        (
            format!(
                r#"[{{{file}, "rate_limiter": {{"ops": {{"size": 1, "refill_time": 5000000000000}}}}}}]"#
            ),
            "rate_limiter: of drive \"d\": a refill_time is longer than 4611686018427 ms",
        ),
        (
            format!(r#"[{{{file}, "ringlet": {{"uninitialized_reads": true}}}}]"#),
            "unknown field `uninitialized_reads`",
        ),
        (format!(r#"[{{{file}, "ringlet": {{"backend": {{"null": {{"size": 512}}}}}}}}]"#), "has none"),
        (volatile("{\"null\": {\"size\": 0}}"), "size: of drive \"v\": 0 is not a multiple of 512"),
        (volatile("{\"memory\": {\"size\": 513}}"), "513 is not a multiple of 512"),
        (volatile("{\"memory\": {\"size\": 1099511628288}}"), "in 512..=1099511627776"),
    ] {
        let error = drives(&json).unwrap_err();
        assert!(error.contains(what), "{json}: {error}");
    }
}

fn volatile(backend: &str) -> String {
    format!(r#"[{{"drive_id": "v", "ringlet": {{"backend": {backend}}}}}]"#)
}

#[test]
fn what_only_some_disks_can_is_refused_for_the_others() {
    let refused = |drive: Drive, what: &str| {
        let error = VmConfig::new("hello").drive(drive).validate().unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    refused(Drive::memory("d", 512).direct(), "direct: of drive \"d\": only for a file or block device");
    let mut drive = Drive::memory("d", 512);
    drive.ringlet.uninitialized_reads = true;
    refused(drive, "uninitialized_reads: of drive \"d\": only a null disk");
    let mut roots = VmConfig::new("hello").drive(Drive::file("a", "/a")).drive(Drive::file("b", "/b"));
    roots.drives.iter_mut().for_each(|drive| drive.is_root_device = true);
    assert!(roots.validate().unwrap_err().to_string().contains("is_root_device: more than one"));
}

#[test]
fn a_console_is_limited_only_if_there_is_one() {
    let limiter = RateLimiter::bytes(10_240);
    let config = VmConfig::new("echo").console().console_rate_limiter(limiter);
    config.validate().unwrap();
    let json = serde_json::to_string(&config).unwrap();
    assert!(
        json.contains(r#""console_rate_limiter":{"bandwidth":{"size":1024,"refill_time":100}}"#),
        "{json}"
    );
    assert_eq!(serde_json::from_str::<VmConfig>(&json).unwrap(), config);
    let error = VmConfig::new("echo").console_rate_limiter(limiter).validate().unwrap_err().to_string();
    assert!(error.contains("console_rate_limiter: the VM has no virtio console"), "{error}");
}

#[test]
fn sec_02_a_vm_has_no_more_devices_than_interrupts() {
    let full = (0..MAX_DEVICES)
        .fold(VmConfig::new("hello"), |config, n| config.drive(Drive::null(format!("d{n}"), 512)));
    full.validate().unwrap();
    for config in [full.clone().entropy(), full.clone().console(), full.drive(Drive::null("more", 512))] {
        let error = config.validate().unwrap_err().to_string();
        assert_eq!(error, "drives: 18 devices are too many; a VM has interrupts for 17");
    }
}
