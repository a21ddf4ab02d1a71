//! GSI routing: what the userspace IOAPIC's redirection entries mean to KVM.
//!
//! Owns the translation and its price: changes are metered, because each costs the host 12-45 µs
//! and a walk over every irqfd: the vCPU that makes them too fast waits.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_msi, kvm_irq_routing_msi__bindgen_ty_1,
};
use ringlet_devices::ioapic::{Ioapic, Route};

use super::vm::VmFds;
use crate::error::{Error, Result};
use crate::meter::Meter;

/// Route changes that a guest may make at once before it has to wait.
const BURST: u32 = 256;
/// The time that each further change costs the guest: 1,000 changes a second.
const INTERVAL: Duration = Duration::from_millis(1);

/// Installs the IOAPIC's routes in KVM.
#[derive(Debug)]
pub(crate) struct Routing {
    vm: Arc<VmFds>,
    ioapic: Arc<Ioapic>,
    meter: Mutex<Meter>,
}

impl Routing {
    pub(crate) fn new(vm: Arc<VmFds>, ioapic: Arc<Ioapic>) -> Self {
        Self { vm, ioapic, meter: Mutex::new(Meter::new(BURST, INTERVAL)) }
    }

    /// Installs the routes as they are now and raises the interrupts that unmasking has uncovered. Returns until
    /// when the vCPU that caused this has to wait.
    pub(crate) fn install(&self, now: Instant) -> Result<Option<Instant>> {
        self.ioapic.install_routes(|routes| {
            let entries: Vec<_> = routes.iter().map(entry).collect();
            let table = KvmIrqRouting::from_entries(&entries).map_err(|_| Error::Kvm {
                step: "building the GSI routing table",
                source: std::io::ErrorKind::InvalidInput.into(),
            })?;
            self.vm.fd().set_gsi_routing(&table).map_err(Error::kvm("KVM_SET_GSI_ROUTING"))
        })?;
        Ok(self.meter.lock().unwrap_or_else(PoisonError::into_inner).charge(now))
    }
}

fn entry(route: &Route) -> kvm_irq_routing_entry {
    let msi = kvm_irq_routing_msi {
        address_lo: route.address as u32,
        address_hi: (route.address >> 32) as u32,
        data: route.data,
        __bindgen_anon_1: kvm_irq_routing_msi__bindgen_ty_1 { pad: 0 },
    };
    kvm_irq_routing_entry {
        gsi: route.gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 { msi },
        ..kvm_irq_routing_entry::default()
    }
}
