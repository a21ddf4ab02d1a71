//! The machine around the vCPUs: buses with their devices, and the kernel's ends of their doorbells and interrupts.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use ringlet_devices::ioapic::{self, Ioapic, LineOut};
use ringlet_devices::virtio::DeviceMemory;
use ringlet_devices::{Bus, BusDevice, BusError, BusKind, Cmos, GuestPorts, I8042, Serial, SerialOutput};
use ringlet_io::{GuestRam, InterruptLine};
use ringlet_metrics::{GuestLog, VmMetrics};
use tokio::sync::Notify;

use super::virtio::{Installed, Site, Virtio};
use super::{Crew, Plan};
use crate::console::Console;
use crate::error::{Error, Result};
use crate::kvm::routing::Routing;
use crate::kvm::vm::{IrqBinding, VmFds};
use crate::machine::{Machine, Phases, SlowWrites};
use crate::reaper::Corpse;
use crate::vm::Identity;

/// The machine, and what it takes to bring its devices to life on their shard.
pub(super) struct Board {
    pub(super) machine: Arc<Machine>,
    pub(super) wiring: Wiring,
    pub(super) devices: Installed,
}

impl Board {
    /// What is left of it if it is not to be used.
    pub(super) fn into_corpse(self) -> Corpse {
        let Self { machine, wiring, devices } = self;
        Corpse {
            threads: Vec::new(),
            not_before: devices.closable,
            remains: Box::new((wiring.irqs, machine, devices.sockets)),
        }
    }
}

/// The device ends that the shard looks after, and the kernel's ends of their interrupts.
pub(super) struct Wiring {
    pub(super) serial: Arc<Serial>,
    pub(super) output_bell: Arc<Notify>,
    pub(super) input_bell: Arc<Notify>,
    pub(super) irqs: Vec<IrqBinding>,
}

/// Interrupt lines that are connected to their devices, and not to KVM yet.
#[derive(Default)]
pub(super) struct Lines(Vec<(InterruptLine, u8)>);

impl Lines {
    /// Connects a device to `pin`.
    pub(super) fn connect(&mut self, ioapic: &Arc<Ioapic>, pin: u8) -> Result<LineOut> {
        let interrupt = InterruptLine::new().map_err(Error::io("making an interrupt's eventfd"))?;
        let line = ioapic.line(pin, interrupt.clone()).map_err(|e| Error::config("device", e.to_string()))?;
        self.0.push((interrupt, pin));
        Ok(line)
    }

    /// Makes them irqfds.
    fn bind(self, vm: &Arc<VmFds>) -> Result<Vec<IrqBinding>> {
        self.0.into_iter().map(|(line, pin)| vm.bind_irq(&line, u32::from(pin))).collect()
    }
}

/// The serial port, not on a bus yet.
struct SerialPort {
    serial: Arc<Serial>,
    output: Arc<SerialOutput>,
    output_bell: Arc<Notify>,
    input_bell: Arc<Notify>,
}

impl SerialPort {
    fn new(console: &Console, line: LineOut, metrics: &Arc<VmMetrics>) -> Self {
        let (output_bell, input_bell) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (on_data, on_drained) = (Arc::clone(&output_bell), Arc::clone(&input_bell));
        let output = Arc::new(SerialOutput::new(
            SerialOutput::DEFAULT_CAPACITY,
            console.overflow(),
            move || on_data.notify_one(),
            Arc::clone(metrics),
        ));
        let serial = Arc::new(Serial::new(
            line,
            Arc::clone(&output),
            move || on_drained.notify_one(),
            Arc::clone(metrics),
        ));
        Self { serial, output, output_bell, input_bell }
    }
}

/// What the serial port takes of the host's memory: its output, twice, because one half is on its way out while the
/// other fills, and what becomes of it.
pub(super) fn serial_memory(console: &Console) -> DeviceMemory {
    let reserved = 2 * SerialOutput::DEFAULT_CAPACITY as u64 + console.memory();
    DeviceMemory { reserved, further: 0 }
}

impl Plan<'_> {
    /// Puts the devices on their buses and connects them to KVM: ioeventfds, then irqfds.
    pub(super) fn build_board(
        &self,
        vm: &Arc<VmFds>,
        ram: GuestRam,
        identity: &Identity,
        virtio: Virtio,
        crew: &Crew,
    ) -> Result<Board> {
        let metrics = &identity.metrics;
        let ioapic = Arc::new(Ioapic::new());
        let log = Arc::new(GuestLog::new(identity.id.clone(), Arc::clone(metrics)));
        let mut lines = Lines::default();
        let line = lines.connect(&ioapic, Serial::PIN)?;
        let port = SerialPort::new(&self.console, line, metrics);
        let mut mmio = mmio_bus(Arc::clone(&ioapic)).map_err(|e| Error::config("mmio", e.to_string()))?;
        let site = Site { vm, ram: &ram, ioapic: &ioapic, metrics, log: &log, crew };
        let devices = virtio.install(&site, &mut mmio, &mut lines)?;
        let irqs = lines.bind(vm)?;
        let SerialPort { serial, output, output_bell, input_bell } = port;
        let machine = Machine {
            ports: port_bus(Arc::clone(&serial)).map_err(|e| Error::config("port", e.to_string()))?,
            mmio,
            routing: Routing::new(Arc::clone(vm), Arc::clone(&ioapic)),
            ioapic,
            serial_output: output,
            ram,
            backend: self.runtime.host.backend,
            log,
            metrics: Arc::clone(metrics),
            phases: Arc::new(Phases::new(self.runtime.registry.clone())),
            slow_writes: SlowWrites::default(),
            cpu: crew.cpu_limiter(self.config, metrics),
        };
        let wiring = Wiring { serial, output_bell, input_bell, irqs };
        Ok(Board { machine: Arc::new(machine), wiring, devices })
    }
}

fn port_bus(serial: Arc<Serial>) -> Result<Bus, BusError> {
    let mut bus = Bus::new(BusKind::Port);
    let ports: [(u64, u64, Arc<dyn BusDevice>); 5] = [
        (Serial::BASE, Serial::LEN, serial),
        (I8042::DATA_PORT, 1, Arc::new(I8042::Data)),
        (I8042::COMMAND_PORT, 1, Arc::new(I8042::Command)),
        (Cmos::BASE, Cmos::LEN, Arc::new(Cmos::new(unix_seconds))),
        (GuestPorts::BASE, GuestPorts::LEN, Arc::new(GuestPorts)),
    ];
    for (base, len, device) in ports {
        bus.insert(base, len, device)?;
    }
    Ok(bus)
}

fn mmio_bus(ioapic: Arc<Ioapic>) -> Result<Bus, BusError> {
    let mut bus = Bus::new(BusKind::Mmio);
    bus.insert(ioapic::BASE, ioapic::LEN, ioapic)?;
    Ok(bus)
}

/// The wall clock, for the guest's RTC.
fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
