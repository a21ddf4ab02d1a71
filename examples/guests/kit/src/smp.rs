//! Further processors: started by INIT and SIPI, each with its stack, TSS and ring 3.
//!
//! Their APIC ids are taken to be 1, 2, …; how many there are is the VMM's word `ringlet.vcpus=N`.

use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use crate::boot::context;
use crate::layout::MAX_CPUS;
use crate::{choose_ring, cpu, lapic, memory, percpu, time};

/// How long a processor may take to arrive after a SIPI, and how often it is sent.
const PATIENCE: u64 = 100_000_000;
const ATTEMPTS: usize = 10;

unsafe extern "C" {
    static ringlet_ap_trampoline: u8;
    static ringlet_ap_trampoline_end: u8;
    static ringlet_ap_index: AtomicU32;
}

/// What started processors run.
static PROGRAM: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());
/// The processor that arrived last.
static ARRIVED: AtomicU32 = AtomicU32::new(0);

/// Starts all further processors, up to [`MAX_CPUS`] in all; each calls `program` with its number and halts when that
/// returns. Returns the number of processors that run, this one included. To be called once, by processor 0.
pub fn start(program: fn(usize)) -> usize {
    let wanted = context().vcpus().min(MAX_CPUS);
    let Some(page) = memory::low_page().filter(|_| wanted > 1) else { return 1 };
    PROGRAM.store(program as *mut (), Ordering::Release);
    // SAFETY: the page is free RAM below 1 MiB, and the trampoline is some dozens of bytes.
    unsafe {
        let start = &raw const ringlet_ap_trampoline;
        let len = (&raw const ringlet_ap_trampoline_end).addr() - start.addr();
        core::ptr::with_exposed_provenance_mut::<u8>(page as usize).copy_from_nonoverlapping(start, len);
    }
    lapic::enable();
    (1..wanted).find(|&index| !start_one(index, (page >> 12) as u8)).unwrap_or(wanted)
}

/// Starts processor `index`; whether it arrived.
fn start_one(index: usize, page: u8) -> bool {
    // SAFETY: this processor does not run yet; the cell is entry.s's.
    unsafe {
        percpu::prepare(index);
        ringlet_ap_index.store(index as u32, Ordering::Release);
    }
    lapic::send_init(index as u32);
    (0..ATTEMPTS).any(|_| {
        lapic::send_startup(index as u32, page);
        let start = time::now();
        while ARRIVED.load(Ordering::Acquire) != index as u32 {
            if time::now() - start > PATIENCE {
                return false;
            }
            core::hint::spin_loop();
        }
        true
    })
}

/// What a started processor does.
pub(crate) fn arrive(index: usize) -> ! {
    choose_ring();
    lapic::enable();
    ARRIVED.store(index as u32, Ordering::Release);
    let program = PROGRAM.load(Ordering::Acquire);
    // SAFETY: `start` stored a `fn(usize)` there before any processor was started.
    let program: fn(usize) = unsafe { core::mem::transmute(program) };
    program(index);
    cpu::park()
}
