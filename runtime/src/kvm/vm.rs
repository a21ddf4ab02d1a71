//! The kernel objects of one VM, made in the order that KVM rewards.
//!
//! VM → memory slots → split irqchip → vCPUs → ioeventfds → irqfds. A slot that is made after a bus registration
//! waits for that registration's grace period, so slots come first; the irqchip must exist before vCPUs so that
//! each gets its local APIC.
//!
//! An ioeventfd is a bus registration, of which nothing is taken back while the VM lives: that would cost 5 to 8 ms
//! each time. They go with the VM, whose closing is quick [`GRACE`] after the last of them.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};
use kvm_ioctls::{VcpuFd, VmFd};
use ringlet_io::{GuestRam, InterruptLine};

use super::{Host, sys};
use crate::error::{Error, Result};

/// Interrupt pins that the userspace IOAPIC has; KVM sends EOI exits for GSIs below this.
pub(crate) const IOAPIC_PINS: u64 = 24;

/// How long after a bus registration the closing of a VM is slow.
const GRACE: Duration = Duration::from_millis(30);

/// A VM without memory, irqchip and vCPUs: the part of a VM that can be made before it is known what runs in it.
#[derive(Debug)]
pub(crate) struct Shell(VmFd);

impl Shell {
    /// `KVM_CREATE_VM`.
    pub(crate) fn new(host: &Host) -> Result<Self> {
        super::create_vm(&host.kvm).map(Self).map_err(Error::kvm("KVM_CREATE_VM"))
    }
}

/// A VM's file descriptor and the memory that its slots point to. The descriptor is closed first.
#[derive(Debug)]
pub(crate) struct VmFds {
    fd: VmFd,
    _ram: GuestRam,
}

impl VmFds {
    /// Gives `shell` its memory and its irqchip.
    pub(crate) fn new(shell: Shell, ram: GuestRam) -> Result<Arc<Self>> {
        let Shell(fd) = shell;
        for (slot, region) in (0..).zip(ram.regions()) {
            sys::set_memory_slot(&fd, slot, region)
                .map_err(|source| Error::Kvm { step: "KVM_SET_USER_MEMORY_REGION", source })?;
        }
        let split = kvm_enable_cap {
            cap: KVM_CAP_SPLIT_IRQCHIP,
            args: [IOAPIC_PINS, 0, 0, 0],
            ..kvm_enable_cap::default()
        };
        fd.enable_cap(&split).map_err(Error::kvm("KVM_ENABLE_CAP(KVM_CAP_SPLIT_IRQCHIP)"))?;
        Ok(Arc::new(Self { fd, _ram: ram }))
    }

    /// Makes vCPU `index`, whose local APIC has the same number.
    pub(crate) fn create_vcpu(&self, index: u32) -> Result<VcpuFd> {
        self.fd.create_vcpu(u64::from(index)).map_err(Error::kvm("KVM_CREATE_VCPU"))
    }

    /// Binds `line` to interrupt `gsi`: from now on its eventfd raises that interrupt, as the routes say.
    pub(crate) fn bind_irq(self: &Arc<Self>, line: &InterruptLine, gsi: u32) -> Result<IrqBinding> {
        sys::irqfd(&self.fd, line.as_fd(), gsi, true)
            .map_err(|source| Error::Kvm { step: "KVM_IRQFD", source })?;
        Ok(IrqBinding { vm: Arc::clone(self), line: line.clone(), gsi })
    }

    /// Lets 32-bit writes of `value` to guest-physical `address` ring `bell` and not leave the guest, for as long as
    /// the VM exists. Returns from when on the VM can be closed quickly.
    pub(crate) fn bind_doorbell(&self, bell: BorrowedFd<'_>, address: u64, value: u32) -> Result<Instant> {
        sys::ioeventfd(&self.fd, bell, address, value)
            .map_err(|source| Error::Kvm { step: "KVM_IOEVENTFD", source })?;
        Ok(Instant::now() + GRACE)
    }

    pub(crate) fn fd(&self) -> &VmFd {
        &self.fd
    }
}

/// An irqfd; unregistered when dropped.
#[derive(Debug)]
pub(crate) struct IrqBinding {
    vm: Arc<VmFds>,
    line: InterruptLine,
    gsi: u32,
}

impl Drop for IrqBinding {
    fn drop(&mut self) {
        if let Err(error) = sys::irqfd(&self.vm.fd, self.line.as_fd(), self.gsi, false) {
            tracing::warn!(gsi = self.gsi, %error, "an irqfd could not be removed");
        }
    }
}
