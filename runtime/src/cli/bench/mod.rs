//! `ringlet bench`: measures Ringlet on this host and compares with its targets.
//!
//! This folder owns what every benchmark shares: the options, samples and their summary ([`stats`]), turns
//! ([`interleave`]), what is measured again ([`undisturbed`]), the machine's description ([`machine`]), targets ([`target`]), the report in both its forms
//! ([`report`]), and what several of them measure with: processes ([`process`], [`qemu`], [`idle_vms`]), VMs
//! ([`launched`]), the guest that drives disks ([`blkbench`]). Each benchmark is a module that fills a
//! [`report::Report`]. What is measured is the public library, and the command as a process; nothing here reaches
//! into either.

mod blkbench;
mod block;
mod boot;
mod density;
mod idle_vms;
mod interleave;
mod launched;
mod limiter;
mod machine;
mod net;
mod own_shard;
mod process;
mod qemu;
mod report;
mod stats;
mod target;
mod traffic;
mod undisturbed;
mod unnamed;
mod usage;
mod victim;
mod vsock;

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
    /// A guest's disk, compared with its I/O done without a VM and with QEMU
    Block(block::BlockOptions),
    /// A guest's network, compared with its tap without a VM and with QEMU
    Net(net::NetOptions),
    /// Streams between host and guest, compared with a Unix socket without a VM and with an exit
    Vsock(Options),
    /// Many VMs with a disk in one process: making, keeping and ending them
    Density(Options),
    /// A VM's disk beside VMs that mean harm
    Victim(Options),
    /// What VMs get of what their limits allow
    Limiter(limiter::LimiterOptions),
    /// Part of `boot` and `density`: holds idle VMs in a process of their own and prints what they cost
    #[command(hide = true)]
    IdleVms(idle_vms::IdleArgs),
    /// Part of `block`: a disk's I/O without a VM
    #[command(hide = true)]
    HostLoop(block::HostLoopArgs),
    /// Part of `net`: carries frames between two taps without a VM
    #[command(hide = true)]
    TapLoop(net::TapLoopArgs),
    /// Part of `net`: serves behind them
    #[command(hide = true)]
    NetPeer(net::PeerArgs),
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
        Bench::Block(args) => present(block::run(args)?, args.options),
        Bench::Net(args) => present(net::run(args)?, args.options),
        Bench::Vsock(options) => present(vsock::run(*options)?, *options),
        Bench::Density(options) => present(density::run(*options)?, *options),
        Bench::Victim(options) => present(victim::run(*options)?, *options),
        Bench::Limiter(args) => present(limiter::run(args)?, args.options),
        Bench::IdleVms(args) => idle_vms::hold(args),
        Bench::HostLoop(args) => block::run_host_loop(args),
        Bench::TapLoop(args) => net::run_tap_loop(args),
        Bench::NetPeer(args) => net::run_peer(args),
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
