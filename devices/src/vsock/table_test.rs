use ringlet_io::Buffers;

use super::*;
use crate::vsock::connection::Phase;
use crate::vsock::packet::Op;
use crate::vsock::window::Windows;

fn connection(guest: u32, host: u32) -> Connection {
    let window = Windows::new(Buffers::unlimited()).take().unwrap();
    Connection::new(Pair { guest, host }, Phase::Connecting, window)
}

/// A connection with something to send.
fn ready(table: &mut Table, guest: u32) -> Id {
    let mut connection = connection(guest, 5);
    connection.owe(Op::Response);
    let id = table.insert(connection);
    assert!(table.queue(id));
    id
}

#[test]
fn sec_02_there_are_as_many_as_may_be_and_each_is_found_by_its_ports() {
    let mut table = Table::new(10_000);
    let mut ids = Vec::new();
    for guest in 0..10_000 {
        assert!(!table.is_full(0));
        let host = table.free_port(guest % 10);
        ids.push((Pair { guest: guest % 10, host }, table.insert(connection(guest % 10, host))));
    }
    assert!(table.is_full(0));
    for (pair, id) in &ids {
        assert_eq!(table.find(*pair), Some(*id));
        assert!(pair.host >= FIRST_PORT);
    }
    for (pair, id) in ids {
        assert_eq!(table.remove(id).map(|connection| connection.pair), Some(pair));
        assert_eq!((table.find(pair), table.remove(id).is_none()), (None, true));
    }
}

#[test]
fn ports_that_are_taken_are_passed_over_and_come_again() {
    let mut table = Table::new(10);
    table.next_port = PORTS - 2;
    table.insert(connection(7, FIRST_PORT + PORTS - 1));
    table.insert(connection(7, FIRST_PORT));
    table.insert(connection(8, FIRST_PORT + 1));
    let ports = [table.free_port(7), table.free_port(7), table.free_port(7)];
    assert_eq!(ports, [FIRST_PORT + PORTS - 2, FIRST_PORT + 1, FIRST_PORT + 2]);
}

#[test]
fn turns_go_round_and_nobody_has_two_places() {
    let mut table = Table::new(10);
    let ids: Vec<Id> = (0..3).map(|guest| ready(&mut table, guest)).collect();
    assert!(!table.queue(ids[0]), "it has its place");
    let mut order = Vec::new();
    for _ in 0..6 {
        let (id, connection) = table.next().unwrap();
        connection.owe(Op::CreditUpdate);
        order.push(id);
        assert!(table.queue(id));
    }
    assert_eq!(order, [&ids[..], &ids].concat());
    table.remove(ids[0]);
    assert_eq!(table.next().map(|(id, _)| id), Some(ids[1]), "who is gone is left out");
    let nothing_to_send = table.insert(connection(50, 5));
    assert!(!table.queue(nothing_to_send));
}

/// A guest that makes connections and ends them, and takes no packets.
#[test]
fn sec_02_connections_that_come_and_go_leave_nothing_behind() {
    let mut table = Table::new(10);
    let kept = ready(&mut table, 9);
    for _ in 0..10_000 {
        let id = ready(&mut table, 1);
        table.want(id);
        table.remove(id);
    }
    assert!(table.turns.0.len() < 40 && table.wanted.0.len() < 40);
    assert_eq!((table.connections.len(), table.by_ports.len()), (1, 1));
    assert!(table.next_wanted().is_none());
    assert_eq!(table.next().map(|(id, _)| id), Some(kept));
    assert!(table.next().is_none() && !table.has_turns());
}
