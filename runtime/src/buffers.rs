//! What one VM may make the host buffer (`buffers.max`): the account, and the bill of what is taken from it for good.
//!
//! Owns what each part of a VM takes, by name. What is fixed (output on its way, kept output, what is reserved for
//! each queue and disk) is taken in full when the VM is made; the rest is taken as requests come. Never takes for a
//! request.

use std::fmt::Write;

use ringlet_devices::virtio::DeviceMemory;
use ringlet_io::{Buffers, Held};

use crate::error::{Error, Result};

/// What a VM takes, part by part.
#[derive(Debug, Default)]
pub(crate) struct Bill {
    /// Names, and what is fixed of each in bytes.
    parts: Vec<(String, u64)>,
    /// What requests can take besides, all together.
    further: u64,
}

/// The account of a VM that lives.
#[derive(Debug)]
pub(crate) struct VmBuffers {
    account: Buffers,
    bill: Bill,
    /// All that is fixed, until the VM has ended.
    _fixed: Held,
}

impl Bill {
    pub(crate) fn add(&mut self, part: impl Into<String>, memory: DeviceMemory) {
        self.parts.push((part.into(), memory.reserved));
        self.further = self.further.saturating_add(memory.further);
    }

    fn fixed(&self) -> u64 {
        self.parts.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// The number that holds: `max`, or, if absent, what the VM can take at most, so that nothing is ever held back.
    fn limit(&self, max: Option<u64>) -> Result<u64> {
        let fixed = self.fixed();
        match max {
            Some(max) if max < fixed => Err(self.too_little(max, fixed)),
            Some(max) => Ok(max),
            None => Ok(fixed.saturating_add(self.further)),
        }
    }

    fn too_little(&self, max: u64, fixed: u64) -> Error {
        let mut text = format!("{max} bytes are too few: this VM takes {fixed} before it runs (");
        for (index, (part, bytes)) in self.parts.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            let _ = write!(text, "{comma}{part} {bytes}");
        }
        Error::config("buffers.max", text + ")")
    }
}

impl VmBuffers {
    /// The account of a VM that is made.
    ///
    /// # Errors
    /// `max` is less than what is fixed.
    pub(crate) fn open(bill: Bill, max: Option<u64>) -> Result<Self> {
        let account = Buffers::new(bill.limit(max)?);
        let fixed = account.try_take(bill.fixed());
        let fixed = fixed.ok_or_else(|| bill.too_little(account.reading().max, bill.fixed()))?;
        Ok(Self { account, bill, _fixed: fixed })
    }

    pub(crate) fn account(&self) -> &Buffers {
        &self.account
    }

    /// What [`Self::set_max`] would refuse.
    pub(crate) fn check(&self, max: Option<u64>) -> Result<()> {
        self.bill.limit(max).map(drop)
    }

    /// Changes the limit, live. What was taken stays taken; what requests take besides is granted by the new one.
    pub(crate) fn set_max(&self, max: Option<u64>) -> Result<()> {
        self.account.set_max(self.bill.limit(max)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bill() -> Bill {
        let mut bill = Bill::default();
        bill.add("serial port", DeviceMemory { reserved: 1000, further: 0 });
        bill.add("disk0", DeviceMemory { reserved: 200, further: 3000 });
        bill
    }

    #[test]
    fn without_a_number_there_is_room_for_all_that_can_come() {
        let buffers = VmBuffers::open(bill(), None).unwrap();
        let reading = buffers.account().reading();
        assert_eq!((reading.used, reading.max), (1200, 4200));
        assert!(buffers.account().try_take(3000).is_some());
    }

    #[test]
    fn what_is_fixed_has_to_fit_and_the_error_says_what_takes_how_much() {
        assert!(VmBuffers::open(bill(), Some(1200)).is_ok());
        let error = VmBuffers::open(bill(), Some(1199)).unwrap_err().to_string();
        assert!(error.contains("buffers.max: 1199 bytes are too few"), "{error}");
        assert!(error.contains("takes 1200 before it runs (serial port 1000, disk0 200)"), "{error}");
    }

    #[test]
    fn the_limit_changes_for_what_is_not_fixed() {
        let buffers = VmBuffers::open(bill(), Some(2000)).unwrap();
        assert!(buffers.check(Some(1199)).is_err() && buffers.set_max(Some(1199)).is_err());
        assert_eq!(buffers.account().reading().max, 2000);
        buffers.set_max(Some(1300)).unwrap();
        assert!(buffers.account().try_take(101).is_none());
        assert!(buffers.account().try_take(100).is_some());
        buffers.set_max(None).unwrap();
        assert_eq!(buffers.account().reading().max, 4200);
    }

    #[test]
    fn a_vm_that_has_ended_takes_nothing() {
        let buffers = VmBuffers::open(bill(), None).unwrap();
        let account = buffers.account().clone();
        drop(buffers);
        assert_eq!(account.reading().used, 0);
    }
}
