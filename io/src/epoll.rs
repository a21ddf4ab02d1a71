//! The epoll engine: an ordinary current-thread runtime, and a bounded pool of threads for what can only block.
//!
//! Owns the pool's threads. A job owns its memory (a buffer, or a lease of guest RAM) and descriptor, so whoever
//! waits for it may go away. Never more threads than it was told, none before the first job, and none left once it
//! was stopped (unless a stream's read never returns: then the thread is left behind, and that is logged).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::io::retry_on_intr;
use tokio::sync::oneshot;

use crate::operation::{CURRENT_POSITION, Kind, Memory, Outcome, Request};

/// Makes the runtime of the epoll engine.
pub(crate) fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_io().build()
}

struct Job {
    request: Request,
    reply: oneshot::Sender<Outcome>,
}

impl Job {
    fn refuse(self, error: io::Error) {
        let _ = self.reply.send((Err(error), self.request.memory));
    }
}

/// A bounded pool of threads that may block.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: RefCell<Vec<JoinHandle<()>>>,
    name: &'static str,
    max: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Signals a new job, closing, and a thread's end.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                let _ = job.reply.send(perform(job.request));
                state = self.lock();
            } else if state.closed {
                break;
            } else {
                state.idle += 1;
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
        state.threads -= 1;
        drop(state);
        self.changed.notify_all();
    }
}

impl Pool {
    /// A pool of at most `max` threads, none of which exists yet.
    pub(crate) fn new(name: &'static str, max: usize) -> Self {
        Self { shared: Arc::default(), threads: RefCell::default(), name, max }
    }

    /// Runs a request on the pool. Dropping the future abandons the result, not the operation.
    pub(crate) async fn submit(&self, request: Request) -> Outcome {
        let (reply, result) = oneshot::channel();
        self.push(Job { request, reply });
        result.await.unwrap_or_else(|_| (Err(io::ErrorKind::BrokenPipe.into()), Memory::none()))
    }

    fn push(&self, job: Job) {
        let mut state = self.shared.lock();
        if state.closed {
            return job.refuse(io::ErrorKind::BrokenPipe.into());
        }
        if state.idle <= state.jobs.len() && state.threads < self.max {
            // With a thread there already, the job is only late.
            match self.spawn() {
                Ok(()) => state.threads += 1,
                Err(error) if state.threads == 0 => return job.refuse(error),
                Err(error) => tracing::warn!(pool = self.name, %error, "cannot start another thread"),
            }
        }
        state.jobs.push_back(job);
        drop(state);
        self.shared.changed.notify_one();
    }

    fn spawn(&self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name(self.name.to_owned()).spawn(move || shared.work())?;
        self.threads.borrow_mut().push(thread);
        Ok(())
    }

    /// Refuses new jobs and waits until all threads have finished theirs, at most `patience`.
    pub(crate) fn stop(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut state = self.shared.lock();
        state.closed = true;
        self.shared.changed.notify_all();
        while state.threads > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!(pool = self.name, threads = state.threads, "blocked threads are left behind");
                return;
            }
            state = match self.shared.changed.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        drop(state);
        for thread in self.threads.take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("name", &self.name).field("max", &self.max).finish_non_exhaustive()
    }
}

/// Does what a request says, blocking.
fn perform(request: Request) -> Outcome {
    let Request { fd, mut memory, start, kind, places } = request;
    let result = retry_on_intr(|| match (&mut memory, kind) {
        (Memory::Guest(lease), Kind::Read(offset) | Kind::Write(offset)) => {
            lease.transfer(fd.as_fd(), start as u64, offset)
        }
        (Memory::Ours(buf), kind) => call(&fd, buf.get_mut(start..).unwrap_or_default(), kind),
        (Memory::Guest(_), kind) => call(&fd, &mut [], kind),
    });
    drop(places);
    (result.map_err(io::Error::from), memory)
}

fn call(fd: &OwnedFd, part: &mut [u8], kind: Kind) -> rustix::io::Result<usize> {
    match kind {
        Kind::Read(CURRENT_POSITION) => rustix::io::read(fd, part),
        Kind::Read(offset) => rustix::io::pread(fd, part, offset),
        Kind::Write(CURRENT_POSITION) => rustix::io::write(fd, part),
        Kind::Write(offset) => rustix::io::pwrite(fd, part, offset),
        Kind::SyncAll => rustix::fs::fsync(fd).map(|()| 0),
        Kind::SyncData => rustix::fs::fdatasync(fd).map(|()| 0),
        Kind::Allocate { how, offset, len } => {
            rustix::fs::fallocate(fd, how.flags(), offset, len).map(|()| 0)
        }
    }
}
