//! The thread that waits for the kernel's network configuration lock (RTNL), so that no shard has to.
//!
//! That lock is one for the whole host: one thread does for all taps of the process. It exists while somebody has a
//! [`Helper`], and until it has done what it was given.

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;

type Job = Box<dyn FnOnce() + Send>;

/// Hands work to the thread. All are the same one.
#[derive(Debug)]
pub(super) struct Helper(Sender<Job>);

static CURRENT: Mutex<Weak<Helper>> = Mutex::new(Weak::new());

impl Helper {
    /// The helper that there is, or a new one.
    ///
    /// # Errors
    /// The process may not have one more thread.
    pub(super) fn get() -> io::Result<Arc<Self>> {
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(helper) = current.upgrade() {
            return Ok(helper);
        }
        let (sender, jobs) = channel::<Job>();
        thread::Builder::new()
            .name("ringlet-tap".to_owned())
            .spawn(move || jobs.into_iter().for_each(|job| job()))?;
        let helper = Arc::new(Self(sender));
        *current = Arc::downgrade(&helper);
        Ok(helper)
    }

    /// Does `job` after all that was given before.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) {
        // The thread takes jobs as long as this exists.
        let _ = self.0.send(Box::new(job));
    }
}
