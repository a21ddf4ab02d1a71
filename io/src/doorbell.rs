#![expect(unsafe_code, reason = "registering a descriptor with the I/O driver is unsafe: it must stay open")]
//! Doorbells: eventfds that a guest (ioeventfd) or another thread rings and a shard task waits for.
//!
//! Owns the eventfd and, on the shard, its registration with the I/O driver (also `Watch`, the
//! registration that the rest of the crate uses). Never says what the ring means.
//!
//! # Waking or polling
//! Waking the loop for a ring costs about as much as serving a small request, so a guest that rings in
//! a tight loop would buy a large part of a core with it. [`RINGS_MEASURED`] wakes that brought no work and arrived in
//! less than [`WORTHWHILE`] each, on average, switch the doorbell to polling: it is taken out of the I/O driver, so
//! a ring wakes nothing, and the eventfd is read every [`POLL_PERIOD`]. [`IDLE_POLLS`] reads in a row that
//! find nothing switch it back (and rings that are followed by no work stretch the period, up to
//! [`LONGEST_PERIOD`]); no ring is lost either way, since the eventfd counts.
//!
//! Who listens says whether a ring brought work ([`DoorbellListener::was_worth_it`]); until then it brought none.
//! [`RINGS_MEASURED`] looks that brought work, and none without between them, end polling too: a guest with one request
//! at a time is woken for, however fast its requests are. It pays for what its queue's task does, not for the loop's way
//! out of its sleep: as any guest whose requests come one by one.

use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

use crate::clock::MonoTime;
use crate::shard::ShardContext;
use crate::timer::Timer;

/// Wakes without work over which the rate is measured; so many looks with work end polling.
pub const RINGS_MEASURED: u32 = 32;
/// Wakes without work are borne if they are at least this far apart on average (at most 50,000 a second).
pub const WORTHWHILE: Duration = Duration::from_micros(20);
/// How often a polled doorbell is looked at; with the hrtimer's lateness 5,000 to 9,000 times a second.
pub const POLL_PERIOD: Duration = Duration::from_micros(100);
/// How seldom a polled doorbell is looked at in the end, if it is rung for nothing again and again.
pub const LONGEST_PERIOD: Duration = Duration::from_millis(1);
/// Looks in a row without a ring that end polling.
pub const IDLE_POLLS: u32 = 2;

/// An eventfd that can be waited for on one shard and rung from anywhere.
///
/// `Send`, so it can be made where the VM is assembled and handed to its shard; there, [`Doorbell::listen`].
pub struct Doorbell {
    fd: Arc<OwnedFd>,
}

/// The ringing end of a [`Doorbell`], for any thread. Clones are the same doorbell.
#[derive(Debug, Clone)]
pub struct DoorbellSender {
    fd: Arc<OwnedFd>,
}

impl Doorbell {
    /// Makes a doorbell.
    ///
    /// # Errors
    /// The process or the system has no free file descriptor.
    pub fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { fd: Arc::new(fd) })
    }

    /// Makes a doorbell and its sender.
    ///
    /// # Errors
    /// As [`Doorbell::new`].
    pub fn pair() -> io::Result<(Self, DoorbellSender)> {
        let bell = Self::new()?;
        let sender = bell.sender();
        Ok((bell, sender))
    }

    /// Takes over an eventfd that was made elsewhere, and makes it non-blocking.
    ///
    /// # Errors
    /// `fd` is not open for changing its flags.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { fd: Arc::new(fd) })
    }

    /// Another end that can ring.
    pub fn sender(&self) -> DoorbellSender {
        DoorbellSender { fd: Arc::clone(&self.fd) }
    }

    /// Another handle of the same doorbell, to listen again after its listener is gone. At most one listens at a
    /// time.
    pub fn share(&self) -> Self {
        Self { fd: Arc::clone(&self.fd) }
    }

    /// Takes the rings that nobody waited for, and says how many they were. Never waits.
    pub fn take_rings(&self) -> u64 {
        // The only error that an eventfd can give is EAGAIN, which is none.
        read_count(&self.fd).ok().flatten().unwrap_or(0)
    }

    /// Registers the doorbell with this shard's loop. Rings from before count.
    ///
    /// # Errors
    /// The kernel refuses the registration (out of memory, or over `fs.epoll.max_user_watches`).
    pub fn listen(self, cx: &ShardContext) -> io::Result<DoorbellListener> {
        let watch = Watch::readable(Arc::clone(&self.fd))?;
        let mode = Mode::Woken(watch, Rate::new());
        Ok(DoorbellListener { fd: self.fd, timer: cx.timer().clone(), mode, unjudged: false })
    }
}

impl AsFd for Doorbell {
    /// The eventfd, to register with `KVM_IOEVENTFD`.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Doorbell").field(&self.fd).finish()
    }
}

impl DoorbellSender {
    /// Rings: one `write(2)`, never blocks, from any thread. Rings merge until they are waited for.
    pub fn ring(&self) {
        // The only possible error is EAGAIN: 2^64 - 2 rings wait already.
        let _ = rustix::io::write(self.fd.as_fd(), &1u64.to_ne_bytes());
    }
}

impl AsFd for DoorbellSender {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A doorbell that a task of this shard waits for.
pub struct DoorbellListener {
    fd: Arc<OwnedFd>,
    timer: Timer,
    mode: Mode,
    /// Whether it rang and nobody has said since whether that was worth it.
    unjudged: bool,
}

enum Mode {
    Woken(Watch, Rate),
    Polled(Looks),
}

/// How a polled doorbell is looked at.
struct Looks {
    next: MonoTime,
    period: Duration,
    /// Looks in a row that found no ring.
    idle: u32,
    /// Looks that brought work, since one brought none.
    useful: u32,
}

impl Looks {
    fn new() -> Self {
        Self { next: MonoTime::now() + POLL_PERIOD, period: POLL_PERIOD, idle: 0, useful: 0 }
    }

    fn judge(&mut self, worth_it: bool) {
        (self.period, self.useful) =
            if worth_it { (POLL_PERIOD, self.useful + 1) } else { (LONGEST_PERIOD.min(self.period * 2), 0) };
    }

    fn are_over(&self) -> bool {
        self.idle >= IDLE_POLLS || self.useful >= RINGS_MEASURED
    }
}

struct Rate {
    wakes: u32,
    since: MonoTime,
}

impl Rate {
    fn new() -> Self {
        Self { wakes: 0, since: MonoTime::now() }
    }

    /// Counts a wake; true if the last ones came too fast to be worth it.
    fn too_fast(&mut self, now: MonoTime) -> bool {
        self.wakes += 1;
        if self.wakes < RINGS_MEASURED {
            return false;
        }
        let span = now.since(self.since);
        *self = Self { wakes: 0, since: now };
        span < WORTHWHILE * RINGS_MEASURED
    }

    /// Does not count the last wake: it was worth it.
    fn forgive(&mut self) {
        self.wakes = self.wakes.saturating_sub(1);
    }
}

impl DoorbellListener {
    /// Waits until the doorbell has been rung since the last wait, and gives the number of rings.
    ///
    /// At most one ring a turn is reported. Cancel-safe: a ring is either reported or still there.
    ///
    /// # Errors
    /// The loop is shutting down, or the kernel refuses to register the descriptor again after polling.
    pub async fn wait(&mut self) -> io::Result<u64> {
        loop {
            match &mut self.mode {
                Mode::Woken(watch, rate) => {
                    let rings = watch.next_count().await?;
                    if rate.too_fast(MonoTime::now()) {
                        self.mode = Mode::Polled(Looks::new());
                    }
                    self.unjudged = true;
                    return Ok(rings);
                }
                Mode::Polled(looks) if looks.are_over() => {
                    let watch = Watch::readable(Arc::clone(&self.fd))?;
                    self.mode = Mode::Woken(watch, Rate::new());
                }
                Mode::Polled(looks) => {
                    self.timer.sleep_until(looks.next).await;
                    looks.next = MonoTime::now() + looks.period;
                    if let Some(rings) = read_count(&self.fd)? {
                        looks.idle = 0;
                        self.unjudged = true;
                        return Ok(rings);
                    }
                    looks.idle += 1;
                }
            }
        }
    }

    /// Says whether there was anything to do after the last ring; what is said again, before the next one, does not
    /// count. Rings that came while something else was waited for ([`DoorbellListener::wait_for`]) are one. While there
    /// is nothing, a polled doorbell is looked at half as often each time, down to every [`LONGEST_PERIOD`].
    pub fn was_worth_it(&mut self, worth_it: bool) {
        if !std::mem::take(&mut self.unjudged) {
            return;
        }
        match &mut self.mode {
            Mode::Woken(_, rate) if worth_it => rate.forgive(),
            Mode::Woken(..) => {}
            Mode::Polled(looks) => looks.judge(worth_it),
        }
    }

    /// Waits for something else, and takes the rings that come meanwhile: for who looks at its queue afterwards in any
    /// case. A doorbell that nobody waits for still wakes the loop with every ring, at nobody's expense; here a
    /// storm is polled, and who waits pays. `rung` is called for each wake.
    ///
    /// # Errors
    /// As [`DoorbellListener::wait`].
    pub async fn wait_for<F: Future>(&mut self, other: F, mut rung: impl FnMut()) -> io::Result<F::Output> {
        let mut other = pin!(other);
        loop {
            tokio::select! {
                biased;
                output = &mut other => return Ok(output),
                rings = self.wait() => {
                    rings?;
                    rung();
                }
            }
        }
    }

    /// True while the doorbell is polled because it was rung too fast.
    pub fn is_polled(&self) -> bool {
        matches!(self.mode, Mode::Polled(_))
    }

    /// Takes the doorbell off this shard's loop; rings stay counted.
    pub fn unlisten(self) -> Doorbell {
        Doorbell { fd: self.fd }
    }
}

impl fmt::Debug for DoorbellListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DoorbellListener").field("fd", &self.fd).field("polled", &self.is_polled()).finish()
    }
}

/// Reads an eventfd: its count, or `None` if it is zero.
fn read_count(fd: &OwnedFd) -> io::Result<Option<u64>> {
    let mut count = [0; 8];
    match rustix::io::retry_on_intr(|| rustix::io::read(fd, &mut count)) {
        Ok(_) => Ok(Some(u64::from_ne_bytes(count))),
        Err(Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A descriptor that is registered with the I/O driver of the runtime on this thread (edge-triggered).
///
/// Both engines wait through it. It never changes the descriptor's flags: who reads or writes after
/// readiness must be sure not to block.
#[derive(Debug)]
pub(crate) struct Watch {
    fd: AsyncFd<Arc<OwnedFd>>,
}

impl Watch {
    /// Watches for data to read.
    pub(crate) fn readable(fd: Arc<OwnedFd>) -> io::Result<Self> {
        Self::register(fd, Interest::READABLE)
    }

    /// Watches in both directions. `PermissionDenied` (EPERM): the descriptor cannot be polled.
    pub(crate) fn both(fd: Arc<OwnedFd>) -> io::Result<Self> {
        Self::register(fd, Interest::READABLE | Interest::WRITABLE)
    }

    fn register(fd: Arc<OwnedFd>, interest: Interest) -> io::Result<Self> {
        // SAFETY: the AsyncFd gets a share of the OwnedFd, so the descriptor stays open as long as it is
        // registered, and an OwnedFd behind an Arc always gives the same number.
        let fd = unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)?;
        Ok(Self { fd })
    }

    /// Waits for readiness; clear the guard when (and only when) the descriptor turned out not to be ready.
    pub(crate) async fn ready(&self, interest: Interest) -> io::Result<AsyncFdReadyGuard<'_, Arc<OwnedFd>>> {
        self.fd.ready(interest).await
    }

    /// Makes an attempt that does not wait, unless it is known that the descriptor is not ready. Takes note of
    /// `WouldBlock`, which is also what it gives without an attempt. `interest` is one direction.
    pub(crate) fn attempt<T>(
        &self,
        interest: Interest,
        call: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        self.fd.try_io(interest, |_| call())
    }

    /// Ready in one direction, as far as is known. The last one to ask in a direction is woken.
    pub(crate) fn poll_ready(&self, interest: Interest, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ready = if interest == Interest::WRITABLE {
            self.fd.poll_write_ready(cx)
        } else {
            self.fd.poll_read_ready(cx)
        };
        // The guard goes without a word: readiness stays until an attempt finds nothing.
        ready.map_ok(drop)
    }

    /// Ready when nothing can ever be written any more, because the other end is gone. Forgets that something may be
    /// written: not for who waits for that at the same time. The last one to ask is woken, also with each edge.
    pub(crate) fn poll_write_closed(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.fd.poll_write_ready(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(guard)) if guard.ready().is_write_closed() => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(mut guard)) => guard.clear_ready(),
            }
        }
    }

    /// Waits until an eventfd's count is not zero, and takes it.
    async fn next_count(&self) -> io::Result<u64> {
        loop {
            let mut guard = self.fd.readable().await?;
            let count = read_count(self.fd.get_ref())?;
            // A ring after the read is a new edge, which the driver sees after this poll at the earliest.
            guard.clear_ready();
            if let Some(count) = count {
                return Ok(count);
            }
        }
    }

    /// Takes note of readiness without reading, and listens for the next edge; true if there was one.
    /// Only for descriptors that cannot hang up (eventfd, timerfd).
    pub(crate) fn poll_clear(&self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut edge = false;
        while let Poll::Ready(guard) = self.fd.poll_read_ready(cx) {
            guard?.clear_ready();
            edge = true;
        }
        Ok(edge)
    }
}

#[cfg(test)]
#[path = "doorbell_test.rs"]
mod tests;
