//! The tenants of a runtime: whom VMs belong to, and what all VMs of one may use together, on any shard.
//!
//! Owns who they are. A tenant begins with its first VM and ends with its last.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use ringlet_io::MonoTime;
use ringlet_io::limiter::{LimitError, Shared};
use ringlet_metrics::{LimiterSource, Registry};

use crate::config::{DiskLimits, TenantConfig, TenantLimits};
use crate::error::{Error, Result};

/// All tenants.
pub(crate) struct Tenants {
    /// The host's limits, above those of all tenants.
    host: Shared,
    host_is_limited: bool,
    registry: Registry,
    by_name: Mutex<HashMap<String, Weak<Tenant>>>,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Tenant {
    /// The level of its disks.
    pub(crate) disks: Shared,
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
        Ok(Self { host, host_is_limited: !limits.is_empty(), registry, by_name: Mutex::default() })
    }

    /// What limits the disks of a VM together with others': its tenant, or the host if that has limits.
    pub(crate) fn disks(&self, tenant: Option<&Arc<Tenant>>) -> Option<Shared> {
        let host = || self.host_is_limited.then(|| self.host.clone());
        tenant.map(|tenant| tenant.disks.clone()).or_else(host)
    }

    /// The tenant of a VM that is made. An error if it is there with other limits.
    pub(crate) fn enter(&self, config: &TenantConfig) -> Result<Arc<Tenant>> {
        let mut tenants = self.lock();
        if let Some(tenant) = tenants.get(&config.name).and_then(Weak::upgrade) {
            if *tenant.lock() != config.limits {
                let rule =
                    format!("{:?} has VMs, and other limits; change those with `limit_tenant`", config.name);
                return Err(Error::config("tenant", rule));
            }
            return Ok(tenant);
        }
        let TenantLimits { disk } = config.limits;
        let disks = self.host.tenant(&disk.limits(), disk.weight(), MonoTime::now());
        let disks = disks.map_err(|error| bad_limit("tenant", &error))?;
        self.registry.register_tenant(&config.name, Arc::clone(disks.stats()) as Arc<dyn LimiterSource>);
        let tenant = Arc::new(Tenant { disks, limits: Mutex::new(config.limits) });
        tenants.retain(|_, tenant| tenant.strong_count() > 0);
        tenants.insert(config.name.clone(), Arc::downgrade(&tenant));
        Ok(tenant)
    }

    /// Gives a tenant that has VMs these limits and no others, live.
    pub(crate) fn limit(&self, config: &TenantConfig) -> Result<()> {
        config.validate()?;
        let tenant = self.lock().get(&config.name).and_then(Weak::upgrade);
        let unknown = || Error::config("tenant", format!("{:?} has no VMs", config.name));
        let tenant = tenant.ok_or_else(unknown)?;
        let TenantLimits { disk } = config.limits;
        // Held, so that of two changes both levels have the later one.
        let mut limits = tenant.lock();
        let change = tenant.disks.limits().change_to(&disk.limits());
        tenant.disks.change(&change, MonoTime::now()).map_err(|error| bad_limit("tenant", &error))?;
        tenant.disks.set_weight(disk.weight());
        *limits = config.limits;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Weak<Tenant>>> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tenant {
    fn lock(&self) -> MutexGuard<'_, TenantLimits> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bad_limit(field: &'static str, error: &LimitError) -> Error {
    Error::config(field, error.to_string())
}
