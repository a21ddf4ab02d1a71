//! The client that sends much, and checks that the same comes back.

use alloc::collections::BTreeMap;

use ringlet_guest::time;
use ringlet_guest::vsock::{End, Handle, Vsock};

use crate::options::Options;
use crate::report::Outcome;
use crate::{Failure, PATIENCE, pattern};

/// How far a stream is.
#[derive(Clone, Copy, Debug)]
struct Stream {
    number: usize,
    sent: u64,
    received: u64,
    finished: bool,
}

pub(crate) fn run(vsock: &mut Vsock, options: &Options) -> Result<Outcome, Failure> {
    let mut streams: BTreeMap<Handle, Stream> = BTreeMap::new();
    let start = time::now();
    for number in 0..options.streams {
        streams.insert(vsock.connect(options.port), Stream { number, sent: 0, received: 0, finished: false });
    }
    let mut moved = start;
    loop {
        vsock.poll()?;
        while let Some(handle) = vsock.news() {
            let Some(stream) = streams.get_mut(&handle) else { continue };
            moved = time::now();
            if stream.advance(vsock, handle, options.bytes)? {
                vsock.remove(handle);
                streams.remove(&handle);
            }
        }
        vsock.poll()?;
        if streams.is_empty() {
            break;
        }
        if time::now() >= moved.saturating_add(PATIENCE) {
            return Err(Failure::NoAnswer);
        }
        vsock.wait(Some(moved + PATIENCE))?;
    }
    let mut outcome = Outcome::new();
    outcome.nanoseconds = time::now() - start;
    outcome.bytes = options.bytes * options.streams as u64;
    Ok(outcome)
}

impl Stream {
    /// Does what can be done now; whether all is done.
    fn advance(&mut self, vsock: &mut Vsock, handle: Handle, total: u64) -> Result<bool, Failure> {
        if vsock.socket(handle).is_connecting() {
            return Ok(false);
        }
        let mut piece = [0; 4096];
        loop {
            let len = vsock.read(handle, &mut piece);
            if len == 0 {
                break;
            }
            self.check(&piece[..len], total)?;
        }
        while self.sent < total && vsock.socket(handle).room() > 0 {
            let written = vsock.write(handle, pattern::piece(self.number, self.sent, total));
            self.sent += written as u64;
        }
        let socket = vsock.socket(handle);
        let (end, has_ended, may_write) = (socket.end(), socket.has_ended(), socket.may_write());
        match end {
            Some(End::Refused) => return Err(Failure::Refused),
            Some(End::Closed) if self.received == total => return Ok(true),
            Some(_) => return Err(Failure::Ended),
            None => {}
        }
        if self.sent < total && !may_write || has_ended && self.received < total {
            return Err(Failure::Ended);
        }
        if self.sent == total && !self.finished {
            // The other half stays open.
            self.finished = true;
            vsock.finish(handle);
        }
        if has_ended {
            vsock.close(handle);
        }
        Ok(false)
    }

    /// What came back has to be what was sent.
    fn check(&mut self, mut bytes: &[u8], total: u64) -> Result<(), Failure> {
        while !bytes.is_empty() {
            if self.received == self.sent {
                return Err(Failure::Mismatch);
            }
            let expected = pattern::piece(self.number, self.received, self.sent.min(total));
            let len = expected.len().min(bytes.len());
            if bytes[..len] != expected[..len] {
                return Err(Failure::Mismatch);
            }
            bytes = &bytes[len..];
            self.received += len as u64;
        }
        Ok(())
    }
}
