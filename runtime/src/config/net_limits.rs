//! Limits of all network interfaces of a VM, or of a tenant.

use ringlet_io::limiter::{DEFAULT_WEIGHT, Limits, PerUnit, TokenBucket};
use serde::{Deserialize, Serialize};

use super::limits::{MAX_WEIGHT, bucket};
use crate::error::{Error, Result};

/// Limits of all network interfaces of a VM together, for each second. Each is a token bucket that holds a tenth of a
/// second of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetLimits {
    /// What the guests receive.
    #[serde(skip_serializing_if = "NetRates::is_default")]
    pub rx: NetRates,
    /// What the guests send.
    #[serde(skip_serializing_if = "NetRates::is_default")]
    pub tx: NetRates,
    /// Share of what the tenant may use, beside others that want it too: 1 to [`MAX_WEIGHT`]; 100 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

/// Limits of one direction, for each second: 1 or more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetRates {
    /// Bytes of frames.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bps: Option<u64>,
    /// Packets: what the guest is given or gives at once, which may be several segments or
    /// datagrams (up to 256); those that are sent one by one are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pps: Option<u64>,
}

impl NetRates {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    fn per_unit(self) -> PerUnit<TokenBucket> {
        PerUnit { operations: self.pps.map(bucket), bytes: self.bps.map(bucket) }
    }
}

impl NetLimits {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The limits that the interfaces' level is to have: what is received is read, what is sent is written.
    pub(crate) fn limits(&self) -> Limits {
        Limits { read: self.rx.per_unit(), write: self.tx.per_unit(), ..Limits::default() }
    }

    /// The weight, or the one of who does not say.
    pub(crate) fn weight(&self) -> u32 {
        self.weight.unwrap_or(DEFAULT_WEIGHT)
    }

    /// Checks every range; the limits are `field` of the configuration.
    pub(crate) fn validate(&self, field: &'static str) -> Result<()> {
        if !(1..=MAX_WEIGHT).contains(&self.weight()) {
            return Err(Error::config(field, format!("weight {} is not in 1..={MAX_WEIGHT}", self.weight())));
        }
        let NetRates { bps: rx_bytes, pps: rx_packets } = self.rx;
        let NetRates { bps: tx_bytes, pps: tx_packets } = self.tx;
        let rates =
            [("rx.bps", rx_bytes), ("rx.pps", rx_packets), ("tx.bps", tx_bytes), ("tx.pps", tx_packets)];
        match rates.into_iter().find(|(_, value)| *value == Some(0)) {
            Some((rate, _)) => {
                Err(Error::config(field, format!("{rate} is 0: nothing would ever pass; say 1 or more")))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_direction_has_its_meters() {
        let rates = |bps, pps| NetRates { bps: Some(bps), pps: Some(pps) };
        let limits = NetLimits { rx: rates(1000, 20), tx: rates(3000, 40), weight: None };
        let Limits { read, write, total } = limits.limits();
        let per_second = |unit: PerUnit<TokenBucket>| {
            [unit.bytes, unit.operations].map(|bucket| bucket.unwrap().size * 10)
        };
        assert_eq!((per_second(read), per_second(write)), ([1000, 20], [3000, 40]));
        assert_eq!(total, PerUnit::default());
        assert!(limits.validate("net").is_ok());
    }

    #[test]
    fn sec_07_limits_of_networks_that_cannot_be_are_refused() {
        let zero = NetRates { bps: None, pps: Some(0) };
        for (limits, what) in [
            (NetLimits { rx: zero, ..NetLimits::default() }, "rx.pps is 0"),
            (NetLimits { tx: zero, ..NetLimits::default() }, "tx.pps is 0"),
            (NetLimits { weight: Some(0), ..NetLimits::default() }, "weight 0"),
            (NetLimits { weight: Some(MAX_WEIGHT + 1), ..NetLimits::default() }, "weight 10001"),
        ] {
            let error = limits.validate("limits.net").unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("limits.net"), "{error}");
        }
    }
}
