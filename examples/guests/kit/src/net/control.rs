//! The control queue (virtio 1.2, 5.1.6.5): what the driver asks of the device itself, one thing at a time.

use super::Error;
use crate::virtio::{Buffers, Ring, Shape, Transport, drivers::transport::Transport as _};

/// Class and number of the command that says how many pairs of queues are used (5.1.6.5.5).
const PAIRS: [u8; 2] = [4, 0];
/// The answer that it is so.
const OK: u8 = 0;
/// Bytes of a command and of an answer, and where they lie.
const COMMAND: usize = 4;
const ANSWER: usize = 1;
const COMMAND_AT: u16 = 0;
const ANSWER_AT: u16 = 1;

/// Asks, and takes answers.
#[derive(Debug)]
pub(super) struct Control {
    queue: u16,
    ring: Ring,
    memory: Buffers,
}

impl Control {
    pub(super) fn new(transport: &mut Transport, queue: u16, features: u64) -> Result<Self, Error> {
        let ring =
            Ring::new(transport, queue, Shape { slots: 1, buffers: 2, features }).ok_or(Error::Queue)?;
        ring.hush();
        Ok(Self { queue, ring, memory: Buffers::new(2, COMMAND).ok_or(Error::Memory)? })
    }

    /// Asks for so many pairs of queues. The answer to what was asked before has come.
    pub(super) fn ask_for_pairs(&mut self, transport: &mut Transport, pairs: u16) {
        // SAFETY: the device has given back what it had.
        let command = unsafe { self.memory.blank(COMMAND_AT, COMMAND) };
        let (kind, value) = command.split_at_mut(PAIRS.len());
        kind.copy_from_slice(&PAIRS);
        value.copy_from_slice(&pairs.to_le_bytes());
        let command = self.memory.describe(COMMAND_AT, COMMAND, false);
        let answer = self.memory.describe(ANSWER_AT, ANSWER, true);
        // SAFETY: the buffers are there for good, and are looked at only when the device has given them back.
        unsafe { self.ring.offer(0, &[command, answer]) };
        if self.ring.publish() {
            transport.notify(self.queue);
        }
    }

    /// Whether the device has done what was asked, once it has answered; until then it interrupts when it does.
    pub(super) fn answer(&mut self) -> Result<Option<bool>, Error> {
        if !self.ring.listen() {
            return Ok(None);
        }
        let Some((_, written)) = self.ring.pop()? else { return Ok(None) };
        self.ring.hush();
        // SAFETY: the device has given the buffer back, and says that it wrote so much.
        match unsafe { self.memory.written(ANSWER_AT, written as usize) } {
            [] => Err(Error::Device("the device answers to a command without a word")),
            [answer, ..] => Ok(Some(*answer == OK)),
        }
    }
}
