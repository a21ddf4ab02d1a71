use super::super::target::{Limit, Quantity};
use super::*;

fn samples(values: &[f64]) -> Samples {
    values.iter().copied().collect()
}

fn report() -> Report {
    let floor = Figure::new("process.floor", "Process", "floor", Unit::Seconds, &samples(&[0.001]));
    let ours = Figure::new("process.ringlet", "Process", "ringlet", Unit::Seconds, &samples(&[0.0015]));
    let mut report = Report::new("boot", true);
    report.add(ours.compared_with(&floor, "floor"));
    report.add(floor);
    report.add(Figure::missing("process.qemu", "Process", "QEMU", Unit::Seconds, "not\ninstalled"));
    report.note("a note");
    report
}

fn target(limit: f64) -> Target {
    Target {
        id: "ratio",
        what: "start",
        figure: "process.ringlet",
        quantity: Quantity::Ratio,
        limit: Limit::AtMost(limit),
    }
}

#[test]
fn values_are_shown_in_a_unit_that_fits() {
    for (unit, value, text) in [
        (Unit::Seconds, 12.34e-6, "12.3 µs"),
        (Unit::Seconds, 0.001_234_5, "1.234 ms"),
        (Unit::Seconds, 2.5, "2.500 s"),
        (Unit::Bytes, 65_536.0, "64.0 KiB"),
        (Unit::PerSecond, 1234.5, "1234 /s"),
        (Unit::BytesPerSecond, 1_572_864_000.0, "1500 MiB/s"),
        (Unit::Ratio, 0.95, "0.950 ×"),
        (Unit::Cores, 0.005, "0.500 %"),
    ] {
        assert_eq!(unit.show(value), text);
    }
}

#[test]
fn the_table_names_figures_ratios_gaps_and_verdicts() {
    let mut out = Vec::new();
    report().judge(&[target(1.4)]).print(&mut out).unwrap();
    let table = String::from_utf8(out).unwrap();
    for part in [
        "ringlet 0.1.0 bench boot --quick",
        "1.50 × floor",
        "not measured: not\\ninstalled",
        "a note",
        "MISSED start: 1.500 ×, at most 1.400 ×",
    ] {
        assert!(table.contains(part), "{part} is not in:\n{table}");
    }
    assert_eq!(table.matches("\nProcess ").count(), 1, "{table}");
}

#[test]
fn the_json_has_the_documented_fields() {
    let json = serde_json::to_value(report().judge(&[target(1.6)])).unwrap();
    for field in ["schema", "bench", "version", "quick", "machine", "figures", "notes", "targets", "met"] {
        assert!(json.get(field).is_some(), "{field}");
    }
    let figure = &json["figures"][0];
    assert_eq!(figure["id"], "process.ringlet");
    assert_eq!(figure["unit"], "seconds");
    assert_eq!(figure["measured"]["samples"], 1);
    assert_eq!(figure["measured"]["median"], 0.0015);
    assert_eq!(figure["baseline"]["figure"], "process.floor");
    assert!(json["figures"][2]["measured"].is_null());
    let verdict = &json["targets"][0];
    assert_eq!(verdict["quantity"], "ratio");
    assert_eq!(verdict["limit"]["at_most"], 1.6);
    assert_eq!(verdict["met"], true);
    assert_eq!(json["met"], true);
}

#[test]
fn one_missed_target_is_enough() {
    let report = report().judge(&[target(1.6), target(1.4)]);
    assert!(!report.met);
    assert_eq!(report.missed().count(), 1);
}
