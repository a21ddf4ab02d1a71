//! `ringlet run`: starts VMs, gives one of them the terminal, and waits for their ends or a signal.

use std::cell::RefCell;
use std::io::{self, IsTerminal};
use std::num::NonZero;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use ringlet::{
    BootSource, Console, Initrd, LineConsole, Outcome, Resources, Runtime, RuntimeOptions, StreamConsole, Vm,
    VmConfig,
};

use ringlet_io::OWN_DESCRIPTORS;
use rustix::io::Errno;

use super::limits_report;
use super::metrics_server::MetricsServer;
use super::reload::{hangups, on_hangup};
use super::report::{OutcomeLog, Reporter};
use super::run::RunArgs;
use super::signals::Signals;
use super::stdin::{feed_stdin, follow_size};
use super::terminal::{RawTerminal, in_foreground};
use super::{CliResult, FAILED, log, vsock};

/// With fewer open files not one VM runs, with its console, on either engine.
pub(super) const LEAST_OPEN_FILES: u64 = 24;
/// What a VM with a socket device needs besides: the device's own, those that no other VM can take of connections and of
/// greetings, and one each for whoever is accepted and connected to.
pub(super) const SOCKET_OPEN_FILES: u64 = 6 + 2 * OWN_DESCRIPTORS + 2;
/// How long after a signal reports may take to be written.
const REPORT_TIME: Duration = Duration::from_secs(1);

/// Runs what `args` say.
pub(super) fn run(args: &RunArgs) -> CliResult<ExitCode> {
    log::start(args.log_level);
    let config = args.config()?;
    if args.count.get() > 1 || config.vsock.is_some() {
        raise_open_files();
    }
    let least = LEAST_OPEN_FILES + config.vsock.as_ref().map_or(0, |_| SOCKET_OPEN_FILES);
    if open_files_limit().is_some_and(|limit| limit < least) {
        // Some of what it takes to begin with does not fail, but panics.
        return Err(io::Error::from(Errno::MFILE).into());
    }
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = executor.block_on(supervise(args, config));
    log::finish();
    status
}

/// Every VM takes a handful of descriptors, and so many connections one each; the usual soft limit is for programs
/// that use `select(2)`.
pub(super) fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::debug!(%error, "the limit on open files stays as it is");
    }
}

/// The limit on open files; `None` if there is none.
pub(super) fn open_files_limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

async fn supervise(args: &RunArgs, config: VmConfig) -> CliResult<ExitCode> {
    let single = args.count.get() == 1;
    let mut terminal = if single { RawTerminal::new()? } else { None };
    // Of a terminal that is gone, it means what it says.
    let reloads = args.config_file.is_some() && terminal.is_none();
    let mut signals = Signals::new(reloads)?;
    let mut hangups = reloads.then(hangups).transpose()?;
    // A VM lives on one loop, so more would have nothing to do.
    let shards = args.shards.or((args.count == NonZero::<u32>::MIN).then_some(args.count));
    let console = console(single)?;
    let outcomes = args.outcome.as_deref().map(|target| OutcomeLog::open(target, &console)).transpose()?;
    let mut reporter = Reporter::new(outcomes);
    let runtime = Runtime::new(RuntimeOptions {
        engine: args.io_engine.into(),
        shards,
        busy_poll: args.busy_poll,
        vsock_descriptors: args.vsock_descriptors,
        ..RuntimeOptions::default()
    })?;
    let serve = |endpoint| MetricsServer::start(endpoint, runtime.registry().clone());
    let _metrics = args.metrics.as_ref().map(serve).transpose()?;
    let (vms, begun): (Vec<_>, Vec<_>) = match launch(&runtime, args, &config, &mut signals, &console).await {
        Ok(launched) => launched.into_iter().unzip(),
        Err(NotStarted { number, name, error }) => {
            reporter.not_started(number, name.as_deref(), &error)?;
            written(reporter, &mut signals).await;
            return Err(error.into());
        }
    };
    let (vms, config) = (Arc::new(vms), RefCell::new(config));
    if single {
        feed_stdin(&vms, terminal.is_some())?;
    }
    let report = |vm: &Vm, ran| args.limits_report.then(|| limits_report::of(vm, &config.borrow(), ran));
    let ended = Ended { single, begun: &begun, report: &report };
    let sized = terminal.is_some() && config.borrow().ringlet.console;
    let status = tokio::select! {
        biased;
        status = watch(&vms, &mut reporter, &mut terminal, &ended) => status?,
        never = on_hangup(&mut hangups, args, &config, &runtime, &vms) => match never {},
        () = follow_size(&vms), if sized => FAILED,
        () = second_signal(&mut signals, &vms) => {
            // Whatever still waits, for a reader or for anything else, is not worth waiting for.
            drop(terminal);
            std::process::exit(signals.status().unwrap_or(FAILED).into());
        }
    };
    let all = written(reporter, &mut signals).await;
    if let Some(reason) = console.lost() {
        return Err(format!(
            "standard output could not be written, and what a guest printed is lost: {reason}"
        )
        .into());
    }
    Ok(ExitCode::from(if all { signals.status().unwrap_or(status) } else { FAILED }))
}

/// Returns when the reports are written; `false` if an outcome could not be.
async fn written(reporter: Reporter, signals: &mut Signals) -> bool {
    tokio::select! {
        all = reporter.finish() => all,
        // Nobody reads what there is to say, and somebody wants an end.
        () = impatience(signals) => true,
    }
}

/// Returns with the next signal, or soon if there was one.
async fn impatience(signals: &mut Signals) {
    if signals.status().is_none() {
        signals.next().await;
    }
    tokio::time::sleep(REPORT_TIME).await;
}

/// Where the VMs' output goes.
fn console(single: bool) -> io::Result<Console> {
    let stdout = io::stdout().as_fd().try_clone_to_owned()?;
    // A guest's bytes reach a terminal as they are only where that terminal is given to the guest.
    let raw = single && (!stdout.is_terminal() || in_foreground(&stdout));
    Ok(match raw {
        true => Console::Stream(StreamConsole::new(stdout)),
        false => Console::Lines(LineConsole::new(stdout)),
    })
}

/// A VM that could not be started.
struct NotStarted {
    /// Which, from 1.
    number: u32,
    name: Option<String>,
    error: String,
}

/// Starts the VMs, and says when it did. If one cannot be made, those before it end with the error; a signal ends the starting.
async fn launch(
    runtime: &Runtime,
    args: &RunArgs,
    config: &VmConfig,
    signals: &mut Signals,
    console: &Console,
) -> Result<Vec<(Vm, Instant)>, NotStarted> {
    let failed = |number: u32, name: Option<&str>, error: ringlet::Error| NotStarted {
        number,
        name: name.map(str::to_owned),
        error: as_given(args, error).to_string(),
    };
    let name = config.ringlet.name.as_deref();
    if args.count.get() == 1 {
        let resources = Resources { console: console.clone(), ..Resources::default() };
        let begun = Instant::now();
        return Ok(vec![(runtime.launch(config, resources).map_err(|e| failed(1, name, e))?, begun)]);
    }
    let named = |number: u32| format!("{}-{number}", name.unwrap_or("vm"));
    let shared = shared(runtime, config).map_err(|e| failed(1, Some(&named(1)), e))?;
    let mut vms = Vec::new();
    for number in 1..=args.count.get() {
        let name = named(number);
        let console = match console {
            Console::Lines(lines) => Console::Lines(lines.with_prefix(format!("[{name}] "))),
            other => other.clone(),
        };
        let begun = Instant::now();
        let mut config = config.clone().name(&name);
        vsock::of_many(&mut config, number);
        let vm = runtime.launch(&config, Resources { console, ..shared.clone() });
        let vm = vm.map_err(|e| {
            let NotStarted { error, .. } = failed(number, None, e);
            NotStarted { number, error: format!("{name}: {error}"), name: Some(name.clone()) }
        })?;
        vms.push((vm, begun));
        if signals.arrived().await {
            vms.iter().for_each(|(vm, _)| vm.request_stop());
            break;
        }
    }
    Ok(vms)
}

/// `error`, with what the command line calls a file that it names.
fn as_given(args: &RunArgs, error: ringlet::Error) -> ringlet::Error {
    match error {
        ringlet::Error::ImageFile { field: "kernel_image_path", source } if args.names_image() => {
            ringlet::Error::ImageFile { field: "image", source }
        }
        ringlet::Error::ImageFile { field: "initrd_path", source } if args.names_initrd() => {
            ringlet::Error::ImageFile { field: "--initrd", source }
        }
        error => error,
    }
}

/// What all VMs share, opened once.
fn shared(runtime: &Runtime, config: &VmConfig) -> ringlet::Result<Resources> {
    let BootSource { kernel_image_path, initrd_path, .. } = &config.boot_source;
    Ok(Resources {
        image: Some(runtime.open_image(kernel_image_path)?),
        initrd: initrd_path.as_deref().map(Initrd::open).transpose().map_err(ringlet::Error::initrd)?,
        ..Resources::default()
    })
}

/// How ends are told.
struct Ended<'a> {
    /// There is only one VM, which needs no name.
    single: bool,
    /// When each was started.
    begun: &'a [Instant],
    /// What else there is to say of a VM that has run so long.
    report: &'a dyn Fn(&Vm, Duration) -> Option<String>,
}

/// Waits for the ends of all VMs, in their order, and reports them. Returns the first exit status that is not 0.
async fn watch(
    vms: &[Vm],
    reporter: &mut Reporter,
    terminal: &mut Option<RawTerminal>,
    ended: &Ended<'_>,
) -> CliResult<u8> {
    let mut status = 0;
    let ends = vms.iter().zip(ended.begun).map(async |(vm, begun)| {
        let outcome: Arc<Outcome> = vm.wait().await;
        (vm, outcome, begun.elapsed())
    });
    let mut ends: FuturesOrdered<_> = ends.collect();
    while let Some((vm, outcome, ran)) = ends.next().await {
        drop(terminal.take());
        let prefix = if ended.single { String::new() } else { format!("[{}] ", vm.name()) };
        reporter.ended(vm, &outcome, &prefix)?;
        if let Some(report) = (ended.report)(vm, ran) {
            reporter.say_lines(&prefix, &report)?;
        }
        status = if status == 0 { outcome.exit_status() } else { status };
    }
    Ok(status)
}

/// The first signal stops all VMs; returns with the second.
async fn second_signal(signals: &mut Signals, vms: &[Vm]) {
    while signals.next().await {
        vms.iter().for_each(Vm::request_stop);
    }
}
