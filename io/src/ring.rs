//! The io_uring engine. The only file that knows tokio-uring.
//!
//! Owns the runtime, and everything that the kernel may still write to: an operation's memory, descriptor
//! and place in the queue live in [`InFlight`] until the operation has completed, whether or not somebody
//! still waits for it. tokio-uring alone would free the buffers of abandoned operations before it cancels
//! them when a runtime goes away; here they outlive the runtime.
//!
//! Never has more operations under way than the submission queue has entries, which is what keeps
//! tokio-uring's "queue is full" path (it panics on ENOMEM and EAGAIN) out of reach.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use slab::Slab;
use tokio_uring::{OneshotOutputTransform, UnsubmittedOneshot};

use crate::lease::LeaseUse;
use crate::operation::{Kind, Memory, Outcome, Places, Request};

/// Makes a ring of two entries and drops it; `false` if the kernel's io_uring is too old.
pub(crate) fn try_small_ring() -> io::Result<bool> {
    let ring = IoUring::new(2)?;
    Ok(ring.params().is_feature_rw_cur_pos())
}

/// Asks the kernel for a ring without entries, which it refuses as invalid only where it would make others.
pub(crate) fn ask_kernel() -> io::Result<()> {
    match IoUring::new(0) {
        Err(error) if error.raw_os_error() != Some(rustix::io::Errno::INVAL.raw_os_error()) => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// A tokio-uring runtime together with what its operations own.
pub(crate) struct UringRuntime {
    runtime: Option<tokio_uring::Runtime>,
    in_flight: Rc<InFlight>,
}

impl UringRuntime {
    /// Makes a runtime whose submission queue has `entries` entries (rounded up to a power of two).
    pub(crate) fn new(entries: u32) -> io::Result<Self> {
        let runtime = tokio_uring::Runtime::new(tokio_uring::builder().entries(entries))?;
        Ok(Self { runtime: Some(runtime), in_flight: Rc::default() })
    }

    /// Where the operations of this runtime are kept.
    pub(crate) fn in_flight(&self) -> Rc<InFlight> {
        Rc::clone(&self.in_flight)
    }

    /// Runs `future` to its end on this thread.
    pub(crate) fn block_on<F: Future>(&self, future: F) -> io::Result<F::Output> {
        let runtime = self.runtime.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        Ok(runtime.block_on(future))
    }
}

impl Drop for UringRuntime {
    /// Cancels what is still under way and waits for it; only then are its buffers freed.
    fn drop(&mut self) {
        self.in_flight.frozen.set(true);
        let runtime = self.runtime.take();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(runtime))) {
            // Nobody knows what the kernel still writes to: leak it rather than free it.
            mem::forget(Rc::clone(&self.in_flight));
            resume_unwind(panic);
        }
        let held = mem::take(&mut *self.in_flight.held.borrow_mut());
        drop(held);
    }
}

/// The operations under way.
#[derive(Default)]
pub(crate) struct InFlight {
    held: RefCell<Slab<Rc<Held>>>,
    /// The runtime is going away: nothing is released before it is gone.
    frozen: Cell<bool>,
}

/// What the kernel may use until the operation has completed.
struct Held {
    memory: Cell<Memory>,
    _fd: Arc<OwnedFd>,
    _places: Places,
}

/// The operation's own share of what it holds; tokio-uring drops it after completion (or, when a runtime
/// goes away, too early, which is what `frozen` is for).
struct Stake {
    held: Rc<Held>,
    key: usize,
    in_flight: Rc<InFlight>,
}

impl Drop for Stake {
    fn drop(&mut self) {
        if self.in_flight.frozen.get() {
            return;
        }
        let released = self.in_flight.held.borrow_mut().try_remove(self.key);
        drop(released);
    }
}

struct Finish;

impl OneshotOutputTransform for Finish {
    type Output = Outcome;
    type StoredData = Stake;

    fn transform_oneshot_output(self, stake: Stake, cqe: cqueue::Entry) -> Outcome {
        let result = match usize::try_from(cqe.result()) {
            Ok(count) => Ok(count),
            Err(_) => Err(io::Error::from_raw_os_error(cqe.result().saturating_neg())),
        };
        let mut memory = stake.held.memory.take();
        if let Memory::Guest(lease) = &mut memory {
            lease.settle(result.as_ref().ok().copied());
        }
        (result, memory)
    }
}

impl InFlight {
    /// Number of operations under way.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.held.borrow().len()
    }

    /// Pushes a request to the submission queue; the loop's next park submits it.
    ///
    /// Dropping the future abandons the result, not the operation. Only to be called on the runtime's thread.
    pub(crate) fn submit(self: &Rc<Self>, request: Request) -> impl Future<Output = Outcome> + use<> {
        let Request { fd, mut memory, start, kind, places } = request;
        let entry = entry(&fd, &mut memory, start, kind);
        let held = Rc::new(Held { memory: Cell::new(memory), _fd: fd, _places: places });
        let key = self.held.borrow_mut().insert(Rc::clone(&held));
        let stake = Stake { held, key, in_flight: Rc::clone(self) };
        UnsubmittedOneshot::new(stake, Finish, entry).submit()
    }
}

/// The kernel's form of a request. The addresses stay valid: a `Vec`'s bytes do not move with it, nor does what a
/// lease exposes, and nobody touches them until the operation has completed.
fn entry(fd: &OwnedFd, memory: &mut Memory, start: usize, kind: Kind) -> squeue::Entry {
    let fd = types::Fd(fd.as_raw_fd());
    match kind {
        Kind::Read(offset) | Kind::Write(offset) => match memory {
            Memory::Ours(buf) => transfer(fd, buf.get_mut(start..).unwrap_or_default(), kind, offset),
            Memory::Guest(lease) => {
                let (iovecs, count) = lease.expose(start as u64);
                match lease.lease_use() {
                    LeaseUse::Target => opcode::Readv::new(fd, iovecs, count).offset(offset).build(),
                    LeaseUse::Source => opcode::Writev::new(fd, iovecs, count).offset(offset).build(),
                }
            }
        },
        Kind::SyncAll => opcode::Fsync::new(fd).build(),
        Kind::SyncData => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
        Kind::Allocate { how, offset, len } => {
            opcode::Fallocate::new(fd, len).offset(offset).mode(how.flags().bits().cast_signed()).build()
        }
    }
}

fn transfer(fd: types::Fd, part: &mut [u8], kind: Kind, offset: u64) -> squeue::Entry {
    // Linux moves at most this much in one operation.
    let len = u32::try_from(part.len().min(0x7fff_f000)).unwrap_or(0x7fff_f000);
    match kind {
        Kind::Write(_) => opcode::Write::new(fd, part.as_ptr(), len).offset(offset).build(),
        _ => opcode::Read::new(fd, part.as_mut_ptr(), len).offset(offset).build(),
    }
}
