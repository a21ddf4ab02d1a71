//! The C library's allocator, set for a process with many threads and VMs.
#![expect(unsafe_code, reason = "mallopt has no safe wrapper")]

/// Bytes that the heap grows by, at least.
const GROWTH: i32 = 1 << 20;

/// Makes all threads share one heap that grows in large steps. By default each thread has an arena of its own, which
/// it makes accessible page by page; every such change makes the kernel visit each VM of the process (its MMU notifier),
/// so that the thousandth VM would take several times as long to start as the first. Call before there are threads.
pub(super) fn configure() {
    // SAFETY: mallopt only stores a number, and no other thread exists yet. A setting that it does not know is refused
    // and changes nothing.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TOP_PAD, GROWTH);
    }
}
