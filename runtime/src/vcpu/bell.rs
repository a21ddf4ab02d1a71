//! Where a thread sleeps until somebody rings. Whoever rings never waits: there is no lock that a sleeper could hold
//! while it has no CPU.
//!
//! A futex (futex(2)) that counts the rings: a sleeper notes the count, looks whether it has to sleep, and sleeps only if
//! nobody has rung since.

use std::time::Duration;

pub(super) use imp::Bell;

#[cfg(not(all(test, ringlet_loom)))]
mod imp {
    use std::sync::atomic::{AtomicU32, Ordering};

    use rustix::thread::futex::{self, Flags, Timespec};

    use super::Duration;

    #[derive(Debug, Default)]
    pub(in crate::vcpu) struct Bell(AtomicU32);

    impl Bell {
        /// How often it has rung.
        pub(in crate::vcpu) fn heard(&self) -> u32 {
            self.0.load(Ordering::SeqCst)
        }

        /// Wakes all who sleep.
        pub(in crate::vcpu) fn ring(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
            // Cannot fail: the address is valid and aligned.
            let _ = futex::wake(&self.0, Flags::PRIVATE, i32::MAX.cast_unsigned());
        }

        /// Sleeps until it rings, at most so long; not at all if it has rung since `heard`. May return early.
        pub(in crate::vcpu) fn wait(&self, heard: u32, at_most: Option<Duration>) {
            let at_most = at_most.and_then(|time| Timespec::try_from(time).ok());
            // It rang (EAGAIN), a signal came, or time is over: the caller looks again in any case.
            let _ = futex::wait(&self.0, Flags::PRIVATE, heard, at_most.as_ref());
        }
    }
}

/// What the kernel does, in terms that loom knows.
#[cfg(all(test, ringlet_loom))]
mod imp {
    use loom::sync::{Condvar, Mutex};

    use super::Duration;

    pub(in crate::vcpu) struct Bell(Mutex<u32>, Condvar);

    impl Default for Bell {
        fn default() -> Self {
            Self(Mutex::new(0), Condvar::new())
        }
    }

    impl Bell {
        pub(in crate::vcpu) fn heard(&self) -> u32 {
            *self.0.lock().unwrap()
        }

        pub(in crate::vcpu) fn ring(&self) {
            *self.0.lock().unwrap() += 1;
            self.1.notify_all();
        }

        pub(in crate::vcpu) fn wait(&self, heard: u32, _at_most: Option<Duration>) {
            let rings = self.0.lock().unwrap();
            if *rings == heard {
                drop(self.1.wait(rings).unwrap());
            }
        }
    }
}
