//! The limits of a VM's devices on its shard: each device has a level of its own, and all disks have one together.
//!
//! Owns which levels there are and what they are called. Every device has its level, limited or not, so that a limit can
//! be set while the VM runs.

use ringlet_io::limiter::{Level, LimitError, Limits, Shared};
use ringlet_io::{Limiter, LimiterSeed, MonoTime, Owner, ShardContext};

use crate::config::DiskLimits;

/// The level of all disks of a VM. No device has a name with a dot.
pub(crate) const DISKS: &str = "vm.disk";

/// What limits one device.
#[derive(Debug, Clone, Default)]
pub(crate) struct DeviceLimits {
    /// The device's own.
    pub(crate) own: Limits,
    /// Those of all disks of the VM, if it is one.
    pub(crate) disks: Option<DisksLimits>,
}

/// What limits all disks of a VM together.
#[derive(Debug, Clone)]
pub(crate) struct DisksLimits {
    /// The VM's, and its weight among others.
    pub(crate) limits: DiskLimits,
    /// What all disks of its tenant, or of the host, have together.
    pub(crate) shared: Option<Shared>,
}

/// The limiter of the device `id`, to be made on its shard.
///
/// # Errors
/// [`LimitError`]: a limit cannot be.
pub(crate) fn seed(id: &str, limits: DeviceLimits) -> Result<LimiterSeed, LimitError> {
    let DeviceLimits { own, disks } = limits;
    own.check()?;
    disks.iter().try_for_each(|disks| disks.limits.limits().check())?;
    let id = id.to_owned();
    Ok(LimiterSeed::new(move |cx, owner| plant(cx, owner, &id, &own, disks.as_ref())))
}

fn plant(
    cx: &ShardContext,
    owner: &Owner,
    id: &str,
    own: &Limits,
    disks: Option<&DisksLimits>,
) -> Result<Limiter, LimitError> {
    let own = level(owner, id, own)?;
    let Some(DisksLimits { limits, shared }) = disks else {
        return Ok(Limiter::levels(cx.timer(), vec![own]));
    };
    let levels = vec![own, level(owner, DISKS, &limits.limits())?];
    Ok(match shared {
        Some(shared) => Limiter::within(cx.timer(), levels, &owner.member(shared, limits.weight())),
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

/// Gives all disks together exactly these limits, and the VM its weight, live. Limits that stay the same go on where
/// they are.
///
/// # Errors
/// As [`change`].
pub(crate) fn limit_disks(owner: &Owner, limits: &DiskLimits) -> Result<(), LimitError> {
    if let Some(level) = owner.existing_level(DISKS) {
        level.change(&level.limits().change_to(&limits.limits()), MonoTime::now())?;
    }
    if let Some(member) = owner.existing_member() {
        member.set_weight(limits.weight());
    }
    Ok(())
}
