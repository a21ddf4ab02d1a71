use super::*;

#[test]
fn memory_needs_a_suffix_and_whole_mebibytes() {
    assert_eq!(parse_memory("128M"), Ok(128));
    assert_eq!(parse_memory("2G"), Ok(2048));
    assert_eq!(parse_memory("4096K"), Ok(4));
    for (text, what) in [
        ("128", "Say 128M"),
        ("M", "not a number"),
        ("1.5G", "not a number"),
        ("12X", "suffixes"),
        ("1K", "multiple of 1M"),
        ("99999999999999999999G", "not a number"),
        ("9999999999T", "too large"),
        ("2T", "4M to 1T"),
        ("1M", "4M to 1T"),
        ("-1M", "not a number"),
    ] {
        let error = parse_memory(text).unwrap_err();
        assert!(error.contains(what), "{text}: {error}");
    }
}

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    run: RunArgs,
}

#[test]
fn only_networks_of_their_own_are_for_many_vms() {
    use clap::Parser;
    let config = |net: &str| Line::parse_from(["run", "http", "--count", "2", "--net", net]).run.config();
    assert!(config("passt").is_ok());
    for net in ["passt,publish=8080:80", "passt=/run/passt", "tap=tap0", "fd=3"] {
        assert!(config(net).unwrap_err().to_string().contains("of its own"), "{net}");
    }
}

#[test]
fn options_win_over_the_configuration_file() {
    use clap::Parser;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        file.path(),
        r#"{"boot-source": {"kernel_image_path": "hello", "boot_args": "a"}, "machine-config": {"vcpu_count": 2}}"#,
    )
    .unwrap();
    let path = file.path().to_str().unwrap();
    let line = Line::parse_from(["run", "--config-file", path, "--memory", "64M", "--", "x", "y z"]);
    let config = line.run.config().unwrap();
    assert_eq!(config, VmConfig::new("hello").cmdline("a").vcpus(2).memory_mib(64).args(["x", "y z"]));
    assert!(Line::try_parse_from(["run"]).is_err(), "neither image nor file");
}
