//! The registry: which handles are alive.
//!
//! Owns: the list of live VMs and shards, by weak reference, and the `prometheus::Registry`, which is made by
//! the first scrape and not before (design, law 9). Never: keeps a VM's series alive, or is on a hot path.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use prometheus::TextEncoder;

use crate::collector::Families;
use crate::descriptors::DescriptorSource;
use crate::escape::label_value;
use crate::families::{MAX_LABEL_BYTES, RuntimeMetrics, ShardMetrics, VmInfo, VmMetrics};
use crate::limiter::LimiterSource;

/// Hands out metric handles and exposes those that are alive. Cheap to make (a few allocations) and to clone
/// (one reference count).
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    state: Arc<State>,
    /// Made by the first scrape. Its collector holds `state`, not `Inner`, so there is no cycle.
    prometheus: OnceLock<prometheus::Registry>,
}

/// What the collector reads.
pub(crate) struct State {
    pub(crate) runtime: RuntimeMetrics,
    lists: Mutex<Lists>,
}

#[derive(Default)]
struct Lists {
    next_vm: u64,
    /// By order of registration.
    vms: BTreeMap<u64, Weak<VmMetrics>>,
    shards: Vec<Weak<ShardMetrics>>,
    /// The limits of tenants, by name and by what they limit.
    tenants: Vec<(Box<str>, &'static str, Weak<dyn LimiterSource>)>,
    /// The limits of the host, if it has any.
    host: Option<Weak<dyn LimiterSource>>,
    /// The descriptors that the connections of all VMs share.
    descriptors: Option<Weak<dyn DescriptorSource>>,
}

/// The registry cannot be rendered: two families disagree, which the tests of this crate exclude.
#[derive(Debug, thiserror::Error)]
#[error("cannot render the metrics: {0}")]
pub struct RenderError(#[from] prometheus::Error);

impl Registry {
    /// An empty registry; no metric family exists before the first scrape.
    pub fn new() -> Self {
        let state = State { runtime: RuntimeMetrics::new(), lists: Mutex::default() };
        Self(Arc::new(Inner { state: Arc::new(state), prometheus: OnceLock::new() }))
    }

    /// The numbers of the process.
    pub fn runtime(&self) -> &RuntimeMetrics {
        &self.0.state.runtime
    }

    /// Makes the handle of a VM. Its series live as long as the handle.
    pub fn register_vm(&self, info: VmInfo) -> Arc<VmMetrics> {
        let state = &self.0.state;
        let mut lists = lock(&state.lists);
        let number = lists.next_vm;
        lists.next_vm += 1;
        let vm = Arc::new(VmMetrics::new(&info, Arc::downgrade(state), number));
        lists.vms.insert(number, Arc::downgrade(&vm));
        vm
    }

    /// Makes the handle of shard `index`, which runs on I/O engine `engine` (`io_uring`, `epoll`). If the
    /// index is taken by a live shard, the one registered last is exposed.
    pub fn register_shard(&self, index: u32, engine: &'static str) -> Arc<ShardMetrics> {
        let shard = Arc::new(ShardMetrics::new(index, engine));
        let mut lists = lock(&self.0.state.lists);
        lists.shards.retain(|shard| shard.strong_count() > 0);
        lists.shards.push(Arc::downgrade(&shard));
        shard
    }

    /// Exposes limits of a tenant for as long as `source` lives. `name` is the label `tenant`, escaped and bounded to
    /// [`MAX_LABEL_BYTES`]; `limiter` says what they limit.
    pub fn register_tenant(&self, name: &str, limiter: &'static str, source: Arc<dyn LimiterSource>) {
        let name = label_value(name, MAX_LABEL_BYTES);
        let mut lists = lock(&self.0.state.lists);
        let is_other = |other: &str, its: &str| other != &*name || its != limiter;
        lists.tenants.retain(|(other, its, source)| source.strong_count() > 0 && is_other(other, its));
        lists.tenants.push((name, limiter, Arc::downgrade(&source)));
    }

    /// Exposes the limits of the host, above those of all tenants, for as long as `source` lives. Of two the later is
    /// told.
    pub fn register_host(&self, source: Arc<dyn LimiterSource>) {
        lock(&self.0.state.lists).host = Some(Arc::downgrade(&source));
    }

    /// Exposes the descriptors that the connections of all VMs share, for as long as `source` lives. Of two the later is told.
    pub fn register_descriptors(&self, source: &Arc<dyn DescriptorSource>) {
        lock(&self.0.state.lists).descriptors = Some(Arc::downgrade(source));
    }

    /// Every live series in Prometheus text format 0.0.4.
    ///
    /// # Errors
    /// [`RenderError`] if the families contradict each other (a bug of this crate).
    pub fn try_encode(&self) -> Result<String, RenderError> {
        let registry = match self.0.prometheus.get() {
            Some(registry) => registry,
            None => {
                let made = prometheus::Registry::new();
                made.register(Box::new(Families::new(self.0.state.clone())?))?;
                self.0.prometheus.get_or_init(|| made)
            }
        };
        Ok(TextEncoder::new().encode_to_string(&registry.gather())?)
    }

    /// [`Registry::try_encode`], with an error reported to the log and an empty text.
    pub fn encode(&self) -> String {
        self.try_encode().unwrap_or_else(|error| {
            tracing::error!(%error, "no metrics");
            String::new()
        })
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lists = lock(&self.0.state.lists);
        f.debug_struct("Registry")
            .field("vms", &lists.vms.len())
            .field("shards", &lists.shards.len())
            .finish_non_exhaustive()
    }
}

impl State {
    /// Live VMs, newest first, one for each id. The handles are taken out from under the lock, because
    /// dropping the last one of a VM takes it again.
    pub(crate) fn live_vms(&self) -> Vec<Arc<VmMetrics>> {
        let mut vms = live(lock(&self.lists).vms.values());
        let mut seen = HashSet::with_capacity(vms.len());
        vms.retain(|vm| seen.insert(vm.id().to_owned()));
        vms
    }

    /// Live shards, newest first, one for each index.
    pub(crate) fn live_shards(&self) -> Vec<Arc<ShardMetrics>> {
        let mut shards = live(lock(&self.lists).shards.iter());
        let mut seen = HashSet::new();
        shards.retain(|shard| seen.insert(shard.index()));
        shards
    }

    /// The limits of live tenants.
    pub(crate) fn live_tenants(&self) -> Vec<(Box<str>, &'static str, Arc<dyn LimiterSource>)> {
        let lists = lock(&self.lists);
        let live = lists.tenants.iter();
        live.filter_map(|(name, limiter, source)| Some((name.clone(), *limiter, source.upgrade()?))).collect()
    }

    /// The limits of the host.
    pub(crate) fn live_host(&self) -> Option<Arc<dyn LimiterSource>> {
        lock(&self.lists).host.as_ref().and_then(Weak::upgrade)
    }

    /// The descriptors that the connections of all VMs share.
    pub(crate) fn live_descriptors(&self) -> Option<Arc<dyn DescriptorSource>> {
        lock(&self.lists).descriptors.as_ref().and_then(Weak::upgrade)
    }

    pub(crate) fn forget_vm(&self, number: u64) {
        let forgotten = lock(&self.lists).vms.remove(&number);
        // The reference goes after the lock, so that no destructor ever runs under it.
        drop(forgotten);
    }
}

/// Those that are still alive, last first.
fn live<'a, T: 'a>(list: impl DoubleEndedIterator<Item = &'a Weak<T>>) -> Vec<Arc<T>> {
    list.rev().filter_map(Weak::upgrade).collect()
}

/// Locks, taking over a lock whose holder panicked: everything guarded here is valid after every statement.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "registry_test.rs"]
mod tests;
