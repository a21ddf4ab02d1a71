//! On which CPUs the event loop, the victim and the storms run.
//!
//! What is to be seen is what VMs do to each other through what they share: the event loop, the runtime, the kernel.
//! That a computing VM takes a part of a CPU that it shares with another is no news, so they share none: storms have a
//! CPU of their own, and the event loop and the victim are kept off it, also when the victim is alone.

use std::fmt;
use std::fs;
use std::io;

use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

/// The thread that closes ended VMs. It begins with the first of them, wherever that ends.
const REAPER: &str = "ringlet-reaper";

/// A CPU for each; the same one for several if there are not enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Placement {
    shard: usize,
    victim: usize,
    storm: usize,
}

impl Placement {
    /// On the CPUs that this process may use.
    pub(super) fn of_this_process() -> Self {
        let allowed = sched_getaffinity(None).unwrap_or_default();
        let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect();
        Self::on(&cpus)
    }

    fn on(cpus: &[usize]) -> Self {
        match *cpus {
            [] => Self { shard: 0, victim: 0, storm: 0 },
            [only] => Self { shard: only, victim: only, storm: only },
            [first, second] => Self { shard: first, victim: first, storm: second },
            [first, second, third, ..] => Self { shard: first, victim: second, storm: third },
        }
    }

    /// Runs `f` on a thread of the event loop's CPU, where threads that it starts stay.
    pub(super) fn beside_shard<T: Send>(self, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        on(self.shard, f)
    }

    /// … of the victim's CPU.
    pub(super) fn beside_victim<T: Send>(self, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        on(self.victim, f)
    }

    /// … of the storms' CPU.
    pub(super) fn beside_storm<T: Send>(self, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        on(self.storm, f)
    }

    /// Moves the closing of ended VMs, most of which are storms, to the storms' CPU. After the first VM has ended.
    pub(super) fn close_beside_storm(self) -> io::Result<()> {
        for thread in fs::read_dir("/proc/self/task")? {
            let thread = thread?;
            // A thread may end while we look.
            let name = fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
            let number = thread.file_name().to_str().and_then(|number| number.parse().ok());
            if name.trim_end() == REAPER
                && let Some(number) = number.and_then(Pid::from_raw)
            {
                return Ok(sched_setaffinity(Some(number), &only(self.storm))?);
            }
        }
        Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no thread {REAPER}")))
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shard, victim, storm } = self;
        write!(
            f,
            "the event loop on CPU {shard}, the victim's vCPU on {victim}, storms and the closing of VMs on {storm}"
        )?;
        if storm == victim {
            f.write_str(": with one CPU, storms take their part of the victim's time")?;
        }
        Ok(())
    }
}

fn only(cpu: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(cpu);
    set
}

/// A thread that is pinned before `f` runs; its end is waited for.
fn on<T: Send>(cpu: usize, f: impl FnOnce() -> T + Send) -> io::Result<T> {
    let pinned = move || {
        sched_setaffinity(None, &only(cpu))?;
        Ok(f())
    };
    let joined = std::thread::scope(|scope| scope.spawn(pinned).join());
    joined.map_err(|_| io::Error::other("a thread panicked"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storms_have_a_cpu_of_their_own_if_there_are_two() {
        for cpus in [&[3, 5][..], &[0, 1, 2], &[1, 4, 6, 7]] {
            let Placement { shard, victim, storm } = Placement::on(cpus);
            assert!(storm != shard && storm != victim, "{cpus:?}");
        }
        let one = Placement::on(&[2]);
        assert_eq!(one, Placement { shard: 2, victim: 2, storm: 2 });
        assert!(one.to_string().contains("with one CPU"));
    }

    #[test]
    fn a_thread_is_where_it_should_be() {
        let placement = Placement::of_this_process();
        let set = placement.beside_storm(|| sched_getaffinity(None).unwrap()).unwrap();
        assert_eq!(set.count(), 1);
        assert!(set.is_set(placement.storm));
    }
}
