//! `ringlet run`: VMs in the foreground.

use std::fs::File;
use std::future::poll_fn;
use std::io::{self, IsTerminal, Read, Write};
use std::num::NonZero;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

use clap::{Args, ValueEnum, ValueHint};
use ringlet::{
    BootProtocol, Console, EngineChoice, HugePages, Initrd, LineConsole, Outcome, Resources, Runtime,
    RuntimeOptions, Vm, VmConfig,
};
use ringlet_metrics::{Endpoint, Escaped, Registry, exposition};
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::CliResult;
use super::log::{self, LogLevel};
use super::terminal::{EscapeKeys, HELP, Key, RawTerminal, in_foreground};

/// Options of `ringlet run`.
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_STATUS)]
pub(super) struct RunArgs {
    /// A bundled image (see `ringlet images`) or an ELF64 file
    #[arg(value_hint = ValueHint::FilePath, required_unless_present = "config_file")]
    image: Option<String>,

    /// Guest RAM, with a suffix: 64M, 2G
    #[arg(long, short, value_parser = parse_memory)]
    memory: Option<u32>,

    /// Number of vCPUs, 1 to 32
    #[arg(long, short = 'c')]
    vcpus: Option<u32>,

    /// The kernel's command line
    #[arg(long)]
    cmdline: Option<String>,

    /// A file to put into guest RAM for the kernel
    #[arg(long, value_hint = ValueHint::FilePath)]
    initrd: Option<PathBuf>,

    /// Run this many VMs in this process; their output is shown line by line with the VM's name before it
    #[arg(long, default_value = "1")]
    count: NonZero<u32>,

    /// End the VM after this time: 500ms, 10s, 2m
    #[arg(long, value_parser = parse_duration)]
    timeout: Option<Duration>,

    /// Take the VM's configuration from a JSON file in Firecracker's format; options given here win
    #[arg(long, value_hint = ValueHint::FilePath)]
    config_file: Option<PathBuf>,

    /// What the event loops wait with
    #[arg(long, value_enum, default_value_t = EngineArg::Auto)]
    io_engine: EngineArg,

    /// Number of event-loop threads [default: one for every two CPUs; one without --count]
    #[arg(long)]
    shards: Option<NonZero<u32>>,

    /// Serve Prometheus metrics at http://ADDR/metrics, or on a Unix socket
    #[arg(long, value_name = "ADDR|unix:PATH")]
    metrics: Option<Endpoint>,

    /// Name of the VM; with --count, NAME-1, NAME-2 …
    #[arg(long)]
    name: Option<String>,

    /// Write how each VM ended as a line of JSON: to this file, or (`json`) to standard output
    #[arg(long, value_name = "json|FILE", value_hint = ValueHint::FilePath)]
    outcome: Option<PathBuf>,

    /// How the image is entered [default: as the image prefers]
    #[arg(long, value_enum)]
    boot_protocol: Option<ProtocolArg>,

    /// Back guest RAM with 2 MiB pages of the host's pool (vm.nr_hugepages)
    #[arg(long)]
    huge_pages: bool,

    /// What to log on standard error
    #[arg(long, value_enum, default_value_t = LogLevel::Warn)]
    log_level: LogLevel,

    /// Arguments for the guest program
    #[arg(last = true)]
    args: Vec<String>,
}

const EXIT_STATUS: &str = "Exit status:
  the guest's exit code (255 if it is larger), or
  0    the guest reset the machine
  124  the time limit passed
  125  Ringlet failed
  130  stopped by Ctrl-A x or SIGINT
  131  stopped by SIGQUIT
  134  the guest crashed
  143  stopped by SIGTERM or SIGHUP
With --count: the first of these, in the VMs' order, that is not 0.

Keys while a VM has the terminal: Ctrl-A x stops it, Ctrl-A h lists the keys.";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum EngineArg {
    /// io_uring, or epoll where io_uring is not available
    Auto,
    /// io_uring
    Uring,
    /// epoll, with threads for file I/O
    Epoll,
}

impl From<EngineArg> for EngineChoice {
    fn from(engine: EngineArg) -> Self {
        match engine {
            EngineArg::Auto => Self::Auto,
            EngineArg::Uring => Self::Uring,
            EngineArg::Epoll => Self::Epoll,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ProtocolArg {
    /// The PVH entry
    Pvh,
    /// The 64-bit Linux entry
    Linux64,
}

impl From<ProtocolArg> for BootProtocol {
    fn from(protocol: ProtocolArg) -> Self {
        match protocol {
            ProtocolArg::Pvh => Self::Pvh,
            ProtocolArg::Linux64 => Self::Linux64,
        }
    }
}

/// MiB from a number with a suffix K, M, G or T (powers of 1024).
fn parse_memory(text: &str) -> Result<u32, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 =
        digits.parse().map_err(|_| format!("{text:?} is not a number with a suffix, such as 128M"))?;
    let shift = match text.get(digits.len()..).unwrap_or_default() {
        "K" | "k" | "KiB" => 10,
        "M" | "m" | "MiB" => 20,
        "G" | "g" | "GiB" => 30,
        "T" | "t" | "TiB" => 40,
        "" => return Err(format!("{text} what? Say {text}M for MiB")),
        other => return Err(format!("{other:?} is not one of the suffixes K, M, G, T")),
    };
    let bytes = number.checked_mul(1 << shift).ok_or("is too large")?;
    if bytes % (1 << 20) != 0 {
        return Err("is not a multiple of 1M".into());
    }
    u32::try_from(bytes >> 20).map_err(|_| "is too large".into())
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|e| format!("{e}; write 500ms, 10s or 2m"))
}

impl RunArgs {
    /// The configuration file, if any, and what the options say on top of it.
    fn config(&self) -> CliResult<VmConfig> {
        let mut config = match (&self.config_file, &self.image) {
            (Some(file), _) => VmConfig::from_file(file)?,
            (None, Some(image)) => VmConfig::new(image.as_str()),
            (None, None) => return Err("say which image to run; `ringlet images` lists those at hand".into()),
        };
        if let Some(image) = &self.image {
            config.boot_source.kernel_image_path = image.as_str().into();
        }
        if let Some(mib) = self.memory {
            config = config.memory_mib(mib);
        }
        if let Some(count) = self.vcpus {
            config = config.vcpus(count);
        }
        if let Some(cmdline) = &self.cmdline {
            config = config.cmdline(cmdline);
        }
        if let Some(initrd) = &self.initrd {
            config = config.initrd(initrd);
        }
        if let Some(limit) = self.timeout {
            config = config.timeout(limit);
        }
        if let Some(name) = &self.name {
            config = config.name(name);
        }
        if let Some(protocol) = self.boot_protocol {
            config = config.boot_protocol(protocol.into());
        }
        if self.huge_pages {
            config = config.huge_pages(HugePages::TwoM);
        }
        if !self.args.is_empty() {
            config = config.args(self.args.iter().cloned());
        }
        config.validate()?;
        Ok(config)
    }
}

/// Runs what `args` say.
pub(super) fn run(args: &RunArgs) -> CliResult<ExitCode> {
    log::start(args.log_level);
    let config = args.config()?;
    if args.count.get() > 1 {
        raise_open_files();
    }
    let executor = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    executor.block_on(supervise(args, config))
}

/// Every VM takes a handful of descriptors; the usual soft limit is for programs that use `select(2)`.
pub(super) fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::debug!(%error, "the limit on open files stays as it is");
    }
}

/// Starts the VMs and waits for their ends, a signal, or the escape key.
async fn supervise(args: &RunArgs, config: VmConfig) -> CliResult<ExitCode> {
    let mut signals = Signals::new()?;
    // A VM lives on one loop, so more would have nothing to do.
    let shards = args.shards.or((args.count == NonZero::<u32>::MIN).then_some(args.count));
    let runtime = Runtime::new(RuntimeOptions { engine: args.io_engine.into(), shards })?;
    let serve = |endpoint| MetricsServer::start(endpoint, runtime.registry().clone());
    let _metrics = args.metrics.as_ref().map(serve).transpose()?;
    let mut log = args.outcome.as_deref().map(OutcomeLog::open).transpose()?;
    let single = args.count.get() == 1;
    let mut terminal = if single { RawTerminal::new()? } else { None };
    let vms = Arc::new(launch(&runtime, args, &config)?);
    if single {
        feed_stdin(&vms, terminal.is_some())?;
    }
    let mut status = 0;
    for vm in vms.iter() {
        let outcome = ended(vm, &vms, &mut signals).await;
        drop(terminal.take());
        if let Some(log) = &mut log {
            log.write(vm, &outcome)?;
        }
        tell(vm, &outcome, single);
        status = if status == 0 { outcome.exit_status() } else { status };
    }
    Ok(ExitCode::from(signals.status().unwrap_or(status)))
}

/// Starts the VMs. If one cannot be made, those before it end with the error.
fn launch(runtime: &Runtime, args: &RunArgs, config: &VmConfig) -> CliResult<Vec<Vm>> {
    let stdout = io::stdout().as_fd().try_clone_to_owned()?;
    let mut resources = Resources::default();
    if args.count.get() == 1 {
        // A guest's bytes reach a terminal as they are only where that terminal is given to the guest.
        resources.console = if stdout.is_terminal() && !in_foreground(&stdout) {
            Console::Lines(LineConsole::new(stdout))
        } else {
            Console::Stream(Arc::new(stdout))
        };
        return Ok(vec![runtime.launch(config, resources)?]);
    }
    let lines = LineConsole::new(stdout);
    resources.image = Some(runtime.open_image(&config.boot_source.kernel_image_path)?);
    resources.initrd = config.boot_source.initrd_path.as_deref().map(Initrd::open).transpose()?;
    let base = config.ringlet.name.as_deref().unwrap_or("vm");
    let make = |number| {
        let name = format!("{base}-{number}");
        let console = Console::Lines(lines.with_prefix(format!("[{name}] ")));
        let resources = Resources { console, ..resources.clone() };
        runtime.launch(&config.clone().name(&name), resources).map_err(|e| format!("{name}: {e}").into())
    };
    (1..=args.count.get()).map(make).collect()
}

/// Waits for the end of `vm`. A signal stops all VMs.
async fn ended(vm: &Vm, all: &[Vm], signals: &mut Signals) -> Arc<Outcome> {
    loop {
        tokio::select! {
            outcome = vm.wait() => return outcome,
            () = signals.next() => all.iter().for_each(Vm::request_stop),
        }
    }
}

/// Says on standard error how a VM ended, unless it ended as guests do or as it was told to.
fn tell(vm: &Vm, outcome: &Outcome, single: bool) {
    if matches!(outcome, Outcome::Exited { .. } | Outcome::Reset | Outcome::Stopped) {
        return;
    }
    let mut stderr = io::stderr().lock();
    for line in outcome.to_string().lines() {
        let prefix = if single { String::new() } else { format!("[{}] ", vm.name()) };
        let _ = writeln!(stderr, "{prefix}ringlet: {}", Escaped(line));
    }
}

/// The signals that end `ringlet run` in an orderly way, each with its exit status: all that would end the process
/// without leaving it a chance to put the terminal back.
struct Signals {
    all: Vec<(Signal, u8)>,
    first: Option<u8>,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let kinds = [
            (SignalKind::interrupt(), 130),
            (SignalKind::quit(), 131),
            (SignalKind::terminate(), 143),
            (SignalKind::hangup(), 143),
            (SignalKind::alarm(), 143),
            (SignalKind::user_defined1(), 143),
            (SignalKind::user_defined2(), 143),
        ];
        let all = kinds.into_iter().map(|(kind, status)| Ok((signal(kind)?, status)));
        Ok(Self { all: all.collect::<io::Result<_>>()?, first: None })
    }

    /// Waits for one of them.
    async fn next(&mut self) {
        let arrived = poll_fn(|cx| {
            let come = self
                .all
                .iter_mut()
                .find_map(|(signal, status)| signal.poll_recv(cx).is_ready().then_some(*status));
            come.map_or(Poll::Pending, Poll::Ready)
        });
        let status = arrived.await;
        self.first.get_or_insert(status);
    }

    /// The exit status that the first signal asks for.
    fn status(&self) -> Option<u8> {
        self.first
    }
}

/// Serves `/metrics` from a thread of its own; dropping it ends that and removes the socket.
struct MetricsServer {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl MetricsServer {
    fn start(endpoint: &Endpoint, registry: Registry) -> CliResult<Self> {
        let listener = endpoint.bind()?;
        tracing::info!(endpoint = %listener.endpoint()?, "serving metrics");
        let executor = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("metrics".into()).spawn(move || {
            let until = async { drop(stopped.await) };
            if let Err(error) = executor.block_on(exposition::serve(listener, registry, until)) {
                tracing::error!(%error, "metrics are no longer served");
            }
            executor.shutdown_background();
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Passes standard input on to the VM's serial port, from a thread that ends with the process.
fn feed_stdin(vms: &Arc<Vec<Vm>>, escape_keys: bool) -> io::Result<()> {
    if !escape_keys && io::stdin().is_terminal() {
        // A background job that reads its terminal would be stopped.
        return Ok(());
    }
    let vms = Arc::clone(vms);
    std::thread::Builder::new().name("stdin".into()).stack_size(64 << 10).spawn(move || {
        let Some(vm) = vms.first() else { return };
        let (input, mut keys) = (vm.serial_input(), escape_keys.then(EscapeKeys::default));
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = io::stdin().read(&mut buffer) {
            let typed = buffer.get(..count).unwrap_or_default();
            let bytes = match &mut keys {
                Some(keys) => obey(keys, typed, vm),
                None => typed.to_vec(),
            };
            if !bytes.is_empty() && !input.send_blocking(bytes) {
                return;
            }
        }
    })?;
    Ok(())
}

/// Carries out the commands among what was typed, and returns the rest.
fn obey(keys: &mut EscapeKeys, typed: &[u8], vm: &Vm) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(typed.len());
    for &byte in typed {
        match keys.feed(byte) {
            Key::Guest(byte) => bytes.push(byte),
            Key::Stop => vm.request_stop(),
            Key::Help => {
                let _ = io::stderr().write_all(HELP.as_bytes());
            }
            Key::Pending | Key::Unknown => {}
        }
    }
    bytes
}

/// Where the outcomes are written, a line of JSON each.
struct OutcomeLog(Box<dyn Write>);

/// One line of it.
#[derive(Serialize)]
struct OutcomeLine<'a> {
    vm: &'a str,
    name: &'a str,
    #[serde(flatten)]
    outcome: &'a Outcome,
    exit_status: u8,
    /// From start to "ready", if the guest said so.
    ready_seconds: Option<f64>,
}

impl OutcomeLog {
    fn open(target: &Path) -> CliResult<Self> {
        if target == Path::new("json") {
            return Ok(Self(Box::new(io::stdout())));
        }
        let file = File::create(target).map_err(|e| format!("--outcome {}: {e}", target.display()))?;
        Ok(Self(Box::new(file)))
    }

    fn write(&mut self, vm: &Vm, outcome: &Outcome) -> io::Result<()> {
        let ready_seconds = vm.time_to_ready().map(|time| time.as_secs_f64());
        let exit_status = outcome.exit_status();
        let line = OutcomeLine { vm: vm.id(), name: vm.name(), outcome, exit_status, ready_seconds };
        let text = serde_json::to_string(&line)? + "\n";
        match self.0.write_all(text.as_bytes()).and_then(|()| self.0.flush()) {
            // Nobody reads any more: no reason to end the VMs, or to end with another status than theirs.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result,
        }
    }
}

#[cfg(test)]
#[path = "run_test.rs"]
mod tests;
