//! SIGHUP: takes the limits of the configuration file anew, for VMs that run.
//!
//! Owns what has changed since the last time. Everything else in the file needs a new VM, and is left alone.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;

use ringlet::{
    Bucket, CONSOLE_ID, Drive, ENTROPY_ID, Error, NetworkInterface, RateLimiter, Runtime, TenantConfig,
    VSOCK_ID, Vm, VmConfig, Vsock,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::CliResult;
use super::run::RunArgs;

/// What a bucket becomes that is not in the file any more.
const UNLIMITED: Bucket = Bucket { size: 0, one_time_burst: None, refill_time: 0 };

/// SIGHUPs from now on, which end nothing any more.
pub(super) fn hangups() -> io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// Applies the file's limits with each SIGHUP; `config` is what they were made of, and becomes the new one when all of
/// them hold. What cannot be applied is said on standard error, and tried again with the next SIGHUP.
pub(super) async fn on_hangup(
    hangups: &mut Option<Signal>,
    args: &RunArgs,
    config: &RefCell<VmConfig>,
    runtime: &Runtime,
    vms: &[Vm],
) -> Infallible {
    loop {
        let told = match hangups {
            Some(hangups) => hangups.recv().await,
            None => None,
        };
        if told.is_none() {
            return std::future::pending().await;
        }
        match args.config() {
            Ok(new) => {
                let old = config.borrow().clone();
                match apply(&old, &new, runtime, vms).await {
                    Ok(changes) => {
                        eprintln!("ringlet: {}", say(changes, vms.len()));
                        config.replace(new);
                    }
                    Err(error) => eprintln!("ringlet: the new limits do not all hold: {error}"),
                }
            }
            Err(error) => eprintln!("ringlet: the limits stay as they are: {error}"),
        }
    }
}

fn say(changes: usize, vms: usize) -> String {
    match (changes, vms) {
        (0, _) => "the configuration file asks for no other limits".into(),
        (1, 1) => "1 limit changed".into(),
        (changes, 1) => format!("{changes} limits changed"),
        (changes, vms) => format!("{changes} limits changed, of {vms} VMs"),
    }
}

/// Gives the VMs the limits of `new`, where they differ from those of `old`; how many differ. One that cannot be given
/// keeps no other from being given; the error names all that could not.
async fn apply(old: &VmConfig, new: &VmConfig, runtime: &Runtime, vms: &[Vm]) -> CliResult<usize> {
    let tenant = changed_tenant(old, new)?;
    tenant.map_or(Ok(()), |tenant| runtime.limit_tenant(tenant))?;
    let devices = changed_devices(old, new);
    let whole = old.ringlet.limits != new.ringlet.limits;
    let mut failed = Vec::new();
    for vm in vms {
        match apply_to(vm, whole.then_some(new), &devices).await {
            // It has ended.
            Ok(()) | Err(Error::State { .. }) => {}
            Err(error) => failed.push(format!("{}: {error}", vm.name())),
        }
    }
    if !failed.is_empty() {
        return Err(failed.join("; ").into());
    }
    Ok(devices.len() + usize::from(whole) + usize::from(tenant.is_some()))
}

async fn apply_to(vm: &Vm, whole: Option<&VmConfig>, devices: &[(String, Change)]) -> ringlet::Result<()> {
    let mut result = Ok(());
    if let Some(config) = whole {
        result = vm.set_limits(config.ringlet.limits).await;
    }
    for (device, change) in devices {
        result = result.and(match *change {
            Change::Both(limiter) => vm.set_rate_limiter(device, limiter).await,
            Change::Net { received, sent } => vm.set_net_rate_limiters(device, received, sent).await,
        });
    }
    result
}

/// What a device's limits become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// Of both directions together.
    Both(RateLimiter),
    /// Of a network interface, or of sockets.
    Net { received: RateLimiter, sent: RateLimiter },
}

/// The tenant, if it has other limits than before. VMs stay with the one that they have.
fn changed_tenant<'a>(old: &VmConfig, new: &'a VmConfig) -> CliResult<Option<&'a TenantConfig>> {
    let (old, new) = (old.ringlet.tenant.as_ref(), new.ringlet.tenant.as_ref());
    if old.map(|tenant| &tenant.name) != new.map(|tenant| &tenant.name) {
        return Err("a VM that runs cannot get another tenant".into());
    }
    Ok(new.filter(|_| old != new))
}

/// The devices with other limits than before, and the change for each. A device that is not in the new file keeps those
/// that it has, as it stays itself.
fn changed_devices(old: &VmConfig, new: &VmConfig) -> Vec<(String, Change)> {
    let changed = |old: &Drive| {
        let new = new.drives.iter().find(|new| new.drive_id == old.drive_id)?;
        let change = change(old.rate_limiter.unwrap_or_default(), new.rate_limiter.unwrap_or_default())?;
        Some((old.drive_id.clone(), Change::Both(change)))
    };
    let mut changes: Vec<_> = old.drives.iter().filter_map(changed).collect();
    let interfaces = old.network_interfaces.iter();
    changes.extend(interfaces.filter_map(|old| changed_interface(old, &new.network_interfaces)));
    if let (Some(old), Some(new)) = (&old.vsock, &new.vsock) {
        let directions = |vsock: &Vsock| [vsock.ringlet.rx_rate_limiter, vsock.ringlet.tx_rate_limiter];
        let change = changed_directions(directions(old), directions(new));
        changes.extend(change.map(|change| (VSOCK_ID.to_owned(), change)));
    }
    if let (Some(old), Some(new)) = (old.entropy, new.entropy) {
        let change = change(old.rate_limiter.unwrap_or_default(), new.rate_limiter.unwrap_or_default());
        changes.extend(change.map(|change| (ENTROPY_ID.to_owned(), Change::Both(change))));
    }
    if old.ringlet.console && new.ringlet.console {
        let of = |config: &VmConfig| config.ringlet.console_rate_limiter.unwrap_or_default();
        let change = change(of(old), of(new)).map(Change::Both);
        changes.extend(change.map(|change| (CONSOLE_ID.to_owned(), change)));
    }
    changes
}

/// The change of an interface, if it is in the new file with other limits.
fn changed_interface(old: &NetworkInterface, new: &[NetworkInterface]) -> Option<(String, Change)> {
    let new = new.iter().find(|new| new.iface_id == old.iface_id)?;
    let directions = |interface: &NetworkInterface| [interface.rx_rate_limiter, interface.tx_rate_limiter];
    Some((old.iface_id.clone(), changed_directions(directions(old), directions(new))?))
}

/// The change of what is received and of what is sent, if there is one.
fn changed_directions(old: [Option<RateLimiter>; 2], new: [Option<RateLimiter>; 2]) -> Option<Change> {
    let change = |old: Option<RateLimiter>, new: Option<RateLimiter>| {
        change(old.unwrap_or_default(), new.unwrap_or_default()).unwrap_or_default()
    };
    let ([old_received, old_sent], [new_received, new_sent]) = (old, new);
    let (received, sent) = (change(old_received, new_received), change(old_sent, new_sent));
    ([received, sent] != [RateLimiter::default(); 2]).then_some(Change::Net { received, sent })
}

/// What makes `new` of `old`; `None` if they are the same. A bucket that stays the same keeps its tokens.
fn change(old: RateLimiter, new: RateLimiter) -> Option<RateLimiter> {
    let bucket = |old: Option<Bucket>, new: Option<Bucket>| match new {
        _ if old == new => None,
        None => Some(UNLIMITED),
        new => new,
    };
    let change =
        RateLimiter { bandwidth: bucket(old.bandwidth, new.bandwidth), ops: bucket(old.ops, new.ops) };
    (change != RateLimiter::default()).then_some(change)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(limiter: Option<RateLimiter>) -> VmConfig {
        let mut config = VmConfig::new("blkbench").entropy();
        config.drives.push(Drive { rate_limiter: limiter, ..Drive::null("data", 1 << 20) });
        config
    }

    #[test]
    fn only_buckets_that_differ_are_changed() {
        let (slow, fast) = (RateLimiter::operations(100), RateLimiter::operations(2000));
        assert_eq!(changed_devices(&disk(Some(slow)), &disk(Some(slow))), []);
        assert_eq!(changed_devices(&disk(None), &disk(Some(slow))), [("data".into(), Change::Both(slow))]);
        let both = RateLimiter { bandwidth: RateLimiter::bytes(1 << 20).bandwidth, ..slow };
        let bytes_only = RateLimiter { ops: None, ..both };
        assert_eq!(
            changed_devices(&disk(Some(slow)), &disk(Some(both))),
            [("data".into(), Change::Both(bytes_only))]
        );
        assert_eq!(
            changed_devices(&disk(Some(slow)), &disk(Some(fast))),
            [("data".into(), Change::Both(fast))]
        );
    }

    #[test]
    fn a_device_that_is_gone_from_the_file_keeps_its_limits() {
        let mut limited = disk(Some(RateLimiter::bytes(1 << 20)));
        limited.entropy.as_mut().unwrap().rate_limiter = Some(RateLimiter::operations(10));
        assert_eq!(changed_devices(&limited, &VmConfig::new("blkbench")), []);
    }

    #[test]
    fn the_console_has_limits_as_any_device() {
        let slow = RateLimiter::bytes(1 << 10);
        let (plain, limited) = (disk(None).console(), disk(None).console().console_rate_limiter(slow));
        assert_eq!(changed_devices(&plain, &limited), [(CONSOLE_ID.into(), Change::Both(slow))]);
        let gone = RateLimiter { bandwidth: Some(UNLIMITED), ops: None };
        assert_eq!(changed_devices(&limited, &plain), [(CONSOLE_ID.into(), Change::Both(gone))]);
        assert_eq!(changed_devices(&limited, &disk(None)), []);
    }

    #[test]
    fn directions_of_an_interface_change_apart() {
        let config = |received, sent| {
            let interface = NetworkInterface::tap("net0", "tap0").rate_limiters(received, sent);
            VmConfig::new("http").network_interface(interface)
        };
        let (slow, fast, none) =
            (RateLimiter::bytes(1 << 10), RateLimiter::bytes(1 << 20), RateLimiter::default());
        let net = |received, sent| vec![("net0".to_owned(), Change::Net { received, sent })];
        assert_eq!(changed_devices(&config(slow, fast), &config(slow, fast)), []);
        assert_eq!(changed_devices(&config(slow, fast), &config(slow, slow)), net(none, slow));
        assert_eq!(changed_devices(&config(slow, fast), &config(fast, fast)), net(fast, none));
        let gone = RateLimiter { bandwidth: Some(UNLIMITED), ops: None };
        assert_eq!(changed_devices(&config(slow, none), &config(none, slow)), net(gone, slow));
        assert_eq!(changed_devices(&config(slow, slow), &VmConfig::new("http")), []);
    }

    #[test]
    fn directions_of_sockets_change_apart() {
        let (slow, fast) = (RateLimiter::bytes(1 << 10), RateLimiter::bytes(1 << 20));
        let config = |sent| VmConfig::new("vsock-echo").vsock(Vsock::new().rate_limiters(slow, sent));
        let change = Change::Net { received: RateLimiter::default(), sent: fast };
        assert_eq!(changed_devices(&config(slow), &config(fast)), [(VSOCK_ID.into(), change)]);
        assert_eq!(changed_devices(&config(slow), &VmConfig::new("vsock-echo")), []);
    }

    #[test]
    fn a_limit_that_is_gone_from_the_file_is_taken_away() {
        let mut limited = disk(Some(RateLimiter::bytes(1 << 20)));
        limited.entropy.as_mut().unwrap().rate_limiter = Some(RateLimiter::operations(10));
        let changes = changed_devices(&limited, &disk(None));
        let gone = |bandwidth, ops| Change::Both(RateLimiter { bandwidth, ops });
        assert_eq!(
            changes,
            [("data".into(), gone(Some(UNLIMITED), None)), (ENTROPY_ID.into(), gone(None, Some(UNLIMITED)))]
        );
    }
}
