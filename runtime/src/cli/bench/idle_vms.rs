//! Many idle VMs in a process of their own, so that nothing that was measured before is in the figures: what it costs to
//! make, keep and end them.

use std::io;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use ringlet::{Resources, Runtime, RuntimeOptions, Vm, VmConfig};
use serde::{Deserialize, Serialize};

use super::CliResult;
use super::launched::{executor, settle};
use super::usage::{Memory, cpu_time, meminfo};
use crate::cli::disk::{self, DiskArg};
use crate::cli::supervise;

/// The subcommand's name.
const COMMAND: &str = "idle-vms";
/// How long a VM may take to say that it is ready.
const READY: Duration = Duration::from_secs(30);

/// Options of the process that holds VMs.
#[derive(Debug, Args)]
pub(super) struct IdleArgs {
    /// Seconds over which CPU time is measured
    #[arg(long)]
    seconds: u32,

    /// At how many VMs memory is looked at, ascending
    #[arg(long, value_delimiter = ',', required = true)]
    vms: Vec<u32>,

    /// How many threads make them
    #[arg(long, default_value_t = 1)]
    threads: u32,

    /// A disk of each, as for `ringlet run`
    #[arg(long, value_parser = disk::parse)]
    disk: Option<DiskArg>,

    /// The guest, which says that it is ready and then waits for ever, and its arguments
    #[arg(last = true, required = true)]
    guest: Vec<String>,
}

/// What is to be held.
#[derive(Debug)]
pub(super) struct Crowd<'a> {
    pub(super) seconds: u32,
    /// At how many VMs memory is looked at, ascending.
    pub(super) vms: &'a [u32],
    pub(super) threads: usize,
    /// As for `ringlet run`.
    pub(super) disk: Option<&'a str>,
    /// An image and its arguments.
    pub(super) guest: &'a [&'a str],
}

/// What the process prints.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Observation {
    /// At each number of VMs that was asked for.
    pub(super) levels: Vec<Level>,
    /// CPU time by time at the last of them.
    pub(super) cpu: f64,
    /// Seconds until all were gone and their descriptors closed.
    pub(super) gone: f64,
}

/// What there is more than before the first VM.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Level {
    pub(super) vms: u32,
    pub(super) memory: Memory,
    /// Bytes that `MemAvailable` has lost.
    pub(super) lost: u64,
    /// Seconds from this level's first VM until all were made.
    pub(super) made: f64,
    /// … and until the last of them was ready.
    pub(super) ready: f64,
}

/// Starts the process that holds VMs and reads what it says.
pub(super) fn observe(crowd: &Crowd<'_>) -> CliResult<Observation> {
    let mut command = Command::new(std::env::current_exe()?);
    let vms: Vec<String> = crowd.vms.iter().map(u32::to_string).collect();
    command.args(["bench", COMMAND, "--seconds", &crowd.seconds.to_string(), "--vms", &vms.join(",")]);
    command.args(["--threads", &crowd.threads.to_string()]);
    if let Some(disk) = crowd.disk {
        command.args(["--disk", disk]);
    }
    let output = command.arg("--").args(crowd.guest).stdin(Stdio::null()).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("the process that holds idle VMs failed: {}", said.trim_end()).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The process that holds VMs.
pub(super) fn hold(args: &IdleArgs) -> CliResult<ExitCode> {
    supervise::raise_open_files();
    let runtime = Runtime::new(RuntimeOptions::default())?;
    let config = args.config()?;
    let image = runtime.open_image(&config.boot_source.kernel_image_path)?;
    let resources = Resources { image: Some(image), ..Resources::default() };
    let most = args.vms.last().copied().unwrap_or(0);
    // Everything that the measurement itself needs is there before the first look.
    let mut vms: Vec<Vm> = Vec::with_capacity(usize::try_from(most)?);
    let mut levels = Vec::with_capacity(args.vms.len());
    let before = look(&[], Instant::now())?;
    for &count in &args.vms {
        let begun = Instant::now();
        let missing = usize::try_from(count)?.saturating_sub(vms.len());
        launch(&runtime, &config, &resources, (missing, args.threads), &mut vms)?;
        let made = begun.elapsed().as_secs_f64();
        levels.push(Level { made, ..look(&vms, begun)? }.since(&before));
    }
    let (begun, cpu) = (Instant::now(), cpu_time());
    std::thread::sleep(Duration::from_secs(args.seconds.into()));
    let cpu = (cpu_time() - cpu).as_secs_f64() / begun.elapsed().as_secs_f64();
    let gone = end(&runtime, &vms)?;
    serde_json::to_writer(io::stdout(), &Observation { levels, cpu, gone: gone.as_secs_f64() })?;
    Ok(ExitCode::SUCCESS)
}

impl IdleArgs {
    fn config(&self) -> CliResult<VmConfig> {
        let (image, arguments) = self.guest.split_first().ok_or("which guest?")?;
        let mut config = VmConfig::new(image.as_str());
        if !arguments.is_empty() {
            config = config.args(arguments.iter().cloned());
        }
        disk::add(&mut config, self.disk.as_slice());
        config.validate()?;
        Ok(config)
    }
}

/// Makes `count` VMs more, from so many threads.
fn launch(
    runtime: &Runtime,
    config: &VmConfig,
    resources: &Resources,
    (count, threads): (usize, u32),
    vms: &mut Vec<Vm>,
) -> CliResult<()> {
    let one = || runtime.launch(config, resources.clone());
    if threads <= 1 {
        return (0..count).try_for_each(|_| {
            vms.push(one()?);
            Ok(())
        });
    }
    let threads = usize::try_from(threads)?;
    std::thread::scope(|scope| {
        let share = |thread| (count + thread) / threads;
        let squads: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || (0..share(thread)).map(|_| one()).collect::<Result<Vec<_>, _>>())
            })
            .collect();
        for squad in squads {
            vms.extend(squad.join().map_err(|_| "a launching thread panicked")??);
        }
        Ok(())
    })
}

/// Memory once all `vms` are ready. `begun` is when the first of them was made.
fn look(vms: &[Vm], begun: Instant) -> CliResult<Level> {
    while vms.iter().any(|vm| vm.time_to_ready().is_none()) {
        if begun.elapsed() > READY {
            return Err(format!("an idle VM is not ready after {READY:?}").into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let ready = begun.elapsed().as_secs_f64();
    // Ready is a moment before asleep.
    std::thread::sleep(Duration::from_millis(100));
    let (vms, memory) = (u32::try_from(vms.len())?, Memory::of_this_process()?);
    Ok(Level { vms, memory, lost: meminfo("MemAvailable"), made: 0.0, ready })
}

/// Stops all at once; how long it took until the last one's descriptors were closed.
fn end(runtime: &Runtime, vms: &[Vm]) -> CliResult<Duration> {
    let begun = Instant::now();
    vms.iter().for_each(Vm::request_stop);
    let executor = executor()?;
    for vm in vms {
        executor.block_on(vm.wait());
    }
    settle(runtime);
    Ok(begun.elapsed())
}

impl Level {
    /// The difference to `before`, whose `lost` is what was available.
    fn since(self, before: &Self) -> Self {
        Self {
            memory: self.memory.since(&before.memory),
            lost: before.lost.saturating_sub(self.lost),
            ..self
        }
    }
}
