//! The few KVM operations that the safe wrappers do not offer.
//!
//! Owns the `unsafe` blocks around KVM: reading the `kvm_run` unions, registering memory slots, `KVM_SET_SIGNAL_MASK`,
//! signals to threads, their CPU clocks and the timers that kick them. Decides nothing.
#![expect(unsafe_code, reason = "KVM's mapped structures, raw ioctls and signal masks have no safe wrapper")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use kvm_bindings::{
    KVM_IRQFD_FLAG_DEASSIGN, KVMIO, kvm_ioeventfd, kvm_ioeventfd_flag_nr_datamatch, kvm_irqfd, kvm_run,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{VcpuFd, VmFd};
use ringlet_io::RamRegion;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;
use vmm_sys_util::signal::SIGRTMIN;

use crate::vcpu::control::KickTarget;

ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, KVMIO, 0x8b, u32);
ioctl_iow_nr!(KVM_IRQFD, KVMIO, 0x76, kvm_irqfd);
ioctl_iow_nr!(KVM_IOEVENTFD, KVMIO, 0x79, kvm_ioeventfd);

/// `struct kvm_signal_mask` with the kernel's 64-bit `sigset_t` behind it.
#[repr(C)]
struct SignalMask {
    len: u32,
    sigset: [u8; 8],
}

/// Brings a vCPU thread out of the guest, and takes no place in the user's signal queue: that of exact timers of CPU time,
/// and of others where that queue is full.
pub(crate) const SPARE_KICK_SIGNAL: libc::c_int = libc::SIGSTKFLT;

/// The signals that bring a vCPU thread out of the guest. The first is used, unless the user's signal queue
/// (`RLIMIT_SIGPENDING`, which other processes share) is full: then the second.
fn kick_signals() -> [libc::c_int; 2] {
    [SIGRTMIN() + 3, SPARE_KICK_SIGNAL]
}

/// Registers guest RAM as KVM memory slot `slot`.
///
/// The caller keeps the mapping alive for as long as the VM exists (`VmFds` owns both).
pub(super) fn set_memory_slot(vm: &VmFd, slot: u32, region: RamRegion) -> io::Result<()> {
    let region = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: region.gpa,
        memory_size: region.len,
        userspace_addr: region.host_addr,
    };
    // SAFETY: the range is a mapping of `GuestRam`, which is only ever read and written by volatile copies,
    // and the owner of `vm` drops it before that mapping.
    unsafe { vm.set_user_memory_region(region) }.map_err(io::Error::from)
}

/// Makes `eventfd` the irqfd of `gsi`, or no longer.
pub(super) fn irqfd(vm: &VmFd, eventfd: BorrowedFd<'_>, gsi: u32, assign: bool) -> io::Result<()> {
    let request = kvm_irqfd {
        fd: eventfd.as_raw_fd().cast_unsigned(),
        gsi,
        flags: if assign { 0 } else { KVM_IRQFD_FLAG_DEASSIGN },
        ..kvm_irqfd::default()
    };
    // SAFETY: KVM_IRQFD reads a `kvm_irqfd`; both descriptors are open for the length of the call, and the
    // kernel takes a reference of its own to the eventfd.
    match unsafe { ioctl_with_ref(vm, KVM_IRQFD(), &request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes a 32-bit write of `value` to guest-physical `address` ring `eventfd` instead of leaving the guest.
pub(super) fn ioeventfd(vm: &VmFd, eventfd: BorrowedFd<'_>, address: u64, value: u32) -> io::Result<()> {
    let request = kvm_ioeventfd {
        datamatch: value.into(),
        addr: address,
        len: 4,
        fd: eventfd.as_raw_fd(),
        flags: 1 << kvm_ioeventfd_flag_nr_datamatch,
        ..kvm_ioeventfd::default()
    };
    // SAFETY: KVM_IOEVENTFD reads a `kvm_ioeventfd`; both descriptors are open for the length of the call, and the
    // kernel takes a reference of its own to the eventfd.
    match unsafe { ioctl_with_ref(vm, KVM_IOEVENTFD(), &request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A port access as the kernel describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PortAccess {
    pub(crate) port: u16,
    /// Bytes an element: 1, 2 or 4.
    pub(crate) size: u8,
    pub(crate) write: bool,
}

/// The port access of the exit that `vcpu` has just made, with its data: `count` elements of `size` bytes each
/// (more than one for string instructions). `None` if that exit was not `KVM_EXIT_IO`.
pub(crate) fn port_access(vcpu: &mut VcpuFd) -> Option<(PortAccess, &mut [u8])> {
    let run: *mut kvm_run = vcpu.get_kvm_run();
    // SAFETY: `run` points to the vCPU's mapped `kvm_run`, and `vcpu` is borrowed mutably, so the kernel does
    // not change it. `exit_reason` says that the `io` member of the union is the one that was filled in.
    let io = unsafe {
        if (*run).exit_reason != kvm_bindings::KVM_EXIT_IO {
            return None;
        }
        (*run).__bindgen_anon_1.io
    };
    let len = usize::from(io.size) * io.count as usize;
    // SAFETY: the kernel puts `len` bytes of data (at most a page) at `data_offset` bytes into the mapping that
    // begins with `kvm_run` and is larger than it (KVM API, section 5, KVM_EXIT_IO; KVM_GET_VCPU_MMAP_SIZE). The
    // pointer leaves the struct but not the mapping, and the slice borrows `vcpu`, so it ends before the next KVM_RUN.
    let data = unsafe { std::slice::from_raw_parts_mut(run.cast::<u8>().add(io.data_offset as usize), len) };
    let write = u32::from(io.direction) == kvm_bindings::KVM_EXIT_IO_OUT;
    Some((PortAccess { port: io.port, size: io.size, write }, data))
}

/// What `KVM_EXIT_INTERNAL_ERROR` says: the suberror and its data words.
pub(crate) fn internal_error(run: &kvm_run) -> (u32, Vec<u64>) {
    // SAFETY: called for that exit only, where the kernel has filled in `internal`; any bit pattern is a
    // valid value of its integers, so even another exit's bytes would only be meaningless numbers.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let used = (internal.ndata as usize).min(internal.data.len());
    (internal.suberror, internal.data.iter().take(used).copied().collect())
}

/// A thread that can be kicked. Valid while the thread lives.
#[derive(Debug)]
pub(crate) struct Thread(libc::pthread_t);

impl Thread {
    /// Makes the calling thread a vCPU thread: every signal that is not a fault of its own is blocked, and
    /// inside `KVM_RUN` of `vcpu` the kicks alone are let through.
    pub(crate) fn enter_vcpu(vcpu: &VcpuFd) -> io::Result<Self> {
        let blocked = block_asynchronous_signals()?;
        let mut inside = blocked;
        for signal in kick_signals() {
            // SAFETY: `inside` is an initialised set, and the number is that of a valid signal.
            if unsafe { libc::sigdelset(&mut inside, signal) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        let mask = SignalMask { len: 8, sigset: kernel_sigset(&inside) };
        // SAFETY: KVM_SET_SIGNAL_MASK reads a `kvm_signal_mask` of `len` bytes of signal set, which `mask` is.
        if unsafe { ioctl_with_ref(vcpu, KVM_SET_SIGNAL_MASK(), &mask) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: takes no arguments and cannot fail.
        Ok(Self(unsafe { libc::pthread_self() }))
    }

    /// Removes the kick's signals if they are pending on the calling thread. Whether it was the spare one alone.
    pub(crate) fn eat_kick() -> bool {
        let mut set = empty_sigset();
        let (mut spare, mut other) = (false, false);
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `set` is initialised, the siginfo pointer may be null, and the timeout lives across the
        // call. With a zero timeout the call never waits.
        unsafe {
            for signal in kick_signals() {
                libc::sigaddset(&mut set, signal);
            }
            loop {
                match libc::sigtimedwait(&set, std::ptr::null_mut(), &now) {
                    SPARE_KICK_SIGNAL => spare = true,
                    signal if signal > 0 => other = true,
                    _ => return spare && !other,
                }
            }
        }
    }
}

impl KickTarget for Thread {
    fn kick(&self) {
        // SAFETY: `Control` calls this only while the thread is alive (it waits for kicks under way before it ends).
        let sent =
            kick_signals().into_iter().any(|signal| unsafe { libc::pthread_kill(self.0, signal) } == 0);
        debug_assert!(sent, "a signal below SIGRTMIN can always be sent to a live thread");
    }
}

/// The clock of a thread's CPU time, readable by every thread of the process.
#[derive(Debug)]
pub(crate) struct ThreadClock {
    clock: libc::clockid_t,
    thread: libc::pid_t,
}

impl ThreadClock {
    /// That of the calling thread.
    pub(crate) fn of_this_thread() -> io::Result<Self> {
        let mut clock = 0;
        // SAFETY: the calling thread exists, and `clock` is written before the call returns.
        let error = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut clock) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        Ok(Self { clock, thread: rustix::thread::gettid().as_raw_nonzero().get() })
    }

    /// Nanoseconds that the thread has run; `None` once it has ended.
    pub(crate) fn nanos(&self) -> Option<u64> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is valid for the call, which refuses a clock that is gone.
        if unsafe { libc::clock_gettime(self.clock, &raw mut time) } != 0 {
            return None;
        }
        let seconds = u64::try_from(time.tv_sec).ok()?;
        seconds.checked_mul(1_000_000_000)?.checked_add(u64::try_from(time.tv_nsec).ok()?)
    }
}

/// A timer that kicks a vCPU thread out of the guest, as [`Thread::kick`] does. Its signal takes its place in the user's
/// signal queue when it is made, so that it can always be sent.
#[derive(Debug)]
pub(crate) struct ThreadTimer(libc::timer_t);

// SAFETY: a `timer_t` is the kernel's number of a timer of this process, and every thread may use it.
unsafe impl Send for ThreadTimer {}

impl ThreadTimer {
    /// Of the thread's CPU time.
    pub(crate) fn cpu(thread: &ThreadClock) -> io::Result<Self> {
        Self::new(thread.clock, thread.thread)
    }

    /// Of real time.
    pub(crate) fn real(thread: &ThreadClock) -> io::Result<Self> {
        Self::new(libc::CLOCK_MONOTONIC, thread.thread)
    }

    fn new(clock: libc::clockid_t, thread: libc::pid_t) -> io::Result<Self> {
        // SAFETY: all fields are integers or a pointer that nobody follows, for which zero is a value.
        let mut event: libc::sigevent = unsafe { MaybeUninit::zeroed().assume_init() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = kick_signals()[0];
        event.sigev_notify_thread_id = thread;
        let mut timer = MaybeUninit::uninit();
        // SAFETY: `event` is initialised, and `timer` is written if the call succeeds. The signal is blocked on that
        // thread but inside `KVM_RUN`, so no handler is needed.
        unsafe {
            match libc::timer_create(clock, &raw mut event, timer.as_mut_ptr()) {
                0 => Ok(Self(timer.assume_init())),
                _ => Err(io::Error::last_os_error()),
            }
        }
    }

    /// Fires once after `nanos` of its clock; 0: not at all.
    pub(crate) fn set(&self, nanos: u64) {
        let tv_sec = i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX);
        let tv_nsec = i64::try_from(nanos % 1_000_000_000).unwrap_or(0);
        let once = libc::itimerspec {
            it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: libc::timespec { tv_sec, tv_nsec },
        };
        // SAFETY: the timer exists until it is dropped, `once` is valid for the call, and the old value is not asked for.
        let result = unsafe { libc::timer_settime(self.0, 0, &raw const once, std::ptr::null_mut()) };
        debug_assert_eq!(result, 0, "a timer of a live thread can always be set");
    }
}

impl Drop for ThreadTimer {
    fn drop(&mut self) {
        // SAFETY: made by `timer_create`, and deleted once.
        unsafe { libc::timer_delete(self.0) };
    }
}

/// Blocks every signal on the calling thread except those that the CPU raises for its own faults, so that
/// signals of the host process are delivered to threads of the host. Returns the new mask.
pub(crate) fn block_asynchronous_signals() -> io::Result<libc::sigset_t> {
    let mut set = empty_sigset();
    // SAFETY: `set` is initialised and all pointers are valid for the calls.
    let error = unsafe {
        libc::sigfillset(&mut set);
        for fault in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP] {
            libc::sigdelset(&mut set, fault);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &set, std::ptr::null_mut())
    };
    if error == 0 { Ok(set) } else { Err(io::Error::from_raw_os_error(error)) }
}

fn empty_sigset() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `sigemptyset` initialises the set and cannot fail with a valid pointer.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}

/// The first 64 signals of a libc set, which is all that the kernel's `sigset_t` holds.
fn kernel_sigset(set: &libc::sigset_t) -> [u8; 8] {
    let mut bits = 0u64;
    for signal in 1..=64 {
        // SAFETY: the set is initialised, and 1..=64 are valid signal numbers.
        if unsafe { libc::sigismember(set, signal) } == 1 {
            bits |= 1 << (signal - 1);
        }
    }
    bits.to_ne_bytes()
}
