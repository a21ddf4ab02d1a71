//! The last exits of a vCPU, for the reports of crashes and timeouts.

use std::collections::VecDeque;

/// How many exits are remembered.
const DEPTH: usize = 8;

/// One exit to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ExitRecord {
    pub(super) what: &'static str,
    /// Port, address or vector.
    pub(super) address: u64,
    /// Width in bytes; 0 if the exit has none.
    pub(super) width: u8,
}

/// A ring of the last exits; equal ones in a row are counted, so that a guest that polls one register does not
/// push out how it came there.
#[derive(Debug, Default)]
pub(super) struct History(VecDeque<(ExitRecord, u64)>);

impl History {
    pub(super) fn record(&mut self, exit: ExitRecord) {
        if let Some((last, count)) = self.0.back_mut()
            && *last == exit
        {
            *count = count.saturating_add(1);
            return;
        }
        if self.0.len() == DEPTH {
            self.0.pop_front();
        }
        self.0.push_back((exit, 1));
    }

    /// Oldest first, in words.
    pub(super) fn describe(&self) -> Vec<String> {
        self.0.iter().map(|(exit, count)| describe(exit, *count)).collect()
    }
}

fn describe(exit: &ExitRecord, count: u64) -> String {
    let mut text = format!("{} {:#x}", exit.what, exit.address);
    if exit.width > 0 {
        text += &format!("/{}", exit.width);
    }
    if count > 1 {
        text += &format!(" ×{count}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_counted_and_the_oldest_is_forgotten() {
        let mut history = History::default();
        for port in 0..10u64 {
            for _ in 0..=port {
                history.record(ExitRecord { what: "read of port", address: port, width: 1 });
            }
        }
        let lines = history.describe();
        assert_eq!(lines.len(), DEPTH);
        assert_eq!(lines[0], "read of port 0x2/1 ×3");
        assert_eq!(lines[DEPTH - 1], "read of port 0x9/1 ×10");
    }
}
