//! The task of a request queue: peek, admit, consume, execute, complete, interrupt.
//!
//! Owns a started queue. Requests are taken in the order of the available ring, as fast as the limiter and the
//! VM's share of a turn allow and the host has memory for them; they run at the same time and complete in any order.
//! All that completes in one poll of the task is one interrupt. Never takes a chain that was not admitted, so
//! stopping at any moment loses nothing: what was only peeked is still the driver's.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::{Future, pending, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::Stream;
use futures_util::future::Either;
use futures_util::stream::FuturesUnordered;
use ringlet_io::{Budget, Cost, DoorbellListener, GuestRam, Limiter, Room, ShardContext, Space, Task};
use ringlet_metrics::{DeviceMetrics, GuestLog};
use tokio::sync::oneshot;

use super::chain::Chain;
use super::device::{Identity, QueueParts, report_broken};
use super::interrupt::QueueInterrupt;
use super::memory::{DeviceMemory, RequestMemory};
use super::queue::{Queue, QueueError, Token};
use super::state::QueueState;
use super::window::{Place, Window};

/// Requests that a queue starts in one turn of the loop. A turn's end is when the kernel is given what was started and
/// the driver is told of what has completed: with few at a time the driver prepares requests and looks at results while
/// others are served, with one at a time the turns cost more than they bring (`ringlet bench block`).
const BATCH: u32 = 6;

/// Bytes that a set of futures keeps for each, besides the future.
const NODE_BYTES: usize = 128;

/// What a device does with the requests of a queue.
pub trait RequestHandler: 'static {
    /// A request, as copied from its chain.
    type Request: 'static;

    /// Bytes of the host's memory that a request takes at most while it is executed, besides its future and the tables
    /// of its chain and lease.
    const OPERATION_BYTES: u64 = 0;

    /// Copies the header out of the chain, once, and says what the request costs. Never fails: a bad request is one
    /// that is executed by answering so.
    fn parse(&self, ram: &GuestRam, chain: &Chain) -> (Self::Request, Cost);

    /// Executes a request and gives the number of bytes written to the chain's writable part, counted from its
    /// start. Requests run at the same time. Dropped before its end only if the VM is lost.
    fn execute(
        self: Rc<Self>,
        ram: GuestRam,
        chain: Chain,
        request: Self::Request,
    ) -> impl Future<Output = u32> + 'static;
}

/// A queue that is served.
pub struct QueueTask {
    cx: ShardContext,
    stop: Option<oneshot::Sender<()>>,
    task: Option<Task<QueueState>>,
}

impl QueueTask {
    /// Serves the queue with `handler`, from `state` if there is one.
    pub fn spawn<H: RequestHandler>(
        cx: &ShardContext,
        mut parts: QueueParts,
        state: Option<QueueState>,
        handler: Rc<H>,
    ) -> Self {
        if let Some(state) = &state {
            parts.queue.resume(state);
        }
        let (stop, stopped) = oneshot::channel();
        let owner = parts.owner.clone();
        let room = Room::new(owner.buffers());
        let resumed = state.is_some();
        let context = cx.clone();
        let task = cx.spawn(&owner, async move {
            let QueueParts {
                index,
                queue,
                doorbell,
                interrupt,
                ram,
                limiter,
                window,
                budget,
                metrics,
                log,
                ..
            } = parts;
            if resumed {
                interrupt.used();
            }
            let queue = RefCell::new(queue);
            let serving = Serving {
                cx: context,
                index,
                queue,
                handler,
                ram,
                limiter,
                window,
                room,
                budget,
                interrupt,
                metrics,
                log,
            };
            serving.run(doorbell, stopped).await
        });
        Self { cx: cx.clone(), stop: Some(stop), task: Some(task) }
    }

    /// What a device takes of the host's memory whose queues are all served by such tasks.
    pub fn memory<H: RequestHandler>(identity: &Identity) -> DeviceMemory {
        DeviceMemory::of_requests(identity, request_memory::<H>())
    }

    /// Takes no further chain, completes what is in flight, tells the driver, and gives the queue's state; `None`
    /// if the task failed, which is a bug of ours: then something may still be in flight.
    pub async fn stop(mut self) -> Option<QueueState> {
        drop(self.stop.take());
        let ended = match &mut self.task {
            Some(task) => task.await.ok(),
            None => None,
        };
        self.task = None;
        ended
    }
}

impl Drop for QueueTask {
    /// Cancels what is in flight.
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            self.cx.abort(task);
        }
    }
}

impl fmt::Debug for QueueTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueTask").field("task", &self.task).finish_non_exhaustive()
    }
}

/// A request that was consumed and has its place.
struct Taken<H: RequestHandler> {
    token: Token,
    chain: Chain,
    request: H::Request,
    place: Place,
    space: Space,
}

/// A request in flight: executes it, and gives its places back.
fn in_flight<H: RequestHandler>(
    handler: Rc<H>,
    ram: GuestRam,
    taken: Taken<H>,
) -> impl Future<Output = (Token, u32)> {
    let Taken { token, chain, request, place, space } = taken;
    let work = handler.execute(ram, chain, request);
    async move {
        let written = work.await;
        drop((place, space));
        (token, written)
    }
}

/// What a request takes until it is complete.
fn request_memory<H: RequestHandler>() -> RequestMemory {
    fn size_of_output<A, B, C, F>(_: impl FnOnce(A, B, C) -> F) -> usize {
        size_of::<F>()
    }
    let future = size_of_output(in_flight::<H>) + NODE_BYTES;
    RequestMemory::new(future as u64 + H::OPERATION_BYTES)
}

/// What the task works with.
struct Serving<H> {
    cx: ShardContext,
    index: u16,
    queue: RefCell<Queue>,
    handler: Rc<H>,
    ram: GuestRam,
    limiter: Limiter,
    window: Window,
    room: Room,
    budget: Budget,
    interrupt: QueueInterrupt,
    metrics: Arc<DeviceMetrics>,
    log: Arc<GuestLog>,
}

impl<H: RequestHandler> Serving<H> {
    async fn run(self, doorbell: DoorbellListener, mut stopped: oneshot::Receiver<()>) -> QueueState {
        let jobs = RefCell::new(FuturesUnordered::new());
        // Never ends: a set whose every member was polled wakes its task again, for nothing if all wait.
        jobs.borrow_mut().push(Either::Right(pending()));
        let started = Cell::new(0u64);
        let start = |taken: Taken<H>| {
            started.set(started.get().wrapping_add(1));
            self.metrics.in_flight.inc();
            let job = in_flight(Rc::clone(&self.handler), self.ram.clone(), taken);
            jobs.borrow_mut().push(Either::Left(job));
        };
        let _count = InFlightGuard { metrics: &self.metrics, queue: &self.queue };
        {
            let mut intake = pin!(self.intake(doorbell, start));
            let mut taking = true;
            poll_fn(|cx| {
                if pin!(&mut stopped).poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                loop {
                    let before = started.get();
                    self.finish(&jobs, cx);
                    if taking && let Poll::Ready(error) = intake.as_mut().poll(cx) {
                        taking = false;
                        self.broken(&error);
                    }
                    if started.get() == before {
                        break;
                    }
                }
                self.settle();
                Poll::Pending
            })
            .await;
        }
        poll_fn(|cx| {
            self.finish(&jobs, cx);
            self.settle();
            if jobs.borrow().len() == 1 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        self.queue.borrow().state()
    }

    /// Takes chains for as long as the queue is sound, [`BATCH`] of them in a turn.
    async fn intake(&self, mut doorbell: DoorbellListener, start: impl Fn(Taken<H>)) -> QueueError {
        let (mut turn, mut taken) = (0, 0);
        loop {
            match self.next(&mut doorbell).await {
                Ok(request) => start(request),
                Err(error) => return error,
            }
            if turn != self.cx.turn() {
                (turn, taken) = (self.cx.turn(), 0);
            }
            taken += 1;
            if taken >= BATCH {
                self.cx.next_turn().await;
            }
        }
    }

    /// Waits for the next chain and its admission, and consumes it.
    async fn next(&self, doorbell: &mut DoorbellListener) -> Result<Taken<H>, QueueError> {
        let chain = loop {
            // Spent before the chain is copied: a look at the ring costs time too.
            self.budget.begin().await;
            let offered = self.queue.borrow_mut().peek()?;
            doorbell.was_worth_it(offered.is_some());
            if let Some(chain) = offered {
                break chain;
            }
            if self.queue.borrow_mut().enable_notification()? {
                continue;
            }
            doorbell.wait().await.map_err(|error| QueueError::Ring(error.to_string()))?;
            self.metrics.notifications.inc();
            self.queue.borrow_mut().disable_notification()?;
        };
        let (request, cost) = self.handler.parse(&self.ram, &chain);
        // What the limiter has admitted is taken at once.
        let bytes = request_memory::<H>().of_chain(chain.ranges());
        let admitted = async {
            // Waits for nothing but requests of this queue.
            let space = self.room.enter(bytes).await;
            let place = self.window.enter(cost.bytes).await;
            self.limiter.admit(cost).await;
            (place, space)
        };
        let admitted = doorbell.wait_for(admitted, || self.metrics.notifications.inc()).await;
        let (place, space) = admitted.map_err(|error| QueueError::Ring(error.to_string()))?;
        let token = self.queue.borrow_mut().consume(&chain)?;
        Ok(Taken { token, chain, request, place, space })
    }

    /// Completes all that is ready.
    fn finish<F: Future<Output = (Token, u32)>>(
        &self,
        jobs: &RefCell<FuturesUnordered<F>>,
        cx: &mut Context<'_>,
    ) {
        let mut jobs = jobs.borrow_mut();
        while let Poll::Ready(Some((token, written))) = pin!(&mut *jobs).poll_next(cx) {
            self.metrics.in_flight.dec();
            let done = self.queue.borrow_mut().complete(token, written);
            if let Err(error) = done {
                self.broken(&error);
            }
        }
    }

    /// One interrupt, if one is due, for all that was completed.
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

/// Takes what is in flight off the gauge when the task goes, however it goes.
struct InFlightGuard<'a> {
    metrics: &'a DeviceMetrics,
    queue: &'a RefCell<Queue>,
}

impl Drop for InFlightGuard<'_> {
    fn drop(&mut self) {
        self.metrics.in_flight.add(-i64::from(self.queue.borrow().in_flight()));
    }
}
