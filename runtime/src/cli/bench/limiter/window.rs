//! What a limiter admitted, from one admission to another. Pure.
//!
//! The window begins with the first admission that is seen after a request has had to wait, for then the bucket is empty.
//! It ends with one, too: so neither what the bucket held at first counts, nor a part of a refill.

use std::time::Duration;

/// A limiter's counters at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    /// By any clock.
    pub(super) at: Duration,
    pub(super) operations: u64,
    pub(super) bytes: u64,
    /// Requests that had to wait.
    pub(super) throttled: u64,
}

/// What a window has to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Least {
    pub(super) time: Duration,
    pub(super) operations: u64,
}

/// The looks at both ends.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// The last look at which something had been admitted, once the bucket was empty.
    seen: Option<Look>,
    first: Option<Look>,
    last: Option<Look>,
}

/// What was admitted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Obtained {
    pub(super) time: Duration,
    pub(super) operations: u64,
    pub(super) bytes: u64,
}

impl Window {
    /// Takes a look in, as long as the window is not full.
    pub(super) fn look(&mut self, look: Look, least: Least) {
        if look.throttled == 0 || self.is_full(least) {
            return;
        }
        if let Some(seen) = self.seen.replace(look) {
            if look.operations == seen.operations {
                return;
            }
            let end = if self.first.is_none() { &mut self.first } else { &mut self.last };
            *end = Some(look);
        }
    }

    pub(super) fn is_full(&self, least: Least) -> bool {
        self.obtained().is_some_and(|got| got.time >= least.time && got.operations >= least.operations)
    }

    /// What lies between the ends.
    pub(super) fn obtained(&self) -> Option<Obtained> {
        let (first, last) = self.first.zip(self.last)?;
        Some(Obtained {
            time: last.at.saturating_sub(first.at),
            operations: last.operations - first.operations,
            bytes: last.bytes - first.bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: Least = Least { time: Duration::from_millis(20), operations: 4 };

    fn look(at: u64, operations: u64, throttled: u64) -> Look {
        Look { at: Duration::from_millis(at), operations, bytes: operations * 10, throttled }
    }

    fn window(looks: &[Look]) -> Window {
        let mut window = Window::default();
        looks.iter().for_each(|look| window.look(*look, LEAST));
        window
    }

    #[test]
    fn what_the_bucket_held_at_first_does_not_count() {
        let window = window(&[look(0, 90, 0), look(1, 100, 1), look(9, 101, 2), look(29, 105, 6)]);
        let obtained = window.obtained().unwrap();
        assert_eq!(obtained, Obtained { time: Duration::from_millis(20), operations: 4, bytes: 40 });
        assert!(window.is_full(LEAST));
    }

    #[test]
    fn both_ends_are_admissions() {
        let looks = [look(0, 1, 1), look(5, 1, 1), look(10, 2, 1), look(20, 3, 1), look(25, 3, 1)];
        let obtained = window(&looks).obtained().unwrap();
        assert_eq!((obtained.time, obtained.operations), (Duration::from_millis(10), 1));
    }

    #[test]
    fn it_is_full_with_both_the_time_and_the_requests() {
        let short = [look(0, 0, 1), look(10, 1, 1), look(20, 9, 1)];
        assert!(!window(&short).is_full(LEAST));
        let few = [look(0, 0, 1), look(10, 1, 1), look(50, 4, 1)];
        assert!(!window(&few).is_full(LEAST));
        let full = [look(0, 0, 1), look(10, 1, 1), look(50, 5, 1), look(90, 50, 1)];
        assert_eq!(window(&full).obtained().unwrap().operations, 4, "what comes later is not taken in");
    }

    #[test]
    fn a_limiter_that_held_nothing_back_says_nothing() {
        assert_eq!(window(&[look(0, 0, 0), look(50, 50, 0), look(99, 99, 0)]).obtained(), None);
    }
}
