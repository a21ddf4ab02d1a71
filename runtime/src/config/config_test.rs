use super::*;

fn parse(json: &str) -> Result<VmConfig, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), json).unwrap();
    VmConfig::from_file(file.path()).map_err(|e| e.to_string())
}

#[test]
fn firecracker_json_is_understood() {
    let config = parse(
        r#"{"boot-source": {"kernel_image_path": "/k", "boot_args": "console=ttyS0", "initrd_path": "/i"},
            "machine-config": {"vcpu_count": 2, "mem_size_mib": 256, "huge_pages": "2M"},
            "ringlet": {"name": "web-1", "args": ["a b"], "timeout_ms": 5, "boot_protocol": "pvh"}}"#,
    )
    .unwrap();
    let built = VmConfig::new("/k")
        .cmdline("console=ttyS0")
        .initrd("/i")
        .vcpus(2)
        .memory_mib(256)
        .huge_pages(HugePages::TwoM)
        .name("web-1")
        .args(["a b"])
        .timeout(Duration::from_millis(5))
        .boot_protocol(BootProtocol::Pvh);
    assert_eq!(config, built);
    let written = serde_json::to_string(&built).unwrap();
    assert_eq!(parse(&written).unwrap(), built);
}

#[test]
fn what_is_left_out_has_its_default() {
    let config = parse(r#"{"boot-source": {"kernel_image_path": "hello"}}"#).unwrap();
    assert_eq!(config, VmConfig::new("hello"));
    assert_eq!(config.boot_source.kernel_image_path, ImageRef::Bundled("hello".into()));
    assert_eq!(config.machine_config.mem_size_mib, 128);
}

#[test]
fn bad_configurations_are_refused_with_field_and_range() {
    let boot = r#""boot-source": {"kernel_image_path": "hello"}"#;
    for (json, what) in [
        (format!("{{{boot}, \"vsocks\": {{}}}}"), "unknown field `vsocks`"),
        (
            format!("{{{boot}, \"ringlet\": {{\"drain_timeout_ms\": 8001}}}}"),
            "drain_timeout_ms: 8001 is not in 1..=8000",
        ),
        (format!("{{{boot}, \"machine-config\": {{\"vcpu_count\": 0}}}}"), "vcpu_count: 0 is not in 1..=32"),
        (
            format!("{{{boot}, \"machine-config\": {{\"mem_size_mib\": 3}}}}"),
            "mem_size_mib: 3 MiB is not in 4..=",
        ),
        (format!("{{{boot}, \"ringlet\": {{\"timeout_ms\": 0}}}}"), "timeout_ms: must be at least 1"),
        (format!("{{{boot}, \"ringlet\": {{\"name\": \"a/b\"}}}}"), "name: \"a/b\" is not"),
        ("{}".into(), "missing field `boot-source`"),
        ("{".into(), "is not JSON: EOF while parsing an object at line 1 column 1"),
        (String::new(), "is not JSON: EOF"),
        ("{\n# Ringlet".into(), "is not JSON: key must be a string at line 2 column 1"),
    ] {
        let error = parse(&json).unwrap_err();
        assert!(error.contains(what), "{json}: {error}");
    }
}

#[test]
fn sec_07_config_files_are_read_with_a_bound_and_never_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
        .unwrap();
    let error = VmConfig::from_file(&fifo).unwrap_err().to_string();
    assert!(error.contains("not a regular file"), "{error}");
    let large = folder.path().join("large");
    std::fs::File::create(&large).unwrap().set_len(MAX_CONFIG_FILE + 1).unwrap();
    let error = VmConfig::from_file(&large).unwrap_err().to_string();
    assert!(error.contains("larger than"), "{error}");
    let missing = VmConfig::from_file(&folder.path().join("none")).unwrap_err().to_string();
    assert!(missing.contains("none") && missing.contains("No such file"), "{missing}");
}
