//! What the tests of this crate share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use ringlet_io::InterruptLine;
use ringlet_metrics::{GuestLog, Registry, VmInfo, VmMetrics};

use crate::ioapic::{Ioapic, LineOut};
use crate::{Action, BusDevice};

/// Numbers of a VM that nobody scrapes.
pub(crate) fn metrics() -> Arc<VmMetrics> {
    let text = |text: &str| text.to_owned();
    Registry::new().register_vm(VmInfo {
        id: text("vm"),
        name: text("vm"),
        image: text("test"),
        tenant: text("test"),
    })
}

/// A guest log that counts in `metrics`.
pub(crate) fn log(metrics: &Arc<VmMetrics>) -> GuestLog {
    GuestLog::new("vm", Arc::clone(metrics))
}

/// An interrupt line and how often it was triggered since the last look.
pub(crate) struct Probe(InterruptLine);

impl Probe {
    /// Connects a fresh line to `pin`.
    pub(crate) fn connect(ioapic: &Arc<Ioapic>, pin: u8) -> (LineOut, Self) {
        let line = InterruptLine::new().unwrap();
        (ioapic.line(pin, line.clone()).unwrap(), Self(line))
    }

    /// Interrupts since the last call.
    pub(crate) fn fired(&self) -> u64 {
        self.0.take_pending()
    }
}

/// Selects and writes a register of the I/O APIC; panics on a refusal.
pub(crate) fn ioapic_write(ioapic: &Ioapic, index: u8, value: u32) -> Action {
    assert_eq!(ioapic.write(0x00, &u32::from(index).to_le_bytes()), Ok(Action::None));
    ioapic.write(0x10, &value.to_le_bytes()).unwrap()
}

/// Programs `pin` and installs the routes.
pub(crate) fn program(ioapic: &Ioapic, pin: u8, low: u32) {
    let _ = ioapic_write(ioapic, 0x10 + 2 * pin, low);
    install(ioapic);
}

/// Installs the routes, as a runtime does that cannot fail.
pub(crate) fn install(ioapic: &Ioapic) {
    ioapic.install_routes(|_| Ok::<(), ()>(())).unwrap();
}

/// Counts calls of a callback.
#[derive(Clone, Default)]
pub(crate) struct Calls(Arc<AtomicU64>);

impl Calls {
    /// A callback that is counted.
    pub(crate) fn callback(&self) -> impl Fn() + Send + Sync + 'static {
        let calls = Arc::clone(&self.0);
        move || {
            calls.fetch_add(1, Relaxed);
        }
    }

    /// Calls since the last look.
    pub(crate) fn take(&self) -> u64 {
        self.0.swap(0, Relaxed)
    }
}
