//! The end of many connections at once: of all that a reset or the end of the VM leaves behind.
//!
//! Owns those that are over and not closed yet. Closing one costs several calls, so there are only so many in a turn of the
//! event loop. Part of the [`Switch`].

use std::cell::Cell;
use std::rc::Rc;

use super::connection::Connection;
use super::host::ConnectError;
use super::switch::Switch;

/// How many connections are over and not closed yet.
#[derive(Debug, Default, Clone)]
pub(super) struct Retiring(Rc<Cell<usize>>);

impl Retiring {
    pub(super) fn count(&self) -> usize {
        self.0.get()
    }
}

/// Connections that are not closed yet, for the time until they are, or nobody closes them any more.
struct Batch {
    connections: Vec<Connection>,
    retiring: Retiring,
}

impl Batch {
    fn next(&mut self) -> Option<Connection> {
        let next = self.connections.pop()?;
        self.retiring.0.set(self.retiring.0.get() - 1);
        Some(next)
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.retiring.0.set(self.retiring.0.get() - self.connections.len());
    }
}

impl Switch {
    /// Closes connections that are in no table any more, as many in a turn as the VM may have requests. Until then each has
    /// its place among those that there may be, and what is counted for it.
    pub(super) fn retire(&self, connections: Vec<Connection>, error: ConnectError) {
        if connections.is_empty() {
            return;
        }
        let retiring = self.retiring.clone();
        retiring.0.set(retiring.0.get() + connections.len());
        let lingering = self.lingering.clone();
        let (budget, mut batch) = (self.budget(), Batch { connections, retiring });
        // Not a job of the device's: it goes on when the device is gone.
        drop(self.cx.spawn(&self.owner, async move {
            loop {
                budget.spend().await;
                let Some(mut connection) = batch.next() else { return };
                connection.end(error);
                lingering.take(connection);
            }
        }));
    }
}

#[cfg(test)]
#[path = "retire_test.rs"]
mod tests;
