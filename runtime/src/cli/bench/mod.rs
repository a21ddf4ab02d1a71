//! `ringlet bench`: measures Ringlet on this host and compares with its targets.
//!
//! This folder owns what every benchmark shares: the options, samples and their summary ([`stats`]), turns
//! ([`interleave`]), the machine's description ([`machine`]), targets ([`target`]) and the report in both its
//! forms ([`report`]). Each benchmark is a module that fills a [`report::Report`]. What is measured is the public
//! library, and the command as a process; nothing here reaches into either.

mod boot;
mod interleave;
mod machine;
mod process;
mod report;
mod stats;
mod target;
mod usage;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::CliResult;
use super::log::{self, LogLevel};
use report::Report;

/// Options of `ringlet bench`.
#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Starting, keeping and ending VMs, compared with the least that could do it and with QEMU
    Boot(Options),
    /// Part of `boot`: holds idle VMs in a process of their own and prints what they cost
    #[command(hide = true)]
    IdleVms(boot::IdleArgs),
}

/// Options of every benchmark.
#[derive(Debug, Clone, Copy, Args)]
struct Options {
    /// Print the report as JSON
    #[arg(long)]
    json: bool,

    /// Exit with 1 if a target is missed
    #[arg(long)]
    check: bool,

    /// Measure less often: shows that everything works, and roughly how fast, in under a minute
    #[arg(long)]
    quick: bool,
}

/// Runs what `args` say.
pub(super) fn run(args: &BenchArgs) -> CliResult<ExitCode> {
    log::start(LogLevel::Error);
    match &args.bench {
        Bench::Boot(options) => present(boot::run(*options)?, *options),
        Bench::IdleVms(args) => boot::hold_idle_vms(args),
    }
}

/// Prints the report; the exit status says whether the targets are met, if that was asked.
fn present(report: Report, options: Options) -> CliResult<ExitCode> {
    let mut out = io::stdout().lock();
    if options.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        report.print(&mut out)?;
    }
    if !options.check {
        return Ok(ExitCode::SUCCESS);
    }
    for verdict in report.missed() {
        writeln!(io::stderr(), "ringlet: target missed: {verdict}")?;
    }
    Ok(if report.met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Says on standard error what is being measured: it takes a while.
fn progress(what: &str) {
    // Without a reader there is nobody to tell.
    let _ = writeln!(io::stderr(), "measuring {what} …");
}
