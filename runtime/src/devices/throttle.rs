//! The limits of a VM's devices on its shard: each device has a level of its own, all disks have one together, and so have
//! all network interfaces.
//!
//! Owns which levels there are and what they are called. Every device has its level, limited or not, so that a limit can
//! be set while the VM runs.

use ringlet_io::limiter::{Level, LimitError, Limits, Shared};
use ringlet_io::{Limiter, LimiterSeed, MonoTime, Owner, ShardContext};

use crate::config::{LimitsConfig, VmConfig};
use crate::error::{Error, Result};
use crate::tenants::SharedLimits;

/// The level of all disks of a VM. No device has a name with a dot.
pub(crate) const DISKS: &str = "vm.disk";
/// The level of all network interfaces of a VM.
pub(crate) const NETS: &str = "vm.net";

/// What limits one device.
#[derive(Debug, Clone, Default)]
pub(crate) struct DeviceLimits {
    /// The device's own.
    pub(crate) own: Limits,
    /// Those of all devices of its sort in the VM, if it is of a sort that has any.
    pub(crate) together: Option<Together>,
}

/// What limits all devices of a sort together.
#[derive(Debug, Clone)]
pub(crate) struct Together {
    /// The level's name.
    pub(crate) name: &'static str,
    /// The VM's.
    pub(crate) limits: Limits,
    /// The VM's weight among others.
    pub(crate) weight: u32,
    /// What all of them of its tenant, or of the host, have together.
    pub(crate) shared: Option<Shared>,
}

/// What limits of a VM's can be for: what cannot do anything is refused, when the VM is made and later.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limitable {
    /// Whether it has disks, ...
    disks: bool,
    /// ... or network interfaces.
    nets: bool,
    /// Whether it shares what its disks may use with others, ...
    shares_disks: bool,
    /// ... and what its interfaces may.
    shares_nets: bool,
}

impl Limitable {
    pub(crate) fn of(config: &VmConfig, shared: &SharedLimits) -> Self {
        Self {
            disks: !config.drives.is_empty(),
            nets: !config.network_interfaces.is_empty(),
            shares_disks: shared.disks.is_some(),
            shares_nets: shared.nets.is_some(),
        }
    }

    /// # Errors
    /// [`Error::Config`]: a weight of a VM that shares nothing, or limits of devices that it does not have.
    pub(crate) fn check(self, limits: &LimitsConfig) -> Result<()> {
        let LimitsConfig { disk, net, .. } = limits;
        let alone = |weight, remedy| format!("{weight}, but the VM has no tenant{remedy} (`--tenant NAME`)");
        if let (Some(weight), false) = (disk.weight, self.shares_disks) {
            let remedy = ", and the runtime no limit, with others to share it: give the VM a tenant";
            return Err(Error::config("limits.disk.weight", alone(weight, remedy)));
        }
        if let (Some(weight), false) = (net.weight, self.shares_nets) {
            let remedy = " with others to share its limits: give the VM a tenant";
            return Err(Error::config("limits.net.weight", alone(weight, remedy)));
        }
        if !disk.is_default() && !self.disks {
            return Err(Error::config("limits.disk", "the VM has no disk: leave them out, or give it one"));
        }
        if !net.is_default() && !self.nets {
            let rule = "the VM has no network interface: leave them out, or give it one";
            return Err(Error::config("limits.net", rule));
        }
        Ok(())
    }
}

/// The levels that a VM's limits are for, with its weight at each.
fn levels(config: &LimitsConfig) -> [(&'static str, Limits, u32); 2] {
    let LimitsConfig { disk, net, .. } = config;
    [(DISKS, disk.limits(), disk.weight()), (NETS, net.limits(), net.weight())]
}

/// The limiter of the device `id`, to be made on its shard.
///
/// # Errors
/// [`LimitError`]: a limit cannot be.
pub(crate) fn seed(id: &str, limits: DeviceLimits) -> Result<LimiterSeed, LimitError> {
    let DeviceLimits { own, together } = limits;
    own.check()?;
    together.iter().try_for_each(|together| together.limits.check())?;
    let id = id.to_owned();
    Ok(LimiterSeed::new(move |cx, owner| plant(cx, owner, &id, &own, together.as_ref())))
}

fn plant(
    cx: &ShardContext,
    owner: &Owner,
    id: &str,
    own: &Limits,
    together: Option<&Together>,
) -> Result<Limiter, LimitError> {
    let own = level(owner, id, own)?;
    let Some(Together { name, limits, weight, shared }) = together else {
        return Ok(Limiter::levels(cx.timer(), vec![own]));
    };
    let levels = vec![own, level(owner, name, limits)?];
    Ok(match shared {
        Some(shared) => Limiter::within(cx.timer(), levels, &owner.member(name, shared, *weight)),
        None => Limiter::levels(cx.timer(), levels),
    })
}

fn level(owner: &Owner, name: &str, limits: &Limits) -> Result<Level, LimitError> {
    match owner.existing_level(name) {
        Some(level) => Ok(level),
        None => Ok(owner.add_level(name, Level::new(limits, MonoTime::now())?)),
    }
}

/// Replaces limits that `change` names, live; `Ok(false)` if there is no such level.
///
/// # Errors
/// [`LimitError`]: a limit cannot be; nothing is changed.
pub(crate) fn change(owner: &Owner, name: &str, change: &Limits) -> Result<bool, LimitError> {
    let Some(level) = owner.existing_level(name) else { return Ok(false) };
    level.change(change, MonoTime::now())?;
    Ok(true)
}

/// Gives all disks together, and all network interfaces, exactly these limits, and the VM its weights, live. Limits that
/// stay the same go on where they are.
///
/// # Errors
/// As [`change`].
pub(crate) fn limit_all(owner: &Owner, config: &LimitsConfig) -> Result<(), LimitError> {
    let levels = levels(config);
    levels.iter().try_for_each(|(_, limits, _)| limits.check())?;
    for (name, limits, weight) in levels {
        if let Some(level) = owner.existing_level(name) {
            level.change(&level.limits().change_to(&limits), MonoTime::now())?;
        }
        if let Some(member) = owner.existing_member(name) {
            member.set_weight(weight);
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "throttle_test.rs"]
mod tests;
