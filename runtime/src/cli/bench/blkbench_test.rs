use super::*;

/// What the guest printed on some machine.
const PRINTED: &str = r#"blkbench: disk of 128 MiB, blocks of 512 bytes, flush
blkbench: randread, 4 KiB a request, depth 32, 1 queue
blkbench: 67031 IOPS, 261.8 MiB/s; latency p50 360.4 us, p90 638.9 us, p99 3670.0 us, max 16889.4 us
blkbench-result {"ok":true,"mode":"randread","depth":32,"block_size":4096,"queues":1,"ns":1000000000,"reads":67000,"writes":31,"flushes":0,"discards":0,"zeroes":0,"verified":0,"iops":67031,"bytes_per_second":274558976,"p50_ns":360400,"p90_ns":638900,"p99_ns":3670000,"max_ns":16889400,"interrupts":12,"notifications":3}
"#;

#[test]
fn the_result_is_found() {
    let expected = BlockResult {
        ok: true,
        ns: 1_000_000_000,
        reads: 67_000,
        writes: 31,
        p50_ns: 360_400,
        p99_ns: 3_670_000,
    };
    let found = BlockResult::find(PRINTED).unwrap();
    assert_eq!(found, expected);
    assert_eq!(found.iops(), 67_031.0);
    assert_eq!(BlockResult::find(&found.to_string()).unwrap(), expected);
}

#[test]
fn what_is_no_result_is_refused() {
    let nothing_done = PRINTED.replace("67000", "0").replace("\"writes\":31", "\"writes\":0");
    for (printed, said) in [
        ("", "nothing"),
        ("blkbench: failed: no such disk\n\n", "no such disk"),
        (&PRINTED.replace("true", "false"), "did not go well"),
        (&nothing_done, "did not go well"),
        (&PRINTED.replace("\"ns\":1000000000", "\"ns\":0"), "did not go well"),
        (&PRINTED.replace("\"reads\":67000", "\"reads\":-1"), "invalid value"),
        (&PRINTED.replace("\"p99_ns\"", "\"p98_ns\""), "p99_ns"),
    ] {
        let error = BlockResult::find(printed).unwrap_err().to_string();
        assert!(error.contains(said), "{printed:?}: {error}");
    }
}

#[test]
fn a_pattern_is_told_in_the_guests_words() {
    let pattern = Pattern { mode: Mode::RandWrite, depth: 128, block_size: 4096 };
    let words = "--mode randwrite --depth 128 --block-size 4096 --total 40960";
    assert_eq!(pattern.arguments(10).join(" "), words);
    assert!(pattern.arguments(0).join(" ").ends_with("--total 4096"));
    for mode in Mode::value_variants() {
        assert_eq!(Mode::from_str(&mode.to_string(), false), Ok(*mode));
    }
}
