//! Who is measured: a loop of this host, and a guest on both engines, reached in both ways.

use std::fmt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use ringlet::{EngineChoice, EngineKind, Runtime, RuntimeOptions, VmConfig, Vsock};

use super::super::launched::{Launched, executor};
use super::client::{PATIENCE, Reach};
use super::host_loop::HostLoop;
use super::reach::{AtPath, Within};
use crate::cli::CliResult;

/// What the guest prints when it can be asked.
const READY: &str = "ready on ports";

/// How streams come to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// By the Unix socket, as from other processes.
    Socket,
    /// By the library.
    Stream,
}

/// One of those that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Contender {
    /// The loop on a Unix socket, without a VM.
    Host,
    Ringlet(EngineKind, Way),
}

impl Contender {
    pub(super) const ALL: [Self; 5] = [
        Self::Host,
        Self::Ringlet(EngineKind::Uring, Way::Socket),
        Self::Ringlet(EngineKind::Uring, Way::Stream),
        Self::Ringlet(EngineKind::Epoll, Way::Socket),
        Self::Ringlet(EngineKind::Epoll, Way::Stream),
    ];

    /// Part of the figures' identifiers.
    pub(super) fn id(self) -> String {
        match self {
            Self::Host => "host".to_owned(),
            Self::Ringlet(engine, Way::Socket) => format!("ringlet.{engine}.socket"),
            Self::Ringlet(engine, Way::Stream) => format!("ringlet.{engine}.stream"),
        }
    }

    pub(super) fn is_guest(self) -> bool {
        self != Self::Host
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host loop"),
            Self::Ringlet(engine, Way::Socket) => write!(f, "{engine}, Unix socket"),
            Self::Ringlet(engine, Way::Stream) => write!(f, "{engine}, in process"),
        }
    }
}

/// A guest that serves.
struct Guest {
    launched: Launched,
    socket: PathBuf,
    /// It ends after its VM.
    _runtime: Runtime,
}

impl Guest {
    fn start(engine: EngineKind, folder: &Path) -> CliResult<Self> {
        let choice = match engine {
            EngineKind::Uring => EngineChoice::Uring,
            EngineKind::Epoll => EngineChoice::Epoll,
        };
        let runtime = Runtime::new(RuntimeOptions { engine: choice, ..RuntimeOptions::default() })?;
        let socket = folder.join(engine.as_str());
        let config = VmConfig::new("vsock-echo").vsock(Vsock::new().uds(&socket)).args(["bench"]);
        let launched = Launched::new(&runtime, &config)?;
        let begun = Instant::now();
        while !String::from_utf8_lossy(&launched.console.contents()).contains(READY) {
            if begun.elapsed() > PATIENCE {
                return Err("the guest does not come up".into());
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(Self { launched, socket, _runtime: runtime })
    }
}

/// All that serve, until this is dropped.
pub(super) struct Setup {
    host: HostLoop,
    /// Of each engine, or why it is not to be had here.
    guests: Vec<(EngineKind, Result<Guest, String>)>,
    _folder: tempfile::TempDir,
}

impl Setup {
    pub(super) fn new() -> CliResult<Self> {
        let folder = tempfile::tempdir()?;
        let host = HostLoop::new(&folder.path().join("host"))?;
        let uring = match ringlet_io::probe_uring() {
            Err(error) => Err(error.to_string()),
            Ok(_) => Ok(Guest::start(EngineKind::Uring, folder.path())?),
        };
        let epoll = Ok(Guest::start(EngineKind::Epoll, folder.path())?);
        let guests = vec![(EngineKind::Uring, uring), (EngineKind::Epoll, epoll)];
        Ok(Self { host, guests, _folder: folder })
    }

    /// How `who` is reached. The error in it is why not on this host.
    pub(super) fn reach(&self, who: Contender) -> CliResult<Result<Box<dyn Reach + '_>, String>> {
        let Contender::Ringlet(engine, way) = who else { return Ok(Ok(Box::new(AtPath(self.host.path())))) };
        let found = self.guests.iter().find(|(kind, _)| *kind == engine).ok_or("there is no such guest")?;
        Ok(match (&found.1, way) {
            (Err(why_not), _) => Err(why_not.clone()),
            (Ok(guest), Way::Socket) => Ok(Box::new(AtPath(&guest.socket))),
            (Ok(guest), Way::Stream) => Ok(Box::new(Within::new(&guest.launched.vm)?)),
        })
    }

    /// Ends the guests.
    pub(super) fn stop(self) -> CliResult<()> {
        let executor = executor()?;
        for guest in self.guests.iter().filter_map(|(_, guest)| guest.as_ref().ok()) {
            executor.block_on(guest.launched.vm.stop());
        }
        Ok(())
    }
}
