//! A queue whose chains are served one at a time, in the order in which the driver offers them.
//!
//! Owns a started queue. A chain is peeked, waited for and served, and only then consumed and completed, without
//! waiting between the two: so nothing is ever in flight, and stopping at any moment takes no time and loses
//! nothing. A request may take several chains ([`Ordered::offered_beyond`], [`Ordered::finish`]). All that completes in
//! one poll of the task is one interrupt. Never knows what a chain means.

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use ringlet_io::{Budget, Cost, CostKind, DoorbellListener, GuestRam, Limiter, MonoTime, ShardContext, Task};
use ringlet_metrics::{DeviceMetrics, GuestErrorKind, GuestLog, RequestKind, RequestStatus, guest_error};
use tokio::sync::oneshot;

use super::chain::Chain;
use super::device::{QueueParts, report_broken};
use super::interrupt::QueueInterrupt;
use super::queue::{Queue, QueueError};
use super::state::QueueState;

/// A queue that is served.
pub(crate) struct OrderedTask {
    cx: ShardContext,
    stop: Option<oneshot::Sender<()>>,
    task: Task<QueueState>,
}

impl OrderedTask {
    /// Serves the queue by the future that `serve` makes of it, from `state` if there is one. The future ends only
    /// if the queue is broken, and is dropped when the queue is stopped.
    pub(crate) fn spawn<F: Future<Output = QueueError> + 'static>(
        mut parts: QueueParts,
        state: Option<QueueState>,
        serve: impl FnOnce(Rc<Ordered>, DoorbellListener) -> F,
    ) -> Self {
        if let Some(state) = &state {
            parts.queue.resume(state);
            parts.interrupt.used();
        }
        let (cx, owner) = (parts.cx.clone(), parts.owner.clone());
        let (queue, doorbell) = Ordered::new(parts);
        let queue = Rc::new(queue);
        let serving = serve(Rc::clone(&queue), doorbell);
        let (stop, stopped) = oneshot::channel();
        let task = cx.spawn(&owner, run(queue, serving, stopped));
        Self { cx, stop: Some(stop), task }
    }

    /// Stops between two chains and gives the queue's state; `None` if the task failed, which is a bug of ours.
    pub(crate) async fn stop(mut self) -> Option<QueueState> {
        drop(self.stop.take());
        Pin::new(&mut self.task).await.ok()
    }
}

impl Drop for OrderedTask {
    fn drop(&mut self) {
        self.cx.abort(&self.task);
    }
}

impl fmt::Debug for OrderedTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrderedTask").field("task", &self.task).finish_non_exhaustive()
    }
}

/// Polls `serving` until it is told to stop; a broken queue is reported once and parked.
async fn run(
    queue: Rc<Ordered>,
    serving: impl Future<Output = QueueError>,
    stopped: oneshot::Receiver<()>,
) -> QueueState {
    let (mut serving, mut stopped) = (pin!(serving), pin!(stopped));
    let mut parked = false;
    poll_fn(|cx| {
        if stopped.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if !parked && let Poll::Ready(error) = serving.as_mut().poll(cx) {
            parked = true;
            queue.broken(&error);
        }
        queue.settle();
        Poll::Pending
    })
    .await;
    queue.queue.borrow().state()
}

/// What serves a queue in order.
pub(crate) struct Ordered {
    pub(crate) ram: GuestRam,
    pub(crate) metrics: Arc<DeviceMetrics>,
    pub(crate) log: Arc<GuestLog>,
    index: u16,
    queue: RefCell<Queue>,
    limiter: Limiter,
    budget: Budget,
    interrupt: QueueInterrupt,
}

impl Ordered {
    fn new(parts: QueueParts) -> (Self, DoorbellListener) {
        let QueueParts { index, queue, doorbell, interrupt, ram, limiter, budget, metrics, log, .. } = parts;
        let queue = RefCell::new(queue);
        (Self { ram, metrics, log, index, queue, limiter, budget, interrupt }, doorbell)
    }

    /// Waits for the chain that the driver offers next. Cancel-safe.
    pub(crate) async fn offered(&self, doorbell: &mut DoorbellListener) -> Result<Chain, QueueError> {
        loop {
            // Spent before the chain is copied: a look at the ring costs time too.
            self.budget.begin().await;
            let offered = self.queue.borrow_mut().peek()?;
            doorbell.was_worth_it(offered.is_some());
            if let Some(chain) = offered {
                return Ok(chain);
            }
            if self.queue.borrow_mut().enable_notification()? {
                continue;
            }
            doorbell.wait().await.map_err(|error| QueueError::Ring(error.to_string()))?;
            self.metrics.notifications.inc();
            self.quiet()?;
        }
    }

    /// The chain that the driver offers after the next `count`, which were offered already, if there is one.
    pub(crate) fn offered_beyond(&self, count: usize) -> Result<Option<Chain>, QueueError> {
        // There are no more than the queue is long.
        let Ok(count) = u16::try_from(count) else { return Ok(None) };
        self.queue.borrow_mut().peek_beyond(count)
    }

    /// The chain after the next `count`, if it is there, is well-formed, and may be looked at in this turn: one that need
    /// not be taken together with those.
    pub(crate) fn glimpse(&self, count: usize) -> Option<Chain> {
        let count = u16::try_from(count).ok()?;
        // Spent before the chain is copied, as for the first.
        if self.budget.try_begin() { self.queue.borrow_mut().glimpse(count) } else { None }
    }

    /// Charges the limiter, if it lets the request through at once.
    pub(crate) fn try_admit(&self, cost: Cost) -> bool {
        self.limiter.try_admit(cost)
    }

    /// Tells the driver that it need not notify for now.
    pub(crate) fn quiet(&self) -> Result<(), QueueError> {
        self.queue.borrow_mut().disable_notification()
    }

    /// Waits for the limiter. Cancel-safe.
    pub(crate) async fn admit(&self, doorbell: &mut DoorbellListener, cost: Cost) -> Result<(), QueueError> {
        self.wait_for(doorbell, self.limiter.admit(cost)).await
    }

    /// Waits for the limiter, does what shows only then what it costs, and charges that ([`Limiter::admit_and`]).
    /// Cancel-safe.
    pub(crate) async fn admit_and<T>(
        &self,
        doorbell: &mut DoorbellListener,
        kind: CostKind,
        act: impl FnOnce() -> (T, Option<u64>),
    ) -> Result<T, QueueError> {
        self.wait_for(doorbell, self.limiter.admit_and(kind, act)).await
    }

    /// Waits for something that is not a chain. Cancel-safe if that is.
    pub(crate) async fn wait_for<F: Future>(
        &self,
        doorbell: &mut DoorbellListener,
        other: F,
    ) -> Result<F::Output, QueueError> {
        let output = doorbell.wait_for(other, || self.metrics.notifications.inc()).await;
        output.map_err(|error| QueueError::Ring(error.to_string()))
    }

    /// Spends one more request of this turn, when the VM may begin one. Cancel-safe.
    pub(crate) async fn spend(&self) {
        self.budget.begin().await;
    }

    /// Gives the chain that was offered last back to the driver.
    pub(crate) fn complete(&self, chain: &Chain, written: u32) -> Result<(), QueueError> {
        let mut queue = self.queue.borrow_mut();
        let token = queue.consume(chain)?;
        queue.complete(token, written)
    }

    /// Gives the chains that were offered next back to the driver, all at once, each with the number of bytes written to
    /// it.
    pub(crate) fn finish<'a>(
        &self,
        chains: impl Iterator<Item = (&'a Chain, u32)> + Clone,
    ) -> Result<(), QueueError> {
        self.queue.borrow_mut().finish(chains)
    }

    /// Counts a request that was served, `bytes` long.
    pub(crate) fn served(&self, kind: RequestKind, bytes: u64, begun: MonoTime) {
        self.metrics.completed(kind, RequestStatus::Ok, bytes, MonoTime::now().since(begun));
    }

    /// Gives back a chain that the driver should not have offered to this queue, of which `wrong` says why.
    pub(crate) fn refuse(&self, chain: &Chain, wrong: &str) -> Result<(), QueueError> {
        guest_error!(
            self.log,
            GuestErrorKind::BadRequest,
            "{}: chain {} of queue {} has {wrong}",
            self.metrics.id(),
            chain.head(),
            self.index
        );
        self.metrics.completed(RequestKind::Other, RequestStatus::IoError, 0, std::time::Duration::ZERO);
        self.complete(chain, 0)
    }

    fn settle(&self) {
        let owed = self.queue.borrow_mut().take_owed();
        match owed {
            Ok(owed) => self.interrupt.settle(owed),
            Err(error) => self.broken(&error),
        }
    }

    fn broken(&self, error: &QueueError) {
        report_broken(&self.log, &self.metrics, &self.interrupt, self.index, error);
    }
}

/// A request that waits for the host, on the gauge for as long as this lives.
pub(crate) struct InFlight<'a>(&'a DeviceMetrics);

impl<'a> InFlight<'a> {
    pub(crate) fn begin(metrics: &'a DeviceMetrics) -> Self {
        metrics.in_flight.inc();
        Self(metrics)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.dec();
    }
}
