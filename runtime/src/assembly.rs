//! Putting a VM together, step by step, in the order that [`crate::kvm::vm`] explains.
//!
//! Runs on the thread that creates the VM; nothing here runs on a shard. A step that fails drops what the steps
//! before it made.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kvm_ioctls::VcpuFd;
use ringlet_boot::{BootRequest, Image, Initrd, VcpuInit, layout};
use ringlet_devices::ioapic::{self, Ioapic};
use ringlet_devices::{Bus, BusDevice, BusError, BusKind, Cmos, GuestPorts, I8042, Serial, SerialOutput};
use ringlet_io::{Backing, GuestRam, InterruptLine};
use ringlet_metrics::{BootPhase, GuestLog, VmInfo};
use tokio::sync::{Notify, mpsc};

use crate::config::{HugePages, VmConfig};
use crate::error::{Error, Result};
use crate::kvm::routing::Routing;
use crate::kvm::vm::{IOAPIC_PINS, IrqBinding, VmFds};
use crate::lifecycle::{Life, VmCommand, VmTask};
use crate::machine::{Machine, Phases};
use crate::reaper::Corpse;
use crate::runtime::Inner;
use crate::serial::{Console, SerialParts, input_queue};
use crate::vcpu::control::Request;
use crate::vcpu::{self, VcpuControl, VcpuSeed};
use crate::vm::{Identity, Vm, VmStatus};

// The memory map of the boot crate and the devices' own idea of where they are must agree.
const _: () = {
    assert!(layout::IOAPIC_ADDR == ioapic::BASE && layout::IOAPIC_SIZE == ioapic::LEN);
    assert!(IOAPIC_PINS == ioapic::PINS as u64);
};

/// Opened things that a VM is given, so that it never opens a path itself.
#[derive(Debug, Clone, Default)]
pub struct Resources {
    /// Where its serial output goes.
    pub console: Console,
    /// The image, already parsed; otherwise the one that the configuration names is opened.
    pub image: Option<Image>,
    /// The initrd, already read; otherwise the one that the configuration names is opened.
    pub initrd: Option<Initrd>,
}

/// A VM for its shard.
pub(crate) struct VmParts {
    pub(crate) task: VmTask,
    pub(crate) serial: SerialParts,
    /// For the shard's own commands. Weak, so that a VM whose handle is dropped ends.
    pub(crate) commands: mpsc::WeakUnboundedSender<VmCommand>,
}

/// Makes a VM. With `running`, its vCPUs enter the guest at once.
pub(crate) fn assemble(
    runtime: &Arc<Inner>,
    config: &VmConfig,
    resources: Resources,
    running: bool,
) -> Result<(Vm, Box<VmParts>)> {
    let begun = Instant::now();
    let plan = Plan::new(runtime, config, resources)?;
    let ram = plan.allocate_ram()?;
    let vm = VmFds::new(runtime.take_shell()?, ram.clone())?;
    let vcpus = plan.create_vcpus(&vm)?;
    let identity = plan.register();
    let (machine, wiring) = plan.build_machine(&vm, ram, &identity)?;
    let team = plan.hire(vcpus, &machine)?;
    // The vCPUs prepare themselves while the image is loaded.
    let team = team.boot(plan.load(&machine.ram))?;
    runtime.registry.runtime().boot_phase.observe(BootPhase::Create, begun.elapsed());
    if running {
        machine.phases.start();
        team.controls.iter().for_each(|vcpu| vcpu.ask(Request::Run));
    }
    Ok(plan.finish(identity, machine, wiring, team, running))
}

/// What is to be made: the configuration, checked, with everything opened that it names.
struct Plan<'a> {
    runtime: &'a Arc<Inner>,
    config: &'a VmConfig,
    console: Console,
    image: Image,
    initrd: Option<Initrd>,
}

/// The device ends that the shard looks after, and the kernel's end of the interrupt.
struct Wiring {
    serial: Arc<Serial>,
    output_bell: Arc<Notify>,
    input_bell: Arc<Notify>,
    irq: IrqBinding,
}

/// The vCPUs and their threads.
struct Team {
    controls: Vec<Arc<VcpuControl>>,
    threads: Vec<JoinHandle<()>>,
    changed: Arc<Notify>,
    /// For the boot vCPU.
    init: Sender<VcpuInit>,
}

impl<'a> Plan<'a> {
    fn new(runtime: &'a Arc<Inner>, config: &'a VmConfig, resources: Resources) -> Result<Self> {
        config.validate()?;
        let vcpus = config.machine_config.vcpu_count;
        if vcpus > runtime.host.max_vcpus {
            let most = runtime.host.max_vcpus;
            return Err(Error::config(
                "vcpu_count",
                format!("{vcpus} is more than this host's KVM allows ({most})"),
            ));
        }
        let image = match resources.image {
            Some(image) => image,
            None => runtime.open_image(&config.boot_source.kernel_image_path)?,
        };
        let initrd = match (resources.initrd, &config.boot_source.initrd_path) {
            (Some(initrd), _) => Some(initrd),
            (None, Some(path)) => Some(Initrd::open(path)?),
            (None, None) => None,
        };
        Ok(Self { runtime, config, console: resources.console, image, initrd })
    }

    fn vcpu_count(&self) -> u32 {
        self.config.machine_config.vcpu_count
    }

    fn allocate_ram(&self) -> Result<GuestRam> {
        let machine = &self.config.machine_config;
        let backing = match machine.huge_pages {
            HugePages::None => Backing::Pages4K,
            HugePages::TwoM => Backing::Huge2M,
        };
        Ok(GuestRam::new(&layout::ram_regions(u64::from(machine.mem_size_mib) << 20), backing)?)
    }

    fn create_vcpus(&self, vm: &VmFds) -> Result<Vec<VcpuFd>> {
        (0..self.vcpu_count()).map(|index| vm.create_vcpu(index)).collect()
    }

    fn load(&self, ram: &GuestRam) -> Result<VcpuInit> {
        let begun = Instant::now();
        let init = ringlet_boot::load(
            ram,
            &BootRequest {
                image: &self.image,
                protocol: self.config.ringlet.boot_protocol.map(Into::into),
                cmdline: &self.cmdline(),
                args: &self.config.ringlet.args,
                initrd: self.initrd.as_ref(),
                vcpus: self.vcpu_count(),
            },
        )?;
        self.runtime.registry.runtime().boot_phase.observe(BootPhase::Load, begun.elapsed());
        Ok(init)
    }

    /// The guest's command line: the user's, and how many vCPUs there are to start (there is no firmware table
    /// yet that says so).
    fn cmdline(&self) -> String {
        let cmdline = self.config.boot_source.boot_args.as_deref().unwrap_or_default();
        match self.vcpu_count() {
            1 => cmdline.to_owned(),
            n if cmdline.is_empty() => format!("ringlet.vcpus={n}"),
            n => format!("{cmdline} ringlet.vcpus={n}"),
        }
    }

    fn register(&self) -> Identity {
        let id = self.runtime.next_id();
        let name = self.config.ringlet.name.clone().unwrap_or_else(|| id.clone());
        let metrics = self.runtime.registry.register_vm(VmInfo {
            id: id.clone(),
            name: name.clone(),
            image: self.image.name().to_owned(),
            tenant: String::new(),
        });
        Identity { id, name, metrics }
    }

    fn build_machine(
        &self,
        vm: &Arc<VmFds>,
        ram: GuestRam,
        identity: &Identity,
    ) -> Result<(Arc<Machine>, Wiring)> {
        let metrics = &identity.metrics;
        let interrupt = InterruptLine::new().map_err(Error::io("making an interrupt's eventfd"))?;
        let irq = vm.bind_irq(&interrupt, u32::from(Serial::PIN))?;
        let ioapic = Arc::new(Ioapic::new());
        let line = ioapic.line(Serial::PIN, interrupt).map_err(|e| Error::config("serial", e.to_string()))?;
        let (output_bell, input_bell) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (on_data, on_drained) = (Arc::clone(&output_bell), Arc::clone(&input_bell));
        let serial_output = Arc::new(SerialOutput::new(
            SerialOutput::DEFAULT_CAPACITY,
            self.console.overflow(),
            move || on_data.notify_one(),
            Arc::clone(metrics),
        ));
        let serial = Arc::new(Serial::new(
            line,
            Arc::clone(&serial_output),
            move || on_drained.notify_one(),
            Arc::clone(metrics),
        ));
        let machine = Machine {
            ports: port_bus(Arc::clone(&serial)).map_err(|e| Error::config("port", e.to_string()))?,
            mmio: mmio_bus(Arc::clone(&ioapic)).map_err(|e| Error::config("mmio", e.to_string()))?,
            routing: Routing::new(Arc::clone(vm), Arc::clone(&ioapic)),
            ioapic,
            serial_output,
            ram,
            backend: self.runtime.host.backend,
            log: GuestLog::new(identity.id.clone(), Arc::clone(metrics)),
            metrics: Arc::clone(metrics),
            phases: Arc::new(Phases::new(self.runtime.registry.clone())),
        };
        Ok((Arc::new(machine), Wiring { serial, output_bell, input_bell, irq }))
    }

    /// Starts the vCPU threads. If one fails to start, those before it are told to stop.
    fn hire(&self, vcpus: Vec<VcpuFd>, machine: &Arc<Machine>) -> Result<Team> {
        let changed = Arc::new(Notify::new());
        let (sender, init) = channel();
        let mut team = Team { controls: Vec::new(), threads: Vec::new(), changed, init: sender };
        let mut init = Some(init);
        for (index, fd) in (0..).zip(vcpus) {
            let bell = Arc::clone(&team.changed);
            let control = Arc::new(VcpuControl::new(Box::new(move || bell.notify_one())));
            let seed = VcpuSeed {
                index,
                fd,
                machine: Arc::clone(machine),
                control: Arc::clone(&control),
                host: Arc::clone(&self.runtime.host),
                vcpus: self.vcpu_count(),
                init: init.take(),
            };
            match vcpu::spawn(seed) {
                Ok(thread) => {
                    team.threads.push(thread);
                    team.controls.push(control);
                }
                Err(error) => {
                    team.dismiss();
                    return Err(error);
                }
            }
        }
        Ok(team)
    }

    fn finish(
        self,
        identity: Identity,
        machine: Arc<Machine>,
        wiring: Wiring,
        team: Team,
        running: bool,
    ) -> (Vm, Box<VmParts>) {
        let (sender, commands) = mpsc::unbounded_channel();
        let (input, input_queue) = input_queue();
        let status = Arc::new(VmStatus::new(Arc::clone(&machine.phases)));
        let timeout = self.config.ringlet.timeout_ms.map(Duration::from_millis);
        let serial = SerialParts {
            console: self.console,
            output: Arc::clone(&machine.serial_output),
            output_bell: wiring.output_bell,
            serial: wiring.serial,
            input_bell: wiring.input_bell,
            input: input_queue,
            controls: team.controls.clone(),
            metrics: Arc::clone(&identity.metrics),
        };
        let corpse = Corpse {
            threads: team.threads,
            // An irqfd is no bus registration, and there is nothing else yet.
            not_before: None,
            remains: Box::new((wiring.irq, Arc::clone(&machine))),
        };
        let task = VmTask {
            life: Life::new(team.controls, Arc::clone(&status), self.runtime.registry.clone()),
            changed: team.changed,
            commands,
            unheld: false,
            machine: Arc::clone(&machine),
            reaper: Arc::clone(&self.runtime.reaper),
            corpse,
            timeout,
            running,
            deadline: None,
        };
        let parts = Box::new(VmParts { task, serial, commands: sender.downgrade() });
        (Vm::new(identity, sender, status, input), parts)
    }
}

impl Team {
    /// Tells the boot vCPU where it begins, or dismisses all of them.
    fn boot(self, loaded: Result<VcpuInit>) -> Result<Self> {
        match loaded {
            Ok(init) => {
                // If the thread is gone already, it has left its reason behind.
                let _ = self.init.send(init);
                Ok(self)
            }
            Err(error) => {
                self.dismiss();
                Err(error)
            }
        }
    }

    /// Stops the vCPUs that were already made.
    fn dismiss(self) {
        let Self { controls, threads, init, .. } = self;
        drop(init);
        controls.iter().for_each(|vcpu| vcpu.ask(Request::Stop));
        for thread in threads {
            let _ = thread.join();
        }
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
