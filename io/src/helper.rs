//! Threads for calls that may wait for the kernel, so that no shard has to: one for each kind of call and process.
//!
//! A thread exists while somebody has a [`Helper`] of its kind, and until it has done what it was given.

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;

type Job = Box<dyn FnOnce() + Send>;

/// A kind of call.
#[derive(Debug)]
pub(crate) struct Kind {
    /// The thread's name.
    name: &'static str,
    current: Mutex<Weak<Helper>>,
}

/// Calls on taps: they wait for the kernel's network configuration lock (RTNL), which is one for the whole host.
pub(crate) static TAPS: Kind = Kind::new("ringlet-tap");
/// Ending processes and waiting for their ends.
pub(crate) static PROCESSES: Kind = Kind::new("ringlet-reap");
/// Connecting to a Unix socket by its path, which is looked up.
pub(crate) static SOCKETS: Kind = Kind::new("ringlet-connect");

impl Kind {
    const fn new(name: &'static str) -> Self {
        Self { name, current: Mutex::new(Weak::new()) }
    }
}

/// Hands work to the thread of a kind. All of a kind are the same one.
#[derive(Debug)]
pub(crate) struct Helper(Sender<Job>);

impl Helper {
    /// The helper that there is, or a new one.
    ///
    /// # Errors
    /// The process may not have one more thread.
    pub(crate) fn get(kind: &'static Kind) -> io::Result<Arc<Self>> {
        let mut current = kind.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(helper) = current.upgrade() {
            return Ok(helper);
        }
        let (sender, jobs) = channel::<Job>();
        thread::Builder::new()
            .name(kind.name.to_owned())
            .spawn(move || jobs.into_iter().for_each(|job| job()))?;
        let helper = Arc::new(Self(sender));
        *current = Arc::downgrade(&helper);
        Ok(helper)
    }

    /// Does `job` after all that was given before.
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) {
        // The thread takes jobs as long as this exists.
        let _ = self.0.send(Box::new(job));
    }
}
