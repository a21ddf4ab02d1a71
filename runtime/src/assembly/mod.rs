//! Putting a VM together, step by step, in the order that [`crate::kvm::vm`] explains.
//!
//! Runs on the thread that creates the VM; nothing here runs on a shard. A step that fails drops what the steps
//! before it made.

mod board;
mod net;
mod virtio;
mod vsock;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;
use ringlet_boot::{BootRequest, Image, Initrd, VcpuInit, layout};
use ringlet_devices::ioapic;
use ringlet_io::{Backing, GuestRam};
use ringlet_metrics::{BootPhase, VmInfo, VmMetrics};
use tokio::sync::{Notify, mpsc};

use crate::buffers::{Bill, VmBuffers};
use crate::config::{HugePages, VmConfig};
use crate::console::{Console, ConsoleParts};
use crate::cpu::{self, CpuLimiter};
use crate::devices::WorkerSeed;
use crate::devices::throttle::Limitable;
use crate::error::{Error, Result};
use crate::kvm::vm::{IOAPIC_PINS, VmFds};
use crate::lifecycle::{Life, VmCommand, VmTask};
use crate::machine::Machine;
use crate::reaper::Corpse;
use crate::runtime::Inner;
use crate::serial::{SerialParts, input_queue};
use crate::tenants::Tenant;
use crate::vcpu::control::Request;
use crate::vcpu::{self, VcpuControl, VcpuSeed};
use crate::vm::{Identity, Inputs, Vm, VmStatus};
use board::{Board, Wiring};
use virtio::Virtio;

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
    /// Where the output of its virtio console goes, if it has one; where its serial output goes, if absent.
    pub virtio_console: Option<Console>,
    /// The image, already parsed; otherwise the one that the configuration names is opened.
    pub image: Option<Image>,
    /// The initrd, already read; otherwise the one that the configuration names is opened.
    pub initrd: Option<Initrd>,
}

/// A VM for its shard.
pub(crate) struct VmParts {
    pub(crate) task: VmTask,
    pub(crate) serial: SerialParts,
    pub(crate) devices: Vec<WorkerSeed>,
    /// For the output of the virtio console, if there is one.
    pub(crate) console: Option<ConsoleParts>,
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
    let (plan, virtio) = Plan::new(runtime, config, resources)?;
    let ram = plan.allocate_ram()?;
    let vm = VmFds::new(runtime.take_shell()?, ram.clone())?;
    let vcpus = plan.create_vcpus(&vm)?;
    let crew = Crew::new(plan.vcpu_count());
    let identity = plan.register();
    let board = plan.build_board(&vm, ram, &identity, virtio, &crew)?;
    let team = match plan.staff(vcpus, crew, &board.machine) {
        Ok(team) => team,
        Err(error) => {
            runtime.reaper.reap(board.into_corpse());
            return Err(error);
        }
    };
    runtime.registry.runtime().boot_phase.observe(BootPhase::Create, begun.elapsed());
    if running {
        board.machine.phases.start();
        team.controls.iter().for_each(|vcpu| vcpu.ask(Request::Run));
    }
    Ok(plan.finish(identity, board, team, running))
}

/// What is to be made: the configuration, checked, with everything opened that it names.
struct Plan<'a> {
    runtime: &'a Arc<Inner>,
    config: &'a VmConfig,
    console: Console,
    image: Image,
    initrd: Option<Initrd>,
    tenant: Option<Arc<Tenant>>,
    buffers: VmBuffers,
}

/// How the vCPUs are asked, before there are any.
struct Crew {
    controls: Vec<Arc<VcpuControl>>,
    changed: Arc<Notify>,
}

/// The vCPUs and their threads.
struct Team {
    controls: Vec<Arc<VcpuControl>>,
    threads: Vec<JoinHandle<()>>,
    changed: Arc<Notify>,
    /// For the boot vCPU.
    init: Sender<VcpuInit>,
}

impl Crew {
    fn new(vcpus: u32) -> Self {
        let changed = Arc::new(Notify::new());
        let control = |_| {
            let bell = Arc::clone(&changed);
            Arc::new(VcpuControl::new(Box::new(move || bell.notify_one())))
        };
        Self { controls: (0..vcpus).map(control).collect(), changed }
    }

    /// What holds the vCPUs to the limits of their VM.
    fn cpu_limiter(&self, config: &VmConfig, metrics: &Arc<VmMetrics>) -> CpuLimiter {
        let bell = Arc::clone(&self.changed);
        CpuLimiter::new(self.controls.clone(), bell, Arc::clone(metrics), config.ringlet.limits.cpu)
    }

    /// What lets vCPUs that wait for their shard look again.
    fn waker(&self) -> impl Fn() + Clone + Send + Sync + 'static {
        let controls: Arc<[_]> = self.controls.clone().into();
        move || controls.iter().for_each(|vcpu| vcpu.shard_replied())
    }
}

impl<'a> Plan<'a> {
    fn new(runtime: &'a Arc<Inner>, config: &'a VmConfig, resources: Resources) -> Result<(Self, Virtio)> {
        config.validate()?;
        let vcpus = config.machine_config.vcpu_count;
        if vcpus > runtime.host.max_vcpus {
            let most = runtime.host.max_vcpus;
            return Err(Error::config(
                "vcpu_count",
                format!("{vcpus} is more than this host's KVM allows ({most})"),
            ));
        }
        cpu::check_weight(&config.ringlet.limits.cpu)?;
        let image = match resources.image {
            Some(image) => image,
            None => runtime.open_image(&config.boot_source.kernel_image_path)?,
        };
        let initrd = match (resources.initrd, &config.boot_source.initrd_path) {
            (Some(initrd), _) => Some(initrd),
            (None, Some(path)) => Some(Initrd::open(path).map_err(Error::initrd)?),
            (None, None) => None,
        };
        let console = resources.console;
        let tenant =
            config.ringlet.tenant.as_ref().map(|tenant| runtime.tenants.enter(tenant)).transpose()?;
        let output = resources.virtio_console.unwrap_or_else(|| console.clone());
        let shared = runtime.tenants.shared(tenant.as_ref());
        let virtio = Virtio::open(config, output, &shared, runtime)?;
        let mut bill = Bill::default();
        bill.add("serial port", board::serial_memory(&console));
        virtio.add_to(&mut bill, &console);
        let buffers = VmBuffers::open(bill, config.ringlet.limits.buffers.max)?;
        Ok((Self { runtime, config, console, image, initrd, tenant, buffers }, virtio))
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

    fn load(&self, vm: &str, ram: &GuestRam) -> Result<VcpuInit> {
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
        tracing::debug!(
            vm,
            image = self.image.name(),
            protocol = init.protocol.as_str(),
            entry = format_args!("{:#x}", init.regs.rip),
            "the image is loaded"
        );
        Ok(init)
    }

    /// The guest's command line: the user's, and what no firmware table says: how many vCPUs there are to start, and
    /// where the devices are.
    fn cmdline(&self) -> String {
        let mut words: Vec<String> = self.config.boot_source.boot_args.iter().cloned().collect();
        if self.vcpu_count() > 1 {
            words.push(format!("ringlet.vcpus={}", self.vcpu_count()));
        }
        words.extend(virtio::cmdline(self.config));
        words.retain(|word| !word.is_empty());
        words.join(" ")
    }

    fn register(&self) -> Identity {
        let id = self.runtime.next_id();
        let name = self.config.ringlet.name.clone().unwrap_or_else(|| id.clone());
        let metrics = self.runtime.registry.register_vm(VmInfo {
            id: id.clone(),
            name: name.clone(),
            image: self.image.name().to_owned(),
            tenant: self.config.ringlet.tenant.as_ref().map(|tenant| tenant.name.clone()).unwrap_or_default(),
        });
        metrics.register_buffers(self.buffers.account().source());
        let shared = self.runtime.tenants.shared(self.tenant.as_ref());
        let limitable = Limitable::of(self.config, &shared);
        Identity { id, name, metrics, limitable }
    }

    /// Makes the vCPU threads, which prepare themselves while the image is loaded.
    fn staff(&self, vcpus: Vec<VcpuFd>, crew: Crew, machine: &Arc<Machine>) -> Result<Team> {
        self.hire(vcpus, crew, machine)?.boot(self.load(machine.metrics.id(), &machine.ram))
    }

    /// Starts the vCPU threads. If one fails to start, those before it are told to stop.
    fn hire(&self, vcpus: Vec<VcpuFd>, crew: Crew, machine: &Arc<Machine>) -> Result<Team> {
        let (sender, init) = channel();
        let Crew { controls, changed } = crew;
        let mut team = Team { controls: Vec::new(), threads: Vec::new(), changed, init: sender };
        let mut init = Some(init);
        for (index, (fd, control)) in (0..).zip(vcpus.into_iter().zip(controls)) {
            let seed = self.seed(index, fd, machine, &control, init.take());
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

    fn seed(
        &self,
        index: u32,
        fd: VcpuFd,
        machine: &Arc<Machine>,
        control: &Arc<VcpuControl>,
        init: Option<Receiver<VcpuInit>>,
    ) -> VcpuSeed {
        VcpuSeed {
            index,
            fd,
            machine: Arc::clone(machine),
            control: Arc::clone(control),
            host: Arc::clone(&self.runtime.host),
            vcpus: self.vcpu_count(),
            init,
        }
    }

    fn finish(self, identity: Identity, board: Board, team: Team, running: bool) -> (Vm, Box<VmParts>) {
        let (sender, commands) = mpsc::unbounded_channel();
        let (input, input_queue) = input_queue();
        let Board { machine, wiring, devices } = board;
        let status = Arc::new(VmStatus::new(Arc::clone(&machine.phases)));
        let timeout = self.config.ringlet.timeout_ms.map(Duration::from_millis);
        let Wiring { serial, output_bell, input_bell, irqs } = wiring;
        let (sockets, kept) = devices.sockets.unzip();
        let serial = SerialParts {
            console: self.console,
            output: Arc::clone(&machine.serial_output),
            output_bell,
            serial,
            input_bell,
            input: input_queue,
            controls: team.controls.clone(),
            metrics: Arc::clone(&identity.metrics),
        };
        let corpse = Corpse {
            threads: team.threads,
            not_before: devices.closable,
            remains: Box::new((irqs, Arc::clone(&machine), kept)),
        };
        let task = VmTask {
            life: Life::new(team.controls, Arc::clone(&status), self.runtime.registry.clone()),
            changed: team.changed,
            commands,
            unheld: false,
            machine,
            reaper: Arc::clone(&self.runtime.reaper),
            corpse,
            timeout,
            running,
            deadline: None,
            _tenant: self.tenant,
            buffers: self.buffers,
        };
        let inputs = Inputs { serial: input, console: devices.input, sockets };
        let parts = VmParts {
            task,
            serial,
            devices: devices.seeds,
            console: devices.console,
            commands: sender.downgrade(),
        };
        (Vm::new(identity, sender, status, inputs), Box::new(parts))
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
