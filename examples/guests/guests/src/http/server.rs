//! All connections, and what they have in common.

use core::convert::Infallible;

use ringlet_guest::net::stack::socket::tcp::{Socket, State};
use ringlet_guest::net::{Error, Net};
use ringlet_guest::{println, time};

use crate::connection::{Connection, Outcome, Patience, Stream};
use crate::options::Options;
use crate::pool::{Pool, Shape};
use crate::site::{Device, Stats};

/// Bytes that a client may send before they are looked at.
const RECEIVE: usize = 32 << 10;
/// Bytes on their way to a client.
const SEND: usize = 64 << 10;
/// Most packets between two looks at the connections.
const BATCH: usize = 64;

pub(crate) struct Server {
    patience: Patience,
    pool: Pool<Connection>,
    stats: Stats,
    start: u64,
}

impl Server {
    /// Clients can connect from now on.
    pub(crate) fn new(options: &Options, net: &mut Net) -> Self {
        let Options { port, connections, patience, .. } = *options;
        let mut pool =
            Pool::new(Shape { port, connections, receive: RECEIVE, send: SEND, handshake: patience.work });
        pool.accept(net);
        Self { patience, pool, stats: Stats::default(), start: time::now() }
    }

    pub(crate) fn run(&mut self, net: &mut Net) -> Result<Infallible, Error> {
        let mut was_up = true;
        loop {
            if net.link_is_up() != was_up {
                was_up = !was_up;
                println!("http: the link is {}", if was_up { "up" } else { "down" });
            }
            for _ in 0..BATCH {
                if !net.receive()? {
                    break;
                }
                self.pool.accept(net);
            }
            self.serve(net);
            net.send()?;
            self.pool.reclaim(net);
            self.pool.accept(net);
            net.wait(self.pool.deadline(Connection::deadline))?;
        }
    }

    /// Looks at every connection.
    fn serve(&mut self, net: &mut Net) {
        let now = time::now();
        let (stats, patience) = (&mut self.stats, self.patience);
        stats.uptime = now.saturating_sub(self.start);
        stats.device = device(net);
        stats.open = self.pool.connections().count() as u64;
        self.pool.serve(net, now, |connection, socket| {
            let connection = connection.get_or_insert_with(|| {
                stats.accepted += 1;
                stats.open += 1;
                Connection::new(patience, now)
            });
            let is_wanted = connection.advance(&mut Tcp(socket), stats, now) != Outcome::Abort;
            stats.aborted += u64::from(!is_wanted);
            is_wanted
        });
    }
}

/// A socket as a connection wants it.
struct Tcp<'a, 'b>(&'a mut Socket<'b>);

impl Stream for Tcp<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> usize {
        self.0.recv_slice(into).unwrap_or(0)
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        self.0.send_slice(bytes).unwrap_or(0)
    }

    fn has_ended(&self) -> bool {
        !self.0.may_recv()
    }

    fn queued(&self) -> usize {
        self.0.send_queue()
    }

    fn close(&mut self) {
        // The end of a connection is acknowledged at once: its socket is wanted.
        self.0.set_ack_delay(None);
        self.0.close();
    }

    fn is_gone(&self) -> bool {
        matches!(self.0.state(), State::Closed | State::TimeWait)
    }
}

fn device(net: &Net) -> Device {
    let counters = net.counters();
    Device {
        rx_packets: counters.rx_packets,
        rx_bytes: counters.rx_bytes,
        rx_dropped: counters.rx_dropped,
        tx_packets: counters.tx_packets,
        tx_bytes: counters.tx_bytes,
        tx_dropped: counters.tx_dropped,
        interrupts: counters.interrupts,
        notifications: counters.notifications,
    }
}
