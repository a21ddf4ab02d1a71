//! The state machine between one vCPU thread and everybody who wants something of it.
//!
//! Owns what is asked of the vCPU ([`Request`]) and what it is doing ([`Status`]). A request never gets
//! lost: it is stored first, then the thread is kicked; the thread looks at it before every `KVM_RUN`, and
//! a kick that arrives before `KVM_RUN` makes that call return at once, because the kick's signal stays
//! pending. Knows neither KVM nor devices.

#[cfg(not(all(test, ringlet_loom)))]
use std::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU8, Ordering},
};
use std::time::Instant;

#[cfg(all(test, ringlet_loom))]
use loom::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU8, Ordering},
};

/// What the vCPU is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Request {
    Run,
    Pause,
    /// Final: later requests are ignored.
    Stop,
}

/// What the vCPU thread is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// In or about to enter the guest.
    Running,
    /// Parked at the host's wish, every access of the guest complete.
    Paused,
    /// Parked until the shard has room or time for it. Counts as paused and as stoppable.
    WaitingForShard,
    /// Parked until its VM may use CPU time again, every access of the guest complete. Counts as paused and as
    /// stoppable.
    Throttled,
    /// The thread will not enter the guest again.
    Finished,
}

/// What the thread does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    Run,
    /// Complete the access in progress, then call [`Control::park`].
    Pause,
    Stop,
}

/// How a thread is brought out of the guest.
pub(crate) trait KickTarget: Send {
    fn kick(&self);
}

struct Inner<T, E> {
    request: Request,
    status: Status,
    thread: Option<T>,
    end: Option<E>,
}

/// One vCPU's requests and status. `T` is its thread, `E` what it leaves behind when it has finished.
pub(crate) struct Control<T, E> {
    inner: Mutex<Inner<T, E>>,
    wake: Condvar,
    /// Mirror of `inner.request`, for the look before every `KVM_RUN`.
    request: AtomicU8,
    kicked: AtomicBool,
    /// Told after every change of status.
    changed: Box<dyn Fn() + Send + Sync>,
}

impl<T: KickTarget, E> Control<T, E> {
    /// A vCPU that is paused and whose thread has not arrived yet.
    pub(crate) fn new(changed: Box<dyn Fn() + Send + Sync>) -> Self {
        let inner = Inner { request: Request::Pause, status: Status::Paused, thread: None, end: None };
        Self {
            inner: Mutex::new(inner),
            wake: Condvar::new(),
            request: AtomicU8::new(Request::Pause as u8),
            kicked: AtomicBool::new(false),
            changed,
        }
    }

    /// Asks for something. Returns at once; [`Self::status`] tells when it has come true.
    pub(crate) fn ask(&self, request: Request) {
        let mut inner = self.lock();
        if inner.request == Request::Stop {
            return;
        }
        inner.request = request;
        self.request.store(request as u8, Ordering::SeqCst);
        self.wake.notify_all();
        self.kick(&inner);
    }

    /// Brings a running vCPU out of the guest, and lets a throttled one look again, without asking anything of it: what
    /// it will find was stored before.
    pub(crate) fn nudge(&self) {
        let inner = self.lock();
        self.wake.notify_all();
        self.kick(&inner);
    }

    /// Lets a waiting vCPU look again whether the shard has done what it waits for.
    pub(crate) fn shard_replied(&self) {
        let _inner = self.lock();
        self.wake.notify_all();
    }

    pub(crate) fn status(&self) -> Status {
        self.lock().status
    }

    /// True if the vCPU is at rest: it runs no guest code until it is asked to.
    pub(crate) fn is_parked(&self) -> bool {
        let inner = self.lock();
        match inner.status {
            Status::Paused | Status::WaitingForShard | Status::Throttled => inner.request != Request::Run,
            Status::Finished => true,
            Status::Running => false,
        }
    }

    /// Takes what the vCPU left behind; `None` before it has finished.
    pub(crate) fn take_end(&self) -> Option<E> {
        self.lock().end.take()
    }

    // From here on: called by the vCPU's own thread only.

    /// The thread has arrived and can be kicked from now on.
    pub(crate) fn arrive(&self, thread: T) {
        self.lock().thread = Some(thread);
    }

    /// What to do before the next `KVM_RUN`.
    pub(crate) fn poll(&self) -> Flow {
        match self.request.load(Ordering::SeqCst) {
            r if r == Request::Run as u8 => Flow::Run,
            r if r == Request::Pause as u8 => Flow::Pause,
            _ => Flow::Stop,
        }
    }

    /// `KVM_RUN` was interrupted: `eat` removes the kick's pending signal.
    pub(crate) fn kick_arrived(&self, eat: impl FnOnce()) {
        eat();
        // Reads what the last asker wrote, so that its request is seen by the poll that follows.
        self.kicked.swap(false, Ordering::SeqCst);
    }

    /// Parks until asked to run or to stop.
    pub(crate) fn park(&self) -> Flow {
        self.wait(Status::Paused, || true)
    }

    /// Parks until `ready` (looked at after every [`Self::shard_replied`]), and then for as long as the host
    /// wants the vCPU paused. [`Flow::Stop`] if it is to stop instead.
    pub(crate) fn wait_for_shard(&self, ready: impl Fn() -> bool) -> Flow {
        self.wait(Status::WaitingForShard, ready)
    }

    /// Parks until `deadline`, as a vCPU that waits for its shard.
    pub(crate) fn wait_until(&self, deadline: Instant) -> Flow {
        self.wait_timed(Status::WaitingForShard, || (deadline > Instant::now()).then_some(deadline))
    }

    /// Parks for as long as `until` (looked at again after every [`Self::nudge`]) names a moment that has not come yet,
    /// and then for as long as the host wants the vCPU paused. [`Flow::Stop`] if it is to stop instead.
    pub(crate) fn throttle(&self, until: impl Fn() -> Option<Instant>) -> Flow {
        self.wait_timed(Status::Throttled, until)
    }

    /// The thread leaves and must not be kicked any more.
    pub(crate) fn finish(&self, end: E) {
        let mut inner = self.lock();
        inner.thread = None;
        inner.end = Some(end);
        self.set_status(&mut inner, Status::Finished);
    }

    fn wait(&self, status: Status, ready: impl Fn() -> bool) -> Flow {
        let mut inner = self.lock();
        self.set_status(&mut inner, status);
        loop {
            match inner.request {
                Request::Stop => return Flow::Stop,
                Request::Run if ready() => break,
                _ => inner = self.sleep(inner),
            }
        }
        self.set_status(&mut inner, Status::Running);
        Flow::Run
    }

    /// As [`Self::wait`], until a moment that `until` names.
    fn wait_timed(&self, status: Status, until: impl Fn() -> Option<Instant>) -> Flow {
        let mut inner = self.lock();
        self.set_status(&mut inner, status);
        loop {
            match (inner.request, until()) {
                (Request::Stop, _) => return Flow::Stop,
                (Request::Run, None) => break,
                (Request::Run, Some(at)) => {
                    let left = at.saturating_duration_since(Instant::now());
                    inner = match self.wake.wait_timeout(inner, left) {
                        Ok((inner, _)) => inner,
                        Err(poisoned) => poisoned.into_inner().0,
                    };
                }
                (Request::Pause, _) => inner = self.sleep(inner),
            }
        }
        self.set_status(&mut inner, Status::Running);
        Flow::Run
    }

    fn set_status(&self, inner: &mut Inner<T, E>, status: Status) {
        inner.status = status;
        (self.changed)();
    }

    fn kick(&self, inner: &Inner<T, E>) {
        // A finished thread has taken itself out under this very lock, so whoever is here is alive.
        if let Some(thread) = &inner.thread
            && inner.status == Status::Running
            && !self.kicked.swap(true, Ordering::SeqCst)
        {
            thread.kick();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T, E>> {
        // Every change under this lock is one assignment, so a panic under it leaves nothing half done.
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn sleep<'a>(&self, inner: MutexGuard<'a, Inner<T, E>>) -> MutexGuard<'a, Inner<T, E>> {
        self.wake.wait(inner).unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
#[cfg(not(ringlet_loom))]
#[path = "control_test.rs"]
mod tests;

#[cfg(all(test, ringlet_loom))]
#[path = "control_loom_test.rs"]
mod loom_tests;
