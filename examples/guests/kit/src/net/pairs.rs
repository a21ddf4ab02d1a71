//! Several pairs of queues (virtio 1.2, 5.1.2): a packet that goes out takes the pair of its connection, and the host lets
//! what comes in for that connection take the same.

use super::{Error, Net};

/// What went through a pair of queues so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pair {
    /// Packets that came in.
    pub rx_packets: u64,
    /// Packets that went out.
    pub tx_packets: u64,
}

impl Net {
    /// The pairs that were set up, used or not.
    pub fn pairs(&self) -> impl Iterator<Item = Pair> {
        let sent = self.device.tx.packets_of_lanes();
        self.device.rx.iter().zip(sent).map(|(rx, tx_packets)| Pair { rx_packets: rx.packets, tx_packets })
    }

    /// How many pairs are used, from the first on.
    #[must_use]
    pub fn pairs_in_use(&self) -> u16 {
        self.device.tx.lanes_in_use()
    }

    /// Uses so many pairs from now on; whether it does. It does not where the device refuses, or where it would agree
    /// but there are not so many of ours: see [`Settings::queues`](super::Settings::queues). Halts until the device has
    /// answered, and has sent what waits in pairs that are left.
    ///
    /// # Errors
    /// The device broke.
    pub fn use_pairs(&mut self, pairs: u16) -> Result<bool, Error> {
        let agreed = self.device.use_pairs(pairs);
        self.after_interrupts();
        agreed
    }
}
