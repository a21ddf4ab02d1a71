//! Handles of spawned tasks: join and abort.
//!
//! Owns the place where a task leaves its result. Never polls anything.

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::executor::{Executor, LocalFuture};
use crate::ready::TaskWake;

/// What became of a task.
pub type JoinResult<T> = Result<T, JoinError>;

/// Why a task has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// It was aborted, or its shard stopped first.
    #[error("the task was aborted")]
    Aborted,
    /// It panicked with this message. Its shard and all other tasks go on.
    #[error("the task panicked: {0}")]
    Panicked(String),
}

/// A task on this shard. Awaiting it gives its result; dropping it lets the task run on by itself.
#[must_use = "a task that nobody may ever abort should be detached explicitly"]
pub struct Task<T> {
    join: Rc<Join<T>>,
    wake: Option<Arc<TaskWake>>,
}

impl<T> Task<T> {
    pub(crate) fn new(join: Rc<Join<T>>, wake: Option<Arc<TaskWake>>) -> Self {
        Self { join, wake }
    }

    /// True once the task has ended in whatever way and nobody has taken its result.
    pub fn is_finished(&self) -> bool {
        self.join.state.borrow().result.is_some()
    }

    /// Lets the task run on; its result is dropped.
    pub fn detach(self) {}

    pub(crate) fn take(&self) -> Option<JoinResult<T>> {
        self.join.state.borrow_mut().result.take()
    }

    pub(crate) fn abort_on(&self, executor: &Executor) {
        if let Some(wake) = &self.wake {
            executor.abort(wake);
        }
    }
}

impl<T> fmt::Debug for Task<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("finished", &self.is_finished()).finish_non_exhaustive()
    }
}

impl<T> Future for Task<T> {
    type Output = JoinResult<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.join.state.borrow_mut();
        match state.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                state.waiter = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// Where a task leaves its result.
pub(crate) struct Join<T> {
    state: RefCell<JoinState<T>>,
}

struct JoinState<T> {
    result: Option<JoinResult<T>>,
    waiter: Option<Waker>,
}

/// Sets the result exactly once; dropped without one, the task was aborted.
struct Finisher<T>(Option<Rc<Join<T>>>);

impl<T> Finisher<T> {
    fn finish(&mut self, result: JoinResult<T>) {
        let Some(join) = self.0.take() else { return };
        let waiter = {
            let mut state = join.state.borrow_mut();
            state.result = Some(result);
            state.waiter.take()
        };
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }
}

impl<T> Drop for Finisher<T> {
    fn drop(&mut self) {
        self.finish(Err(JoinError::Aborted));
    }
}

/// Wraps `future` so that its result, panic or abortion reaches the returned place.
pub(crate) fn joinable<T: 'static>(future: impl Future<Output = T> + 'static) -> (Rc<Join<T>>, LocalFuture) {
    let join = Rc::new(Join { state: RefCell::new(JoinState { result: None, waiter: None }) });
    let mut finisher = Finisher(Some(Rc::clone(&join)));
    let body = async move {
        let result = {
            let mut future = pin!(future);
            poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
                Ok(Poll::Pending) => Poll::Pending,
                Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
                Err(panic) => Poll::Ready(Err(panicked(panic.as_ref()))),
            })
            .await
        };
        finisher.finish(result);
    };
    (join, Box::pin(body))
}

fn panicked(panic: &(dyn Any + Send)) -> JoinError {
    let message = panic_message(panic);
    tracing::error!(message, "a task panicked");
    JoinError::Panicked(message)
}

/// The text of a panic, as far as it has one.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&'static str>() {
        return (*text).to_owned();
    }
    panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "(no message)".to_owned())
}
