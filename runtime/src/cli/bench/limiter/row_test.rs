use super::*;

const ENGINES: [EngineKind; 2] = [EngineKind::Uring, EngineKind::Epoll];

fn has(rows: &[Row], is: impl Fn(&Row) -> bool) -> bool {
    rows.iter().any(is)
}

#[test]
fn every_value_of_each_dimension_is_measured_on_both_engines() {
    for engine in ENGINES {
        let rows = Row::all(Effort::USUAL, &[engine]);
        for refill_ms in [1, 10, 100, 1000, 10_000] {
            for meter in [Meter::Operations, Meter::Bytes] {
                assert!(has(&rows, |row| row.refill_ms == refill_ms && row.meter == meter));
            }
        }
        for meter in [Meter::Operations, Meter::Bytes] {
            for access in [Access::Read, Access::Write, Access::Mixed] {
                assert!(has(&rows, |row| row.meter == meter && row.access == access));
            }
            for queues in [1, 8] {
                assert!(has(&rows, |row| row.meter == meter && row.queues == queues));
            }
        }
        for request in [Request::Below, Request::At, Request::Above] {
            assert!(has(&rows, |row| row.request == request && row.meter == Meter::Bytes));
        }
    }
}

#[test]
fn requests_are_what_their_rows_say() {
    for row in Row::all(Effort::USUAL, &ENGINES) {
        let (size, tokens) = (row.size(), row.tokens());
        match row.request {
            Request::Below => assert!(tokens < size, "{}", row.id()),
            Request::At => assert_eq!(tokens, size, "{}", row.id()),
            Request::Above => assert!(tokens > size, "{}", row.id()),
        }
        row.config().validate().unwrap();
    }
}

#[test]
fn ids_are_unique_and_windows_long_enough() {
    let rows = Row::all(Effort::USUAL, &ENGINES);
    let mut ids: Vec<_> = rows.iter().map(|row| row.id()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), rows.len());
    for row in rows {
        let least = row.least(Effort::USUAL);
        let refills = if row.refill_ms > 1000 { 30 } else { 100 };
        assert!(least.time >= row.refill() * refills && least.operations >= 1000);
        assert!(row.window(Effort::USUAL) <= Duration::from_secs(300), "{}", row.id());
    }
}

#[test]
fn quick_leaves_out_the_longest_refills() {
    let rows = Row::all(Effort::QUICK, &ENGINES);
    assert!(rows.iter().all(|row| row.window(Effort::QUICK) <= Duration::from_secs(1)));
    assert!(has(&rows, |row| row.refill_ms == 100) && !has(&rows, |row| row.refill_ms > 100));
}

#[test]
fn the_error_is_of_what_is_limited() {
    let row = Row {
        engine: EngineKind::Epoll,
        refill_ms: 10,
        meter: Meter::Bytes,
        request: Request::At,
        access: Access::Read,
        queues: 1,
    };
    let obtained = Obtained { time: Duration::from_secs(1), operations: 7, bytes: 101 * BLOCK };
    assert!((row.error(obtained) - 0.01).abs() < 1e-9);
    let row = Row { meter: Meter::Operations, ..row };
    assert!((row.error(Obtained { operations: 99, ..obtained }) + 0.01).abs() < 1e-9);
}
