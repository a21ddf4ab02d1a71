use crate::config::{CacheType, Drive, VmConfig};

fn parse(json: &str) -> Result<VmConfig, String> {
    serde_json::from_str(json).map_err(|e| e.to_string())
}

fn with(section: &str) -> String {
    format!(r#"{{"boot-source": {{"kernel_image_path": "hello"}}, {section}}}"#)
}

#[test]
fn fields_of_firecracker_that_ask_for_nothing_are_accepted() {
    for section in [
        r#""balloon": null, "cpu-config": null, "memory-hotplug": null, "metrics": null, "mmds-config": null"#,
        r#""logger": null, "serial": null, "vsock": null, "entropy": null"#,
        r#""logger": {}, "serial": {}, "network-interfaces": [], "pmem": [], "drives": []"#,
        r#""network-interfaces": null, "pmem": null, "drives": null, "machine-config": null"#,
        r#""machine-config": {"smt": false, "track_dirty_pages": false, "cpu_template": null}"#,
        r#""machine-config": {"smt": null, "cpu_template": "None", "huge_pages": null}"#,
    ] {
        assert_eq!(parse(&with(section)), Ok(VmConfig::new("hello")), "{section}");
    }
    let drive = r#""drives": [{"drive_id": "d", "path_on_host": "/d", "socket": null, "rate_limiter": null,
        "partuuid": null, "io_engine": null, "cache_type": null, "is_read_only": null, "is_root_device": false}]"#;
    let config = parse(&with(drive)).unwrap();
    assert_eq!(config.drives, [Drive::file("d", "/d").cache(CacheType::default())]);
}

#[test]
fn fields_of_firecracker_that_ask_for_what_is_missing_are_refused_by_name() {
    for (section, field) in [
        (r#""balloon": {"amount_mib": 0, "deflate_on_oom": false}"#, "balloon"),
        (r#""cpu-config": "/cpu.json""#, "cpu-config"),
        (r#""logger": {"log_path": "/log"}"#, "logger"),
        (r#""memory-hotplug": {"total_size_mib": 1024}"#, "memory-hotplug"),
        (r#""metrics": {"metrics_path": "/m"}"#, "metrics"),
        (r#""mmds-config": {"network_interfaces": ["eth0"]}"#, "mmds-config"),
        (
            r#""network-interfaces": [{"iface_id": "e", "host_dev_name": "t", "allow_mmds_requests": true}]"#,
            "allow_mmds_requests",
        ),
        (r#""pmem": [{"id": "p", "path_on_host": "/p"}]"#, "pmem"),
        (r#""serial": {"serial_out_path": "/s"}"#, "serial"),
        (r#""machine-config": {"smt": true}"#, "smt"),
        (r#""machine-config": {"track_dirty_pages": true}"#, "track_dirty_pages"),
        (r#""machine-config": {"cpu_template": "T2"}"#, "cpu_template"),
        (r#""drives": [{"drive_id": "d", "socket": "/s"}]"#, "socket"),
    ] {
        let error = parse(&with(section)).unwrap_err();
        assert!(error.starts_with(&format!("{field}: not supported by Ringlet")), "{section}: {error}");
        assert!(error.contains("line 1 column"), "{error}");
    }
}

#[test]
fn fields_that_nobody_knows_are_errors_whatever_their_value() {
    for (section, field) in [
        (r#""vsocks": null"#, "vsocks"),
        (r#""smt": false"#, "smt"),
        (r#""machine-config": {"SMT": false}"#, "SMT"),
        (r#""drives": [{"drive_id": "d", "sockets": null}]"#, "sockets"),
    ] {
        let error = parse(&with(section)).unwrap_err();
        assert!(error.starts_with(&format!("unknown field `{field}`")), "{section}: {error}");
        assert!(error.contains("line 1 column"), "{error}");
    }
    assert!(parse("[]").unwrap_err().contains("expected an object"));
}
