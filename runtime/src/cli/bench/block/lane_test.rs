use super::super::super::blkbench::{BlockResult, Mode};
use super::*;

const SCENARIO: Scenario =
    Scenario { direct: true, pattern: Pattern { mode: Mode::RandRead, depth: 32, block_size: 4096 } };

fn run(requests: u64, milliseconds: u64, cpu_milliseconds: u64) -> Run {
    let ns = milliseconds * 1_000_000;
    let result = BlockResult { ok: true, ns, reads: requests, writes: 0, p50_ns: 10_000, p99_ns: 20_000 };
    Run { result, cpu: Duration::from_millis(cpu_milliseconds) }
}

fn lane(who: Contender, runs: &[Run]) -> Lane {
    let mut lane = Lane::new(who, None);
    lane.begin(SCENARIO);
    lane.start.push(0.010);
    runs.iter().for_each(|&run| lane.add(run, false));
    lane
}

fn figures(lanes: &[Lane]) -> serde_json::Value {
    let mut report = Report::new("block", true);
    add_figures(SCENARIO, lanes, &mut report);
    serde_json::to_value(&report).unwrap()["figures"].take()
}

fn median(figures: &serde_json::Value, id: &str) -> Option<f64> {
    let figure = figures.as_array().unwrap().iter().find(|figure| figure["id"] == id);
    figure.unwrap_or_else(|| panic!("no figure {id}"))["measured"]["median"].as_f64()
}

#[test]
fn scenarios_have_names() {
    assert_eq!(SCENARIO.id(), "direct.randread.32");
    assert_eq!(SCENARIO.name(), "direct, randread, 4 KiB, depth 32");
    let pattern = Pattern { mode: Mode::Write, depth: 32, block_size: 128 << 10 };
    let sequential = Scenario { direct: false, pattern };
    assert_eq!(sequential.id(), "buffered.write");
    assert_eq!(Quantity::all(sequential)[0], Quantity::Throughput);
}

#[test]
fn cpu_time_is_without_start_and_end() {
    let uring = EngineKind::Uring;
    let figures = figures(&[lane(Contender::Host(uring), &[run(1000, 100, 30), run(1000, 100, 5)])]);
    // 20 ms over 1000 requests in the first round; in the second the start took longer than all.
    let cpu = median(&figures, "block.direct.randread.32.host.uring.cpu").unwrap();
    assert!((cpu - 10e-6).abs() < 1e-9, "{cpu}");
    assert_eq!(median(&figures, "block.direct.randread.32.host.uring.iops"), Some(10_000.0));
    assert_eq!(median(&figures, "block.direct.randread.32.host.uring.p99"), Some(20e-6));
}

#[test]
fn ratios_are_taken_round_by_round() {
    let uring = EngineKind::Uring;
    let host = lane(Contender::Host(uring), &[run(1000, 100, 30), run(2000, 100, 30), run(4000, 100, 30)]);
    let own = lane(Contender::Ringlet(uring), &[run(800, 100, 30), run(1600, 100, 30), run(1000, 100, 30)]);
    let mut qemu = Lane::new(Contender::Qemu, None);
    assert!(qemu.accept(Err("not installed".into())).unwrap().is_none());
    let figures = figures(&[host, own, qemu]);
    assert_eq!(median(&figures, "block.direct.randread.32.ringlet.uring.of_host"), Some(0.8));
    assert_eq!(median(&figures, "block.direct.randread.32.ringlet.uring.of_qemu"), None);
    assert_eq!(median(&figures, "block.direct.randread.32.qemu.iops"), None);
}

#[test]
fn only_qemu_may_fail() {
    let mut lane = Lane::new(Contender::Host(EngineKind::Epoll), None);
    assert!(lane.accept(Err("no".into())).is_err());
}

#[test]
fn the_work_of_a_round_follows_the_rate() {
    let mut lane = Lane::new(Contender::Qemu, None);
    lane.begin(SCENARIO);
    let second = Duration::from_secs(1);
    assert_eq!(lane.requests(second), 16_000);
    lane.add(run(50_000, 1000, 1), true);
    assert_eq!((lane.requests(second), lane.runs.len()), (50_000, 0));
    lane.add(run(1, 1000, 1), false);
    assert_eq!((lane.requests(second), lane.runs.len()), (100, 1));
}

#[test]
fn every_target_has_its_figure() {
    let lanes: Vec<Lane> = Contender::ALL.into_iter().map(|who| lane(who, &[run(1, 1, 1)])).collect();
    let mut report = Report::new("block", true);
    super::super::ALL.iter().for_each(|&scenario| add_figures(scenario, &lanes, &mut report));
    let ids = serde_json::to_string(&report).unwrap();
    for target in super::super::targets::targets(true) {
        assert!(ids.contains(&format!("\"{}\"", target.figure)), "{}", target.figure);
        let scenario = |scenario: &Scenario| target.figure.contains(&format!(".{}.", scenario.id()));
        assert!(super::super::FEW.iter().any(scenario), "{} is not in --quick", target.figure);
    }
}
