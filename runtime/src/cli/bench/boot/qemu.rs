//! QEMU's microvm machine as a contender: the same image and RAM, the least devices that the guest needs.

use std::path::Path;
use std::process::Command;

/// The program, as distributions call it.
pub(super) const PROGRAM: &str = "qemu-system-x86_64";

/// Exit status of QEMU when the guest exits with 0: its debug-exit device makes an odd number of any code.
pub(super) const SUCCESS: i32 = 1;

/// The machine without what a unikernel does not use. Interrupt controller in kernel and QEMU as Ringlet has it.
const MACHINE: &str =
    "microvm,accel=kvm,kernel-irqchip=split,pit=off,pic=off,rtc=off,x-option-roms=off,isa-serial=on";

/// Without this MSR: QEMU insists on setting it, and some KVM backends offer but refuse it.
const CPU: &str = "host,arch-capabilities=off";

/// QEMU booting `image`.
pub(super) fn command(image: &Path, memory_mib: u32, cmdline: &str) -> Command {
    let mut qemu = Command::new(PROGRAM);
    qemu.args(["-M", MACHINE, "-cpu", CPU, "-smp", "1", "-m"]).arg(format!("{memory_mib}M"));
    qemu.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"]);
    qemu.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
    qemu.arg("-kernel").arg(image).args(["-append", cmdline]);
    qemu
}
