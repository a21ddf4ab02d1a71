//! What all tasks of a device share: its connections, and what each event of either side does to them.
//!
//! Owns the table of connections, the answers to packets without one, and who is woken by what. Nothing here waits, and
//! nothing is borrowed across an await.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use ringlet_io::unix::Scratch;
use ringlet_io::{DescriptorShare, GuestRam, Owner, ShardContext};
use ringlet_metrics::{ConnectionResult, DeviceMetrics, ResetReason};
use tokio::sync::Notify;

use super::buffer::{Data, RoomFor, Unfit};
use super::config::VsockOptions;
use super::connection::{After, Connection, Job, Phase};
use super::flaw::{Flaw, judge};
use super::host::{ConnectError, Door};
use super::linger::Lingering;
use super::packet::{HEADER, Header, Op};
use super::retire::Retiring;
use super::table::{Id, Pair, Table};
use super::window::Windows;
use crate::log_limit::LogLimit;
use crate::virtio::Chain;

/// Answers to packets without a connection that may wait for room at the guest. While there are so many, no further
/// packet is taken.
pub(super) const REPLIES: usize = 256;
/// Connections that are looked at for one packet.
const LOOKS: u32 = 16;

/// What is shared.
pub(super) struct Switch {
    pub(super) cx: ShardContext,
    pub(super) options: VsockOptions,
    pub(super) metrics: Arc<DeviceMetrics>,
    /// There may be a packet for the guest.
    pub(super) ready: Notify,
    /// There is room for an answer.
    pub(super) room: Notify,
    /// A socket is to be connected to.
    pub(super) wanted: Notify,
    pub(super) owner: Owner,
    pub(super) windows: Windows,
    pub(super) door: Door,
    pub(super) path: Option<PathBuf>,
    pub(super) descriptors: DescriptorShare,
    pub(super) table: RefCell<Table>,
    replies: RefCell<VecDeque<Header>>,
    /// The next packet is an answer, if there is one.
    replies_first: Cell<bool>,
    pub(super) retiring: Retiring,
    pub(super) lingering: Lingering,
    failures: LogLimit,
}

/// What was put into a buffer of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filled {
    /// A packet with so many bytes of data.
    Packet(u32),
    /// Nothing, for now.
    Nothing,
    /// Nothing can be.
    Unfit,
}

impl Switch {
    pub(super) fn new(
        cx: &ShardContext,
        owner: &Owner,
        options: &VsockOptions,
        (door, path, descriptors): (Door, Option<PathBuf>, DescriptorShare),
        metrics: Arc<DeviceMetrics>,
    ) -> Rc<Self> {
        Rc::new(Self {
            cx: cx.clone(),
            options: options.clone(),
            metrics,
            ready: Notify::new(),
            room: Notify::new(),
            wanted: Notify::new(),
            owner: owner.clone(),
            windows: Windows::new(owner.buffers().clone()),
            door,
            path,
            descriptors,
            table: RefCell::new(Table::new(options.connections())),
            replies: RefCell::default(),
            replies_first: Cell::new(false),
            retiring: Retiring::default(),
            lingering: Lingering::default(),
            failures: LogLimit::default(),
        })
    }

    /// A task of the device's.
    pub(super) fn spawn(&self, future: impl Future<Output = ()> + 'static) -> Job {
        Job { cx: self.cx.clone(), task: self.cx.spawn(&self.owner, future) }
    }

    pub(super) fn budget(&self) -> ringlet_io::Budget {
        self.cx.budget(&self.owner)
    }

    /// The host lacks something that the connections of a guest need.
    pub(super) fn fail(&self, what: &str, error: &io::Error) {
        if let Some(suppressed) = self.failures.admit() {
            tracing::warn!(device = self.options.id, suppressed, "{what}: {error}");
        }
    }

    /// Counts what became of a connection that was asked for.
    pub(super) fn result(&self, result: ConnectionResult) {
        self.metrics.connection_results.inc(result);
    }

    /// Counts connections that are broken off.
    fn broken_off(&self, reason: ResetReason) {
        self.metrics.connection_resets.inc(reason);
    }

    /// Removes a connection that is over.
    pub(super) fn remove(&self, id: Id) {
        let Some(removed) = self.table.borrow_mut().remove(id) else { return };
        self.metrics.connections.dec();
        self.lingering.take(removed);
    }

    /// Gives a connection a turn, if it has anything to send.
    pub(super) fn queue(&self, id: Id) {
        if self.table.borrow_mut().queue(id) {
            self.ready.notify_one();
        }
    }

    /// Whether a connection is not requested any more.
    pub(super) fn is_answered(&self, id: Id) -> bool {
        self.table.borrow_mut().get(id).is_none_or(|connection| !connection.is_requested())
    }

    /// As [`Self::is_answered`], for its watcher, which is woken then.
    pub(super) fn poll_answer(&self, id: Id, cx: &mut Context<'_>) -> Poll<()> {
        match self.table.borrow_mut().get(id).filter(|connection| connection.is_requested()) {
            Some(connection) => {
                connection.wake_by(cx);
                Poll::Pending
            }
            None => Poll::Ready(()),
        }
    }

    /// Sees to the socket of a connection, for its watcher; ready when there is nothing more to see to.
    pub(super) fn poll_connection(&self, id: Id, cx: &mut Context<'_>) -> Poll<()> {
        let mut table = self.table.borrow_mut();
        let Some(connection) = table.get(id) else { return Poll::Ready(()) };
        connection.poll_socket(cx);
        let is_over = connection.is_left() || matches!(connection.phase, Phase::Ended);
        drop(table);
        self.queue(id);
        if is_over { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Whether there may be a packet for the guest.
    pub(super) fn has_packets(&self) -> bool {
        self.table.borrow().has_turns() || !self.replies.borrow().is_empty()
    }

    /// Whether one more packet may be answered.
    pub(super) fn has_room(&self) -> bool {
        self.replies.borrow().len() < REPLIES
    }

    /// Puts the next packet into a buffer: answers and connections in turn, and each connection in its turn.
    pub(super) fn fill(&self, ram: &GuestRam, chain: &Chain, scratch: &mut Scratch) -> Filled {
        for _ in 0..LOOKS {
            let replies_first = self.replies_first.replace(false);
            if (replies_first || !self.table.borrow().has_turns())
                && let Some(reply) = self.replies.borrow_mut().pop_front()
            {
                self.room.notify_one();
                return self.write(ram, chain, reply);
            }
            let mut table = self.table.borrow_mut();
            let Some((id, connection)) = table.next() else { return Filled::Nothing };
            let turn = connection.take_turn(&mut RoomFor { ram, chain, scratch });
            drop(table);
            self.queue(id);
            match turn {
                Ok(Some(header)) => {
                    if header.op == Op::Reset.number() {
                        self.remove(id);
                    }
                    self.replies_first.set(true);
                    return self.write(ram, chain, header);
                }
                Ok(None) => {}
                Err(Unfit) => return Filled::Unfit,
            }
        }
        Filled::Nothing
    }

    fn write(&self, ram: &GuestRam, chain: &Chain, header: Header) -> Filled {
        let header = Header { dst_cid: self.options.cid, ..header };
        match chain.copy_in(ram, 0, &header.bytes()) {
            Ok(()) => Filled::Packet(header.len),
            // It has room, so that this cannot be.
            Err(_) => Filled::Unfit,
        }
    }

    /// Takes a packet of the guest. There must be room for an answer.
    pub(super) fn take(
        self: &Rc<Self>,
        header: &Header,
        ram: &GuestRam,
        chain: &Chain,
        scratch: &mut Scratch,
    ) -> Result<(), Flaw> {
        let there = chain.readable_len().saturating_sub(HEADER as u64);
        let pair = Pair { guest: header.src_port, host: header.dst_port };
        let taken = judge(header, self.options.cid, there).and_then(|op| {
            let id = self.table.borrow().find(pair);
            match id {
                None => {
                    self.stranger(op, header, pair);
                    Ok(())
                }
                Some(id) => self.hear(id, op, header, &mut Data { ram, chain, scratch }),
            }
        });
        if let Err(flaw) = &taken {
            self.punish(flaw, header, pair);
        }
        taken
    }

    /// A packet of a connection.
    fn hear(self: &Rc<Self>, id: Id, op: Op, header: &Header, data: &mut Data<'_>) -> Result<(), Flaw> {
        let mut table = self.table.borrow_mut();
        let Some(connection) = table.get(id) else { return Ok(()) };
        let after = connection.hear(op, header, data)?;
        match after {
            After::Stays => {}
            After::Established if connection.establish() => self.result(ConnectionResult::Established),
            After::Established => {
                self.result(ConnectionResult::Failed);
                connection.end(ConnectError::Ended);
            }
            After::Gone => {
                if connection.is_requested() {
                    self.result(ConnectionResult::Refused);
                } else if connection.is_broken_off() {
                    self.broken_off(ResetReason::Guest);
                }
                connection.end(ConnectError::Refused);
                drop(table);
                self.remove(id);
                return Ok(());
            }
        }
        drop(table);
        self.queue(id);
        Ok(())
    }

    /// A packet without a connection.
    fn stranger(self: &Rc<Self>, op: Op, header: &Header, pair: Pair) {
        match op {
            Op::Reset => {}
            Op::Request => {
                let result = self.requested(header, pair);
                if let Some(result) = result {
                    self.result(result);
                }
                if !matches!(result, None | Some(ConnectionResult::Established)) {
                    self.reply(header);
                }
            }
            // Of a connection that is over, or never was.
            _ => {
                self.broken_off(ResetReason::Unknown);
                self.reply(header);
            }
        }
    }

    /// A packet had a flaw: its connection is over, if it has one.
    fn punish(&self, flaw: &Flaw, header: &Header, pair: Pair) {
        if !flaw.is_answered() {
            return;
        }
        self.broken_off(ResetReason::Protocol);
        let id = self.table.borrow().find(pair).filter(|_| !matches!(flaw, Flaw::Kind(_)));
        let Some(id) = id else {
            if header.op != Op::Reset.number() {
                self.reply(header);
            }
            return;
        };
        let mut table = self.table.borrow_mut();
        if let Some(connection) = table.get(id) {
            if connection.is_requested() {
                self.result(ConnectionResult::Failed);
            }
            connection.end(ConnectError::Reset);
        }
        drop(table);
        self.queue(id);
    }

    fn reply(&self, header: &Header) {
        self.replies.borrow_mut().push_back(header.reset());
        self.ready.notify_one();
    }

    /// The driver has reset the device: all connections are gone, but for those that it was never told of.
    pub(super) fn reset(&self) {
        self.replies.borrow_mut().clear();
        self.room.notify_one();
        let gone = self.table.borrow_mut().take_all(|connection| !connection.is_unheard_of());
        for connection in &gone {
            if connection.is_requested() {
                self.result(ConnectionResult::Failed);
            }
            self.broken_off(ResetReason::Device);
        }
        self.gone(gone, ConnectError::Reset);
    }

    /// The end: nobody waits for anything any more.
    pub(super) fn close(&self) {
        let gone = self.table.borrow_mut().take_all(|_| true);
        self.gone(gone, ConnectError::Ended);
        self.retire(self.lingering.end(), ConnectError::Ended);
    }

    fn gone(&self, connections: Vec<Connection>, error: ConnectError) {
        self.metrics.connections.add(-i64::try_from(connections.len()).unwrap_or(i64::MAX));
        self.retire(connections, error);
    }
}
