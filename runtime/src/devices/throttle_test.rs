use super::*;
use crate::config::{DiskLimits, Drive, NetLimits, NetRates, NetworkInterface};

fn refusal(config: &VmConfig, limits: LimitsConfig) -> String {
    let shared = SharedLimits { disks: None, nets: None };
    Limitable::of(config, &shared).check(&limits).err().map(|error| error.to_string()).unwrap_or_default()
}

#[test]
fn limits_that_could_do_nothing_are_refused() {
    let (bare, default) = (VmConfig::new("hello"), LimitsConfig::default());
    let full = bare.clone().drive(Drive::null("a", 512)).network_interface(NetworkInterface::tap("b", "c"));
    let disk = default.disk(DiskLimits { iops: Some(1), ..DiskLimits::default() });
    let rates = NetRates { bps: None, pps: Some(1) };
    let net = default.net(NetLimits { rx: rates, ..NetLimits::default() });
    for (config, limits, told) in [
        (&bare, default, ""),
        (&bare, disk, "limits.disk: the VM has no disk"),
        (&bare, net, "limits.net: the VM has no network interface"),
        (&full, disk, ""),
        (&full, net, ""),
    ] {
        let refusal = refusal(config, limits);
        assert!(refusal.starts_with(told) && refusal.is_empty() == told.is_empty(), "{refusal}");
    }
}

#[test]
fn a_weight_needs_others_to_share_with() {
    let config = VmConfig::new("hello")
        .drive(Drive::null("a", 512))
        .network_interface(NetworkInterface::tap("b", "c"));
    let disk = LimitsConfig::default().disk(DiskLimits { weight: Some(300), ..DiskLimits::default() });
    let net = LimitsConfig::default().net(NetLimits { weight: Some(50), ..NetLimits::default() });
    for (limits, field) in [(disk, "limits.disk.weight: 300"), (net, "limits.net.weight: 50")] {
        let refusal = refusal(&config, limits);
        assert!(
            refusal.starts_with(field) && refusal.contains("give the VM a tenant (`--tenant NAME`)"),
            "{refusal}"
        );
    }
}
