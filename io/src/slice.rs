//! How long the scheduler lets others run before a thread that woke up gets its CPU.
//!
//! A shard answers vCPUs that compute on the same CPUs, and stops them when they have used their CPU time up. Linux lets
//! a thread that wakes up interrupt another only if it asks for a shorter turn than the default (2.8 ms on two CPUs); it
//! may ask for that without privilege since Linux 6.12 (sched_setattr(2) with a `sched_runtime`, `PREEMPT_SHORT` of
//! kernel/sched/fair.c). Older kernels ignore what is asked here.

#![expect(unsafe_code, reason = "sched_getattr(2) and sched_setattr(2) have no safe wrapper")]

use std::io;
use std::mem;

/// The turn that is asked for, in nanoseconds: the shortest that Linux grants.
const SLICE: u64 = 100_000;

/// Has the calling thread run soon after it wakes up, whatever computes beside it. Its share of the CPUs stays what it
/// is.
///
/// # Errors
/// What sched_getattr(2) and sched_setattr(2) say: filtered by seccomp, for example.
pub(crate) fn wake_promptly() -> io::Result<()> {
    let mut attributes = get()?;
    // Real-time policies have no turns, or mean something else by the field.
    let policy = libc::c_int::try_from(attributes.sched_policy).unwrap_or(-1);
    if policy != libc::SCHED_OTHER && policy != libc::SCHED_BATCH {
        return Ok(());
    }
    attributes.sched_runtime = SLICE;
    // SAFETY: 0 is the calling thread; the kernel reads as many bytes as the structure says that it has.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The calling thread's policy and what belongs to it.
fn get() -> io::Result<libc::sched_attr> {
    let size = u32::try_from(mem::size_of::<libc::sched_attr>()).unwrap_or(0);
    let mut attributes = libc::sched_attr {
        size,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: 0 is the calling thread; the kernel writes at most `size` bytes, which is what the structure has.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    if result == 0 { Ok(attributes) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_else_of_a_thread_changes() {
        let before = get().unwrap();
        wake_promptly().unwrap();
        let after = get().unwrap();
        let others =
            |of: &libc::sched_attr| (of.sched_policy, of.sched_flags, of.sched_nice, of.sched_priority);
        assert_eq!(others(&after), others(&before));
        // A kernel that knows of turns tells them; an older one says 0.
        assert!(
            after.sched_runtime == SLICE
                || after.sched_runtime == before.sched_runtime && before.sched_runtime == 0
        );
    }
}
