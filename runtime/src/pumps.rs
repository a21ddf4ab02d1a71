//! What takes a VM's output to its consoles and its input to the guest, as its lifecycle sees it: one thing.

use ringlet_io::{Owner, ShardContext};

use crate::console::{ConsoleParts, ConsolePump};
use crate::serial::{Draining as SerialDraining, SerialParts, SerialPumps};

/// The running pumps of one VM.
pub(crate) struct Pumps {
    serial: SerialPumps,
    console: Option<ConsolePump>,
}

impl Pumps {
    /// Starts them on the shard.
    pub(crate) fn start(
        serial: SerialParts,
        console: Option<ConsoleParts>,
        cx: &ShardContext,
        owner: &Owner,
    ) -> Self {
        Self { serial: serial.start(cx, owner), console: console.map(|parts| parts.start(cx, owner)) }
    }

    /// Ends the input, and lets the output end once all is written. vCPUs and devices have stopped.
    pub(crate) fn finish(self, cx: &ShardContext) -> Draining {
        if let Some(console) = &self.console {
            console.finish();
        }
        Draining { serial: self.serial.finish(cx), serial_done: false, console: self.console }
    }
}

/// Output on its way out after the end of its VM.
pub(crate) struct Draining {
    serial: SerialDraining,
    serial_done: bool,
    console: Option<ConsolePump>,
}

impl Draining {
    /// Returns when all output is written. May be dropped and called again.
    pub(crate) async fn done(&mut self) {
        if !self.serial_done {
            self.serial.done().await;
            self.serial_done = true;
        }
        if let Some(console) = &mut self.console {
            console.done().await;
            self.console = None;
        }
    }

    /// Gives up what is not written yet.
    pub(crate) fn abandon(self, cx: &ShardContext) {
        if !self.serial_done {
            self.serial.abandon(cx);
        }
        if let Some(console) = self.console {
            console.abandon(cx);
        }
    }
}
