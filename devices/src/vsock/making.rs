//! How connections come to be: the host asks the guest, or the guest asks the host.
//!
//! Owns what is checked and counted before there is one. Part of the [`Switch`].

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;

use ringlet_io::unix::Stream;
use ringlet_metrics::ConnectionResult;

use super::connection::{Connection, Phase};
use super::host::ConnectError;
use super::packet::{Header, Op};
use super::peer::{Caller, Placed};
use super::switch::Switch;
use super::table::{Id, Pair};
use super::watch::watch;
use super::window::Window;

impl Switch {
    /// The window of a new connection; `None`: there may be no more.
    fn admit(&self) -> Option<Window> {
        self.lingering.make_room();
        if self.table.borrow().is_full(self.retiring.count() + self.lingering.count()) {
            return None;
        }
        self.windows.take()
    }

    fn insert(self: &Rc<Self>, mut connection: Connection, op: Option<Op>) -> Id {
        if let Some(op) = op {
            connection.owe(op);
        }
        let is_watched = connection.stream.is_some();
        let id = self.table.borrow_mut().insert(connection);
        self.metrics.connections.inc();
        if is_watched {
            self.watch(id);
        }
        self.queue(id);
        id
    }

    /// Gives a connection its socket, which keeps no more than is counted for it.
    fn give(&self, connection: &mut Connection, socket: Placed) {
        if let Err(error) = socket.keep_at_most(connection.credit.window()) {
            self.fail("what a socket keeps cannot be bounded", &error);
        }
        connection.stream = Some(Rc::new(socket));
    }

    /// There is no place for another descriptor.
    pub(super) fn out_of_descriptors(&self) {
        let pool = self.descriptors.pool();
        let (used, max) = (pool.used(), pool.max());
        let its = self.descriptors.used();
        let text = format!("it has {its}, and {used} of {max} are in use by the connections of all VMs");
        self.fail("a connection is refused for want of descriptors", &io::Error::other(text));
    }

    /// Refuses a connection because there is no place for another descriptor.
    pub(super) fn refuse_without_descriptor(&self, caller: Caller) {
        self.result(ConnectionResult::NoDescriptors);
        self.out_of_descriptors();
        caller.refuse(ConnectError::NoDescriptors);
    }

    /// A connection from port 9 of a guest that takes all there is.
    #[cfg(test)]
    pub(super) fn open_for_test(self: &Rc<Self>, stream: Stream) -> Option<Id> {
        let window = self.admit()?;
        let host = self.table.borrow_mut().free_port(9);
        let mut connection = Connection::new(Pair { guest: 9, host }, Phase::Open, window);
        let descriptor = self.descriptors.try_take()?;
        self.give(&mut connection, Placed { stream, descriptor });
        assert_eq!(connection.credit.hear(u32::MAX, 0), Ok(()));
        Some(self.insert(connection, None))
    }

    fn watch(self: &Rc<Self>, id: Id) {
        let job = self.spawn(watch(Rc::clone(self), id));
        if let Some(connection) = self.table.borrow_mut().get(id) {
            connection.watcher = Some(job);
        }
    }

    /// Connects a socket to a port of the guest.
    pub(super) fn connect(self: &Rc<Self>, port: u32, socket: Placed, caller: Caller) {
        let Some(window) = self.admit() else {
            self.result(ConnectionResult::Full);
            return caller.refuse(ConnectError::Full);
        };
        let host = self.table.borrow_mut().free_port(port);
        let pair = Pair { guest: port, host };
        let mut connection = Connection::new(pair, Phase::Requested(caller), window);
        self.give(&mut connection, socket);
        self.insert(connection, Some(Op::Request));
    }

    /// The guest has had its time to answer.
    pub(super) fn expire(&self, id: Id) {
        let mut table = self.table.borrow_mut();
        let Some(connection) = table.get(id).filter(|connection| connection.is_requested()) else { return };
        self.result(ConnectionResult::TimedOut);
        if !connection.is_unheard_of() {
            connection.end(ConnectError::TimedOut);
            drop(table);
            return self.queue(id);
        }
        connection.end(ConnectError::NoDriver);
        drop(table);
        self.remove(id);
    }

    /// The guest has had its time to answer the end of a connection; false if it has not been told of it yet.
    pub(super) fn forget(&self, id: Id) -> bool {
        let mut table = self.table.borrow_mut();
        let Some(connection) = table.get(id).filter(|connection| connection.is_left()) else { return true };
        if !connection.owes_nothing() {
            return false;
        }
        connection.end(ConnectError::Reset);
        drop(table);
        self.queue(id);
        true
    }

    /// The guest asks for a connection: what became of that, if it is known yet.
    pub(super) fn requested(self: &Rc<Self>, header: &Header, pair: Pair) -> Option<ConnectionResult> {
        let Some(window) = self.admit() else { return Some(ConnectionResult::Full) };
        let mut connection = Connection::new(pair, Phase::Open, window);
        if connection.credit.hear(header.buf_alloc, header.fwd_cnt).is_err() {
            // Nothing was sent yet, so that it has passed on nothing.
            return Some(ConnectionResult::Failed);
        }
        match self.door.0.offer(pair.host, pair.guest, &self.descriptors) {
            Some(Ok((fd, descriptor))) => match Stream::new(fd) {
                Ok(stream) => {
                    self.give(&mut connection, Placed { stream, descriptor });
                    self.insert(connection, Some(Op::Response));
                    Some(ConnectionResult::Established)
                }
                Err(error) => {
                    self.fail("a connection cannot be watched", &error);
                    Some(ConnectionResult::Failed)
                }
            },
            Some(Err(error)) => Some(self.not_offered(&error)),
            None if self.path.is_some() => {
                connection.phase = Phase::Connecting;
                let id = self.insert(connection, None);
                self.table.borrow_mut().want(id);
                self.wanted.notify_one();
                None
            }
            None => Some(ConnectionResult::Refused),
        }
    }

    /// What becomes of a connection that could not be offered to who listens in the process.
    fn not_offered(&self, error: &io::Error) -> ConnectionResult {
        match error.kind() {
            io::ErrorKind::WouldBlock => ConnectionResult::Refused,
            io::ErrorKind::QuotaExceeded => {
                self.out_of_descriptors();
                ConnectionResult::NoDescriptors
            }
            _ => {
                self.fail("a connection cannot be handed to the process", error);
                ConnectionResult::Failed
            }
        }
    }

    /// A connection of the guest for which a socket is to be connected to, and the socket's path.
    pub(super) fn next_wanted(&self) -> Option<(Id, PathBuf)> {
        let path = self.path.as_ref()?;
        let (id, pair) = self.table.borrow_mut().next_wanted()?;
        let mut path = OsString::from(path);
        path.push(format!("_{}", pair.host));
        Some((id, path.into()))
    }

    /// A socket was connected to for the guest, or not. Only now there is something that takes a descriptor: of all that the
    /// guest waits for, one at a time is connected to.
    pub(super) fn connected(self: &Rc<Self>, id: Id, socket: io::Result<OwnedFd>) {
        // Before the socket, so that it is given back after that is closed.
        let descriptor = socket.as_ref().ok().and_then(|_| self.descriptors.try_take());
        let stream = socket.and_then(Stream::new);
        let mut table = self.table.borrow_mut();
        let Some(connection) = table.get(id).filter(|c| matches!(c.phase, Phase::Connecting)) else { return };
        let result = match (stream, descriptor) {
            (Ok(stream), Some(descriptor)) => {
                connection.phase = Phase::Open;
                self.give(connection, Placed { stream, descriptor });
                connection.owe(Op::Response);
                ConnectionResult::Established
            }
            (Ok(_), None) => {
                connection.end(ConnectError::NoDescriptors);
                self.out_of_descriptors();
                ConnectionResult::NoDescriptors
            }
            (Err(error), _) => {
                connection.end(ConnectError::Refused);
                self.not_connected(&error)
            }
        };
        drop(table);
        self.result(result);
        if result == ConnectionResult::Established {
            self.watch(id);
        }
        self.queue(id);
    }

    /// What becomes of a connection for which a socket could not be connected to.
    fn not_connected(&self, error: &io::Error) -> ConnectionResult {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock => {
                ConnectionResult::Refused
            }
            _ => {
                self.fail("a socket that the guest asks for cannot be connected to", error);
                ConnectionResult::Failed
            }
        }
    }
}
