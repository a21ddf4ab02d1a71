//! Exceptions: reported with all registers on the console, then the guest ends with code 128 + vector.

use crate::{exit::exit, println, serial};

/// The registers of the program when it was interrupted, as entry.s pushes them.
#[derive(Debug)]
#[repr(C)]
struct Frame {
    cr2: u64,
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rdi: u64,
    rsi: u64,
    rbp: u64,
    rbx: u64,
    rdx: u64,
    rcx: u64,
    rax: u64,
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// Exit code of a guest that ended by the exception `vector`.
#[must_use]
pub const fn exit_code(vector: u8) -> u32 {
    0x80 | vector as u32
}

/// The exception's mnemonic.
#[must_use]
pub const fn name(vector: u8) -> &'static str {
    match vector {
        0 => "#DE divide error",
        1 => "#DB debug",
        3 => "#BP breakpoint",
        4 => "#OF overflow",
        5 => "#BR bound range",
        6 => "#UD invalid opcode",
        7 => "#NM no device",
        8 => "#DF double fault",
        10 => "#TS invalid TSS",
        11 => "#NP segment not present",
        12 => "#SS stack fault",
        13 => "#GP general protection",
        14 => "#PF page fault",
        16 => "#MF x87 error",
        17 => "#AC alignment check",
        18 => "#MC machine check",
        19 => "#XM SIMD error",
        _ => "exception",
    }
}

/// Entered from entry.s on a fresh stack, in the ring of the program.
#[unsafe(no_mangle)]
extern "C" fn ringlet_exception(frame: &Frame) -> ! {
    serial::force();
    let vector = frame.vector as u8;
    println!(
        "{} (vector {vector}, error {:#x}) on processor {}",
        name(vector),
        frame.error,
        crate::cpu::index()
    );
    println!(
        "rip {:016x} cs {:02x} rflags {:x} rsp {:016x} cr2 {:x}",
        frame.rip, frame.cs, frame.rflags, frame.rsp, frame.cr2
    );
    println!(
        "rax {:x} rbx {:x} rcx {:x} rdx {:x} rsi {:x} rdi {:x} rbp {:x}",
        frame.rax, frame.rbx, frame.rcx, frame.rdx, frame.rsi, frame.rdi, frame.rbp
    );
    println!(
        "r8 {:x} r9 {:x} r10 {:x} r11 {:x} r12 {:x} r13 {:x} r14 {:x} r15 {:x}",
        frame.r8, frame.r9, frame.r10, frame.r11, frame.r12, frame.r13, frame.r14, frame.r15
    );
    exit(exit_code(vector))
}
