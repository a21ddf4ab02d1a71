//! KVM: the host's device, what it can do, and the file descriptors of one VM.
//!
//! Owns `/dev/kvm`, the probe, and the order in which a VM's parts are made. Knows no devices.

pub(crate) mod routing;
pub(crate) mod sys;
pub(crate) mod vm;

use std::arch::x86_64::__cpuid;
use std::path::Path;
use std::sync::OnceLock;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm, VmFd};
use ringlet_boot::cpuid::Backend;

use crate::error::{Error, Result};

/// The capabilities without which no VM can be made.
pub(crate) const REQUIRED: [(Cap, &str); 8] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
];

/// The host's KVM, opened and probed once.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) kvm: Kvm,
    pub(crate) backend: Backend,
    /// See [`Self::supported_cpuid`].
    supported_cpuid: OnceLock<Result<CpuId, kvm_ioctls::Error>>,
    /// The most vCPUs that a VM may have here.
    pub(crate) max_vcpus: u32,
}

impl Host {
    /// Opens `/dev/kvm` and checks that it can run a VM.
    pub(crate) fn open() -> Result<Self> {
        let kvm = Kvm::new().map_err(|e| Error::KvmUnavailable { source: e.into() })?;
        if kvm.get_api_version() != 12 {
            return Err(Error::MissingCapability { capability: "API version 12" });
        }
        for (cap, capability) in REQUIRED {
            if !kvm.check_extension(cap) {
                return Err(Error::MissingCapability { capability });
            }
        }
        let max_vcpus = u32::try_from(kvm.get_max_vcpus()).unwrap_or(u32::MAX);
        let backend = backend(Path::new("/sys/module"), Virtualization::here());
        Ok(Self { backend, kvm, supported_cpuid: OnceLock::new(), max_vcpus })
    }

    /// What KVM offers to guests. The first call asks the kernel, which takes 0.3 ms and more where CPUID itself
    /// traps; whoever comes meanwhile waits for that answer.
    pub(crate) fn supported_cpuid(&self) -> Result<&CpuId> {
        let ask = || self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        match self.supported_cpuid.get_or_init(ask) {
            Ok(cpuid) => Ok(cpuid),
            Err(error) => Err(Error::kvm("KVM_GET_SUPPORTED_CPUID")(*error)),
        }
    }
}

/// What a processor has to help virtualization.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Virtualization {
    /// Intel's VT-x (CPUID leaf 1, ECX bit 5).
    Vmx,
    /// AMD's SVM (CPUID leaf 0x8000_0001, ECX bit 2).
    Svm,
    #[default]
    None,
}

impl Virtualization {
    /// That of the processor that this runs on.
    fn here() -> Self {
        match () {
            () if __cpuid(1).ecx >> 5 & 1 == 1 => Self::Vmx,
            () if __cpuid(0x8000_0000).eax > 0x8000_0000 && __cpuid(0x8000_0001).ecx >> 2 & 1 == 1 => {
                Self::Svm
            }
            () => Self::None,
        }
    }
}

/// Which module implements `/dev/kvm`. The folder of one that is built into the kernel is there even if it found no
/// hardware to serve, so the processor decides between several.
pub(crate) fn backend(modules: &Path, processor: Virtualization) -> Backend {
    let loaded = |name: &str| modules.join(name).exists();
    match processor {
        Virtualization::Vmx if loaded("kvm_intel") => Backend::Vmx,
        Virtualization::Svm if loaded("kvm_amd") => Backend::Svm,
        _ if loaded("kvm_pvm") => Backend::Pvm,
        _ => Backend::Unknown,
    }
}

/// How often an interrupted `KVM_CREATE_VM` is tried again.
const CREATE_ATTEMPTS: u32 = 100;

/// `KVM_CREATE_VM`, which gives up (EINTR) when anything is pending for the calling thread, such as completions of a
/// ring; that is dealt with on the way out, so the next attempt finds nothing.
pub(crate) fn create_vm(kvm: &Kvm) -> std::result::Result<VmFd, kvm_ioctls::Error> {
    let interrupted = |made: &std::result::Result<_, kvm_ioctls::Error>| {
        made.as_ref().is_err_and(|error| error.errno() == libc::EINTR)
    };
    (1..CREATE_ATTEMPTS)
        .map(|_| kvm.create_vm())
        .find(|made| !interrupted(made))
        .unwrap_or_else(|| kvm.create_vm())
}

#[cfg(test)]
#[path = "mod_test.rs"]
mod tests;
