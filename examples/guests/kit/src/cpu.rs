//! The processor: identification, time-stamp counter, model-specific registers, ring-0 services.

use core::arch::asm;

use crate::lapic;
use crate::percpu::{self, Apic};

/// `eax` of a service call is this plus the number of the service.
pub(crate) const MARKER: u32 = 0x5247_4c00;
/// Number of services.
pub(crate) const SERVICES: u32 = 7;
/// `edi` of the call that halts.
pub(crate) const HALT: u32 = MARKER + 0x80;

const RDMSR: u32 = 0;
const WRMSR: u32 = 1;
const FLUSH: u32 = 2;
const RING0: u32 = 3;
const INTERRUPTS: u32 = 4;
const CALL: u32 = 5;
const CPUID: u32 = 6;

/// Answer of CPUID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Cpuid {
    /// Register eax.
    pub eax: u32,
    /// Register ebx.
    pub ebx: u32,
    /// Register ecx.
    pub ecx: u32,
    /// Register edx.
    pub edx: u32,
}

/// A model-specific register that the processor, or the VMM, refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrRefused(
    /// Its index.
    pub u32,
);

/// CPUID as the VMM means it: executed in ring 0, where every KVM backend answers from the table it was given.
#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> Cpuid {
    let mut answer = Cpuid::default();
    // SAFETY: service `CPUID` writes 16 bytes to the address in rdi, and clobbers what is listed.
    unsafe {
        asm!("ud2", inout("eax") MARKER + CPUID => _, inout("ecx") leaf => _, inout("edx") subleaf => _,
             in("rdi") &raw mut answer, out("r8") _);
    }
    answer
}

/// CPUID executed right here: on some backends the host's answer, not the VMM's.
#[must_use]
pub fn cpuid_here(leaf: u32, subleaf: u32) -> Cpuid {
    let answer = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    Cpuid { eax: answer.eax, ebx: answer.ebx, ecx: answer.ecx, edx: answer.edx }
}

/// The time-stamp counter.
#[must_use]
pub fn rdtsc() -> u64 {
    // SAFETY: reads a counter; CR4.TSD is never set by the kit.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// A random number of the processor's, if it has such.
#[must_use]
pub fn random() -> Option<u64> {
    /// How often the processor may have none ready (Intel SDM volume 1, 7.3.17.1).
    const ATTEMPTS: usize = 10;
    let has_one = cpuid(1, 0).ecx & 1 << 30 != 0;
    (0..if has_one { ATTEMPTS } else { 0 }).find_map(|_| {
        let (number, done): (u64, u8);
        // SAFETY: changes nothing but what is listed; CPUID says that there is the instruction.
        unsafe { asm!("rdrand {}", "setc {}", out(reg) number, out(reg_byte) done, options(nomem, nostack)) };
        (done != 0).then_some(number)
    })
}

/// Reads a model-specific register.
///
/// # Errors
/// The processor raised #GP.
pub fn rdmsr(index: u32) -> Result<u64, MsrRefused> {
    let (low, high, refused): (u32, u32, u64);
    // SAFETY: service `RDMSR` clobbers what is listed.
    unsafe {
        asm!("ud2", inout("eax") MARKER + RDMSR => low, in("ecx") index, out("edx") high, out("r8") refused, options(nostack));
    }
    if refused == 0 { Ok(u64::from(high) << 32 | u64::from(low)) } else { Err(MsrRefused(index)) }
}

/// Writes a model-specific register.
///
/// # Errors
/// The processor raised #GP.
///
/// # Safety
/// Many registers change how memory is reached or where the processor jumps.
pub unsafe fn wrmsr(index: u32, value: u64) -> Result<(), MsrRefused> {
    let refused: u64;
    // SAFETY: service `WRMSR` clobbers what is listed; what the register does is the caller's promise.
    unsafe {
        asm!("ud2", inout("eax") MARKER + WRMSR => _, in("ecx") index, in("edi") value as u32,
             inout("edx") (value >> 32) as u32 => _, out("r8") refused, options(nostack));
    }
    if refused == 0 { Ok(()) } else { Err(MsrRefused(index)) }
}

/// Forgets cached address translations of this processor.
pub fn flush_tlb() {
    // SAFETY: reloading CR3 with itself changes nothing but what is cached.
    unsafe { asm!("ud2", inout("eax") MARKER + FLUSH => _, options(nostack)) };
}

/// Halts this processor until an interrupt has been taken since the last call; returns how many were. Nothing arrives
/// before the local APIC is enabled: see [`interrupts::wait`](crate::interrupts::wait).
pub(crate) fn wait() -> u32 {
    let eoi = if percpu::apic() == Some(Apic::X2) { lapic::X2APIC_EOI } else { 0 };
    loop {
        let taken = percpu::take_taken();
        if taken > 0 {
            return taken;
        }
        // SAFETY: halts at most, clobbers what is listed, and the stubs that run meanwhile only count.
        unsafe {
            asm!("ud2", in("edi") HALT, inout("rax") 0_u64 => _, inout("rcx") u64::from(eoi) => _, inout("rdx") 0_u64 => _,
                 out("r8") _, options(nostack));
        }
    }
}

/// Goes on in ring 0. Right on hosts with VT-x or SVM; slow, and not all instructions work, where ring 0 is interpreted.
pub fn enter_ring0() {
    // SAFETY: both rings have the same flat memory, and every gate has its own stack.
    unsafe { asm!("ud2", inout("eax") MARKER + RING0 => _, out("rcx") _, options(nostack)) };
}

/// Lets interrupts in at any moment, or only while waiting. Either way they are only counted.
pub fn set_interrupts(on: bool) {
    // SAFETY: the service changes IF of this context and clobbers what is listed.
    unsafe {
        asm!("ud2", inout("rax") u64::from(MARKER + INTERRUPTS) => _, inout("edi") u32::from(on) => _, options(nostack));
    }
}

/// Calls `function` in ring 0 on a stack of 512 bytes, interrupts off, and comes back.
///
/// # Safety
/// The function must be assembly or so small that it uses no SSE register and next to no stack; it may clobber what
/// the C calling convention lets it.
pub unsafe fn call_in_ring0(function: unsafe extern "C" fn(u64), argument: u64) {
    // SAFETY: the function's behaviour is the caller's promise.
    unsafe {
        asm!("ud2", inout("rax") u64::from(MARKER + CALL) => _, inout("rcx") function => _, in("rdi") argument,
             clobber_abi("C"));
    }
}

/// Number of this processor, from 0.
#[must_use]
pub fn index() -> usize {
    percpu::current_index()
}

/// Stops this processor for good: halted, deaf to interrupts.
pub fn park() -> ! {
    loop {
        // SAFETY: halts; an NMI may wake it, hence the loop.
        unsafe { call_in_ring0(halt, 0) };
    }
}

/// Halts with interrupts off.
#[unsafe(naked)]
unsafe extern "C" fn halt(_: u64) {
    core::arch::naked_asm!("cli", "hlt", "ret")
}
