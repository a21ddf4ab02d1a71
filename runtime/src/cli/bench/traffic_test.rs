use super::*;

#[test]
fn percentiles_are_the_nearest_rank() {
    let latencies = (1..=200).map(Duration::from_micros).collect();
    let measured = Measured { amount: 200.0, time: Duration::from_secs(2), latencies };
    assert_eq!(
        (measured.percentile(50), measured.percentile(99)),
        (Duration::from_micros(100), Duration::from_micros(198))
    );
    assert_eq!(measured.rate(), 100.0);
    assert_eq!(Measured::default().percentile(99), Duration::ZERO);
    assert!(Measured::default().of_something().is_err());
}

#[test]
fn what_was_taken_is_what_was_sent() {
    let measured = taken("262144 1000\n", 262_144).unwrap();
    assert_eq!((measured.amount, measured.time), (262_144.0, Duration::from_micros(1)));
    for line in ["", "1", "1 \n", " 1\n", "1 x\n", "1 2 3\n", "-1 2\n", "2 1000\n"] {
        assert!(taken(line, 1).is_err(), "{line:?}");
    }
}

#[test]
fn a_stream_that_ends_is_an_error() {
    assert!(receive(&mut io::empty(), Duration::ZERO).is_err());
    assert!(receive(&mut [1].as_slice(), Duration::ZERO).is_err());
    assert_eq!(receive(&mut io::repeat(1), Duration::ZERO).unwrap().amount, PIECE as f64);
}
