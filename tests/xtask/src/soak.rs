//! A slice of soak: many VMs come and go, and the machine is as it was before.

use crate::process::root;
use anyhow::{Context, Result, ensure};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long.
const SLICE: Duration = Duration::from_secs(60);
/// VMs at once in one process.
const VMS: usize = 50;
/// What one round may take before it counts as hanging.
const ROUND_LIMIT: &str = "60";

/// Runs `ringlet run hello --count` again and again.
///
/// # Errors
/// A round has another status than 0, does not end, loses output of a VM, or the host has lost
/// file handles over the whole slice.
pub(crate) fn run() -> Result<()> {
    let binary = root().join("target/x86_64-unknown-linux-gnu/release/ringlet");
    ensure!(binary.exists(), "{} is not there: build it (step `release`)", binary.display());
    let before = open_files()?;
    let started = Instant::now();
    let mut rounds = 0_usize;
    while started.elapsed() < SLICE {
        let mut command = Command::new("timeout");
        command.arg(ROUND_LIMIT).arg(&binary).args(["run", "hello", "--count", &VMS.to_string()]);
        let output = command.stdin(Stdio::null()).output().context("cannot start timeout(1)")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "round {rounds}: {}\n{text}{errors}", output.status);
        let vms = speakers(&text);
        ensure!(vms == VMS, "round {rounds}: output of {vms} VMs instead of {VMS}\n{text}{errors}");
        rounds += 1;
    }
    let after = open_files()?;
    // Others open and close files meanwhile, and the kernel counts roughly; VMs that leave one each are not to be missed.
    let made = rounds * VMS;
    ensure!(
        after < before + made / 4,
        "{made} VMs: the host had {before} open files before and {after} after"
    );
    println!("    {rounds} rounds of {VMS} VMs; open files of the host: {before} before, {after} after");
    Ok(())
}

/// How many different prefixes (the first word of a line) there are: one for each VM.
fn speakers(text: &str) -> usize {
    let mut names: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().next()).collect();
    names.sort_unstable();
    names.dedup();
    names.len()
}

/// Open file descriptions of the whole machine.
fn open_files() -> Result<usize> {
    let text = std::fs::read_to_string("/proc/sys/fs/file-nr").context("cannot read file-nr")?;
    text.split_whitespace().next().context("file-nr is empty")?.parse().context("file-nr is no number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_prefix_counts_once() {
        assert_eq!(speakers("vm-1| hello\nvm-2| hello\n\nvm-1| bye\n"), 2);
    }

    #[test]
    fn this_machine_has_open_files() {
        assert!(open_files().unwrap() > 0);
    }
}
