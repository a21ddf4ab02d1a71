//! What the figures of `bench boot` should be, on a machine of two cores that does nothing else.

use super::super::target::{Limit, Quantity, Target};

/// From the start of the process to the guest's first byte: over what the least program needs, this leaves room
/// for an event loop, validation and a command line.
const FIRST_BYTE_OVER_FLOOR: f64 = 1.6;
/// From the start of the process to its end: as above, and for taking an event loop and threads down again.
const EXIT_OVER_FLOOR: f64 = 2.0;
/// From the call that makes a VM to its first byte, in seconds: cold starts need no pool to be quick.
const CREATE_TO_FIRST_BYTE: f64 = 1.0e-3;
/// The same, p90 over median: a start that is quick only sometimes is of no use.
const CREATE_SPREAD: f64 = 2.0;
/// VMs a second when 50 are started at once.
const VMS_PER_SECOND: f64 = 1000.0;
/// Private memory of an idle VM in bytes, beside its RAM: density is bounded by the kernel's share, not by ours.
const PRIVATE_MEMORY: f64 = 64.0 * 1024.0;
/// CPU time of 1,000 idle VMs, 1 = one core: nothing polls, no timer ticks.
const IDLE_CPU: f64 = 0.005;
/// p90 of pausing, and of stopping, a VM that computes, in seconds.
const CONTROL: f64 = 10.0e-3;
/// How much of its solo speed a VM keeps beside a hostile one.
const BESIDE_HOSTILE: f64 = 0.9;

pub(super) const TARGETS: [Target; 11] = [
    Target {
        id: "start.first_byte",
        what: "process start to first byte, `run hello`",
        figure: "start.hello.ringlet.first_byte",
        quantity: Quantity::Ratio,
        limit: Limit::AtMost(FIRST_BYTE_OVER_FLOOR),
    },
    Target {
        id: "start.exit",
        what: "process start to exit, `run hello`",
        figure: "start.hello.ringlet.exit",
        quantity: Quantity::Ratio,
        limit: Limit::AtMost(EXIT_OVER_FLOOR),
    },
    Target {
        id: "life.first_byte",
        what: "create to first byte",
        figure: "life.first_byte",
        quantity: Quantity::Median,
        limit: Limit::AtMost(CREATE_TO_FIRST_BYTE),
    },
    Target {
        id: "life.first_byte.spread",
        what: "create to first byte, p90 over median",
        figure: "life.first_byte",
        quantity: Quantity::P90OverMedian,
        limit: Limit::AtMost(CREATE_SPREAD),
    },
    Target {
        id: "fleet.rate",
        what: "50 VMs at once",
        figure: "fleet.rate",
        quantity: Quantity::Median,
        limit: Limit::AtLeast(VMS_PER_SECOND),
    },
    Target {
        id: "idle.private.100",
        what: "private memory of an idle VM, of 100",
        figure: "idle.private.100",
        quantity: Quantity::Median,
        limit: Limit::AtMost(PRIVATE_MEMORY),
    },
    Target {
        id: "idle.private.1000",
        what: "private memory of an idle VM, of 1,000",
        figure: "idle.private.1000",
        quantity: Quantity::Median,
        limit: Limit::AtMost(PRIVATE_MEMORY),
    },
    Target {
        id: "idle.cpu",
        what: "CPU of 1,000 idle VMs",
        figure: "idle.cpu",
        quantity: Quantity::Median,
        limit: Limit::AtMost(IDLE_CPU),
    },
    Target {
        id: "control.pause",
        what: "pausing a running VM, p90",
        figure: "control.pause",
        quantity: Quantity::P90,
        limit: Limit::AtMost(CONTROL),
    },
    Target {
        id: "control.stop",
        what: "stopping a running VM, p90",
        figure: "control.stop",
        quantity: Quantity::P90,
        limit: Limit::AtMost(CONTROL),
    },
    Target {
        id: "neighbour.progress",
        what: "speed beside a hostile VM, of solo",
        figure: "neighbour.progress",
        quantity: Quantity::Median,
        limit: Limit::AtLeast(BESIDE_HOSTILE),
    },
];
