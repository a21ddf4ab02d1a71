//! The limits of a VM's devices on its shard: each device has a level of its own, and all disks have one together.
//!
//! Owns which levels there are and what they are called. Every device has its level, limited or not, so that a limit can
//! be set while the VM runs.

use ringlet_io::limiter::{Level, LimitError, Limits};
use ringlet_io::{Gate, Limiter, LimiterSeed, MonoTime, Owner};

/// The level of all disks of a VM. No device has a name with a dot.
pub(crate) const DISKS: &str = "vm.disk";

/// What limits one device.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct DeviceLimits {
    /// The device's own.
    pub(crate) own: Limits,
    /// Those of all disks of the VM, if it is one.
    pub(crate) disks: Option<Limits>,
}

/// The limiter of the device `id`, to be made on its shard.
///
/// # Errors
/// [`LimitError`]: a limit cannot be.
pub(crate) fn seed(id: &str, limits: DeviceLimits) -> Result<LimiterSeed, LimitError> {
    let DeviceLimits { own, disks } = limits;
    own.check()?;
    disks.iter().try_for_each(Limits::check)?;
    let id = id.to_owned();
    Ok(LimiterSeed::new(move |cx, owner| {
        let own = (id.as_str(), own);
        let levels = [Some(own), disks.map(|disks| (DISKS, disks))].into_iter().flatten();
        let levels = levels.map(|(name, limits)| level(owner, name, &limits)).collect::<Result<_, _>>();
        levels.map_or_else(
            // They were checked. Should that be wrong, nothing passes rather than everything.
            |error| {
                tracing::error!(%error, device = id, "a limit that was checked cannot be");
                Limiter::gated(Gate::new())
            },
            |levels| Limiter::levels(cx.timer(), levels),
        )
    }))
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

/// Gives a level exactly these limits, live, if it is there. Those that stay the same go on where they are.
///
/// # Errors
/// As [`change`].
pub(crate) fn replace(owner: &Owner, name: &str, limits: &Limits) -> Result<(), LimitError> {
    let Some(level) = owner.existing_level(name) else { return Ok(()) };
    level.change(&level.limits().change_to(limits), MonoTime::now())
}
