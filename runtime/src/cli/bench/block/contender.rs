//! Who is measured: the host loop, a guest on Ringlet, the same guest on QEMU; each a process.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ringlet::{EngineKind, VmConfig, images};

use super::super::blkbench::{BlockResult, Pattern};
use super::super::unnamed::Unnamed;
use super::super::{process, qemu};
use crate::cli::CliResult;

/// The guest.
const IMAGE: &str = "blkbench";

/// One of those that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Contender {
    /// The ring facade without a VM.
    Host(EngineKind),
    Ringlet(EngineKind),
    Qemu,
}

impl Contender {
    pub(super) const ALL: [Self; 5] = [
        Self::Host(EngineKind::Uring),
        Self::Ringlet(EngineKind::Uring),
        Self::Qemu,
        Self::Host(EngineKind::Epoll),
        Self::Ringlet(EngineKind::Epoll),
    ];

    /// Part of the figures' identifiers.
    pub(super) fn id(self) -> String {
        match self {
            Self::Host(engine) => format!("host.{engine}"),
            Self::Ringlet(engine) => format!("ringlet.{engine}"),
            Self::Qemu => "qemu".to_owned(),
        }
    }

    pub(super) fn name(self) -> String {
        match self {
            Self::Host(engine) => format!("host loop, {engine}"),
            Self::Ringlet(engine) => format!("Ringlet, {engine}"),
            Self::Qemu => "QEMU microvm".to_owned(),
        }
    }

    /// The host loop on the same engine.
    pub(super) fn ceiling(self) -> Self {
        match self {
            Self::Host(engine) | Self::Ringlet(engine) => Self::Host(engine),
            Self::Qemu => Self::Host(EngineKind::Uring),
        }
    }

    /// Needs io_uring.
    pub(super) fn is_uring(self) -> bool {
        matches!(self, Self::Host(EngineKind::Uring) | Self::Ringlet(EngineKind::Uring))
    }

    /// The status with which it reports that all went well.
    fn success(self) -> i32 {
        match self {
            Self::Host(_) | Self::Ringlet(_) => 0,
            Self::Qemu => qemu::SUCCESS,
        }
    }
}

/// What the contenders need.
pub(super) struct Setup {
    ringlet: PathBuf,
    image: Unnamed,
    /// What `ringlet run` gives a VM.
    memory_mib: u32,
    pub(super) disk: Unnamed,
}

/// One run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) result: BlockResult,
    /// CPU time of the whole process.
    pub(super) cpu: Duration,
}

impl Setup {
    /// Puts the guest's image beside the disk.
    pub(super) fn new(folder: &Path, disk: Unnamed) -> CliResult<Self> {
        let blkbench = images::find(IMAGE).ok_or("the image `blkbench` is not bundled")?;
        let image = Unnamed::new_in(folder)?;
        std::io::Write::write_all(&mut image.file(), blkbench.bytes)?;
        let memory_mib = VmConfig::new(IMAGE).machine_config.mem_size_mib;
        Ok(Self { ringlet: std::env::current_exe()?, image, memory_mib, disk })
    }

    /// Has `who` make `requests` requests. An error is why it does not work here.
    pub(super) fn run(
        &self,
        who: Contender,
        pattern: Pattern,
        direct: bool,
        requests: u64,
    ) -> Result<Run, String> {
        let arguments = pattern.arguments(requests);
        let mut command = match who {
            Contender::Host(engine) => self.host(engine, direct, &arguments),
            Contender::Ringlet(engine) => self.ringlet(engine, direct, &arguments),
            Contender::Qemu => self.qemu(direct, &arguments),
        };
        let run = process::time(&mut command).map_err(|error| format!("{}: {error}", who.name()))?;
        let printed = String::from_utf8_lossy(&run.stdout);
        if run.status.code() != Some(who.success()) {
            let last = printed.lines().last().unwrap_or_default();
            return Err(format!("{} does not work here: {last} {}", who.name(), run.complaint()));
        }
        let result = BlockResult::find(&printed).map_err(|error| format!("{}: {error}", who.name()))?;
        Ok(Run { result, cpu: run.cpu })
    }

    fn host(&self, engine: EngineKind, direct: bool, arguments: &[String]) -> Command {
        let mut command = Command::new(&self.ringlet);
        command.args(["bench", "host-loop", "--io-engine", engine.as_str(), "--file"]).arg(self.disk.path());
        command.args(direct.then_some("--direct")).args(arguments);
        command
    }

    fn ringlet(&self, engine: EngineKind, direct: bool, arguments: &[String]) -> Command {
        let mut command = Command::new(&self.ringlet);
        let direct = if direct { ",direct" } else { "" };
        let disk = format!("path={},cache=writeback{direct}", self.disk.path().display());
        command.args(["run", IMAGE, "--io-engine", engine.as_str(), "--disk", &disk, "--"]).args(arguments);
        command
    }

    fn qemu(&self, direct: bool, arguments: &[String]) -> Command {
        // No argument has a character that would have to be escaped.
        let quoted: String = arguments.iter().map(|argument| format!(" \"{argument}\"")).collect();
        let cmdline = format!("{} --{quoted}", qemu::DEVICE_WORDS);
        qemu::command_with_disk(self.image.path(), self.memory_mib, &cmdline, (self.disk.path(), direct))
    }
}
