//! The runtime: event loops, the host's KVM, and the VMs that share them.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZero;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ringlet_boot::Image;
use ringlet_io::{Descriptors, Engine, EngineChoice, Shard, ShardConfig, ShardContext};
use ringlet_metrics::Registry;

use crate::assembly::{self, Resources, VmParts};
use crate::cids::Cids;
use crate::config::{DiskLimits, ImageRef, TenantConfig, VmConfig};
use crate::error::{Error, Result};
use crate::images;
use crate::kvm::Host;
use crate::kvm::vm::Shell;
use crate::reaper::Reaper;
use crate::service::VmService;
use crate::tenants::Tenants;
use crate::vm::Vm;

/// Most event-loop threads of a [`Runtime`]. Each takes a ring, a stack and a few mappings; where a process has no more
/// of these, the standard library cannot start a thread without ending the process.
pub const MAX_SHARDS: u32 = 256;

/// Longest time for which an event loop may look for work: no longer than between two looks at a doorbell that is rung too
/// often, so that a guest's storm is not taken for work.
pub const MAX_BUSY_POLL: Duration = ringlet_io::POLL_PERIOD;

/// How a [`Runtime`] is to be.
#[derive(Debug, Clone, Copy, Default)]
pub struct RuntimeOptions {
    /// The engine of the event loops.
    pub engine: EngineChoice,
    /// Number of event-loop threads; 1 to [`MAX_SHARDS`]; by default one for every two CPUs.
    pub shards: Option<NonZero<u32>>,
    /// How long an event loop looks for work before it sleeps, where work mostly comes soon: 0 (never) to
    /// [`MAX_BUSY_POLL`]; by default [`BUSY_POLL`](ringlet_io::BUSY_POLL). That is not done for VMs with `cpu.max`, nor while
    /// others want the CPU.
    pub busy_poll: Option<Duration>,
    /// What the disks of all VMs may use together. Has no weight.
    pub disk_limits: DiskLimits,
    /// Descriptors that the connections of all VMs' socket devices may take together, besides the four that each of
    /// these VMs has for itself, and four for who has connected to it and not said where to (a connection takes one, and one
    /// more if its other end is a [`VsockStream`](crate::VsockStream)). A VM gets a further one only as long as more are free
    /// than it has, so that one alone gets half.
    /// By default half of what the process may have open (`RLIMIT_NOFILE`) at the time: the other half is left for
    /// making VMs and opening disks.
    pub vsock_descriptors: Option<u32>,
}

/// Runs VMs. Everything that it starts ends with it: dropping it stops its VMs and waits for them.
///
/// It never ends the process, installs no signal handler and changes no process-wide setting. It sends
/// `SIGRTMIN + 3` (or `SIGSTKFLT`, if the queue of real-time signals is full) to its own vCPU threads, where both are
/// blocked except inside `KVM_RUN`.
pub struct Runtime {
    shards: Vec<Shard<Box<VmParts>>>,
    inner: Arc<Inner>,
    engine: Engine,
    /// VMs placed so far; they go round the shards.
    placed: AtomicUsize,
}

/// What VMs use of their runtime.
pub(crate) struct Inner {
    pub(crate) host: Arc<Host>,
    pub(crate) registry: Registry,
    pub(crate) reaper: Arc<Reaper>,
    shells: Mutex<Vec<Shell>>,
    pub(crate) tenants: Tenants,
    pub(crate) cids: Arc<Cids>,
    pub(crate) descriptors: Descriptors,
    images: Mutex<HashMap<&'static str, Image>>,
    last_id: AtomicU64,
}

impl Runtime {
    /// Starts a runtime on this host's KVM.
    pub fn new(options: RuntimeOptions) -> Result<Self> {
        let count = options.shards.map_or_else(default_shards, NonZero::get);
        if count > MAX_SHARDS {
            return Err(Error::config("shards", format!("{count} is not in 1..={MAX_SHARDS}")));
        }
        let busy_poll = options.busy_poll.unwrap_or(ringlet_io::BUSY_POLL);
        if busy_poll > MAX_BUSY_POLL {
            return Err(Error::config("busy_poll", format!("{busy_poll:?} is more than {MAX_BUSY_POLL:?}")));
        }
        let registry = Registry::new();
        let engine = ringlet_io::select(options.engine)?;
        let host = Arc::new(Host::open()?);
        let shards = (0..count)
            .map(|index| {
                let metrics = registry.register_shard(index, engine.kind.as_str());
                let host = Arc::clone(&host);
                let config = ShardConfig { busy_poll, ..ShardConfig::new(index, engine.kind, metrics) };
                Shard::spawn(config, move |_: &ShardContext| {
                    if index == 0 {
                        // The first vCPU needs it in a moment, and a new loop has nothing to do yet. An error is
                        // told to the vCPU.
                        let _ = host.supported_cpuid();
                    }
                    VmService::on_this_thread()
                })
            })
            .collect::<Result<_, _>>()?;
        let descriptors = Descriptors::new(options.vsock_descriptors.map(u64::from));
        registry.register_descriptors(&descriptors.source());
        let inner = Inner {
            reaper: Arc::new(Reaper::new(registry.clone())),
            host,
            tenants: Tenants::new(options.disk_limits, registry.clone())?,
            registry,
            cids: Arc::default(),
            descriptors,
            shells: Mutex::default(),
            images: Mutex::default(),
            last_id: AtomicU64::new(0),
        };
        tracing::info!(
            engine = engine.kind.as_str(),
            shards = count,
            backend = ?inner.host.backend,
            "event loops are running"
        );
        Ok(Self { shards, inner: Arc::new(inner), engine, placed: AtomicUsize::new(0) })
    }

    /// The engine that the event loops use, and why it is not io_uring if it is not.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The metrics of this runtime and its VMs.
    pub fn registry(&self) -> &Registry {
        &self.inner.registry
    }

    /// Makes a VM that waits for [`Vm::start`]. Takes about half a millisecond of the calling thread; call it
    /// from a thread that may wait that long.
    pub fn create(&self, config: &VmConfig, resources: Resources) -> Result<Vm> {
        self.assemble(config, resources, false)
    }

    /// Makes a VM that runs at once: the quickest way from a configuration to the guest's first instruction.
    pub fn launch(&self, config: &VmConfig, resources: Resources) -> Result<Vm> {
        self.assemble(config, resources, true)
    }

    /// Changes what all VMs of a tenant may use together, while they run: what `tenant` leaves out is not limited any more.
    ///
    /// # Errors
    /// A value is out of range, or the tenant has no VMs: nothing is changed.
    pub fn limit_tenant(&self, tenant: &TenantConfig) -> Result<()> {
        self.inner.tenants.limit(tenant)
    }

    /// Makes kernel VM objects ahead of need, until `count` are in stock. Creating a VM takes one, which saves the
    /// 0.2 ms (in some containers: tens of ms) of `KVM_CREATE_VM`.
    pub fn stock_shells(&self, count: usize) -> Result<()> {
        while self.inner.shells().len() < count {
            let shell = Shell::new(&self.inner.host)?;
            self.inner.shells().push(shell);
        }
        Ok(())
    }

    /// For tests that look inside.
    #[cfg(test)]
    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Opens and checks the image that `image` names, once for many VMs (see [`Resources::image`]).
    pub fn open_image(&self, image: &ImageRef) -> Result<Image> {
        self.inner.open_image(image)
    }

    fn assemble(&self, config: &VmConfig, resources: Resources, running: bool) -> Result<Vm> {
        self.inner.reaper.help();
        let (vm, parts) = assembly::assemble(&self.inner, config, resources, running)?;
        let turn = self.placed.fetch_add(1, Ordering::Relaxed) % self.shards.len().max(1);
        match self.shards.get(turn).map(|shard| shard.send(parts)) {
            Some(Ok(())) => Ok(vm),
            Some(Err(parts)) => {
                parts.task.abandon();
                Err(Error::ShardGone)
            }
            None => Err(Error::ShardGone),
        }
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").field("engine", &self.engine).field("shards", &self.shards.len()).finish()
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // Each shard stops its VMs and waits for their ends; only then the reaper goes, with the last `Inner`.
        for shard in self.shards.drain(..) {
            if let Err(error) = shard.stop() {
                tracing::error!(%error, "an event loop ended badly");
            }
        }
    }
}

impl Inner {
    /// An identifier that no other VM of this runtime has.
    pub(crate) fn next_id(&self) -> String {
        format!("vm-{}", self.last_id.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// A shell from stock, or a new one.
    pub(crate) fn take_shell(&self) -> Result<Shell> {
        let stocked = self.shells().pop();
        stocked.map_or_else(|| Shell::new(&self.host), Ok)
    }

    /// The image that `image` names. Bundled ones are parsed once.
    pub(crate) fn open_image(&self, image: &ImageRef) -> Result<Image> {
        let bundled = match image {
            ImageRef::Path(path) if path.components().count() == 1 && !path.exists() => {
                let hint = "neither a bundled image (`ringlet images` lists them) nor a file here";
                let near = images::nearest(&path.to_string_lossy());
                let near = near.map_or(String::new(), |image| format!("; did you mean `{}`?", image.name));
                return Err(Error::config("image", format!("{:?} is {hint}{near}", path.display())));
            }
            ImageRef::Path(path) => {
                let failed = |source| Error::ImageFile { field: "kernel_image_path", source };
                return Image::open(path).map_err(failed);
            }
            ImageRef::Bundled(name) => images::find(name)
                .ok_or_else(|| Error::config("image", format!("there is no bundled image {name:?}")))?,
        };
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(image) = images.get(bundled.name) {
            return Ok(image.clone());
        }
        let image = Image::from_static(bundled.name, bundled.bytes)?;
        images.insert(bundled.name, image.clone());
        Ok(image)
    }

    fn shells(&self) -> std::sync::MutexGuard<'_, Vec<Shell>> {
        self.shells.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One shard for every two CPUs that this thread may run on. `available_parallelism` would read cgroup files as
/// well, which costs a dozen system calls of every start.
fn default_shards() -> u32 {
    let cpus = rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count());
    (cpus / 2).clamp(1, MAX_SHARDS)
}
