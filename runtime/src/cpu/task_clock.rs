//! Exact timers of CPU time: perf's software event "task clock" (perf_event_open(2)).
//!
//! The kernel runs a high-resolution timer while the thread runs, and none while it sleeps, so the thread is signalled
//! when it has used so much, not at the next tick after that. A thread sets its own timer only: for another one, the
//! kernel would interrupt that one's CPU and busily wait for it. A thread that runs a guest is in the kernel, so this takes
//! `CAP_PERFMON`, or 1 or less in `kernel.perf_event_paranoid`; without it there are the POSIX timers of
//! [`ThreadTimer`](crate::kvm::sys::ThreadTimer). Owns its `unsafe` calls; decides nothing.
#![expect(unsafe_code, reason = "perf_event_open, F_SETOWN_EX and F_SETSIG have no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use linux_raw_sys::general::{F_OWNER_TID, F_SETOWN_EX, F_SETSIG, f_owner_ex};
use perf_event_open_sys::bindings::perf_event_attr;
use perf_event_open_sys::bindings::{
    PERF_COUNT_SW_TASK_CLOCK, PERF_FLAG_FD_CLOEXEC, PERF_TYPE_SOFTWARE, PERIOD,
};
use perf_event_open_sys::perf_event_open;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::Pid;
use vmm_sys_util::ioctl::ioctl_with_ref;

use crate::kvm::sys::SPARE_KICK_SIGNAL;

/// A time that no thread ever uses; the most that the kernel takes is 2⁶³ − 1 nanoseconds.
const NEVER: u64 = i64::MAX.cast_unsigned() / 2;

/// Kicks a vCPU thread out of the guest when it has used some CPU time, and again after each further such time.
#[derive(Debug)]
pub(super) struct TaskClock(OwnedFd);

impl TaskClock {
    /// Of a thread of this process. It is not set.
    ///
    /// # Errors
    /// `EACCES` or `EPERM`: not without privilege. `ENOSYS`, `ENOENT` or `EOPNOTSUPP`: not with this kernel. Else the
    /// process has no descriptors left, or the like.
    pub(super) fn new(thread: Pid) -> io::Result<Self> {
        let thread = thread.as_raw_nonzero().get();
        let mut attr = perf_event_attr::default();
        attr.type_ = PERF_TYPE_SOFTWARE;
        attr.size = size_of::<perf_event_attr>().try_into().map_err(io::Error::other)?;
        attr.config = PERF_COUNT_SW_TASK_CLOCK.into();
        attr.__bindgen_anon_1.sample_period = NEVER;
        attr.__bindgen_anon_2.wakeup_events = 1;
        // SAFETY: `attr` is initialised and of the size that it says.
        let fd = unsafe { perf_event_open(&raw mut attr, thread, -1, -1, PERF_FLAG_FD_CLOEXEC.into()) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given it to us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let owner = f_owner_ex { type_: F_OWNER_TID.cast_signed(), pid: thread };
        // SAFETY: `owner` is valid for the call, and the other argument is a number. The signal is blocked on that thread
        // but inside `KVM_RUN`, so no handler is needed.
        let results = unsafe {
            [
                libc::fcntl(fd.as_raw_fd(), F_SETOWN_EX.cast_signed(), &raw const owner),
                libc::fcntl(fd.as_raw_fd(), F_SETSIG.cast_signed(), SPARE_KICK_SIGNAL),
            ]
        };
        if results.contains(&-1) {
            return Err(io::Error::last_os_error());
        }
        fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::from_bits_retain(libc::O_ASYNC.cast_unsigned()))?;
        Ok(Self(fd))
    }

    /// Fires after `nanos` of CPU time from now; 0: not at all.
    pub(super) fn set(&self, nanos: u64) {
        let period = if nanos == 0 { NEVER } else { nanos.min(NEVER) };
        // SAFETY: the descriptor is an event's, and the kernel reads a `u64` at the address.
        let result = unsafe { ioctl_with_ref(&self.0, PERIOD.into(), &period) };
        debug_assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }
}

#[cfg(test)]
#[path = "task_clock_test.rs"]
mod tests;
