//! Which I/O engine runs: io_uring where it is allowed, else epoll with a bounded blocking pool.
//!
//! Owns the choice and the reasons for it. Never runs I/O itself.

use std::fmt;
use std::io;
use std::str::FromStr;

use rustix::io::Errno;

use crate::ring;

/// What the operator asked for (`--io-engine`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineChoice {
    /// io_uring if it is available, else epoll.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// epoll, even if io_uring is available.
    Epoll,
}

/// The engine that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EngineKind {
    /// File operations through io_uring, readiness through epoll.
    Uring,
    /// File operations on a bounded blocking pool, readiness through epoll.
    Epoll,
}

impl EngineKind {
    /// The name used by options and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl EngineChoice {
    /// All choices, in the order of the documentation.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Uring, Self::Epoll];

    /// The name used by options.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        }
    }
}

impl fmt::Display for EngineChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that is no engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown I/O engine {0:?}: choose auto, uring or epoll")]
pub struct UnknownEngine(String);

impl FromStr for EngineChoice {
    type Err = UnknownEngine;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|choice| choice.as_str() == name)
            .ok_or_else(|| UnknownEngine(name.to_owned()))
    }
}

/// The chosen engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Engine {
    /// Which one runs.
    pub kind: EngineKind,
    /// Why it is not io_uring; `None` if it is, or if epoll was asked for.
    pub why_not_uring: Option<String>,
}

/// No engine can be given.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// io_uring was asked for explicitly.
    #[error("--io-engine uring: {0}; or use --io-engine auto")]
    Uring(#[from] UringUnavailable),
}

/// Why io_uring cannot be used here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UringUnavailable {
    /// ENOSYS: the kernel was built without it, or a seccomp filter says so.
    #[error(
        "this kernel has no io_uring (ENOSYS); use Linux 5.6 or later with CONFIG_IO_URING, or, in \
         a container, a seccomp profile that allows io_uring_setup, io_uring_enter and io_uring_register"
    )]
    Missing,
    /// EPERM with `kernel.io_uring_disabled` not 0.
    #[error(
        "the host forbids io_uring (kernel.io_uring_disabled = {0}); `sysctl -w kernel.io_uring_disabled=0` \
         allows it"
    )]
    Disabled(u32),
    /// EPERM, but the host allows it: a seccomp filter (the default of Docker and containerd).
    #[error(
        "a seccomp filter forbids io_uring (EPERM); run with a profile that allows io_uring_setup, \
         io_uring_enter and io_uring_register"
    )]
    Filtered,
    /// ENOMEM: kernels before 5.12 count rings as locked memory.
    #[error("no memory for a ring (ENOMEM); raise the locked-memory limit: `ulimit -l unlimited`")]
    Memory,
    /// The kernel is older than 5.6 and lacks plain read and write operations.
    #[error("io_uring of this kernel is too old; use Linux 5.6 or later")]
    TooOld,
    /// Anything else.
    #[error("io_uring_setup failed: {0}")]
    Other(#[source] io::Error),
}

impl UringUnavailable {
    fn from_error(error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(Errno::NOSYS) => Self::Missing,
            Some(Errno::PERM | Errno::ACCESS) => match disabled_by_sysctl() {
                Some(level) => Self::Disabled(level),
                None => Self::Filtered,
            },
            Some(Errno::NOMEM) => Self::Memory,
            _ => Self::Other(error),
        }
    }
}

/// The value of `kernel.io_uring_disabled`, if it is one that forbids something.
fn disabled_by_sysctl() -> Option<u32> {
    let text = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?;
    text.trim().parse().ok().filter(|level| *level != 0)
}

/// Tries to make a small ring and throws it away (tens of microseconds).
///
/// # Errors
/// Why io_uring cannot be used, with the remedy in its message.
pub fn probe_uring() -> Result<(), UringUnavailable> {
    match ring::try_small_ring() {
        Ok(true) => Ok(()),
        Ok(false) => Err(UringUnavailable::TooOld),
        Err(error) => Err(UringUnavailable::from_error(error)),
    }
}

/// Settles which engine runs. `Auto` falls back to epoll and logs why.
///
/// # Errors
/// [`EngineChoice::Uring`] where io_uring is not available.
pub fn select(choice: EngineChoice) -> Result<Engine, EngineError> {
    decide(choice, ask_for_uring)
}

/// As [`probe_uring`], but without a ring: the kernel clears one away in the background, which a process start
/// on two CPUs feels as 0.1 ms. Kernels that count rings as locked memory have to try one.
fn ask_for_uring() -> Result<(), UringUnavailable> {
    if rustix::system::uname().release().to_str().is_ok_and(counts_no_locked_memory) {
        return ring::ask_kernel().map_err(UringUnavailable::from_error);
    }
    probe_uring()
}

/// True of Linux 5.12 and later. `release` is like `6.1.0-13-amd64`.
fn counts_no_locked_memory(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(5), Some(12))
}

fn decide(
    choice: EngineChoice,
    probe: impl FnOnce() -> Result<(), UringUnavailable>,
) -> Result<Engine, EngineError> {
    if choice == EngineChoice::Epoll {
        return Ok(Engine { kind: EngineKind::Epoll, why_not_uring: None });
    }
    match probe() {
        Ok(()) => Ok(Engine { kind: EngineKind::Uring, why_not_uring: None }),
        Err(reason) if choice == EngineChoice::Uring => Err(reason.into()),
        Err(reason) => {
            tracing::warn!(engine = "epoll", %reason, "falling back to the epoll engine");
            Ok(Engine { kind: EngineKind::Epoll, why_not_uring: Some(reason.to_string()) })
        }
    }
}

#[cfg(test)]
#[path = "engine_test.rs"]
mod tests;
