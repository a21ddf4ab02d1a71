use super::super::super::traffic::GIB;
use super::super::targets::TARGETS;
use super::*;

struct Nowhere;

impl Reach for Nowhere {
    fn connect(&self, _port: u32) -> std::io::Result<Box<dyn super::super::client::Wire + '_>> {
        Err(std::io::ErrorKind::ConnectionRefused.into())
    }
}

/// Lanes of which each has one run: a guest is half as fast as the host, and its exits take 10 and 20 µs.
fn lanes() -> Vec<Lane<'static>> {
    let lane = |who: Contender| {
        let rate = if who.is_guest() { 10_000.0 } else { 20_000.0 };
        let latencies = vec![Duration::from_secs_f64(1.0 / rate)];
        let measured = Measured { amount: rate, time: Duration::from_secs(1), latencies };
        let exit = Exit { port: Duration::from_micros(10), memory: Duration::from_micros(20) };
        let exit = who.is_guest().then_some(exit);
        let run = Run { measured, cpu: Duration::from_millis(500), exit };
        Lane { who, reach: Ok(Box::new(Nowhere)), runs: vec![run] }
    };
    Contender::ALL.into_iter().map(lane).collect()
}

/// All figures.
fn figures(lanes: &[Lane<'_>]) -> Report {
    let mut report = Report::new("vsock", true);
    Scenario::ALL.into_iter().for_each(|scenario| add_figures(scenario, lanes, &mut report));
    report
}

fn close(value: Option<f64>, expected: f64) -> bool {
    value.is_some_and(|value| (value / expected - 1.0).abs() < 1e-6)
}

#[test]
fn figures_say_what_was_measured() {
    let figures = figures(&lanes());
    for (id, expected) in [
        ("vsock.requests.ringlet.uring.socket.p50", 1e-4),
        ("vsock.requests.ringlet.uring.socket.exit.port", 1e-5),
        ("vsock.requests.ringlet.epoll.stream.exit.memory", 2e-5),
        ("vsock.requests.ringlet.uring.stream.p50.of_exit", 10.0),
        ("vsock.requests.host.rate", 20_000.0),
        ("vsock.stream.rx.ringlet.epoll.socket.of_host", 0.5),
        ("vsock.stream.tx.ringlet.uring.stream.throughput", 10_000.0),
        ("vsock.stream.tx.host.cpu_per_gib", 0.5 / (20_000.0 / GIB)),
        ("vsock.connections.ringlet.uring.stream.cpu", 5e-5),
    ] {
        assert!(close(figures.median(id), expected), "{id}: {:?}", figures.median(id));
    }
    assert!(!figures.has(|id| id.contains("host.exit") || id.contains("host.p50.")));
}

#[test]
fn every_target_has_its_figure() {
    let figures = figures(&lanes());
    for target in TARGETS {
        assert!(figures.median(target.figure).is_some());
    }
}

#[test]
fn what_cannot_run_here_has_no_figures_and_a_reason() {
    let mut lanes = lanes();
    for lane in lanes.iter_mut().filter(|lane| lane.who.id().contains("uring")) {
        (lane.reach, lane.runs) = (Err("no io_uring".to_owned()), Vec::new());
    }
    let figures = figures(&lanes);
    assert_eq!(figures.median("vsock.requests.ringlet.uring.socket.p50"), None);
    assert_eq!(figures.median("vsock.stream.rx.ringlet.uring.stream.of_host"), None);
    assert!(figures.median("vsock.stream.rx.ringlet.epoll.stream.of_host").is_some());
}

#[test]
fn a_lane_that_is_refused_says_who_and_what() {
    let mut lanes = lanes();
    let error =
        lanes[1].measure(Scenario::StreamIn, Duration::from_millis(1), false).unwrap_err().to_string();
    assert!(error.contains("Unix socket: A stream to the guest"), "{error}");
}
