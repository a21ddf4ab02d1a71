//! What idle VMs cost: memory and CPU time. They are held by a process of their own, so that nothing that was
//! measured before is in the figures.

use std::io;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use ringlet::{Resources, Runtime, RuntimeOptions, Vm, VmConfig};
use serde::{Deserialize, Serialize};

use super::super::report::{Figure, Report, Unit};
use super::super::stats::Samples;
use super::super::usage::{Memory, cpu_time, meminfo};
use super::Effort;
use crate::cli::{CliResult, supervise};

const GROUP: &str = "Idle VMs";
/// At how many VMs memory is looked at. At the last one CPU time is, too.
const COUNTS: [u32; 3] = [1, 100, MOST];
const MOST: u32 = 1000;
/// What is said of each level, divided by the number of its VMs.
const COSTS: [Cost; 5] = [
    ("private", "private memory of each", |level| level.memory.private()),
    ("private.anonymous", "… stacks, arenas", |level| level.memory.anonymous),
    ("private.heap", "… heap", |level| level.memory.heap),
    ("ram", "guest RAM in use", |level| level.memory.guest_ram),
    ("lost", "MemAvailable lost for each", |level| level.lost),
];
/// Identifier, name, value in bytes.
type Cost = (&'static str, &'static str, fn(&Level) -> u64);
/// How long a VM may take to say that it is ready.
const READY: Duration = Duration::from_secs(30);

/// Options of the process that holds VMs.
#[derive(Debug, Args)]
pub(in super::super) struct IdleArgs {
    /// Seconds over which CPU time is measured
    #[arg(long)]
    seconds: u32,
}

/// What that process prints.
#[derive(Debug, Serialize, Deserialize)]
struct Observation {
    /// At each of [`COUNTS`].
    levels: Vec<Level>,
    /// CPU time by time at the last of them.
    cpu: f64,
}

/// What there is more than before the first VM.
#[derive(Debug, Serialize, Deserialize)]
struct Level {
    vms: u32,
    memory: Memory,
    /// Bytes that `MemAvailable` has lost.
    lost: u64,
}

/// Measures idle VMs.
pub(super) fn measure(effort: Effort, report: &mut Report) -> CliResult<()> {
    super::super::progress("idle VMs");
    let seen: Vec<Observation> =
        (0..effort.idle_processes).map(|_| observe(effort.idle_seconds)).collect::<CliResult<_>>()?;
    for (place, vms) in COUNTS.into_iter().enumerate() {
        let of_each = |value: fn(&Level) -> u64| -> Samples {
            let levels = seen.iter().filter_map(|seen| seen.levels.get(place));
            levels.map(|level| value(level) as f64 / f64::from(level.vms)).collect()
        };
        for (id, name, value) in COSTS {
            let (id, name) = (format!("idle.{id}.{vms}"), format!("{vms}: {name}"));
            report.add(Figure::new(id, GROUP, name, Unit::Bytes, &of_each(value)));
        }
    }
    let cpu = seen.iter().map(|seen| seen.cpu).collect();
    let name = format!("{MOST}: CPU of all, of one core");
    report.add(Figure::new("idle.cpu", GROUP, name, Unit::Cores, &cpu));
    Ok(())
}

/// Starts the process that holds VMs and reads what it says.
fn observe(seconds: u32) -> CliResult<Observation> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bench", "idle-vms", "--seconds", &seconds.to_string()]);
    let output = command.stdin(Stdio::null()).output()?;
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
    let config = VmConfig::new("idle");
    let image = runtime.open_image(&config.boot_source.kernel_image_path)?;
    let resources = Resources { image: Some(image), ..Resources::default() };
    // Everything that the measurement itself needs is there before the first look.
    let mut vms: Vec<Vm> = Vec::with_capacity(usize::try_from(MOST)?);
    let mut levels = Vec::with_capacity(COUNTS.len());
    let before = look(&[])?;
    for count in COUNTS {
        while vms.len() < usize::try_from(count)? {
            vms.push(runtime.launch(&config, resources.clone())?);
        }
        levels.push(look(&vms)?.since(&before));
    }
    let (begun, cpu) = (Instant::now(), cpu_time());
    std::thread::sleep(Duration::from_secs(args.seconds.into()));
    let cpu = (cpu_time() - cpu).as_secs_f64() / begun.elapsed().as_secs_f64();
    serde_json::to_writer(io::stdout(), &Observation { levels, cpu })?;
    Ok(ExitCode::SUCCESS)
}

/// Memory once all `vms` are ready.
fn look(vms: &[Vm]) -> CliResult<Level> {
    let begun = Instant::now();
    while vms.iter().any(|vm| vm.time_to_ready().is_none()) {
        if begun.elapsed() > READY {
            return Err(format!("an idle VM is not ready after {READY:?}").into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // Ready is a moment before asleep.
    std::thread::sleep(Duration::from_millis(100));
    let vms = u32::try_from(vms.len())?;
    Ok(Level { vms, memory: Memory::of_this_process()?, lost: meminfo("MemAvailable") })
}

impl Level {
    /// The difference to `before`, whose `lost` is what was available.
    fn since(self, before: &Self) -> Self {
        Self {
            vms: self.vms,
            memory: self.memory.since(&before.memory),
            lost: before.lost.saturating_sub(self.lost),
        }
    }
}
