//! The connections of a device: found by their ports, and whose turn it is.
//!
//! Owns their number, the ports of the host that are given to connections, and the order in which connections have their
//! turns: one packet each, round and round. Every operation takes the same time, however many there are. Never looks
//! into a connection.

use std::collections::{HashMap, VecDeque};

use super::connection::Connection;

/// The first port of the host that is given to a connection, as Firecracker does it: below are those that have names.
const FIRST_PORT: u32 = 1 << 30;
/// How many there are.
const PORTS: u32 = 1 << 30;

/// Names a connection, and never another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Id(u64);

/// The ports of a connection, of which no two connections have both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Pair {
    pub(super) guest: u32,
    pub(super) host: u32,
}

/// Connections in the order of their turns. Those that are gone meanwhile are left out when they come up, and
/// when there are more of them than of others.
#[derive(Debug, Default)]
pub(super) struct Turns(VecDeque<Id>);

impl Turns {
    /// Adds a connection that is not there; `is_live` says which still wait for their turn, at most `live`.
    fn add(&mut self, id: Id, live: usize, is_live: impl Fn(Id) -> bool) {
        if self.0.len() > 2 * live + 16 {
            self.0.retain(|id| is_live(*id));
        }
        self.0.push_back(id);
    }
}

/// All connections.
#[derive(Debug)]
pub(super) struct Table {
    connections: HashMap<Id, Connection>,
    by_ports: HashMap<Pair, Id>,
    turns: Turns,
    /// Connections of the guest for which a socket is to be connected to.
    wanted: Turns,
    max: usize,
    next_id: u64,
    next_port: u32,
}

impl Table {
    pub(super) fn new(max: u32) -> Self {
        Self {
            connections: HashMap::new(),
            by_ports: HashMap::new(),
            turns: Turns::default(),
            wanted: Turns::default(),
            max: usize::try_from(max).unwrap_or(usize::MAX),
            next_id: 0,
            next_port: 0,
        }
    }

    /// Whether there may be no more, if there are so many besides.
    pub(super) fn is_full(&self, besides: usize) -> bool {
        self.connections.len().saturating_add(besides) >= self.max
    }

    /// A port of the host that no other connection with this port of the guest has.
    pub(super) fn free_port(&mut self, guest: u32) -> u32 {
        // There are more ports than connections, so that this ends, mostly at once.
        loop {
            let host = FIRST_PORT + self.next_port;
            self.next_port = (self.next_port + 1) % PORTS;
            if !self.by_ports.contains_key(&Pair { guest, host }) {
                return host;
            }
        }
    }

    /// Adds a connection, whose ports no other one has.
    pub(super) fn insert(&mut self, connection: Connection) -> Id {
        let id = Id(self.next_id);
        self.next_id += 1;
        self.by_ports.insert(connection.pair, id);
        self.connections.insert(id, connection);
        id
    }

    pub(super) fn find(&self, pair: Pair) -> Option<Id> {
        self.by_ports.get(&pair).copied()
    }

    pub(super) fn get(&mut self, id: Id) -> Option<&mut Connection> {
        self.connections.get_mut(&id)
    }

    pub(super) fn remove(&mut self, id: Id) -> Option<Connection> {
        let connection = self.connections.remove(&id)?;
        self.by_ports.remove(&connection.pair);
        Some(connection)
    }

    /// Takes out those of which `goes` says so. They are moved only, which takes little time however many there are.
    pub(super) fn take_all(&mut self, mut goes: impl FnMut(&Connection) -> bool) -> Vec<Connection> {
        let gone: Vec<_> = self.connections.extract_if(|_, connection| goes(connection)).collect();
        if self.connections.is_empty() {
            self.by_ports.clear();
        } else {
            for (_, connection) in &gone {
                self.by_ports.remove(&connection.pair);
            }
        }
        gone.into_iter().map(|(_, connection)| connection).collect()
    }

    /// Gives a connection a turn, after all that have one, if it has anything to send; true if it has one now that it
    /// had not before.
    pub(super) fn queue(&mut self, id: Id) -> bool {
        let Self { connections, turns, .. } = self;
        let Some(connection) = connections.get_mut(&id) else { return false };
        if connection.queued || !connection.wants_turn() {
            return false;
        }
        connection.queued = true;
        turns.add(id, connections.len(), |id| connections.contains_key(&id));
        true
    }

    /// The connection whose turn it is.
    pub(super) fn next(&mut self) -> Option<(Id, &mut Connection)> {
        while let Some(id) = self.turns.0.pop_front() {
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.queued = false;
                // Found again, because a loop cannot give away what it borrows.
                return self.connections.get_mut(&id).map(|connection| (id, connection));
            }
        }
        None
    }

    /// Whether a connection may have a turn.
    pub(super) fn has_turns(&self) -> bool {
        !self.turns.0.is_empty()
    }

    /// Notes a connection for which a socket is to be connected to.
    pub(super) fn want(&mut self, id: Id) {
        let connections = &self.connections;
        self.wanted.add(id, connections.len(), |id| connections.contains_key(&id));
    }

    /// The next of those that is still there.
    pub(super) fn next_wanted(&mut self) -> Option<(Id, Pair)> {
        while let Some(id) = self.wanted.0.pop_front() {
            if let Some(connection) = self.connections.get(&id) {
                return Some((id, connection.pair));
            }
        }
        None
    }
}

#[cfg(test)]
#[path = "table_test.rs"]
mod tests;
