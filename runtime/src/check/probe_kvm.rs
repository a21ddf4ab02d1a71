//! Looks at `/dev/kvm` and at the module behind it.

use super::facts::{Backend, Capability, Cpu, Kvm, KvmDevice};
use super::probe::{Files, open_error};
use ringlet_boot as boot;

use crate::kvm::{self, REQUIRED};
use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};
use kvm_ioctls::{Cap, Kvm as Device};

/// Interrupt lines that a split irqchip reserves for the IOAPIC in user space.
const IOAPIC_PINS: u64 = 24;

/// What a VM makes use of where it is there, and for what. KVM_SET_SIGNAL_MASK, which a kick needs, is older
/// than capabilities are.
const OPTIONAL: [(Cap, &str, &str); 5] = [
    (Cap::TscDeadlineTimer, "KVM_CAP_TSC_DEADLINE_TIMER", "the guest's cheapest timer"),
    (Cap::X2ApicApi, "KVM_CAP_X2APIC_API", "more than 255 interrupt targets"),
    (Cap::GetTscKhz, "KVM_CAP_GET_TSC_KHZ", "telling the guest its clock rate"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK", "kvm-clock over pauses"),
    (Cap::DirtyLogRing, "KVM_CAP_DIRTY_LOG_RING", "finding changed memory"),
];

/// Everything that is asked for.
fn capabilities() -> impl Iterator<Item = (Cap, Capability)> {
    let required =
        REQUIRED.map(|(cap, name)| (cap, Capability { name, required: true, used_for: "every VM" }));
    let optional =
        OPTIONAL.map(|(cap, name, used_for)| (cap, Capability { name, required: false, used_for }));
    required.into_iter().chain(optional)
}

pub(super) fn probe(files: &Files, cpu: Cpu) -> Kvm {
    let device = Device::new().map_err(|error| open_error(error.errno()));
    Kvm { backend: backend(files, cpu), device: device.map(|device| look_at(&device)) }
}

/// The backend that the runtime goes by, with what its module says of page tables.
pub(super) fn backend(files: &Files, cpu: Cpu) -> Backend {
    let no = |path: &str| matches!(files.line(path).as_deref(), Some("N" | "0"));
    match kvm::backend(&files.path("sys/module"), cpu.virtualization) {
        boot::Backend::Vmx => Backend::Vmx { nested_paging: !no("sys/module/kvm_intel/parameters/ept") },
        boot::Backend::Svm => Backend::Svm { nested_paging: !no("sys/module/kvm_amd/parameters/npt") },
        boot::Backend::Pvm => Backend::Pvm,
        boot::Backend::Unknown => Backend::Unknown,
    }
}

fn look_at(device: &Device) -> KvmDevice {
    let known = |(cap, capability)| (capability, device.check_extension(cap));
    KvmDevice {
        api_version: device.get_api_version(),
        capabilities: capabilities().map(known).collect(),
        max_vcpus: device.get_max_vcpus(),
        memory_slots: device.get_nr_memslots(),
        trial: trial(device),
    }
}

/// Makes a VM with the interrupt controller that we use and one vCPU, and drops it.
fn trial(device: &Device) -> Result<(), String> {
    let vm = kvm::create_vm(device).map_err(|error| format!("KVM_CREATE_VM: {error}"))?;
    let split =
        kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, args: [IOAPIC_PINS, 0, 0, 0], ..Default::default() };
    vm.enable_cap(&split).map_err(|error| format!("KVM_CAP_SPLIT_IRQCHIP: {error}"))?;
    vm.create_vcpu(0).map_err(|error| format!("KVM_CREATE_VCPU: {error}"))?;
    Ok(())
}

/// For the judgement's tests: every capability there.
#[cfg(test)]
pub(super) fn all_capabilities() -> Vec<(Capability, bool)> {
    capabilities().map(|(_, capability)| (capability, true)).collect()
}

#[cfg(test)]
#[path = "probe_kvm_test.rs"]
mod tests;
