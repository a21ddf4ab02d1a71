use super::*;

/// The host loop over a file of `blocks` blocks.
fn measure(engine: EngineKind, pattern: Pattern, blocks: u64, requests: u64) -> (BlockResult, Vec<u8>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(blocks * u64::from(pattern.block_size)).unwrap();
    let open = OpenOptions::new().read(true).write(true).open(file.path()).unwrap();
    let job = Job { pattern, requests, file: open.into(), blocks, ram: ram(pattern).unwrap() };
    let result = job.run(engine).unwrap();
    (result, std::fs::read(file.path()).unwrap())
}

fn engines() -> Vec<EngineKind> {
    let uring = ringlet_io::probe_uring().is_ok().then_some(EngineKind::Uring);
    uring.into_iter().chain([EngineKind::Epoll]).collect()
}

#[test]
fn every_request_is_made_once() {
    for engine in engines() {
        for (mode, depth) in [(Mode::Read, 1), (Mode::RandRead, 32), (Mode::RandWrite, 128)] {
            let pattern = Pattern { mode, depth, block_size: 4096 };
            let (result, _) = measure(engine, pattern, 64, 1000);
            assert_eq!(result.requests(), 1000, "{engine} {pattern:?}");
            assert_eq!(result.writes > 0, mode.writes());
            assert!(0 < result.p50_ns && result.p50_ns <= result.p99_ns);
            assert!(result.p99_ns <= result.ns);
        }
    }
}

#[test]
fn writes_in_order_reach_the_whole_file() {
    for engine in engines() {
        let pattern = Pattern { mode: Mode::Write, depth: 8, block_size: 8192 };
        let (_, bytes) = measure(engine, pattern, 32, 32);
        assert!(bytes.iter().all(|&byte| byte == FILL), "{engine}");
    }
}

#[test]
fn random_blocks_are_spread() {
    let mut seen = [0_u32; 16];
    for state in 0..16_000_u64 {
        seen[usize::try_from(mix(state.wrapping_mul(0x9e37_79b9_7f4a_7c15)) % 16).unwrap()] += 1;
    }
    assert!(seen.iter().all(|count| (800..1200).contains(count)), "{seen:?}");
}

#[test]
fn percentiles_are_nearest_ranks() {
    let times: Vec<u64> = (1..=200).collect();
    assert_eq!((percentile(&times, 50), percentile(&times, 99)), (100, 198));
    assert_eq!((percentile(&[7], 99), percentile(&[], 50)), (7, 0));
}
