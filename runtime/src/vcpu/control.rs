//! The state machine between one vCPU thread and everybody who wants something of it.
//!
//! Owns what is asked of the vCPU ([`Request`]) and what it is doing ([`Status`]), as one atomic word. A request never
//! gets lost: it is stored first, then the thread is kicked; the thread looks at it before every `KVM_RUN`, and
//! a kick that arrives before `KVM_RUN` makes that call return at once, because the kick's signal stays
//! pending. Knows neither KVM nor devices.
//!
//! Nobody who asks or looks waits for the vCPU's thread, which a low weight may keep from its CPU at any point: there is
//! no lock that it shares with them but that of what it leaves behind at its end.

use std::time::{Duration, Instant};

#[cfg(not(all(test, ringlet_loom)))]
use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU8, Ordering},
};

#[cfg(all(test, ringlet_loom))]
use loom::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicU8, Ordering},
};
#[cfg(all(test, ringlet_loom))]
use std::sync::PoisonError;

use super::bell::Bell;
use super::target::Target;

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
#[repr(u8)]
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
pub(crate) trait KickTarget: Send + Sync {
    fn kick(&self);
}

/// What is asked and what is done, of one moment: the request in the low two bits, the status above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State(u8);

impl State {
    const fn new(request: Request, status: Status) -> Self {
        Self(request as u8 | (status as u8) << 2)
    }

    fn request(self) -> Request {
        match self.0 & 3 {
            0 => Request::Run,
            1 => Request::Pause,
            _ => Request::Stop,
        }
    }

    fn status(self) -> Status {
        match self.0 >> 2 {
            0 => Status::Running,
            1 => Status::Paused,
            2 => Status::WaitingForShard,
            3 => Status::Throttled,
            _ => Status::Finished,
        }
    }
}

/// How long a parked vCPU has to stay so, if it is asked to run.
enum Until {
    Now,
    Moment(Instant),
    /// Until the bell rings, and then it looks again.
    Rung,
}

impl Until {
    /// `None` if it need not wait, else how long at most, if there is an end.
    fn left(self) -> Option<Option<Duration>> {
        match self {
            Self::Now => None,
            Self::Moment(at) => {
                at.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()).map(Some)
            }
            Self::Rung => Some(None),
        }
    }
}

/// One vCPU's requests and status. `T` is its thread, `E` what it leaves behind when it has finished.
pub(crate) struct Control<T, E> {
    state: AtomicU8,
    /// Where the thread sleeps. Rung after every change that it may wait for.
    bell: Bell,
    thread: Target<T>,
    kicked: AtomicBool,
    /// Locked by the thread before it is seen to have finished, and by others only after that.
    end: Mutex<Option<E>>,
    /// Told after every change of status.
    changed: Box<dyn Fn() + Send + Sync>,
}

impl<T: KickTarget, E> Control<T, E> {
    /// A vCPU that is paused and whose thread has not arrived yet.
    pub(crate) fn new(changed: Box<dyn Fn() + Send + Sync>) -> Self {
        Self {
            state: AtomicU8::new(State::new(Request::Pause, Status::Paused).0),
            bell: Bell::default(),
            thread: Target::new(),
            kicked: AtomicBool::new(false),
            end: Mutex::new(None),
            changed,
        }
    }

    /// Asks for something. Returns at once; [`Self::status`] tells when it has come true.
    pub(crate) fn ask(&self, request: Request) {
        let state = self.update(|state| match state.request() {
            Request::Stop => state,
            _ => State::new(request, state.status()),
        });
        self.alert(state);
    }

    /// Brings a running vCPU out of the guest, and lets a throttled one look again, without asking anything of it: what
    /// it will find was stored before.
    pub(crate) fn nudge(&self) {
        // A change, though to the same: a vCPU that does not run in this state sees, when it does, what was stored.
        let state = self.update(|state| state);
        self.alert(state);
    }

    /// Lets a waiting vCPU look again whether the shard has done what it waits for.
    pub(crate) fn shard_replied(&self) {
        self.bell.ring();
    }

    pub(crate) fn status(&self) -> Status {
        self.state().status()
    }

    /// True if the vCPU is at rest: it runs no guest code until it is asked to.
    pub(crate) fn is_parked(&self) -> bool {
        let state = self.state();
        match state.status() {
            Status::Paused | Status::WaitingForShard | Status::Throttled => state.request() != Request::Run,
            Status::Finished => true,
            Status::Running => false,
        }
    }

    /// Takes what the vCPU left behind; `None` before it has finished.
    pub(crate) fn take_end(&self) -> Option<E> {
        if self.status() != Status::Finished {
            return None;
        }
        self.end.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    // From here on: called by the vCPU's own thread only.

    /// The thread has arrived and can be kicked from now on.
    pub(crate) fn arrive(&self, thread: T) {
        self.thread.arrive(thread);
    }

    /// What to do before the next `KVM_RUN`.
    pub(crate) fn poll(&self) -> Flow {
        match self.state().request() {
            Request::Run => Flow::Run,
            Request::Pause => Flow::Pause,
            Request::Stop => Flow::Stop,
        }
    }

    /// `KVM_RUN` was interrupted: `eat` removes the kick's pending signal. Whether there was a kick.
    pub(crate) fn kick_arrived(&self, eat: impl FnOnce()) -> bool {
        eat();
        // Reads what the last asker wrote, so that its request is seen by the poll that follows.
        self.kicked.swap(false, Ordering::SeqCst)
    }

    /// Parks until asked to run or to stop.
    pub(crate) fn park(&self) -> Flow {
        self.wait(Status::Paused, || Until::Now)
    }

    /// Parks until `ready` (looked at after every [`Self::shard_replied`]), and then for as long as the host
    /// wants the vCPU paused. [`Flow::Stop`] if it is to stop instead.
    pub(crate) fn wait_for_shard(&self, ready: impl Fn() -> bool) -> Flow {
        self.wait(Status::WaitingForShard, || if ready() { Until::Now } else { Until::Rung })
    }

    /// Parks until `deadline`, as a vCPU that waits for its shard.
    pub(crate) fn wait_until(&self, deadline: Instant) -> Flow {
        self.wait(Status::WaitingForShard, || Until::Moment(deadline))
    }

    /// Parks for as long as `until` (looked at again after every [`Self::nudge`]) names a moment that has not come yet,
    /// and then for as long as the host wants the vCPU paused. [`Flow::Stop`] if it is to stop instead.
    pub(crate) fn throttle(&self, until: impl Fn() -> Option<Instant>) -> Flow {
        self.wait(Status::Throttled, || until().map_or(Until::Now, Until::Moment))
    }

    /// The thread leaves and must not be kicked any more.
    pub(crate) fn finish(&self, end: E) {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
        self.thread.leave();
        self.set_status(Status::Finished);
    }

    fn wait(&self, status: Status, until: impl Fn() -> Until) -> Flow {
        self.set_status(status);
        loop {
            let heard = self.bell.heard();
            let state = self.state();
            match state.request() {
                Request::Stop => return Flow::Stop,
                Request::Pause => self.bell.wait(heard, None),
                Request::Run => match until().left() {
                    Some(left) => self.bell.wait(heard, left),
                    // Not if something else was asked for meanwhile.
                    None if self.change(state, State::new(Request::Run, Status::Running)).is_ok() => break,
                    None => {}
                },
            }
        }
        (self.changed)();
        Flow::Run
    }

    /// Lets the vCPU look again, which was in this state.
    fn alert(&self, state: State) {
        self.bell.ring();
        if state.status() == Status::Running && !self.kicked.swap(true, Ordering::SeqCst) {
            self.thread.kick();
        }
    }

    fn set_status(&self, status: Status) {
        self.update(|state| State::new(state.request(), status));
        (self.changed)();
    }

    fn state(&self) -> State {
        State(self.state.load(Ordering::SeqCst))
    }

    fn change(&self, from: State, to: State) -> Result<u8, u8> {
        self.state.compare_exchange(from.0, to.0, Ordering::SeqCst, Ordering::SeqCst)
    }

    /// Changes the state and gives the new one.
    fn update(&self, change: impl Fn(State) -> State) -> State {
        let mut state = self.state();
        loop {
            let new = change(state);
            match self.change(state, new) {
                Ok(_) => return new,
                Err(other) => state = State(other),
            }
        }
    }
}

#[cfg(test)]
#[cfg(not(ringlet_loom))]
#[path = "control_test.rs"]
mod tests;

#[cfg(all(test, ringlet_loom))]
#[path = "control_loom_test.rs"]
mod loom_tests;
