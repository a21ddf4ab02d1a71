//! What the facts about KVM mean. Only here can an item fail for lack of something other than a limit.

use super::facts::{Backend, Cpu, Kvm, KvmDevice, OpenError};
use super::{Item, Status};
use crate::kvm::Virtualization;

/// The only version of the interface that there has ever been since it is stable.
const API_VERSION: i32 = 12;

pub(super) fn judge(kvm: &Kvm, cpu: Cpu) -> Vec<Item> {
    let mut items = vec![device(kvm, cpu), backend(kvm.backend), nesting(cpu)];
    if let Ok(device) = &kvm.device {
        items.extend([required(device), optional(device), trial(device), sizes(device)]);
    }
    items
}

fn device(kvm: &Kvm, cpu: Cpu) -> Item {
    let item = Item::new("kvm.device", "/dev/kvm");
    let none = "no VM can run";
    match &kvm.device {
        Ok(device) if device.api_version == API_VERSION => {
            item.verdict(Status::Ok, format!("opens, API version {API_VERSION}"), "VMs can be made")
        }
        Ok(device) => item.verdict(Status::Fail, format!("API version {}", device.api_version), none),
        Err(OpenError::Denied) => {
            let item = item.verdict(Status::Fail, "we may not open it", none);
            item.remedy(
                "sudo groupadd -f kvm && sudo chgrp kvm /dev/kvm && sudo chmod 660 /dev/kvm && \
                 sudo usermod -aG kvm \"$(id -un)\" && newgrp kvm",
            )
        }
        Err(OpenError::Other(error)) => item.verdict(Status::Fail, error, none),
        Err(OpenError::Absent) => absent(item, cpu),
    }
}

fn absent(item: Item, cpu: Cpu) -> Item {
    if cpu.virtualization != Virtualization::None {
        let means = "no VM can run until the kernel module is loaded";
        return item
            .verdict(Status::Fail, "is not there, though the processor has VT-x or AMD-V", means)
            .remedy("sudo modprobe -a kvm_intel kvm_amd");
    }
    let means = if cpu.hypervisor {
        "no VM can run: this machine is a VM itself; its host has to allow nested virtualization, or PVM is needed"
    } else {
        "no VM can run: switch VT-x or AMD-V on in the firmware's set-up"
    };
    let item = item.verdict(Status::Fail, "is not there, and the processor shows no VT-x or AMD-V", means);
    item.remedy("sudo modprobe kvm_pvm")
}

fn backend(backend: Backend) -> Item {
    let item = Item::new("kvm.backend", "KVM backend");
    let slow = |name: &str| format!("{name} without nested paging");
    let every = "every guest runs: unikernels in any ring, and unmodified operating systems";
    let shadow = "every guest runs, but each change of its page tables is expensive";
    match backend {
        Backend::Vmx { nested_paging: true } => item.verdict(Status::Ok, "VMX (kvm_intel)", every),
        Backend::Svm { nested_paging: true } => item.verdict(Status::Ok, "SVM (kvm_amd)", every),
        Backend::Vmx { nested_paging: false } => item
            .verdict(Status::Warn, slow("VMX (kvm_intel)"), shadow)
            .remedy("sudo modprobe -r kvm_intel && sudo modprobe kvm_intel ept=1"),
        Backend::Svm { nested_paging: false } => item
            .verdict(Status::Warn, slow("SVM (kvm_amd)"), shadow)
            .remedy("sudo modprobe -r kvm_amd && sudo modprobe kvm_amd npt=1"),
        Backend::Pvm => item.verdict(
            Status::Info,
            "PVM (kvm_pvm), without VT-x or AMD-V",
            "guests whose body runs in ring 3 are fast; ring 0 is emulated, slowly and not completely; \
             unmodified Linux cannot run its user space",
        ),
        Backend::Unknown => item.verdict(
            Status::Info,
            "none of kvm_intel, kvm_amd, kvm_pvm",
            "what guests it can run is not known",
        ),
    }
}

fn nesting(cpu: Cpu) -> Item {
    let item = Item::new("kvm.nested", "nesting");
    if cpu.hypervisor {
        let means = "each exit of a guest costs several times what it costs on a physical machine";
        item.verdict(Status::Info, "this host is a virtual machine itself", means)
    } else {
        item.verdict(
            Status::Ok,
            "this host shows no hypervisor below it",
            "exits cost what the processor makes them cost",
        )
    }
}

fn required(device: &KvmDevice) -> Item {
    let item = Item::new("kvm.capabilities", "KVM capabilities");
    let (count, missing) = missing(device, true);
    if missing.is_empty() {
        item.verdict(Status::Ok, format!("all {count} that a VM needs"), "nothing is missing")
    } else {
        let means = "no VM can run; a newer kernel has them";
        item.verdict(Status::Fail, format!("missing: {}", missing.join(", ")), means)
    }
}

fn optional(device: &KvmDevice) -> Item {
    let item = Item::new("kvm.capabilities.optional", "KVM extras");
    let (count, missing) = missing(device, false);
    if missing.is_empty() {
        item.verdict(Status::Ok, format!("all {count} that a VM can use"), "nothing is missing")
    } else {
        let means = "VMs run without them";
        item.verdict(Status::Info, format!("missing: {}", missing.join(", ")), means)
    }
}

/// How many capabilities of the kind there are to have, and which are missing.
fn missing(device: &KvmDevice, required: bool) -> (usize, Vec<String>) {
    let all: Vec<_> = device.capabilities.iter().filter(|(known, _)| known.required == required).collect();
    let absent = all.iter().filter(|(_, there)| !there);
    (all.len(), absent.map(|(known, _)| format!("{} ({})", known.name, known.used_for)).collect())
}

fn trial(device: &KvmDevice) -> Item {
    let item = Item::new("kvm.trial", "a VM");
    match &device.trial {
        Ok(()) => item.verdict(Status::Ok, "made one with a split irqchip and a vCPU", "VMs can be made"),
        Err(error) => item.verdict(Status::Fail, error, "no VM can run, whatever the other items say"),
    }
}

fn sizes(device: &KvmDevice) -> Item {
    let found = format!("{} vCPUs and {} memory slots in one VM", device.max_vcpus, device.memory_slots);
    let means = "Ringlet's own limits are lower";
    Item::new("kvm.limits", "KVM limits").verdict(Status::Info, found, means)
}
