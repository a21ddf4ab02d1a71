//! The addresses (CIDs) that the VMs of a runtime have on their socket devices.
//!
//! Owns which are in use. No two VMs get the same by themselves; one that is asked for is given, also twice, as nothing
//! goes from one VM to another by its address.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::{MAX_CID, MIN_CID};

/// The addresses of a runtime's VMs.
#[derive(Debug, Default)]
pub(crate) struct Cids(Mutex<Taken>);

#[derive(Debug)]
struct Taken {
    /// How many VMs have each.
    users: BTreeMap<u32, usize>,
    /// Where to look for the next: one that was used lately is not given to somebody else at once.
    next: u32,
}

impl Default for Taken {
    fn default() -> Self {
        Self { users: BTreeMap::new(), next: MIN_CID }
    }
}

/// The address of one VM, as long as this lives.
#[derive(Debug)]
pub(crate) struct Cid {
    number: u32,
    cids: Arc<Cids>,
}

impl Cid {
    /// The address that is `wanted`, or one that no VM has. There are more than VMs can be.
    pub(crate) fn take(cids: &Arc<Cids>, wanted: Option<u32>) -> Self {
        let mut taken = cids.lock();
        let number = wanted.unwrap_or_else(|| taken.free());
        *taken.users.entry(number).or_default() += 1;
        Self { number, cids: Arc::clone(cids) }
    }

    pub(crate) fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Cid {
    fn drop(&mut self) {
        let mut taken = self.cids.lock();
        let users = taken.users.get(&self.number).copied().unwrap_or_default();
        if users > 1 {
            taken.users.insert(self.number, users - 1);
        } else {
            taken.users.remove(&self.number);
        }
    }
}

impl Cids {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn free(&mut self) -> u32 {
        let numbers = (self.next..=MAX_CID).chain(MIN_CID..self.next);
        let free = numbers.into_iter().find(|number| !self.users.contains_key(number)).unwrap_or(MIN_CID);
        self.next = if free < MAX_CID { free + 1 } else { MIN_CID };
        free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vm_has_its_own_and_one_that_is_free_is_not_given_again_at_once() {
        let cids = Arc::new(Cids::default());
        let wanted = Cid::take(&cids, Some(4));
        let first = Cid::take(&cids, None);
        let second = Cid::take(&cids, None);
        assert_eq!([wanted.number(), first.number(), second.number()], [4, 3, 5]);
        drop(first);
        assert_eq!(Cid::take(&cids, None).number(), 6);
        cids.lock().next = MAX_CID;
        assert_eq!(Cid::take(&cids, None).number(), MAX_CID);
        assert_eq!(Cid::take(&cids, None).number(), 3);
    }

    #[test]
    fn one_that_two_have_is_in_use_until_both_are_gone() {
        let cids = Arc::new(Cids::default());
        let both = [Cid::take(&cids, Some(3)), Cid::take(&cids, Some(3))];
        let [first, second] = both;
        drop(first);
        cids.lock().next = 3;
        assert_eq!(Cid::take(&cids, None).number(), 4);
        drop(second);
        cids.lock().next = 3;
        assert_eq!(Cid::take(&cids, None).number(), 3);
    }
}
