//! The tenants of a runtime: whom VMs belong to, and what all VMs of one may use together, on any shard.
//!
//! Owns who they are. A tenant begins with its first VM; when it has none any more, it stays until it owes nothing, so that
//! nobody is rid of what is owed by ending a VM and starting another one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringlet_io::MonoTime;
use ringlet_io::limiter::{LimitError, Limits, Shared};
use ringlet_metrics::{LimiterSource, Registry};

use crate::config::{DiskLimits, TenantConfig, TenantLimits};
use crate::error::{Error, Result};

/// What limits the devices of a VM together with those of others, by their sort.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedLimits {
    pub(crate) disks: Option<Shared>,
    pub(crate) nets: Option<Shared>,
}

/// All tenants.
pub(crate) struct Tenants {
    /// The host's limits, above those of all tenants.
    host: Shared,
    /// Above the network interfaces of all tenants, without limits.
    host_nets: Shared,
    host_is_limited: bool,
    registry: Registry,
    by_name: Mutex<HashMap<String, Arc<Tenant>>>,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Tenant {
    /// The level of its disks.
    disks: Shared,
    /// The level of its network interfaces.
    nets: Shared,
    limits: Mutex<TenantLimits>,
}

impl Tenants {
    /// None yet. `host` is what all VMs may use together, those without a tenant, too.
    pub(crate) fn new(host: DiskLimits, registry: Registry) -> Result<Self> {
        host.validate("disk_limits")?;
        if host.weight.is_some() {
            return Err(Error::config("disk_limits", "disk_limits.weight: the host shares with nobody"));
        }
        let limits = host.limits();
        let host = Shared::new(&limits, MonoTime::now()).map_err(|error| bad_limit("disk_limits", &error))?;
        if !limits.is_empty() {
            registry.register_host(Arc::clone(host.stats()) as Arc<dyn LimiterSource>);
        }
        let nets = Shared::new(&Limits::default(), MonoTime::now());
        let host_nets = nets.map_err(|error| bad_limit("tenant", &error))?;
        let host_is_limited = !limits.is_empty();
        Ok(Self { host, host_nets, host_is_limited, registry, by_name: Mutex::default() })
    }

    /// What limits the devices of a VM together with others': its tenant, or the host if that has limits.
    pub(crate) fn shared(&self, tenant: Option<&Arc<Tenant>>) -> SharedLimits {
        match tenant {
            Some(tenant) => {
                SharedLimits { disks: Some(tenant.disks.clone()), nets: Some(tenant.nets.clone()) }
            }
            None => SharedLimits { disks: self.host_is_limited.then(|| self.host.clone()), nets: None },
        }
    }

    /// The tenant of a VM that is made. An error if it has VMs, and other limits.
    pub(crate) fn enter(&self, config: &TenantConfig) -> Result<Arc<Tenant>> {
        let (mut tenants, now) = (self.lock(), MonoTime::now());
        tenants.retain(|_, tenant| has_vms(tenant) || !tenant.may_be_forgotten(now));
        if let Some(tenant) = tenants.get(&config.name) {
            if !has_vms(tenant) {
                tenant.limit(config.limits)?;
            } else if *tenant.lock() != config.limits {
                let rule =
                    format!("{:?} has VMs, and other limits; change those with `limit_tenant`", config.name);
                return Err(Error::config("tenant", rule));
            }
            return Ok(Arc::clone(tenant));
        }
        let TenantLimits { disk, net } = config.limits;
        let bad = |error| bad_limit("tenant", &error);
        let disks = self.host.tenant(&disk.limits(), disk.weight(), now).map_err(bad)?;
        let nets = self.host_nets.tenant(&net.limits(), net.weight(), now).map_err(bad)?;
        for (limiter, level) in [("disk", &disks), ("net", &nets)] {
            let source = Arc::clone(level.stats()) as Arc<dyn LimiterSource>;
            self.registry.register_tenant(&config.name, limiter, source);
        }
        let tenant = Arc::new(Tenant { disks, nets, limits: Mutex::new(config.limits) });
        tenants.insert(config.name.clone(), Arc::clone(&tenant));
        Ok(tenant)
    }

    /// Gives a tenant that has VMs these limits and no others, live.
    pub(crate) fn limit(&self, config: &TenantConfig) -> Result<()> {
        config.validate()?;
        let tenant = self.lock().get(&config.name).filter(|tenant| has_vms(tenant)).cloned();
        let unknown = || Error::config("tenant", format!("{:?} has no VMs", config.name));
        tenant.ok_or_else(unknown)?.limit(config.limits)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Tenant>>> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether somebody has it who is not the table of tenants.
fn has_vms(tenant: &Arc<Tenant>) -> bool {
    Arc::strong_count(tenant) > 1
}

impl Tenant {
    /// Whether nobody could tell if it ended and came again.
    fn may_be_forgotten(&self, now: MonoTime) -> bool {
        self.disks.may_be_forgotten(now) && self.nets.may_be_forgotten(now)
    }

    /// Gives it these limits and no others, live.
    fn limit(&self, new: TenantLimits) -> Result<()> {
        // Held, so that of two changes both levels have the later one.
        let mut limits = self.lock();
        let levels = [
            (&self.disks, new.disk.limits(), new.disk.weight()),
            (&self.nets, new.net.limits(), new.net.weight()),
        ];
        let bad = |error| bad_limit("tenant", &error);
        levels.iter().try_for_each(|(_, limits, _)| limits.check()).map_err(bad)?;
        for (level, limits, weight) in levels {
            level.change(&level.limits().change_to(&limits), MonoTime::now()).map_err(bad)?;
            level.set_weight(weight);
        }
        *limits = new;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, TenantLimits> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bad_limit(field: &'static str, error: &LimitError) -> Error {
    Error::config(field, error.to_string())
}
