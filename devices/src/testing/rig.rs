//! A virtio device on a shard of its own, behind its real transport, and the vCPU that drives it.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::{Duration, Instant};

use ringlet_io::{
    Backing, Buffers, GuestRam, Hold, InterruptLine, LimiterSeed, Owner, Service, Shard, ShardConfig,
    ShardContext,
};
use ringlet_metrics::{DeviceKind, DeviceMetrics, GuestLog, Registry, VmInfo, VmMetrics};

use super::driver::Buffer;
use super::options::Options;
use crate::bus::{Action, Bus, BusDevice, BusKind, Then};
use crate::ioapic::Ioapic;
use crate::state::StateError;
use crate::virtio::spec::{device_type, register};
use crate::virtio::{
    ConfigSpace, DRAIN_DEADLINE, HostEvent, Identity, MakeDevice, MmioTransport, VirtioSpec, VirtioState,
    WorkerError, WorkerHandle,
};

/// How long a test waits for what must happen before it fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The device under test, and what the conformance tests need to know of it.
pub struct Subject {
    /// Who it is.
    pub identity: Identity,
    /// Its configuration space.
    pub config: ConfigSpace,
    /// Makes it.
    pub device: MakeDevice,
    /// A queue on which the driver asks and the device answers.
    pub queue: u16,
    /// A request that the device completes by itself: writes what belongs there to guest memory from the
    /// given address on (64 KiB are free) and gives the chain.
    pub request: fn(&GuestRam, u64) -> Vec<Buffer>,
    /// What lets requests that were consumed go on, if the device can be made to hold them: they are in flight until
    /// it is called, and none is held after that.
    pub release: Option<Box<dyn Fn() + Send + Sync>>,
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// A device at work.
pub struct Rig {
    /// The guest's memory: 4 MiB from address 0, in two regions that touch, and 2 MiB from [`Rig::HIGH`].
    pub ram: GuestRam,
    /// The device's registers.
    pub transport: Arc<MmioTransport>,
    /// The VM's numbers.
    pub vm: Arc<VmMetrics>,
    /// The device's numbers.
    pub metrics: Arc<DeviceMetrics>,
    /// Who the device is.
    pub identity: Identity,
    bus: Bus,
    log: Arc<GuestLog>,
    pub(super) line: InterruptLine,
    woken: Arc<Woken>,
    pub(super) hold: Hold,
    shard: Option<Shard<Run>>,
}

/// How often vCPUs were told to look again, and where they wait.
type Woken = (Mutex<u64>, Condvar);

type Run = Box<dyn FnOnce(&ShardContext, &mut Host) + Send>;

/// What lives on the shard.
#[derive(Default)]
struct Host {
    worker: Option<std::rc::Rc<WorkerHandle>>,
}

impl Service for Host {
    type Command = Run;

    fn command(&mut self, cx: &ShardContext, command: Run) {
        command(cx, self);
    }

    async fn drain(&mut self, _cx: &ShardContext) {}
}

impl Rig {
    /// Guest-physical address of the registers.
    pub const BASE: u64 = 0xD000_0000;
    /// Where the two lower regions touch.
    pub const BORDER: u64 = 2 << 20;
    /// Where the upper region starts; below it, and above 4 MiB, there is no RAM.
    pub const HIGH: u64 = 8 << 20;
    /// Where the rings of the first queue are; those of the next are [`DriverQueue::SPAN`] further each.
    pub const RINGS: u64 = 0x1_0000;
    /// Where the data of requests may be.
    pub const DATA: u64 = 0x10_0000;

    /// Puts the device on a shard.
    pub fn new(subject: Subject, options: Options) -> Self {
        let Options { engine, limiter, buffers, drain_deadline, restored } = options;
        let registry = Registry::new();
        let vm = registry.register_vm(VmInfo { id: "vm".into(), ..VmInfo::default() });
        let kind = match subject.identity.device_type {
            device_type::CONSOLE => DeviceKind::Console,
            device_type::ENTROPY => DeviceKind::Entropy,
            device_type::NET => DeviceKind::Net,
            device_type::VSOCK => DeviceKind::Vsock,
            _ => DeviceKind::Block,
        };
        let metrics = vm.register_device(&subject.identity.id, kind);
        let log = Arc::new(GuestLog::new("vm", Arc::clone(&vm)));
        let (ram, state) = match restored {
            Some((ram, state)) => (ram, Some(state)),
            None => (Self::memory(), None),
        };
        let shard_metrics = registry.register_shard(0, engine.as_str());
        let shard = Shard::spawn(ShardConfig::new(0, engine, shard_metrics), |_| Host::default()).unwrap();
        let (line, woken, hold) = (InterruptLine::new().unwrap(), Arc::default(), Hold::default());
        let place = Place { ram, vm, metrics, log, line, woken, hold, shard };
        place.put(subject, (limiter, buffers), drain_deadline, state)
    }

    /// Stops the device and puts another of its kind in its place, which has the shard, the memory and the numbers
    /// that this one had, and no limits.
    #[must_use]
    pub fn replace(mut self, subject: Subject, restored: Option<VirtioState>) -> Self {
        self.with_host(|_, host| {
            let worker = host.worker.take().and_then(std::rc::Rc::into_inner);
            async move {
                if let Some(worker) = worker {
                    // Why it ended before is its own business.
                    let _ = worker.stop().await;
                }
            }
        });
        let shard = self.shard.take().expect("a shard");
        let Self { ram, vm, metrics, log, line, woken, hold, .. } = &self;
        let _ = line.take_pending();
        let place = Place {
            ram: ram.clone(),
            vm: Arc::clone(vm),
            metrics: Arc::clone(metrics),
            log: Arc::clone(log),
            line: line.clone(),
            woken: Arc::clone(woken),
            hold: hold.clone(),
            shard,
        };
        place.put(subject, (LimiterSeed::unlimited(), Buffers::unlimited()), DRAIN_DEADLINE, restored)
    }

    /// Whether a device with this rig's memory would take the state, as far as its registers go.
    ///
    /// # Errors
    /// Why not.
    pub fn try_restore(&self, subject: Subject, state: VirtioState) -> Result<(), StateError> {
        let ioapic = Arc::new(Ioapic::new());
        let spec = VirtioSpec {
            identity: subject.identity,
            config: subject.config,
            device: subject.device,
            line: ioapic.line(PIN, self.line.clone()).unwrap(),
            ram: self.ram.clone(),
            limiter: LimiterSeed::unlimited(),
            metrics: Arc::clone(&self.metrics),
            log: Arc::clone(&self.log),
            wake: Box::new(|| {}),
            drain_deadline: DRAIN_DEADLINE,
        };
        spec.assemble().unwrap().1.restore(state)
    }

    /// Memory as a rig has it.
    pub fn memory() -> GuestRam {
        let regions = [(0, Self::BORDER), (Self::BORDER, Self::BORDER), (Self::HIGH, Self::BORDER)];
        GuestRam::new(&regions, Backing::Pages4K).unwrap()
    }

    /// Reads a register (4 bytes).
    pub fn read(&self, register: u64) -> u32 {
        let mut bytes = [0; 4];
        self.read_bytes(register, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Reads bytes at an offset, as one access.
    pub fn read_bytes(&self, offset: u64, bytes: &mut [u8]) {
        assert_eq!(self.bus.read(Self::BASE + offset, bytes, &self.log), Action::None, "reads never wait");
    }

    /// Reads bytes of the configuration space, one by one.
    pub fn read_config(&self, bytes: &mut [u8]) {
        for (offset, byte) in (register::CONFIG..).zip(bytes) {
            self.read_bytes(offset, std::slice::from_mut(byte));
        }
    }

    /// Writes a register as a vCPU does, waiting for the shard where it must.
    pub fn write(&self, register: u64, value: u32) {
        self.write_bytes(register, &value.to_le_bytes());
    }

    /// Writes bytes at an offset, as one access, waiting where it must.
    pub fn write_bytes(&self, offset: u64, bytes: &[u8]) {
        loop {
            let action = self.begin_write(offset, bytes);
            if self.finish_write(&action) == Then::Done {
                return;
            }
        }
    }

    /// Makes a write and does not wait.
    pub fn begin_write(&self, offset: u64, bytes: &[u8]) -> Action {
        self.bus.write(Self::BASE + offset, bytes, &self.log)
    }

    /// Waits as a vCPU does.
    pub fn finish_write(&self, action: &Action) -> Then {
        let Action::Wait(wait) = action else {
            assert_eq!(*action, Action::None);
            return Then::Done;
        };
        let deadline = Instant::now() + PATIENCE;
        let mut woken = self.woken.0.lock().unwrap();
        while !wait.is_over() {
            let left = deadline.checked_duration_since(Instant::now()).expect("the shard answers");
            woken = self.woken.1.wait_timeout(woken, left).unwrap().0;
        }
        wait.then()
    }

    /// True if a write that waits would go on now.
    pub fn is_over(&self, action: &Action) -> bool {
        match action {
            Action::Wait(wait) => wait.is_over(),
            _ => true,
        }
    }

    /// Runs a task on the shard and gives its result.
    pub fn on_shard<T, F>(&self, make: impl FnOnce(ShardContext) -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        self.with_host(move |cx, _| make(cx))
    }

    /// Lets everything that is ready on the shard run: several turns, between which it really parks.
    pub fn settle(&self) {
        self.on_shard(|cx| async move {
            for _ in 0..8 {
                cx.next_turn().await;
            }
        });
    }

    /// Suspends the device.
    pub fn suspend(&self) -> Result<(), WorkerError> {
        self.with_worker(|worker| async move { worker.suspend().await })
    }

    /// Starts suspending the device; the result comes through the receiver.
    pub fn begin_suspend(&self) -> mpsc::Receiver<Result<(), WorkerError>> {
        self.start(|_, host| {
            let worker = host.worker.clone();
            async move { worker.expect("a worker").suspend().await }
        })
    }

    /// Resumes the device.
    pub fn resume(&self) -> Result<(), WorkerError> {
        self.with_worker(|worker| async move { worker.resume().await })
    }

    /// Saves the device.
    pub fn save(&self) -> Result<VirtioState, WorkerError> {
        self.with_worker(|worker| async move { worker.save().await })
    }

    /// Tells the device something.
    pub fn notice(&self, event: HostEvent) {
        self.with_worker(move |worker| async move { worker.notice(event) });
    }

    /// Stops the device for good; it cannot be used after that.
    pub fn stop(&self) -> Result<(), WorkerError> {
        self.with_host(|_, host| {
            let worker = host.worker.take();
            async move { std::rc::Rc::into_inner(worker.expect("a worker")).expect("nobody uses it").stop().await }
        })
    }

    fn with_worker<T, F>(&self, make: impl FnOnce(std::rc::Rc<WorkerHandle>) -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        self.with_host(|_, host| make(host.worker.clone().expect("a worker")))
    }

    fn with_host<T, F>(&self, make: impl FnOnce(ShardContext, &mut Host) -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        self.start(make).recv_timeout(PATIENCE).expect("the task ends")
    }

    fn start<T, F>(
        &self,
        make: impl FnOnce(ShardContext, &mut Host) -> F + Send + 'static,
    ) -> mpsc::Receiver<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let (sender, receiver) = mpsc::channel();
        let run: Run = Box::new(move |cx, host| {
            let future = make(cx.clone(), host);
            cx.spawn(&Owner::shard(), async move {
                let _ = sender.send(future.await);
            })
            .detach();
        });
        assert!(self.shard.as_ref().expect("a shard").send(run).is_ok(), "the shard takes commands");
        receiver
    }
}

/// Where a device is put.
struct Place {
    ram: GuestRam,
    vm: Arc<VmMetrics>,
    metrics: Arc<DeviceMetrics>,
    log: Arc<GuestLog>,
    line: InterruptLine,
    woken: Arc<Woken>,
    hold: Hold,
    shard: Shard<Run>,
}

impl Place {
    fn put(
        self,
        subject: Subject,
        (limiter, buffers): (LimiterSeed, Buffers),
        drain_deadline: Duration,
        state: Option<VirtioState>,
    ) -> Rig {
        let Self { ram, vm, metrics, log, line, woken, hold, shard } = self;
        let ioapic = Arc::new(Ioapic::new());
        let wake = Arc::clone(&woken);
        let identity = subject.identity.clone();
        let spec = VirtioSpec {
            identity: subject.identity,
            config: subject.config,
            device: subject.device,
            line: ioapic.line(PIN, line.clone()).unwrap(),
            ram: ram.clone(),
            limiter,
            metrics: Arc::clone(&metrics),
            log: Arc::clone(&log),
            wake: Box::new(move || {
                *wake.0.lock().unwrap() += 1;
                wake.1.notify_all();
            }),
            drain_deadline,
        };
        program(&ioapic);
        let (transport, mut seed) = spec.assemble().unwrap();
        if let Some(state) = state {
            seed.restore(state).unwrap();
        }
        let (payer, held) = (Arc::clone(&vm), hold.clone());
        let start: Run = Box::new(move |cx, host| {
            let owner = Owner::limited(payer, buffers, held);
            host.worker = Some(std::rc::Rc::new(seed.run(cx, &owner)));
        });
        assert!(shard.send(start).is_ok(), "the shard takes commands");
        let mut bus = Bus::new(BusKind::Mmio);
        bus.insert(Rig::BASE, MmioTransport::LEN, Arc::clone(&transport) as Arc<dyn BusDevice>).unwrap();
        Rig { ram, transport, vm, metrics, identity, bus, log, line, woken, hold, shard: Some(shard) }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(shard) = self.shard.take() {
            let stopped = shard.stop();
            if !std::thread::panicking() {
                stopped.expect("the shard ends well");
            }
        }
    }
}

impl fmt::Debug for Rig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rig").field("transport", &self.transport).finish_non_exhaustive()
    }
}

const PIN: u8 = 5;

/// Unmasks the pin: edge, vector 0x30.
fn program(ioapic: &Ioapic) {
    assert_eq!(ioapic.write(0x00, &(0x10 + 2 * u32::from(PIN)).to_le_bytes()), Ok(Action::None));
    let _ = ioapic.write(0x10, &0x30u32.to_le_bytes()).unwrap();
    ioapic.install_routes(|_| Ok::<(), ()>(())).unwrap();
}

/// Waits until something that must happen has happened.
pub fn wait_until(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < deadline, "{what}: did not happen within {PATIENCE:?}");
        std::thread::sleep(Duration::from_micros(50));
    }
}
