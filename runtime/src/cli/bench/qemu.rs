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

/// Without ACPI the machine's virtio devices have the lines that [`DEVICE_WORDS`] says; and what QEMU would say about
/// them itself, it adds behind the guest's arguments.
const MACHINE_WITH_DEVICE: &str = "acpi=off,auto-kernel-cmdline=off";

/// Without this MSR: QEMU insists on setting it, and some KVM backends offer but refuse it.
const CPU: &str = "host,arch-capabilities=off";

/// Where the first virtio device of that machine is, for the guest's command line.
pub(super) const DEVICE_WORDS: &str = "virtio_mmio.device=512@0xfeb00000:5";

/// QEMU booting `image`.
pub(super) fn command(image: &Path, memory_mib: u32, cmdline: &str) -> Command {
    with_machine(MACHINE.to_owned(), image, memory_mib, cmdline)
}

/// QEMU booting `image` with a disk: a file whose path has no comma, served by a thread of its own with io_uring, and
/// `direct` past the page cache. `cmdline` should have [`DEVICE_WORDS`].
pub(super) fn command_with_disk(
    image: &Path,
    memory_mib: u32,
    cmdline: &str,
    (file, direct): (&Path, bool),
) -> Command {
    let machine = format!("{MACHINE},{MACHINE_WITH_DEVICE}");
    let mut qemu = with_machine(machine, image, memory_mib, cmdline);
    let cache = if direct { "none" } else { "writeback" };
    qemu.args(["-object", "iothread,id=io", "-global", "virtio-mmio.force-legacy=false", "-drive"]);
    let file = file.display();
    qemu.arg(format!("file={file},if=none,id=disk,format=raw,cache={cache},aio=io_uring"));
    qemu.arg("-device")
        .arg("virtio-blk-device,drive=disk,iothread=io,num-queues=1,queue-size=256,bus=virtio-mmio-bus.0");
    qemu
}

/// QEMU booting `image` with a network: a tap, `vhost` served by the kernel. `cmdline` should have [`DEVICE_WORDS`].
pub(super) fn command_with_net(
    image: &Path,
    memory_mib: u32,
    cmdline: &str,
    (tap, vhost): (&str, bool),
) -> Command {
    let machine = format!("{MACHINE},{MACHINE_WITH_DEVICE}");
    let mut qemu = with_machine(machine, image, memory_mib, cmdline);
    let vhost = if vhost { "on" } else { "off" };
    qemu.args(["-global", "virtio-mmio.force-legacy=false", "-netdev"]);
    qemu.arg(format!("tap,id=net,ifname={tap},script=no,downscript=no,vhost={vhost}"));
    qemu.args(["-device", "virtio-net-device,netdev=net,bus=virtio-mmio-bus.0"]);
    qemu
}

fn with_machine(machine: String, image: &Path, memory_mib: u32, cmdline: &str) -> Command {
    let mut qemu = Command::new(PROGRAM);
    qemu.arg("-M").arg(machine).args(["-cpu", CPU, "-smp", "1", "-m"]).arg(format!("{memory_mib}M"));
    qemu.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"]);
    qemu.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
    qemu.arg("-kernel").arg(image).args(["-append", cmdline]);
    qemu
}
