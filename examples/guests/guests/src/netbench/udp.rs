//! The side that measures UDP.

use ringlet_guest::net::Net;
use ringlet_guest::time;

use crate::datagrams::Datagrams;
use crate::options::Options;
use crate::report::Outcome;
use crate::wire::{HEADER, Header, Kind, Pace, Tally};
use crate::{Failure, PATIENCE};

/// The port that answers come to.
const PORT: u16 = 49_152;
/// Nanoseconds after which a question is asked again.
const AGAIN: u64 = 200_000_000;
/// Nanoseconds after which a request counts as lost.
const LOST: u64 = 1_000_000_000;
/// Datagrams between two looks at what comes in.
const BATCH: usize = 64;

/// The number of this measurement: not that of the last one.
fn flow() -> u64 {
    ringlet_guest::cpu::random().unwrap_or_else(ringlet_guest::cpu::rdtsc).max(1)
}

/// Sends datagrams for the duration, then asks how many came.
pub(crate) fn send(net: &mut Net, options: &Options) -> Result<Outcome, Failure> {
    let mut datagrams = Datagrams::open(net, PORT)?;
    let (flow, mut outcome, start) = (flow(), Outcome::new(), time::now());
    let (pace, end) = (Pace::new(options.rate, start), start + options.duration);
    while time::now() < end {
        crate::take_in(net, |_| {})?;
        for _ in 0..BATCH {
            let header = Header::of(Kind::Data, flow, outcome.sent);
            let is_due = pace.at(outcome.sent) <= time::now() && datagrams.has_room(net);
            if !is_due || !datagrams.send(net, header, options.size, options.peer) {
                break;
            }
            outcome.sent += 1;
        }
        net.send()?;
        let due = if datagrams.has_room(net) { pace.at(outcome.sent).min(end) } else { end };
        net.wait(Some(due))?;
    }
    let report = query(net, &mut datagrams, options, flow)?;
    outcome.received = report.number;
    outcome.late = report.first;
    outcome.nanoseconds = report.second;
    outcome.bytes = report.number.saturating_mul(options.size as u64);
    if outcome.received > outcome.sent { Err(Failure::Mismatch) } else { Ok(outcome) }
}

/// Has the peer send datagrams for the duration, and asks how many that were.
pub(crate) fn receive(net: &mut Net, options: &Options) -> Result<Outcome, Failure> {
    let mut datagrams = Datagrams::open(net, PORT)?;
    let (flow, mut tally) = (flow(), Tally::default());
    let mut wish = Header::of(Kind::Send, flow, options.rate);
    (wish.first, wish.second) = (options.size as u64, options.duration);
    let start = time::now();
    // When the peer has begun.
    let mut begun = None;
    let mut asked = 0;
    loop {
        crate::take_in(net, |_| {})?;
        let now = time::now();
        while let Some((header, len, _)) = datagrams.receive(net) {
            if header.kind == Kind::Data && header.flow == flow {
                begun.get_or_insert(now);
                tally.add(header.number, len, now);
            }
        }
        let end = begun.unwrap_or(now).saturating_add(options.duration).saturating_add(AGAIN);
        if now >= end {
            break;
        }
        if begun.is_none() && now >= start + PATIENCE {
            return Err(Failure::NoAnswer);
        }
        if begun.is_none() && now >= asked + AGAIN {
            datagrams.send(net, wish, HEADER, options.peer);
            asked = now;
        }
        net.send()?;
        net.wait(Some(if begun.is_some() { end } else { asked + AGAIN }))?;
    }
    let report = query(net, &mut datagrams, options, flow)?;
    let mut outcome = Outcome::new();
    (outcome.sent, outcome.received, outcome.late) = (report.number, tally.packets, tally.late);
    (outcome.bytes, outcome.nanoseconds) = (tally.bytes, tally.nanoseconds());
    if outcome.received > outcome.sent { Err(Failure::Mismatch) } else { Ok(outcome) }
}

/// Sends a request, waits for its response, and so on for the duration.
pub(crate) fn rr(net: &mut Net, options: &Options) -> Result<Outcome, Failure> {
    let mut datagrams = Datagrams::open(net, PORT)?;
    let (flow, mut outcome, start) = (flow(), Outcome::new(), time::now());
    let end = start + options.duration;
    // When the last request was sent, if there was no response yet.
    let mut asked: Option<u64> = None;
    let mut answered = start;
    loop {
        crate::take_in(net, |_| {})?;
        let now = time::now();
        while let Some((header, _, _)) = datagrams.receive(net) {
            let is_awaited =
                header.kind == Kind::Reply && header.flow == flow && header.number + 1 == outcome.sent;
            if let Some(at) = asked.filter(|_| is_awaited) {
                (asked, answered) = (None, now);
                outcome.latency.add(now - at);
                outcome.requests += 1;
            }
        }
        if now >= answered + PATIENCE {
            return Err(Failure::NoAnswer);
        }
        if asked.is_none_or(|at| now >= at + LOST) {
            if now >= end {
                break;
            }
            datagrams.send(net, Header::of(Kind::Echo, flow, outcome.sent), options.size, options.peer);
            outcome.sent += 1;
            asked = Some(now);
        }
        net.send()?;
        net.wait(asked.map(|at| at + LOST))?;
    }
    outcome.received = outcome.requests;
    outcome.bytes = outcome.requests * options.size as u64;
    outcome.nanoseconds = time::now() - start;
    Ok(outcome)
}

/// Asks what the peer knows of a flow, until it answers.
fn query(net: &mut Net, datagrams: &mut Datagrams, options: &Options, flow: u64) -> Result<Header, Failure> {
    let end = time::now() + PATIENCE;
    let mut asked = 0;
    loop {
        crate::take_in(net, |_| {})?;
        while let Some((header, _, _)) = datagrams.receive(net) {
            if header.kind == Kind::Report && header.flow == flow {
                return Ok(header);
            }
        }
        let now = time::now();
        if now >= end {
            return Err(Failure::NoAnswer);
        }
        if now >= asked + AGAIN {
            datagrams.send(net, Header::of(Kind::Query, flow, 0), HEADER, options.peer);
            asked = now;
        }
        net.send()?;
        net.wait(Some(asked + AGAIN))?;
    }
}
