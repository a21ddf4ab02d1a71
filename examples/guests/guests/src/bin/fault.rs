//! Ends in the way that its argument names; `fault list` names them all.

#![no_std]
#![no_main]

use core::arch::{asm, naked_asm};
use core::hint::black_box;

use ringlet_guest::{Context, cpu, exit, println};

ringlet_guest::entry!(main);

/// A way to end.
struct Kind {
    name: &'static str,
    about: &'static str,
    run: fn(),
}

const fn kind(name: &'static str, about: &'static str, run: fn()) -> Kind {
    Kind { name, about, run }
}

/// Exceptions exit with 128 + vector after a report of the registers.
static KINDS: [Kind; 19] = [
    kind("bp", "breakpoint: exits with 131", || raw(1)),
    kind("cli", "endless loop with interrupts off: never ends", || exit::hang()),
    kind("cr3", "page tables at an address without memory: triple fault", || ring0(bad_cr3)),
    kind("de", "division by zero: exits with 128", || raw(0)),
    kind("df", "double fault: exits with 136", double_fault),
    kind("emulate", "an instruction in ring 0 that some KVM backends cannot run: 0 where it runs", emulate),
    kind("exec-mmio", "runs code from device memory: KVM internal error", exec_mmio),
    kind("gp", "non-canonical address: exits with 141", || read(1 << 63)),
    kind("halt", "halts with interrupts off: never ends", || cpu::park()),
    kind("null", "null pointer: exits with 142", || read(8)),
    kind("panic", "panic of the program: exits with 101", || panic!("as asked")),
    kind("pf", "memory that is not mapped: exits with 142", || read(1 << 40)),
    kind("port", "writes to ports that no device has: exits with 0", ports),
    kind("privileged", "ring-0 instruction in ring 3: exits with 141", || raw(2)),
    kind("reset", "reset by the keyboard controller: an orderly end", || exit::reset()),
    kind("stack", "stack overflow into the page below: exits with 142", || overflow(0)),
    kind("triple", "triple fault", || exit::triple_fault()),
    kind("ud", "undefined instruction: exits with 134", || raw(3)),
    kind("xm", "SIMD division by zero, unmasked: exits with 147", || raw(4)),
];

fn main(context: &Context) -> u32 {
    let Some(argument) = context.args().next() else {
        println!("usage: fault KIND; fault list names them");
        return 2;
    };
    if argument == "list" {
        for kind in &KINDS {
            println!("{:10} {}", kind.name, kind.about);
        }
        return 0;
    }
    let Some(kind) = KINDS.iter().find(|kind| argument == kind.name) else {
        println!("fault: no such kind: {argument}");
        return 2;
    };
    (kind.run)();
    println!("fault: {} came back", kind.name);
    0
}

/// Instructions that fault, by number.
fn raw(number: u32) {
    let mxcsr: u32 = 0x1d80;
    // SAFETY: each of them faults and does not come back, or changes only what is declared.
    unsafe {
        match number {
            0 => asm!("div {0:e}", in(reg) 0, inout("eax") 1 => _, inout("edx") 0 => _),
            1 => asm!("int3"),
            2 => asm!("mov cr0, rax", in("rax") 0),
            3 => asm!("ud2", in("rax") 0),
            _ => asm!("ldmxcsr [{0}]", "xorps xmm0, xmm0", "pcmpeqd xmm1, xmm1", "cvtdq2ps xmm1, xmm1",
                      "divps xmm1, xmm0", in(reg) &raw const mxcsr, out("xmm0") _, out("xmm1") _),
        }
    }
}

fn read(address: usize) {
    // SAFETY: not sound at all: it is to fault.
    black_box(unsafe { core::ptr::with_exposed_provenance::<u64>(black_box(address)).read_volatile() });
}

/// Calls itself until the stack ends.
#[expect(unconditional_recursion, reason = "it is to overflow the stack")]
fn overflow(depth: u64) {
    let frame = black_box([depth; 64]);
    overflow(frame[0] + 1);
    black_box(frame);
}

fn ports() {
    for port in [0x60, 0x80, 0x2000, 0xfffc] {
        ringlet_guest::port::outl(port, 0);
        black_box(ringlet_guest::port::inl(port));
    }
}

/// A general protection fault whose own gate is gone.
fn double_fault() {
    let mut idtr = [0_u8; 10];
    // SAFETY: stores 10 bytes. In ring 0, because elsewhere the answer may be the host's.
    unsafe { cpu::call_in_ring0(store_idtr, idtr.as_mut_ptr().expose_provenance() as u64) };
    let mut base = [0; 8];
    base.copy_from_slice(&idtr[2..]);
    let gate = u64::from_le_bytes(base) as usize + 13 * 16 + 5;
    // SAFETY: the type byte of gate 13; without its present bit, delivering #GP faults.
    unsafe { core::ptr::with_exposed_provenance_mut::<u8>(gate).write_volatile(0x0e) };
    read(1 << 63);
}

#[unsafe(naked)]
unsafe extern "C" fn store_idtr(_: u64) {
    naked_asm!("sidt [rdi]", "ret")
}

fn ring0(function: unsafe extern "C" fn(u64)) {
    // SAFETY: the functions below use neither stack nor SSE state that matters afterwards.
    unsafe { cpu::call_in_ring0(function, 0) };
}

#[unsafe(naked)]
unsafe extern "C" fn bad_cr3(_: u64) {
    naked_asm!("mov rax, 0xffff000000", "mov cr3, rax", "ret")
}

fn emulate() {
    ring0(sse_in_ring0);
}

#[unsafe(naked)]
unsafe extern "C" fn sse_in_ring0(_: u64) {
    naked_asm!("popcnt rax, rdi", "ret")
}

/// Jumps to where the virtio-mmio registers are.
fn exec_mmio() {
    // SAFETY: maps the page; the value read does not matter.
    black_box(unsafe { ringlet_guest::mmio::read::<u32>(0xd000_0000) });
    // SAFETY: not sound at all: no VMM runs code from there.
    unsafe { asm!("call {}", in(reg) 0xd000_0000_u64, clobber_abi("C")) };
}
