use super::super::super::traffic::GIB;
use super::super::targets::targets;
use super::*;

/// Lanes of which each has one run; `rate` says how fast it was.
fn lanes(rate: impl Fn(Contender) -> f64) -> Vec<Lane> {
    let lane = |who| {
        let latencies = vec![Duration::from_secs_f64(1.0 / rate(who))];
        let measured = Measured { amount: rate(who), time: Duration::from_secs(1), latencies };
        let run = Run { measured, cpu: Duration::from_millis(500) };
        Lane { who, served: Ok(Served::default()), runs: vec![run] }
    };
    Contender::ALL.into_iter().map(lane).collect()
}

/// All figures.
fn figures(lanes: &[Lane]) -> Report {
    let mut report = Report::new("net", true);
    Scenario::ALL.into_iter().for_each(|scenario| add_figures(scenario, lanes, &mut report));
    report
}

#[test]
fn a_ratio_says_how_much_better_ringlet_is() {
    let rate = |who| if matches!(who, Contender::Ringlet(_)) { 200.0 } else { 100.0 };
    let figures = figures(&lanes(rate));
    for id in ["net.stream.tx.ringlet.uring.of_host", "net.packets.rx.ringlet.epoll.of_qemu"] {
        assert_eq!(figures.median(id), Some(2.0), "{id}");
    }
    // Of latencies, the shorter is the better one.
    assert_eq!(figures.median("net.requests.ringlet.uring.p99.of_vhost"), Some(2.0));
    assert_eq!(figures.median("net.requests.ringlet.uring.cpu"), Some(0.0025));
    assert_eq!(figures.median("net.stream.rx.qemu.cpu_per_gib"), Some(0.5 / (100.0 / GIB)));
}

#[test]
fn every_target_has_its_figure() {
    let figures = figures(&lanes(|_| 1.0));
    for target in targets([true, true]).iter().filter(|target| target.figure != "net.limiter.error") {
        assert!(figures.median(target.figure).is_some());
    }
}

#[test]
fn what_cannot_run_here_has_no_figures_and_a_reason() {
    let mut lanes = lanes(|_| 1.0);
    for lane in lanes.iter_mut().filter(|lane| lane.who.is_qemu()) {
        lane.served = Err("no QEMU".to_owned());
    }
    let figures = figures(&lanes);
    assert_eq!(figures.median("net.stream.rx.qemu.throughput"), None);
    assert_eq!(figures.median("net.stream.rx.ringlet.uring.of_qemu"), None);
    assert_eq!(figures.median("net.stream.rx.ringlet.uring.of_host"), Some(1.0));
}
