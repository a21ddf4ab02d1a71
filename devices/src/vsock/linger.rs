//! Connections that are over, but for what the guest has sent and nobody at the other end has taken: the kernel keeps that, also
//! when the socket is closed.
//!
//! Owns these, whose sockets are ended and not closed, so that it can be seen when it is taken. Until then, or until the other end
//! is closed, each has its place among those that there may be, its descriptor, and what is counted for it: else a guest whose
//! connections nobody accepts could have the kernel keep any number of windows. The kernel does not wake anybody for this, so
//! they are looked at now and then, a few at a time. Part of the [`Switch`].

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use ringlet_io::{Budget, MonoTime};
use tokio::sync::Notify;

use super::connection::Connection;
use super::switch::Switch;

/// When they are looked at first. Most are taken by then.
const SOON: Duration = Duration::from_millis(10);
/// When they are looked at if nothing happens: twice as late each time, but not later than this.
const LATE: Duration = Duration::from_secs(1);
/// How many are looked at together, ...
const LOOKS: usize = 64;
/// ... and for one more that wants a place: more than it can leave behind itself.
const AT_ONCE: usize = 4;

/// Connections that linger. Clones are the same ones.
#[derive(Debug, Default, Clone)]
pub(super) struct Lingering(Rc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    connections: RefCell<VecDeque<Connection>>,
    more: Notify,
    /// The VM has ended: whoever has not taken what it sent has it from then on.
    ended: Cell<bool>,
}

impl Lingering {
    pub(super) fn count(&self) -> usize {
        self.0.connections.borrow().len()
    }

    /// Takes a connection that is over; it is closed if nothing is left in it.
    pub(super) fn take(&self, connection: Connection) {
        if !self.0.ended.get() && connection.lingers() {
            self.0.connections.borrow_mut().push_back(connection);
            self.0.more.notify_one();
        }
    }

    /// The end: gives those that there are, and takes no more.
    pub(super) fn end(&self) -> Vec<Connection> {
        self.0.ended.set(true);
        self.0.connections.take().into()
    }

    /// Looks at some, for one more that wants a place: whoever connects again and again does not wait for what is taken already.
    pub(super) fn make_room(&self) {
        for _ in 0..self.count().min(AT_ONCE) {
            self.look_at_next();
        }
    }

    /// Looks at the next few; true if some are closed.
    async fn look(&self, budget: &Budget) -> bool {
        let mut closed = false;
        for _ in 0..self.count().min(LOOKS) {
            budget.spend().await;
            closed |= self.look_at_next();
        }
        closed
    }

    /// Looks at the one that was not looked at for longest; true if it is closed.
    fn look_at_next(&self) -> bool {
        let mut connections = self.0.connections.borrow_mut();
        let Some(connection) = connections.pop_front() else { return false };
        let lingers = connection.lingers();
        if lingers {
            connections.push_back(connection);
        }
        !lingers
    }

    /// Waits until `span` has passed, or a little after one more has come.
    async fn pause(&self, switch: &Switch, span: Duration) {
        let mut until = MonoTime::now() + span;
        loop {
            tokio::select! {
                biased;
                () = switch.cx.timer().sleep_until(until) => return,
                () = self.0.more.notified() => until = until.min(MonoTime::now() + SOON),
            }
        }
    }
}

/// Closes those that linger, by and by.
pub(super) async fn see_to_what_lingers(switch: Rc<Switch>) {
    let (lingering, budget) = (switch.lingering.clone(), switch.budget());
    let mut span = SOON;
    loop {
        while lingering.count() == 0 {
            lingering.0.more.notified().await;
            span = SOON;
        }
        lingering.pause(&switch, span).await;
        span = if lingering.look(&budget).await { SOON } else { LATE.min(2 * span) };
    }
}

#[cfg(test)]
#[path = "linger_test.rs"]
mod tests;
