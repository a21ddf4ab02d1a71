//! A shard: one thread, one event loop, the devices of some VMs.
//!
//! Owns the thread, its runtime and its tasks. Commands come in as plain data; everything else on the shard
//! is `!Send`. Never blocks on another thread, and stops only when its service says it has drained.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ringlet_metrics::ShardMetrics;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, error::SendError, unbounded_channel};

use crate::budget::Budget;
use crate::busy_poll::{BUSY_POLL, BusyPoll};
use crate::clock::MonoTime;
use crate::engine::EngineKind;
use crate::epoll;
use crate::executor::Executor;
use crate::file::{Ring, ring_entries};
use crate::owner::Owner;
use crate::ring::UringRuntime;
use crate::slice;
use crate::task::{JoinError, Task, panic_message};
use crate::timer::Timer;

/// How a shard is set up.
#[derive(Debug, Clone)]
pub struct ShardConfig {
    /// Its number, for names and labels.
    pub index: u32,
    /// Its engine, as [`crate::select`] settled it.
    pub engine: EngineKind,
    /// Entries of the submission queue: 32 to 4096 (others are clamped); bounds operations under way on
    /// either engine.
    pub ring_entries: u32,
    /// How long the service may take to drain before its tasks are dropped.
    pub drain_timeout: Duration,
    /// How long the loop looks for work before it sleeps, where work mostly comes soon; zero: never.
    pub busy_poll: Duration,
    /// Where busy time and queue delay are reported.
    pub metrics: Arc<ShardMetrics>,
}

impl ShardConfig {
    /// The usual set-up: 256 ring entries, 10 seconds to drain, [`BUSY_POLL`].
    pub fn new(index: u32, engine: EngineKind, metrics: Arc<ShardMetrics>) -> Self {
        let drain_timeout = Duration::from_secs(10);
        Self { index, engine, ring_entries: 256, drain_timeout, busy_poll: BUSY_POLL, metrics }
    }
}

/// What a shard is for: handles commands and owns what lives on the shard.
pub trait Service: 'static {
    /// Plain data and descriptors.
    type Command: Send + 'static;

    /// Handles one command on the shard's thread. Must not block; what takes time is spawned.
    fn command(&mut self, cx: &ShardContext, command: Self::Command);

    /// The last thing before the loop stops, after all commands: ends own tasks and waits for them. Tasks
    /// that are left when it is done are dropped.
    fn drain(&mut self, cx: &ShardContext) -> impl Future<Output = ()>;
}

/// Why a shard did not run, or did not end well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShardError {
    /// Its thread could not be created.
    #[error("shard {index}: no thread: {source}. Is the limit on threads reached (`ringlet check`)?")]
    Thread {
        /// The shard's number.
        index: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// Its event loop could not be made, or failed later.
    #[error("shard {index}: the {engine} event loop failed: {source}")]
    Loop {
        /// The shard's number.
        index: u32,
        /// Its engine.
        engine: EngineKind,
        /// What the kernel said.
        source: io::Error,
    },
    /// Its service panicked while it handled a command or drained.
    #[error("shard {index}: panicked: {message}")]
    Panicked {
        /// The shard's number.
        index: u32,
        /// The panic's message.
        message: String,
    },
    /// Its service did not drain in time; the tasks that were left have been dropped.
    #[error("shard {index}: did not drain within {timeout:?}")]
    DrainTimeout {
        /// The shard's number.
        index: u32,
        /// How long it had.
        timeout: Duration,
    },
}

struct Message<C> {
    sent: MonoTime,
    /// `None`: stop.
    command: Option<C>,
}

/// A running shard. Dropping it stops it, as [`Shard::stop`] does.
pub struct Shard<C> {
    sender: ShardSender<C>,
    thread: Option<JoinHandle<Result<(), ShardError>>>,
    index: u32,
}

/// Sends commands to a shard, from any thread. Clones are the same shard.
pub struct ShardSender<C> {
    channel: UnboundedSender<Message<C>>,
}

impl<C> Clone for ShardSender<C> {
    fn clone(&self) -> Self {
        Self { channel: self.channel.clone() }
    }
}

impl<C> fmt::Debug for ShardSender<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardSender").field("closed", &self.channel.is_closed()).finish()
    }
}

impl<C> ShardSender<C> {
    /// Queues a command; never blocks. Commands are handled in the order of arrival.
    ///
    /// # Errors
    /// The shard is stopping or has failed: the command comes back.
    pub fn send(&self, command: C) -> Result<(), C> {
        let message = Message { sent: MonoTime::now(), command: Some(command) };
        match self.channel.send(message) {
            Err(SendError(Message { command: Some(command), .. })) => Err(command),
            _ => Ok(()),
        }
    }
}

impl<C: Send + 'static> Shard<C> {
    /// Starts the shard's thread, named `ringlet-shard-N`, and returns without waiting for its loop to run.
    ///
    /// `make` builds the service on the shard's thread. If the loop cannot start after all, commands are
    /// refused (those that were queued are dropped) and [`Shard::stop`] says why.
    ///
    /// # Errors
    /// [`ShardError::Thread`].
    pub fn spawn<S: Service<Command = C>>(
        config: ShardConfig,
        make: impl FnOnce(&ShardContext) -> S + Send + 'static,
    ) -> Result<Self, ShardError> {
        let index = config.index;
        let (channel, commands) = unbounded_channel();
        let thread = thread::Builder::new()
            .name(format!("ringlet-shard-{index}"))
            .spawn(move || run(&config, commands, make))
            .map_err(|source| ShardError::Thread { index, source })?;
        Ok(Self { sender: ShardSender { channel }, thread: Some(thread), index })
    }

    /// Queues a command; see [`ShardSender::send`].
    ///
    /// # Errors
    /// The shard is stopping or has failed: the command comes back.
    pub fn send(&self, command: C) -> Result<(), C> {
        self.sender.send(command)
    }

    /// A sender that outlives this handle.
    pub fn sender(&self) -> ShardSender<C> {
        self.sender.clone()
    }

    /// Stops the shard: handles what was sent before, refuses new commands, drains the service, finishes
    /// file I/O, and joins the thread.
    ///
    /// # Errors
    /// How the shard failed, now or earlier.
    pub fn stop(mut self) -> Result<(), ShardError> {
        self.shut_down()
    }
}

impl<C> Shard<C> {
    fn shut_down(&mut self) -> Result<(), ShardError> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        let _ = self.sender.channel.send(Message { sent: MonoTime::now(), command: None });
        if thread.thread().id() == thread::current().id() {
            // A shard that stops itself cannot wait for itself.
            return Ok(());
        }
        let index = self.index;
        thread.join().unwrap_or_else(|panic| {
            Err(ShardError::Panicked { index, message: panic_message(panic.as_ref()) })
        })
    }
}

impl<C> Drop for Shard<C> {
    fn drop(&mut self) {
        if let Err(error) = self.shut_down() {
            tracing::error!(%error, "a shard did not end well");
        }
    }
}

impl<C> fmt::Debug for Shard<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard").field("index", &self.index).field("sender", &self.sender).finish()
    }
}

/// What tasks on a shard work with. Clones are the same shard; `!Send`.
#[derive(Debug, Clone)]
pub struct ShardContext(Rc<ContextInner>);

#[derive(Debug)]
struct ContextInner {
    executor: Rc<Executor>,
    ring: Ring,
    timer: Timer,
    index: u32,
}

impl ShardContext {
    fn new(config: &ShardConfig, ring: Ring) -> io::Result<Self> {
        let busy_poll = BusyPoll::new(config.busy_poll);
        let executor = Rc::new(Executor::new(Arc::clone(&config.metrics), ring.ledger(), busy_poll)?);
        Ok(Self(Rc::new(ContextInner { executor, ring, timer: Timer::new()?, index: config.index })))
    }

    /// The shard's number.
    pub fn index(&self) -> u32 {
        self.0.index
    }

    /// The shard's engine.
    pub fn engine(&self) -> EngineKind {
        self.0.ring.engine()
    }

    /// File and stream I/O.
    pub fn ring(&self) -> &Ring {
        &self.0.ring
    }

    /// Waiting for points in time.
    pub fn timer(&self) -> &Timer {
        &self.0.timer
    }

    /// Starts a task; the time of its polls is charged to `owner`. A panic ends the task only.
    pub fn spawn<T: 'static>(&self, owner: &Owner, future: impl Future<Output = T> + 'static) -> Task<T> {
        self.0.executor.spawn(owner, future)
    }

    /// Drops a task's future: at once, or after the poll that is under way.
    pub fn abort<T>(&self, task: &Task<T>) {
        task.abort_on(&self.0.executor);
    }

    /// A new task's claim on `owner`'s requests per turn.
    pub fn budget(&self, owner: &Owner) -> Budget {
        Budget::new(owner.clone(), Rc::clone(&self.0.executor), self.0.timer.clone())
    }

    /// Waits for the next turn, after the I/O driver and every other ready task had theirs (but for tasks
    /// whose owner had all of its time of a turn).
    ///
    /// Tasks of a shard use this (or [`Budget::spend`]) and never `tokio::task::yield_now`: that one keeps
    /// the loop from parking, so that operations that were started are not submitted to the kernel.
    pub async fn next_turn(&self) {
        let now = self.turn();
        poll_fn(|cx| {
            if self.turn() != now {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// The number of the loop's current turn.
    pub fn turn(&self) -> u64 {
        self.0.executor.turn()
    }

    /// Number of tasks that have not ended, the shard's own command task included.
    pub fn tasks(&self) -> usize {
        self.0.executor.len()
    }
}

/// The life of a shard's thread.
fn run<S: Service>(
    config: &ShardConfig,
    commands: UnboundedReceiver<Message<S::Command>>,
    make: impl FnOnce(&ShardContext) -> S + 'static,
) -> Result<(), ShardError> {
    let failed = |source| ShardError::Loop { index: config.index, engine: config.engine, source };
    if let Err(error) = slice::wake_promptly() {
        tracing::debug!(shard = config.index, %error, "the event loop may have to wait for CPUs as long as any other thread");
    }
    let entries = ring_entries(config.ring_entries);
    let served = match config.engine {
        EngineKind::Uring => {
            let runtime = UringRuntime::new(entries).map_err(failed)?;
            let ring = Ring::uring(runtime.in_flight(), entries);
            runtime.block_on(tokio::task::unconstrained(serve(config, ring, commands, make)))
        }
        EngineKind::Epoll => {
            let runtime = epoll::runtime().map_err(failed)?;
            let ring = Ring::epoll(entries);
            Ok(runtime.block_on(tokio::task::unconstrained(serve(config, ring, commands, make))))
        }
    };
    match served.and_then(|served| served).map_err(failed)? {
        Ok(true) => Ok(()),
        Ok(false) => Err(ShardError::DrainTimeout { index: config.index, timeout: config.drain_timeout }),
        Err(error) => Err(ShardError::Panicked { index: config.index, message: error.to_string() }),
    }
}

/// Runs the loop until the shard is stopped; `Ok(Ok(false))` if the service did not drain in time.
async fn serve<S: Service>(
    config: &ShardConfig,
    ring: Ring,
    commands: UnboundedReceiver<Message<S::Command>>,
    make: impl FnOnce(&ShardContext) -> S + 'static,
) -> io::Result<Result<bool, JoinError>> {
    let cx = ShardContext::new(config, ring)?;
    let main = {
        let (cx, metrics, timeout) = (cx.clone(), Arc::clone(&config.metrics), config.drain_timeout);
        async move {
            let service = make(&cx);
            command_loop(service, &cx, commands, &metrics, timeout).await
        }
    };
    let main = cx.spawn(&Owner::shard(), main);
    let ended = cx.0.executor.run(main, &cx.0.timer, &cx.0.ring).await;
    cx.0.executor.close();
    cx.0.ring.stop();
    ended
}

async fn command_loop<S: Service>(
    mut service: S,
    cx: &ShardContext,
    mut commands: UnboundedReceiver<Message<S::Command>>,
    metrics: &ShardMetrics,
    timeout: Duration,
) -> bool {
    let budget = cx.budget(&Owner::shard());
    while let Some(message) = commands.recv().await {
        let Some(command) = message.command else {
            // What was sent before is still handled; what comes after is refused.
            commands.close();
            continue;
        };
        metrics.queue_delay.observe(MonoTime::now().since(message.sent));
        service.command(cx, command);
        budget.spend().await;
    }
    let drained = async {
        service.drain(cx).await;
        cx.ring().idle().await;
    };
    within(cx.timer(), timeout, drained).await
}

/// Awaits `future` for at most `span`; true if it ended.
async fn within(timer: &Timer, span: Duration, future: impl Future<Output = ()>) -> bool {
    let mut future = pin!(future);
    let mut deadline = pin!(timer.sleep(span));
    tokio::select! {
        biased;
        () = &mut future => true,
        () = &mut deadline => false,
    }
}

#[cfg(test)]
#[path = "shard_test.rs"]
mod tests;
