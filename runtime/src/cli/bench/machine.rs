//! The machine that the figures are from: without it they say nothing.

use std::io::{self, Write};
use std::num::NonZero;

use ringlet::check;
use ringlet_metrics::Escaped;
use serde::Serialize;

/// What the figures depend on.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    cpu: String,
    /// CPUs that this process may use.
    cores: usize,
    kernel: String,
    /// What implements `/dev/kvm`.
    kvm: String,
    memory_bytes: u64,
    /// Load average of the last minute, before the first figure and after the last. More than a little before
    /// says that others used the machine.
    load_before: f64,
    load_after: f64,
}

impl Machine {
    /// Looks at this machine. What cannot be read is empty or 0.
    pub(super) fn describe() -> Self {
        let load = load();
        let report = check::report();
        let found = |id| report.items.iter().find(|item| item.id == id).map(|item| item.found.clone());
        Self {
            cpu: Escaped(&cpu_model(&read("/proc/cpuinfo"))).to_string(),
            cores: std::thread::available_parallelism().map_or(1, NonZero::get),
            kernel: Escaped(read("/proc/sys/kernel/osrelease").trim()).to_string(),
            kvm: found("kvm.backend").unwrap_or_default(),
            memory_bytes: super::usage::meminfo("MemTotal"),
            load_before: load,
            load_after: load,
        }
    }

    /// The load again, when all is done.
    pub(super) fn look_again(&mut self) {
        self.load_after = load();
    }

    /// Three lines for people.
    pub(super) fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let gib = self.memory_bytes as f64 / f64::from(1 << 30);
        writeln!(out, "{}, {} cores, {gib:.1} GiB", self.cpu, self.cores)?;
        writeln!(out, "Linux {}, KVM: {}", self.kernel, self.kvm)?;
        writeln!(out, "load {:.2} before, {:.2} after", self.load_before, self.load_after)
    }
}

fn cpu_model(cpuinfo: &str) -> String {
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    model.map_or_else(|| "unknown processor".to_owned(), |(_, name)| name.trim().to_owned())
}

fn load() -> f64 {
    let text = read("/proc/loadavg");
    text.split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or(0.0)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_named() {
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: A CPU @ 2 GHz\nflags\t: fpu\n"), "A CPU @ 2 GHz");
        assert_eq!(cpu_model(""), "unknown processor");
    }

    #[test]
    fn this_machine_is_described() {
        let machine = Machine::describe();
        assert!(machine.cores >= 1);
        assert!(machine.memory_bytes > 0);
        assert!(!machine.kernel.is_empty());
    }
}
