//! Virtio entropy device (virtio 1.2, section 5.4): random bytes for the guest.
//!
//! Owns how much a request may take, and of whom: random bytes come from a source that is handed in. Never returns a
//! byte that the source did not give, and never more than [`MAX_REQUEST`] for one request.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use ringlet_io::{Cost, GuestRam, MonoTime, ShardContext};
use ringlet_metrics::{DeviceMetrics, GuestErrorKind, GuestLog, RequestKind, RequestStatus, guest_error};

use crate::log_limit::LogLimit;
use crate::state::StateError;
use crate::virtio::spec::device_type;
use crate::virtio::{
    Chain, ConfigSpace, DeviceMemory, DeviceState, Identity, LocalBoxFuture, QueueParts, QueueState,
    QueueTask, RequestHandler, VirtioDevice,
};

/// Most random bytes of one request; a longer buffer gets a short answer, as section 5.4.6.1 allows.
pub const MAX_REQUEST: u32 = 64 << 10;
/// Bytes that are made in a turn, for all requests together; then everybody else on the shard has theirs: the kernel
/// makes a few hundred bytes a microsecond.
const CHUNK: usize = 4096;
/// Longest queue. A driver has one request at a time, seldom more; this bounds what a VM can make of a turn.
const QUEUE_SIZE: u16 = 16;

/// Where random bytes come from: fills its argument from the front and gives the number of bytes (`getrandom`,
/// which may be short). Must not block.
pub type EntropySource = Box<dyn Fn(&mut [u8]) -> io::Result<usize> + Send>;

/// The entropy device: one queue, no configuration, no state.
pub struct Rng {
    identity: Identity,
    config: ConfigSpace,
    source: Rc<EntropySource>,
    failures: Rc<LogLimit>,
    queue: Option<QueueTask>,
}

impl Rng {
    /// What the device tells its driver; `id` is such as `rng0`.
    pub fn identity_of(id: impl Into<String>) -> Identity {
        Identity {
            id: id.into(),
            device_type: device_type::ENTROPY,
            features: 0,
            queue_sizes: vec![QUEUE_SIZE],
        }
    }

    /// What the device takes of the host's memory.
    pub fn memory() -> DeviceMemory {
        QueueTask::memory::<Handler>(&Self::identity_of(""))
    }

    /// A device that takes from `source`.
    pub fn new(id: impl Into<String>, source: EntropySource) -> Self {
        Self {
            identity: Self::identity_of(id),
            config: ConfigSpace::new([]),
            source: Rc::new(source),
            failures: Rc::default(),
            queue: None,
        }
    }
}

impl VirtioDevice for Rng {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn start_queue(&mut self, _index: u16, parts: QueueParts, state: Option<QueueState>) {
        let cx = parts.cx.clone();
        let handler = Handler {
            cx: cx.clone(),
            source: Rc::clone(&self.source),
            failures: Rc::clone(&self.failures),
            made: Cell::new((0, 0)),
            metrics: Arc::clone(&parts.metrics),
            log: Arc::clone(&parts.log),
        };
        self.queue = Some(QueueTask::spawn(&cx, parts, state, Rc::new(handler)));
    }

    fn stop_queue(&mut self, _index: u16) -> LocalBoxFuture<Option<QueueState>> {
        let task = self.queue.take();
        Box::pin(async move { task?.stop().await })
    }

    fn reset(&mut self) {
        // Nothing is remembered between two requests; a queue was stopped before.
        let Self { identity: _, config: _, source: _, failures: _, queue: _ } = self;
    }

    fn save(&self) -> DeviceState {
        DeviceState::Stateless
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        match state {
            DeviceState::Stateless => Ok(()),
            _ => Err(StateError::Field { device: "rng", field: "kind", value: 0 }),
        }
    }
}

/// Serves the queue.
struct Handler {
    cx: ShardContext,
    source: Rc<EntropySource>,
    failures: Rc<LogLimit>,
    /// A turn, and how many bytes were made in it.
    made: Cell<(u64, usize)>,
    metrics: Arc<DeviceMetrics>,
    log: Arc<GuestLog>,
}

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Request {
    /// So many bytes, at least 1 and at most [`MAX_REQUEST`].
    Fill(u32),
    /// A chain that has a part for the device to read, which means nothing here (section 5.4.6).
    Bad,
}

impl RequestHandler for Handler {
    type Request = Request;

    fn parse(&self, _ram: &GuestRam, chain: &Chain) -> (Request, Cost) {
        let readable = chain.readable_len();
        if readable > 0 {
            let id = self.metrics.id();
            guest_error!(
                self.log,
                GuestErrorKind::BadRequest,
                "{id}: a request has {readable} bytes for the device to read"
            );
            return (Request::Bad, Cost::other());
        }
        let len = u32::try_from(chain.writable_len()).unwrap_or(u32::MAX).min(MAX_REQUEST);
        (Request::Fill(len), Cost::read(u64::from(len)))
    }

    async fn execute(self: Rc<Self>, ram: GuestRam, chain: Chain, request: Request) -> u32 {
        let begun = MonoTime::now();
        let (kind, status, written) = match request {
            Request::Bad => (RequestKind::Other, RequestStatus::IoError, 0),
            Request::Fill(len) => {
                let written = self.fill(&ram, &chain, len).await;
                let status = if written == len { RequestStatus::Ok } else { RequestStatus::IoError };
                (RequestKind::Entropy, status, written)
            }
        };
        self.metrics.completed(kind, status, u64::from(written), MonoTime::now().since(begun));
        written
    }
}

impl Handler {
    /// Writes `len` random bytes, or as many as the source gives before it fails.
    async fn fill(&self, ram: &GuestRam, chain: &Chain, len: u32) -> u32 {
        let mut written = 0;
        while written < len {
            let room = self.room().await;
            match self.fill_chunk(ram, chain, written, len - written, room) {
                Ok(0) => break,
                Ok(more) => written += more,
                Err(error) => {
                    self.report(&error);
                    break;
                }
            }
        }
        written
    }

    /// Tells that the source has failed, for the first of requests that follow one another fast.
    fn report(&self, error: &io::Error) {
        let Some(suppressed) = self.failures.admit() else { return };
        let (vm, device) = (self.log.metrics().id(), self.metrics.id());
        tracing::warn!(vm, device, suppressed, %error, "no random bytes");
    }

    /// Bytes that were made in this turn.
    fn made_now(&self) -> usize {
        let (turn, made) = self.made.get();
        if turn == self.cx.turn() { made } else { 0 }
    }

    /// Waits for a turn in which bytes can be made, and gives how many.
    async fn room(&self) -> usize {
        loop {
            match CHUNK.saturating_sub(self.made_now()) {
                0 => {}
                room => return room,
            }
            self.cx.next_turn().await;
        }
    }

    /// Writes the next bytes, at most `left` and `room`, and gives their number.
    fn fill_chunk(
        &self,
        ram: &GuestRam,
        chain: &Chain,
        from: u32,
        left: u32,
        room: usize,
    ) -> io::Result<u32> {
        let mut buffer = [0; CHUNK];
        let wanted = buffer.get_mut(..usize::try_from(left).unwrap_or(CHUNK).min(room)).unwrap_or_default();
        self.made.set((self.cx.turn(), self.made_now().saturating_add(wanted.len())));
        let given = (self.source)(wanted)?.min(wanted.len());
        // Only what the source gave is copied, never what the buffer held before (SEC-12).
        let bytes = wanted.get(..given).unwrap_or_default();
        chain.copy_in(ram, u64::from(from), bytes).map_err(io::Error::other)?;
        Ok(u32::try_from(given).unwrap_or(0))
    }
}

#[cfg(test)]
#[path = "rng_test.rs"]
mod tests;
