//! The virtio devices of a VM: where they are, and how each is opened, made and connected.
//!
//! A device has a window of registers, an interrupt pin and a doorbell for each queue. What names a file is opened here,
//! on the thread that creates the VM; the device itself is made on the VM's shard.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringlet_boot::layout;
use ringlet_devices::block::{BlockDevice, BlockOptions, Cache, Serial as BlockSerial};
use ringlet_devices::console::{Console as ConsoleDevice, ConsoleOutput, ConsoleSize, PIPE_CAPACITY, pipe};
use ringlet_devices::ioapic::Ioapic;
use ringlet_devices::rng::Rng;
use ringlet_devices::virtio::{
    ConfigSpace, DeviceMemory, Identity, MakeDevice, MmioTransport, VirtioDevice, VirtioSpec,
};
use ringlet_devices::{Bus, console};
use ringlet_io::disk::{BOUNCE_BUFFERS, DiskFile, DiskOptions, DiskSource};
use ringlet_io::{GuestRam, Owner, ShardContext};
use ringlet_metrics::{DeviceKind, DeviceMetrics, GuestLog, VmMetrics};
use rustix::rand::{GetRandomFlags, getrandom};

use super::Crew;
use super::board::Lines;
use super::net::Interface;
use super::vsock::{Kept, SocketDevice};
use crate::buffers::Bill;
use crate::config::{
    CONSOLE_ID, CacheType, Drive, DriveExtras, ENTROPY_ID, LimitsConfig, MAX_DEVICES, VSOCK_ID, VmConfig,
    Volatile, device_count,
};
use crate::console::{Console, ConsoleInput, ConsoleParts};
use crate::devices::throttle::{self, DISKS, DeviceLimits, Limitable, NETS, Together};
use crate::devices::{WorkerSeed, seed};
use crate::error::{Error, Result};
use crate::kvm::vm::VmFds;
use crate::runtime::Inner;
use crate::tenants::SharedLimits;
use crate::vsock::VmSockets;

/// Pins for virtio devices: not those of the timer (0), the keyboard (1), the second interrupt controller of old (2),
/// the serial ports (3, 4), the clock (8) and ACPI (9).
const PINS: [u8; MAX_DEVICES] = [5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];

/// Where a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot {
    address: u64,
    pin: u8,
}

/// Every place that there is for a device.
fn slots() -> impl Iterator<Item = Slot> {
    (0..)
        .zip(PINS)
        .filter_map(|(index, pin)| layout::virtio_mmio_addr(index).map(|address| Slot { address, pin }))
}

impl Slot {
    /// What tells the guest of the device (Linux, Documentation/admin-guide/kernel-parameters.txt).
    fn word(self) -> String {
        let Self { address, pin } = self;
        format!("virtio_mmio.device=4K@{address:#x}:{pin}")
    }
}

/// The virtio devices of a VM, with everything opened that they need.
pub(super) struct Virtio {
    devices: Vec<Planned>,
    drain_limit: Duration,
}

/// A device that is to be.
enum Planned {
    Disk(BlockOptions, DiskSource, DeviceLimits),
    Net(Interface),
    Vsock(SocketDevice),
    Entropy(DeviceLimits),
    /// Shows its output there.
    Console(Console, DeviceLimits),
}

/// The devices on their bus, for their shard.
#[derive(Default)]
pub(super) struct Installed {
    pub(super) seeds: Vec<WorkerSeed>,
    /// The host's ends of the console, if there is one.
    pub(super) console: Option<ConsoleParts>,
    pub(super) input: Option<ConsoleInput>,
    /// The process's side of the socket device, if there is one, and what that keeps of the host.
    pub(super) sockets: Option<(VmSockets, Kept)>,
    /// From when on the VM can be closed quickly; `None` if always.
    pub(super) closable: Option<Instant>,
}

/// What devices are put into.
pub(super) struct Site<'a> {
    pub(super) vm: &'a Arc<VmFds>,
    pub(super) ram: &'a GuestRam,
    pub(super) ioapic: &'a Arc<Ioapic>,
    pub(super) metrics: &'a VmMetrics,
    pub(super) log: &'a Arc<GuestLog>,
    pub(super) crew: &'a Crew,
}

/// What makes a device, and what is known of it before it is made.
pub(super) struct Made {
    pub(super) identity: Identity,
    pub(super) config: ConfigSpace,
    pub(super) device: MakeDevice,
    pub(super) metrics: Arc<DeviceMetrics>,
    pub(super) limits: DeviceLimits,
}

impl Virtio {
    /// Opens what the devices of `config` need; `console` is where the output of a virtio console goes, `shared` what
    /// its disks and interfaces have together with those of other VMs, `runtime` what all VMs' socket devices share.
    pub(super) fn open(
        config: &VmConfig,
        console: Console,
        shared: &SharedLimits,
        runtime: &Inner,
    ) -> Result<Self> {
        Limitable::of(config, shared).check(&config.ringlet.limits)?;
        let (disks, nets) = together(config, shared);
        let mut devices = drives(config).map(|drive| open_disk(drive, &disks)).collect::<Result<Vec<_>>>()?;
        for interface in &config.network_interfaces {
            devices.push(Planned::Net(Interface::open(interface, config.ringlet.tenant.is_some(), &nets)?));
        }
        if let Some(vsock) = &config.vsock {
            devices.push(Planned::Vsock(SocketDevice::open(vsock, runtime)?));
        }
        if let Some(entropy) = &config.entropy {
            let own = entropy.rate_limiter.unwrap_or_default().limits();
            devices.push(Planned::Entropy(DeviceLimits { own, together: None }));
        }
        if config.ringlet.console {
            let own = config.ringlet.console_rate_limiter.unwrap_or_default().limits();
            devices.push(Planned::Console(console, DeviceLimits { own, together: None }));
        }
        Ok(Self { devices, drain_limit: config.drain_limit() })
    }

    /// What each device takes of the host's memory. `serial` is where the serial port's output goes.
    pub(super) fn add_to(&self, bill: &mut Bill, serial: &Console) {
        for planned in &self.devices {
            match planned {
                Planned::Disk(options, source, _) => {
                    let copy = source.bounce_bytes();
                    let memory = options.memory(&source.info());
                    bill.add(options.id.as_str(), memory.and(copy, copy * (BOUNCE_BUFFERS - 1)));
                }
                Planned::Net(interface) => bill.add(interface.options.id.as_str(), interface.memory()),
                Planned::Vsock(device) => bill.add(VSOCK_ID, device.memory()),
                Planned::Entropy(_) => bill.add(ENTROPY_ID, Rng::memory()),
                Planned::Console(console, _) => bill.add(CONSOLE_ID, console_memory(console, serial)),
            }
        }
    }

    /// Puts the devices on the bus, with their ioeventfds; their interrupts are left to be bound.
    pub(super) fn install(self, site: &Site<'_>, mmio: &mut Bus, lines: &mut Lines) -> Result<Installed> {
        let mut installed = Installed::default();
        for (slot, planned) in slots().zip(self.devices) {
            let Made { identity, config, device, metrics, limits } = planned.make(site, &mut installed);
            let id = identity.id.clone();
            let spec = VirtioSpec {
                identity,
                config,
                device,
                line: lines.connect(site.ioapic, slot.pin)?,
                ram: site.ram.clone(),
                limiter: throttle::seed(&id, limits)
                    .map_err(|error| Error::config("rate_limiter", error.to_string()))?,
                metrics,
                log: Arc::clone(site.log),
                wake: Box::new(site.crew.waker()),
                drain_deadline: self.drain_limit,
            };
            let (transport, worker) = spec.assemble()?;
            installed.closable = Some(bind_doorbells(site.vm, slot, &transport)?);
            mmio.insert(slot.address, layout::VIRTIO_MMIO_STRIDE, transport)
                .map_err(|e| Error::config("device", e.to_string()))?;
            installed.seeds.push(seed(id, worker));
        }
        Ok(installed)
    }
}

/// Makes ioeventfds, for the life of the VM, of the notifications of each queue and of the acknowledgement of used
/// buffers. Returns when the VM can be closed quickly.
fn bind_doorbells(vm: &VmFds, slot: Slot, transport: &MmioTransport) -> Result<Instant> {
    for (queue, bell) in (0..).zip(transport.doorbells()) {
        vm.bind_doorbell(bell.as_fd(), slot.address + MmioTransport::QUEUE_NOTIFY, queue)?;
    }
    let acknowledged = transport.acknowledgements().as_fd();
    vm.bind_doorbell(acknowledged, slot.address + MmioTransport::INTERRUPT_ACK, MmioTransport::USED)
}

impl Planned {
    fn make(self, site: &Site<'_>, installed: &mut Installed) -> Made {
        match self {
            Self::Disk(options, source, limits) => disk(site, options, source, limits),
            Self::Net(interface) => interface.make(site),
            Self::Vsock(device) => device.make(site, &mut installed.sockets),
            Self::Entropy(limits) => entropy(site, limits),
            Self::Console(console, limits) => virtio_console(site, console, limits, installed),
        }
    }
}

/// What limits all disks together, and what all interfaces.
fn together(config: &VmConfig, shared: &SharedLimits) -> (Together, Together) {
    let LimitsConfig { disk, net, .. } = &config.ringlet.limits;
    let SharedLimits { disks, nets } = shared;
    let of =
        |name, limits, weight, shared: &Option<_>| Together { name, limits, weight, shared: shared.clone() };
    (of(DISKS, disk.limits(), disk.weight(), disks), of(NETS, net.limits(), net.weight(), nets))
}

/// Opens what a disk needs: its file, on a description of its own, locked. `together`: limits of all disks.
fn open_disk(drive: &Drive, together: &Together) -> Result<Planned> {
    let read_only = drive.is_read_only;
    let DriveExtras { backend, direct, queues, queue_size, ref serial, uninitialized_reads } = drive.ringlet;
    let source = match (backend, &drive.path_on_host) {
        (Some(Volatile::Memory { size }), _) => DiskSource::Memory { size, read_only },
        (Some(Volatile::Null { size }), _) => DiskSource::Null { size, read_only, uninitialized_reads },
        (None, Some(path)) => DiskSource::File(DiskFile::open(path, DiskOptions { read_only, direct })?),
        (None, None) => return Err(Error::config("path_on_host", "is missing")),
    };
    let options = BlockOptions {
        id: drive.drive_id.clone(),
        serial: BlockSerial::new(serial.as_deref().unwrap_or(&drive.drive_id)),
        queues,
        queue_size,
        cache: match drive.cache_type {
            CacheType::Writeback => Cache::Writeback,
            CacheType::Unsafe => Cache::Unsafe,
        },
    };
    let own = drive.rate_limiter.unwrap_or_default().limits();
    Ok(Planned::Disk(options, source, DeviceLimits { own, together: Some(together.clone()) }))
}

fn disk(site: &Site<'_>, options: BlockOptions, source: DiskSource, limits: DeviceLimits) -> Made {
    let info = source.info();
    let metrics = site.metrics.register_device(&options.id, DeviceKind::Block);
    let (identity, config) = (options.identity(&info), options.config(&info));
    let (space, bounces) = (config.clone(), Arc::clone(&metrics));
    Made {
        identity,
        config,
        device: Box::new(move |cx: &ShardContext, owner: &Owner| {
            let disk = source.attach(cx, owner, move || bounces.bounce_copies.inc())?;
            Ok(Box::new(BlockDevice::new(&options, space, disk)) as Box<dyn VirtioDevice>)
        }),
        metrics,
        limits,
    }
}

fn entropy(site: &Site<'_>, limits: DeviceLimits) -> Made {
    let config = ConfigSpace::new([]);
    let random = |bytes: &mut [u8]| Ok(getrandom(bytes, GetRandomFlags::NONBLOCK)?);
    Made {
        identity: Rng::identity_of(ENTROPY_ID),
        config,
        device: Box::new(move |_: &ShardContext, _: &Owner| {
            Ok(Box::new(Rng::new(ENTROPY_ID, Box::new(random))) as Box<dyn VirtioDevice>)
        }),
        metrics: site.metrics.register_device(ENTROPY_ID, DeviceKind::Entropy),
        limits,
    }
}

fn virtio_console(
    site: &Site<'_>,
    console: Console,
    limits: DeviceLimits,
    installed: &mut Installed,
) -> Made {
    let metrics = site.metrics.register_device(CONSOLE_ID, DeviceKind::Console);
    let (typed, input) = pipe(PIPE_CAPACITY);
    let (stream, printed) = pipe(PIPE_CAPACITY);
    installed.input = Some(ConsoleInput::new(typed));
    installed.console = Some(ConsoleParts { console, output: printed, metrics: Arc::clone(&metrics) });
    let config = ConsoleDevice::config_of(ConsoleSize::default());
    let parts = console::ConsoleParts {
        id: CONSOLE_ID.into(),
        config: config.clone(),
        input,
        output: ConsoleOutput::stream(stream),
        metrics: Arc::clone(&metrics),
    };
    Made {
        identity: ConsoleDevice::identity_of(CONSOLE_ID),
        config,
        device: Box::new(move |_: &ShardContext, _: &Owner| {
            Ok(Box::new(ConsoleDevice::new(parts)) as Box<dyn VirtioDevice>)
        }),
        metrics,
        limits,
    }
}

/// What a virtio console takes of the host's memory: a pipe in each direction, a batch on its way out, and what becomes of it.
fn console_memory(console: &Console, serial: &Console) -> DeviceMemory {
    let kept = if console.shares_memory(serial) { 0 } else { console.memory() };
    ConsoleDevice::memory().and(3 * PIPE_CAPACITY as u64 + kept, 0)
}

/// The disks of a VM in the order of their slots: the root device first.
fn drives(config: &VmConfig) -> impl Iterator<Item = &Drive> {
    let roots = config.drives.iter().filter(|drive| drive.is_root_device);
    roots.chain(config.drives.iter().filter(|drive| !drive.is_root_device))
}

/// What the guest's command line says of the devices: the root file system, and where each device is.
pub(super) fn cmdline(config: &VmConfig) -> Vec<String> {
    let root = config.drives.iter().find(|drive| drive.is_root_device).map(|drive| {
        let mode = if drive.is_read_only { "ro" } else { "rw" };
        match &drive.partuuid {
            Some(uuid) => format!("root=PARTUUID={uuid} {mode}"),
            None => format!("root=/dev/vda {mode}"),
        }
    });
    root.into_iter().chain(slots().take(device_count(config)).map(Slot::word)).collect()
}

#[cfg(test)]
#[path = "virtio_test.rs"]
mod tests;
