//! VMs in this process, and the times of their lives.

use std::time::{Duration, Instant};

use ringlet::{Console, ConsoleBuffer, Outcome, Resources, Runtime, Vm, VmConfig};

use super::CliResult;

/// Bytes of output that are kept.
const KEPT: usize = 4096;

/// A launched VM and when that began.
pub(super) struct Launched {
    pub(super) vm: Vm,
    pub(super) console: ConsoleBuffer,
    begun: Instant,
}

/// The life of a VM, from the call that made it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Life {
    /// Until the call returned.
    pub(super) made: Duration,
    /// Until its first byte was in its console.
    pub(super) first_byte: Duration,
    /// Until its outcome was known.
    pub(super) gone: Duration,
}

/// The guest that prints a line and ends.
pub(super) fn brief() -> VmConfig {
    VmConfig::new("hello").args(["--brief"])
}

impl Launched {
    pub(super) fn new(runtime: &Runtime, config: &VmConfig) -> CliResult<Self> {
        let console = ConsoleBuffer::new(KEPT);
        let resources = Resources { console: Console::Buffer(console.clone()), ..Resources::default() };
        let begun = Instant::now();
        Ok(Self { vm: runtime.launch(config, resources)?, console, begun })
    }

    /// Waits for the end of a guest that exits with 0.
    pub(super) async fn live(self) -> CliResult<Life> {
        let made = self.begun.elapsed();
        let outcome = self.vm.wait().await;
        let gone = self.begun.elapsed();
        if *outcome != (Outcome::Exited { code: 0 }) {
            return Err(format!("a guest ended otherwise than it should: {outcome}").into());
        }
        let first = self.console.first_byte_at().ok_or("a guest ended without a word")?;
        Ok(Life { made, first_byte: first.saturating_duration_since(self.begun), gone })
    }

    /// Blocks until the guest has printed its first byte, and returns when that was.
    pub(super) fn until_first_byte(&self) -> CliResult<Instant> {
        const LONGEST: Duration = Duration::from_secs(20);
        const LOOK: Duration = Duration::from_micros(200);
        while self.begun.elapsed() < LONGEST {
            if let Some(at) = self.console.first_byte_at() {
                return Ok(at);
            }
            std::thread::sleep(LOOK);
        }
        Err(format!("a guest has printed nothing in {LONGEST:?}").into())
    }
}

/// Runs futures of the library on this thread.
pub(super) fn executor() -> CliResult<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().build()?)
}

/// Waits until the descriptors of all ended VMs are closed.
pub(super) fn settle(runtime: &Runtime) {
    // An outcome is published a moment before the reaper knows of it.
    const LOOK: Duration = Duration::from_millis(2);
    std::thread::sleep(LOOK);
    while runtime.registry().runtime().reaper_backlog.get() > 0 {
        std::thread::sleep(LOOK);
    }
}
