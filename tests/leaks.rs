//! What VMs leave behind in the process that ran them: nothing. One test, so that nothing else runs in this process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use common::guest::Code;
use common::{Host, block_on, buffered, eventually, small};
use ringlet::{EngineChoice, Outcome, Resources, VmConfig};

const ROUNDS: usize = 1000;
/// VMs that are there at once.
const AT_ONCE: usize = 10;
/// What the allocator may keep for itself, in KiB.
const SLACK: u64 = 4096;

/// What the process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    threads: usize,
}

impl Held {
    fn now() -> Self {
        let count = |folder| std::fs::read_dir(folder).unwrap().count();
        Self { descriptors: count("/proc/self/fd"), threads: count("/proc/self/task") }
    }
}

/// Memory that is not shared, in KiB: what is left of guest RAM does not hide in it.
fn private_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn live(host: &Host, code: &Code, rounds: usize) {
    for _ in 0..rounds / AT_ONCE {
        let guests: Vec<_> = (0..AT_ONCE).map(|_| host.launch(code)).collect();
        for guest in guests {
            assert_eq!(*block_on(guest.outcome()), Outcome::Exited { code: 5 });
        }
    }
    eventually("the reaper has closed all", || {
        host.runtime.registry().encode().contains("ringlet_reaper_backlog 0")
    });
}

/// Creations that fail at one step after the other.
fn fail(host: &Host, code: &Code) {
    let (resources, _) = buffered(code);
    let misfits = [
        small().vcpus(0),
        small().memory_mib(1),
        small().cmdline("a -- b"),
        small().cmdline("x".repeat(10_000)),
        small().initrd("/nonexistent"),
    ];
    for config in misfits {
        host.runtime.launch(&config, resources.clone()).expect_err("it cannot be made");
    }
    let missing = host.runtime.launch(&VmConfig::new("/nonexistent"), Resources::default());
    missing.expect_err("there is no such image");
}

#[test]
fn a_thousand_vms_and_as_many_failures_leave_nothing_behind() {
    let outside = Held::now();
    let host = Host::new(EngineChoice::Auto);
    let code = Code::new().print("x").exit(5);
    live(&host, &code, 100);
    fail(&host, &code);
    let (before, memory) = (Held::now(), private_kib());
    live(&host, &code, ROUNDS);
    for _ in 0..ROUNDS / 6 {
        fail(&host, &code);
    }
    eventually("threads and descriptors are as before", || Held::now() == before);
    let grown = private_kib().saturating_sub(memory);
    assert!(grown < SLACK, "{grown} KiB more than before");
    drop(host);
    eventually("the runtime is gone", || Held::now().threads == outside.threads);
    assert!(Held::now().descriptors <= outside.descriptors + 2, "{outside:?} {:?}", Held::now());
}
