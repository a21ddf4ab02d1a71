//! The value of `--tenant`: whom the VMs belong to, and what all VMs of it may use together, as `NAME[,KEY=VALUE]…`.
//!
//! Owns the syntax only; names and ranges are checked where the configuration is.

use ringlet::{TenantConfig, TenantLimits, VmConfig};

use super::limit::{self, LimitArg};

/// A tenant, and limits to be laid over those that it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TenantArg {
    name: String,
    limits: Option<LimitArg>,
}

/// Understands `NAME[,KEY=VALUE]…`.
pub(super) fn parse(text: &str) -> Result<TenantArg, String> {
    let (name, limits) = text.split_once(',').map_or((text, None), |(name, rest)| (name, Some(rest)));
    if name.is_empty() || name.contains('=') {
        return Err("begins with the tenant's name: acme, or acme,disk.iops=1000".into());
    }
    let limits = limits.map(limit::parse).transpose()?;
    if limits.as_ref().is_some_and(|limits| !limits.is_for_tenants()) {
        return Err(
            "a tenant has limits of disks and networks only: disk.rbps, net.rx.bps and the like".into()
        );
    }
    Ok(TenantArg { name: name.to_owned(), limits })
}

/// Gives the VM this tenant. If the configuration file names the same, its limits stay where the option says none.
pub(super) fn set(config: &mut VmConfig, arg: &TenantArg) {
    let TenantArg { name, limits } = arg;
    let named = config.ringlet.tenant.take().filter(|tenant| tenant.name == *name);
    let mut tenant =
        named.unwrap_or_else(|| TenantConfig { name: name.clone(), limits: TenantLimits::default() });
    if let Some(limits) = limits {
        limits.add_to_tenant(&mut tenant.limits);
    }
    config.ringlet.tenant = Some(tenant);
}

#[cfg(test)]
mod tests {
    use ringlet::{DiskLimits, NetLimits, NetRates};

    use super::*;

    fn tenant(file: Option<TenantConfig>, option: &str) -> TenantConfig {
        let mut config = VmConfig::new("hello");
        config.ringlet.tenant = file;
        set(&mut config, &parse(option).unwrap());
        config.ringlet.tenant.unwrap()
    }

    fn acme(disk: DiskLimits) -> TenantConfig {
        TenantConfig { name: "acme".into(), limits: TenantLimits { disk, ..TenantLimits::default() } }
    }

    #[test]
    fn a_tenant_is_a_name_and_limits_of_disks() {
        assert_eq!(tenant(None, "acme"), acme(DiskLimits::default()));
        let disk = DiskLimits { bps: Some(100 << 20), weight: Some(300), ..DiskLimits::default() };
        assert_eq!(tenant(None, "acme,disk.bps=100M,disk.weight=300"), acme(disk));
        let tx = NetRates { bps: Some(1 << 20), pps: Some(500) };
        let net = NetLimits { tx, weight: Some(50), ..NetLimits::default() };
        let limits = TenantLimits { disk, net };
        let option = "acme,disk.bps=100M,net.tx.bps=1M,net.tx.pps=500,disk.weight=300,net.weight=50";
        assert_eq!(tenant(None, option), TenantConfig { name: "acme".into(), limits });
    }

    #[test]
    fn options_are_laid_over_the_tenant_of_the_configuration_file() {
        let file = acme(DiskLimits { iops: Some(10), bps: Some(20), ..DiskLimits::default() });
        assert_eq!(tenant(Some(file.clone()), "acme"), file);
        let both = acme(DiskLimits { iops: Some(500), ..DiskLimits::default() });
        assert_eq!(tenant(Some(file.clone()), "acme,disk.iops=500,disk.bps=max"), both);
        let other = tenant(Some(file), "other,disk.riops=7");
        let disk = DiskLimits { riops: Some(7), ..DiskLimits::default() };
        assert_eq!(other, TenantConfig { name: "other".into(), ..acme(disk) });
    }

    #[test]
    fn mistakes_are_explained() {
        for (text, what) in [
            ("", "begins with the tenant's name"),
            ("disk.iops=5", "begins with the tenant's name"),
            (",disk.iops=5", "begins with the tenant's name"),
            ("acme,", "comma too many"),
            ("acme,disk.iops", "needs a value"),
            ("acme,cpu.max=50ms", "limits of disks and networks only"),
            ("acme,buffers.max=4M", "limits of disks and networks only"),
            ("acme,net=5", "there is no limit \"net\""),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(what), "{text}: {error}");
        }
    }
}
