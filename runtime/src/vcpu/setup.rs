//! What a vCPU is before its first instruction: CPUID, MSRs, registers.
//!
//! A KVM backend may refuse some of it (PVM does); what every guest needs is an error, the rest is said at
//! debug level and left as the backend has it.

use std::sync::mpsc::Receiver;

use kvm_bindings::{CpuId, Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use ringlet_boot::cpuid::{self, CpuidContext};
use ringlet_boot::{BOOT_MSRS, VcpuInit};

use super::VcpuSeed;
use crate::error::{Error, Result};

/// Prepares `seed`'s vCPU for its first `KVM_RUN`. `false` if the VM was given up before its image was loaded.
pub(super) fn prepare(seed: &VcpuSeed) -> Result<bool> {
    set_cpuid(seed)?;
    set_msrs(seed, &BOOT_MSRS);
    match seed.init.as_ref().map(Receiver::recv) {
        Some(Ok(init)) => set_registers(&seed.fd, &init).map(|()| true),
        Some(Err(_)) => Ok(false),
        None => Ok(true),
    }
}

fn set_cpuid(seed: &VcpuSeed) -> Result<()> {
    let context = CpuidContext {
        vcpu_id: seed.index,
        vcpus: seed.vcpus,
        tsc_khz: seed.fd.get_tsc_khz().unwrap_or(0),
        backend: seed.machine.backend,
    };
    let mut leaves = seed.host.supported_cpuid()?.as_slice().to_vec();
    cpuid::apply(&mut leaves, &context);
    let invalid = || Error::Kvm { step: "building CPUID", source: std::io::ErrorKind::InvalidInput.into() };
    let table = CpuId::from_entries(&leaves).map_err(|_| invalid())?;
    seed.fd.set_cpuid2(&table).map_err(Error::kvm("KVM_SET_CPUID2"))
}

/// Sets the MSRs one after the other, as `KVM_SET_MSRS` stops at the first that the backend refuses.
fn set_msrs(seed: &VcpuSeed, mut msrs: &[kvm_msr_entry]) {
    while !msrs.is_empty() {
        let done = Msrs::from_entries(msrs).ok().and_then(|table| seed.fd.set_msrs(&table).ok()).unwrap_or(0);
        let Some((refused, rest)) = msrs.get(done..).and_then(<[_]>::split_first) else { return };
        tracing::debug!(
            vm = seed.machine.metrics.id(),
            vcpu = seed.index,
            msr = format_args!("{:#x}", refused.index),
            "KVM refuses this MSR"
        );
        msrs = rest;
    }
}

fn set_registers(fd: &VcpuFd, init: &VcpuInit) -> Result<()> {
    let mut sregs = fd.get_sregs().map_err(Error::kvm("KVM_GET_SREGS"))?;
    init.sregs.apply(&mut sregs);
    fd.set_sregs(&sregs).map_err(Error::kvm("KVM_SET_SREGS"))?;
    fd.set_regs(&init.regs).map_err(Error::kvm("KVM_SET_REGS"))
}
