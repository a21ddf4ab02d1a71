//! The client that asks, and asks again when the answer is there.

use ringlet_guest::time;
use ringlet_guest::vsock::{End, Handle, Vsock};

use crate::options::Options;
use crate::report::Outcome;
use crate::{Failure, PATIENCE, pattern};

pub(crate) fn run(vsock: &mut Vsock, options: &Options) -> Result<Outcome, Failure> {
    let handle = vsock.connect(options.port);
    let mut outcome = Outcome::new();
    while vsock.socket(handle).is_connecting() {
        turn(vsock, time::now().saturating_add(PATIENCE))?;
    }
    let start = time::now();
    let mut asked = start;
    for number in 0..options.requests {
        request(vsock, handle, number, options.size, asked)?;
        let now = time::now();
        outcome.latency.add(now - asked);
        asked = now;
    }
    outcome.nanoseconds = asked - start;
    outcome.requests = options.requests;
    outcome.bytes = options.requests * options.size as u64;
    vsock.close(handle);
    while vsock.socket(handle).end().is_none() {
        turn(vsock, asked.saturating_add(PATIENCE))?;
    }
    Ok(outcome)
}

/// Asks, and waits for the whole answer, which is the question.
fn request(vsock: &mut Vsock, handle: Handle, number: u64, size: usize, asked: u64) -> Result<(), Failure> {
    let (mut sent, mut received) = (0, 0);
    let mut answer = [0; 4096];
    loop {
        while sent < size {
            let bytes = pattern::piece(number as usize, sent as u64, size as u64);
            match vsock.write(handle, bytes) {
                0 => break,
                written => sent += written,
            }
        }
        loop {
            let len = vsock.read(handle, &mut answer);
            if len == 0 {
                break;
            }
            if received + len > sent {
                return Err(Failure::Mismatch);
            }
            let expected = pattern::piece(number as usize, received as u64, size as u64);
            if answer[..len] != expected[..len] {
                return Err(Failure::Mismatch);
            }
            received += len;
        }
        if received == size {
            return Ok(());
        }
        if vsock.socket(handle).has_ended() {
            let refused = vsock.socket(handle).end() == Some(End::Refused);
            return Err(if refused { Failure::Refused } else { Failure::Ended });
        }
        turn(vsock, asked.saturating_add(PATIENCE))?;
    }
}

/// Sends what there is, and waits for something to come.
fn turn(vsock: &mut Vsock, end: u64) -> Result<(), Failure> {
    vsock.poll()?;
    if vsock.news().is_some() {
        return Ok(());
    }
    if time::now() >= end {
        return Err(Failure::NoAnswer);
    }
    vsock.wait(Some(end))?;
    vsock.poll()?;
    while vsock.news().is_some() {}
    Ok(())
}
