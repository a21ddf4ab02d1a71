//! The heap: all free memory, claimed at the first allocation so that a guest that never allocates touches none.

use alloc::alloc::Layout;

use talc::base::{Talc, binning::Binning};
use talc::{TalcLock, source::Source};

use crate::memory;
use crate::sync::RawSpinLock;

#[global_allocator]
static HEAP: TalcLock<RawSpinLock, FreeMemory> = TalcLock::new(FreeMemory { claimed: false });

/// Hands all free memory to the allocator, once.
#[derive(Debug)]
struct FreeMemory {
    claimed: bool,
}

// SAFETY: uses the allocator only through the reference it is given.
unsafe impl Source for FreeMemory {
    fn acquire<B: Binning>(talc: &mut Talc<Self, B>, _: Layout) -> Result<(), ()> {
        if core::mem::replace(&mut talc.source.claimed, true) {
            return Err(());
        }
        for span in memory::free() {
            let base = core::ptr::with_exposed_provenance_mut(span.start as usize);
            // SAFETY: `free` yields mapped RAM that nothing else uses. A piece too small to hold the allocator's own
            // records is not worth having.
            let _ = unsafe { talc.claim(base, span.len() as usize) };
        }
        Ok(())
    }
}
