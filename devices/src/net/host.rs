//! The host's side as all queues of an interface see it: its link, and what it was told.
//!
//! Owns whether packets flow, and brings the host's side to what the driver wants: which offloads, how many pairs. That
//! takes a lock that the whole host's network shares, so it is done where it may wait, only if there is
//! something to change, and then left alone for [`PACE`] and for [`REST`] times what that took. Never touches a packet.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use ringlet_io::net::{NetPort, Offloads};
use ringlet_io::{MonoTime, Timer};
use tokio::sync::{Mutex, Notify};
use virtio_bindings::virtio_net::VIRTIO_NET_F_STATUS;

use super::config::{Layout, Mac, bit};
use super::device::NetOptions;
use super::filter::Filter;
use crate::log_limit::LogLimit;
use crate::virtio::ConfigSpace;

/// How long the host's side is left alone after a change, so that a driver which asks for one after the other is waited
/// for by nobody but itself.
pub(super) const PACE: Duration = Duration::from_millis(10);

/// How many times as long as a change took the host's side is left alone after it: the lock was held for that long.
const REST: u32 = 10;
/// The longest that it is left alone: a change may take long because others have the lock.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// What all queues of an interface share.
pub(super) struct Host {
    pub(super) id: String,
    pub(super) layout: Layout,
    pub(super) filter: Filter,
    /// One for each pair of queues.
    pub(super) ports: Vec<Rc<dyn NetPort>>,
    /// What the driver accepted.
    pub(super) features: Cell<u64>,
    pub(super) config: ConfigSpace,
    pub(super) timer: Timer,
    mac: Cell<Mac>,
    link_up: Cell<bool>,
    wanted: Cell<Settings>,
    /// What the host's side was told; `None` while nobody knows.
    offloads: Cell<Option<Offloads>>,
    pairs: Cell<Option<u16>>,
    next_change: Cell<MonoTime>,
    changing: Mutex<()>,
    changed: Notify,
    failures: LogLimit,
}

/// What the driver wants of the host's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Settings {
    /// What received packets may leave unfinished.
    pub(super) offloads: Offloads,
    /// Pairs of queues that are used.
    pub(super) pairs: u16,
}

impl Default for Settings {
    /// Those before a driver says anything.
    fn default() -> Self {
        Self { offloads: Offloads::NONE, pairs: 1 }
    }
}

/// A change of the host's side that is under way. However it ends, the next is not before its time.
struct Change<'a> {
    next: &'a Cell<MonoTime>,
    begun: MonoTime,
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        let done = MonoTime::now();
        self.next.set(done + done.since(self.begun).saturating_mul(REST).clamp(PACE, LONGEST_REST));
    }
}

impl Host {
    pub(super) fn new(
        options: &NetOptions,
        layout: Layout,
        ports: Vec<Rc<dyn NetPort>>,
        config: ConfigSpace,
        timer: Timer,
    ) -> Self {
        Self {
            id: options.id.clone(),
            layout,
            filter: options.filter.clone(),
            ports,
            features: Cell::new(0),
            config,
            timer,
            mac: Cell::new(layout.mac),
            link_up: Cell::new(true),
            wanted: Cell::default(),
            offloads: Cell::new(Some(Offloads::NONE)),
            pairs: Cell::new(Some(layout.pairs)),
            next_change: Cell::default(),
            changing: Mutex::default(),
            changed: Notify::new(),
            failures: LogLimit::default(),
        }
    }

    pub(super) fn has(&self, feature: u32) -> bool {
        self.features.get() & bit(feature) != 0
    }

    /// The interface's address.
    pub(super) fn mac(&self) -> Mac {
        self.mac.get()
    }

    /// Gives the interface an address, and lets the driver read it.
    pub(super) fn set_mac(&self, mac: Mac) {
        self.mac.set(mac);
        self.config.update(|space| self.fill(space));
    }

    pub(super) fn is_link_up(&self) -> bool {
        self.link_up.get()
    }

    /// Takes the link up or down, and tells a driver that wants to know.
    pub(super) fn set_link(&self, up: bool) {
        if self.link_up.replace(up) == up {
            return;
        }
        if self.has(VIRTIO_NET_F_STATUS) {
            self.config.publish(|space| self.fill(space));
        } else {
            self.config.update(|space| self.fill(space));
        }
        self.changed.notify_waiters();
    }

    /// Takes over what a driver knew of the link, and tells it if that is no longer so.
    pub(super) fn restore_link(&self, known: bool) {
        let is_up = self.link_up.replace(known);
        self.config.update(|space| self.fill(space));
        self.set_link(is_up);
    }

    /// The host's side has come to its end: the link is down until somebody takes it up again.
    pub(super) fn fail(&self, error: &io::Error) {
        if self.is_link_up()
            && let Some(suppressed) = self.failures.admit()
        {
            tracing::error!(device = self.id, suppressed, "the link is down: {error}");
        }
        self.set_link(false);
    }

    /// What the driver wants.
    pub(super) fn wanted(&self) -> Settings {
        self.wanted.get()
    }

    /// Sets what the driver wants. The host's side is told by whoever next needs it: [`Host::settle`].
    pub(super) fn want(&self, settings: Settings) {
        self.wanted.set(settings);
        self.changed.notify_waiters();
    }

    /// Back to what it was before a driver came. The link stays as it is.
    pub(super) fn reset(&self) {
        self.features.set(0);
        self.want(Settings::default());
        self.set_mac(self.layout.mac);
    }

    /// Whether packets of a pair flow.
    pub(super) fn is_open(&self, pair: u16) -> bool {
        self.is_link_up() && self.is_settled() && pair < self.wanted().pairs
    }

    /// Waits until packets of a pair flow. Cancel-safe.
    pub(super) async fn opened(&self, pair: u16) {
        while !self.is_open(pair) {
            if self.is_link_up() && !self.is_settled() {
                if let Err(error) = self.settle().await {
                    self.fail(&error);
                }
            } else {
                self.changed.notified().await;
            }
        }
    }

    pub(super) fn is_settled(&self) -> bool {
        let Settings { offloads, pairs } = self.wanted();
        self.offloads.get() == Some(offloads) && self.pairs.get() == Some(pairs)
    }

    /// Brings the host's side to what the driver wants. Cancel-safe: what was begun is begun anew.
    ///
    /// # Errors
    /// The host's side cannot, or is at its end.
    pub(super) async fn settle(&self) -> io::Result<()> {
        let _one_at_a_time = self.changing.lock().await;
        let Some(port) = self.ports.first() else { return Ok(()) };
        while !self.is_settled() {
            self.timer.sleep_until(self.next_change.get()).await;
            let _change = Change { next: &self.next_change, begun: MonoTime::now() };
            let Settings { offloads, pairs } = self.wanted();
            if self.offloads.get() != Some(offloads) {
                self.offloads.set(None);
                port.set_offloads(offloads).await?;
                self.offloads.set(Some(offloads));
            }
            if self.pairs.get() != Some(pairs) {
                self.pairs.set(None);
                port.set_queue_pairs(pairs).await?;
                self.pairs.set(Some(pairs));
            }
        }
        self.changed.notify_waiters();
        Ok(())
    }

    /// Writes the configuration space anew.
    pub(super) fn fill(&self, space: &mut [u8]) {
        let bytes = self.layout.bytes(self.mac(), self.is_link_up());
        space.iter_mut().zip(bytes).for_each(|(target, byte)| *target = byte);
    }
}
