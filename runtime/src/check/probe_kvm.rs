//! Looks at `/dev/kvm` and at the module behind it.

use super::facts::{Backend, Capability, Cpu, Kvm, KvmDevice};
use super::probe::{Files, open_error};
use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};
use kvm_ioctls::{Cap, Kvm as Device};

/// Interrupt lines that a split irqchip reserves for the IOAPIC in user space.
const IOAPIC_PINS: u64 = 24;

const fn required(name: &'static str, used_for: &'static str) -> Capability {
    Capability { name, required: true, used_for }
}

const fn optional(name: &'static str, used_for: &'static str) -> Capability {
    Capability { name, required: false, used_for }
}

/// What is asked for. KVM_SET_SIGNAL_MASK, which a kick needs too, is older than capabilities are.
const CAPABILITIES: [(Cap, Capability); 16] = [
    (Cap::UserMemory, required("USER_MEMORY", "guest RAM")),
    (Cap::DestroyMemoryRegionWorks, required("DESTROY_MEMORY_REGION_WORKS", "guest RAM")),
    (Cap::Irqchip, required("IRQCHIP", "local APIC in the kernel")),
    (Cap::SplitIrqchip, required("SPLIT_IRQCHIP", "IOAPIC in user space")),
    (Cap::IrqRouting, required("IRQ_ROUTING", "interrupts of devices")),
    (Cap::Irqfd, required("IRQFD", "interrupts without a system call of the vCPU")),
    (Cap::SignalMsi, required("SIGNAL_MSI", "an interrupt that was asserted while masked")),
    (Cap::Ioeventfd, required("IOEVENTFD", "doorbells without an exit to user space")),
    (Cap::ImmediateExit, required("IMMEDIATE_EXIT", "stopping a vCPU without a lost kick")),
    (Cap::ExtCpuid, required("EXT_CPUID", "the guest's CPUID")),
    (Cap::MpState, required("MP_STATE", "further vCPUs")),
    (Cap::TscDeadlineTimer, optional("TSC_DEADLINE_TIMER", "the guest's cheapest timer")),
    (Cap::X2ApicApi, optional("X2APIC_API", "more than 255 interrupt targets")),
    (Cap::GetTscKhz, optional("GET_TSC_KHZ", "telling the guest its clock rate")),
    (Cap::AdjustClock, optional("ADJUST_CLOCK", "kvm-clock over pauses")),
    (Cap::DirtyLogRing, optional("DIRTY_LOG_RING", "finding changed memory")),
];

pub(super) fn probe(files: &Files, cpu: Cpu) -> Kvm {
    let device = Device::new().map_err(|error| open_error(error.errno()));
    Kvm { backend: backend(files, cpu), device: device.map(|device| look_at(&device)) }
}

/// Only one module is behind `/dev/kvm`. The folder of one that is built into the kernel is there even if it
/// found no hardware to serve, so the processor decides between several.
pub(super) fn backend(files: &Files, cpu: Cpu) -> Backend {
    let no = |path: &str| matches!(files.line(path).as_deref(), Some("N" | "0"));
    let pvm = files.exists("sys/module/kvm_pvm");
    if pvm && !cpu.virtualization {
        Backend::Pvm
    } else if files.exists("sys/module/kvm_intel") {
        Backend::Vmx { nested_paging: !no("sys/module/kvm_intel/parameters/ept") }
    } else if files.exists("sys/module/kvm_amd") {
        Backend::Svm { nested_paging: !no("sys/module/kvm_amd/parameters/npt") }
    } else if pvm {
        Backend::Pvm
    } else {
        Backend::Unknown
    }
}

fn look_at(device: &Device) -> KvmDevice {
    let known = |&(cap, capability): &(Cap, Capability)| (capability, device.check_extension(cap));
    KvmDevice {
        api_version: device.get_api_version(),
        capabilities: CAPABILITIES.iter().map(known).collect(),
        max_vcpus: device.get_max_vcpus(),
        memory_slots: device.get_nr_memslots(),
        trial: trial(device),
    }
}

/// Makes a VM with the interrupt controller that we use and one vCPU, and drops it.
fn trial(device: &Device) -> Result<(), String> {
    let vm = device.create_vm().map_err(|error| format!("KVM_CREATE_VM: {error}"))?;
    let split =
        kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, args: [IOAPIC_PINS, 0, 0, 0], ..Default::default() };
    vm.enable_cap(&split).map_err(|error| format!("KVM_CAP_SPLIT_IRQCHIP: {error}"))?;
    vm.create_vcpu(0).map_err(|error| format!("KVM_CREATE_VCPU: {error}"))?;
    Ok(())
}

/// For the judgement's tests: every capability there.
#[cfg(test)]
pub(super) fn all_capabilities() -> Vec<(Capability, bool)> {
    CAPABILITIES.iter().map(|&(_, capability)| (capability, true)).collect()
}

#[cfg(test)]
#[path = "probe_kvm_test.rs"]
mod tests;
