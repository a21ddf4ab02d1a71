//! What the guest says of its exits: the yardstick for a request and its response. Pure.

use std::time::Duration;

/// The time of an exit of the guest to this process, and back: it reads a register that is answered on the vCPU's own
/// thread. The median of a few dozen times, each the mean of a few.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exit {
    /// A port's.
    pub(super) port: Duration,
    /// Of a device in memory: the instruction has to be taken apart first.
    pub(super) memory: Duration,
}

/// `None` of what makes no sense: how many exits, nanoseconds of all by port, and by memory.
pub(super) fn parse(line: &str) -> Option<Exit> {
    let mut numbers = line.strip_suffix('\n')?.split(' ').map(str::parse::<u64>);
    let mut next = || numbers.next()?.ok().filter(|number| *number > 0);
    let count = next()?;
    let mut each = || Some(Duration::from_nanos(next()?.div_ceil(count)));
    let exit = Exit { port: each()?, memory: each()? };
    numbers.next().is_none().then_some(exit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_an_exit_is_the_mean_of_those_that_were_timed_together() {
        let exit = parse("500 5000000 10000001\n").unwrap();
        assert_eq!(exit.port, Duration::from_micros(10));
        assert_eq!(exit.memory, Duration::from_nanos(20_001));
    }

    #[test]
    fn nonsense_is_no_exit() {
        for line in
            ["", "\n", "500 1 1", "0 1 1\n", "500 0 1\n", "500 1\n", "500 1 1 1\n", "500 x 1\n", "-1 1 1\n"]
        {
            assert_eq!(parse(line), None, "{line:?}");
        }
    }
}
