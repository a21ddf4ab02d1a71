//! Credit (virtio 1.2, section 5.10.6.3): how much each side of a connection may send before the other has room again.
//!
//! Owns the counters of both directions, all modulo 2^32, and the judgement of what a guest says of its own. Pure.

/// Room of a guest that counts: more is of no use, and the difference of two counters is never ambiguous.
const MOST: u32 = 1 << 30;

/// What a guest cannot have meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Lie {
    /// It says that it has passed on what it was never sent.
    #[error("{0} bytes more are passed on than were sent")]
    PassedOn(u32),
    /// It sends what it was told there is no room for.
    #[error("{0} bytes more are sent than there is room for")]
    Beyond(u32),
}

/// The credit of one connection, both ways.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Credit {
    /// Room here, in bytes.
    window: u32,
    /// Bytes that came from the guest, ...
    received: u32,
    /// ... those of them that were passed on, ...
    passed_on: u32,
    /// ... and those of which the guest knows that.
    told: u32,
    /// Bytes that went to the guest, ...
    sent: u32,
    /// ... and those that it has passed on.
    taken: u32,
    /// Room there.
    room: u32,
}

impl Credit {
    /// Of a new connection, with room for `window` bytes here.
    pub(super) const fn new(window: u32) -> Self {
        Self { window, received: 0, passed_on: 0, told: 0, sent: 0, taken: 0, room: 0 }
    }

    /// Room here, in bytes.
    pub(super) const fn window(&self) -> u32 {
        self.window
    }

    /// Takes over what the guest says with every packet. Packets may overtake each other in a guest, so an older count
    /// changes nothing.
    pub(super) fn hear(&mut self, buf_alloc: u32, fwd_cnt: u32) -> Result<(), Lie> {
        let under_way = self.sent.wrapping_sub(self.taken);
        let more = fwd_cnt.wrapping_sub(self.taken).cast_signed();
        if let Ok(more) = u32::try_from(more) {
            if more > under_way {
                return Err(Lie::PassedOn(more - under_way));
            }
            self.taken = fwd_cnt;
        }
        self.room = buf_alloc.min(MOST);
        Ok(())
    }

    /// Bytes that the guest may be sent now.
    pub(super) fn allowed(&self) -> u32 {
        self.room.saturating_sub(self.sent.wrapping_sub(self.taken))
    }

    /// Bytes were sent to the guest, at most [`Credit::allowed`].
    pub(super) fn sent(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// Bytes come from the guest.
    pub(super) fn receive(&mut self, bytes: u32) -> Result<(), Lie> {
        let held = self.received.wrapping_sub(self.passed_on);
        let free = self.window.saturating_sub(held);
        if bytes > free {
            return Err(Lie::Beyond(bytes - free));
        }
        self.received = self.received.wrapping_add(bytes);
        Ok(())
    }

    /// Bytes that came from the guest were passed on.
    pub(super) fn pass_on(&mut self, bytes: u32) {
        self.passed_on = self.passed_on.wrapping_add(bytes);
    }

    /// Whether the guest ought to be told of room that it does not know of: half of it.
    pub(super) fn is_update_due(&self) -> bool {
        self.passed_on.wrapping_sub(self.told) >= self.window / 2
    }

    /// What is told with every packet: room, and bytes passed on.
    pub(super) fn tell(&mut self) -> (u32, u32) {
        self.told = self.passed_on;
        (self.window, self.passed_on)
    }
}

#[cfg(test)]
#[path = "credit_test.rs"]
mod tests;
