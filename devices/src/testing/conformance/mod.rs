//! What every virtio device must do right, whatever it is: instantiated by
//! [`virtio_conformance!`](crate::virtio_conformance) for each device and on both engines.
//!
//! Tests of what happens to requests in flight do nothing for a device that cannot hold its requests
//! ([`Subject::release`]).

mod lifecycle;
mod races;
mod registers;
mod rings;

pub use lifecycle::*;
pub use races::*;
pub use registers::*;
pub use rings::*;

use ringlet_io::{EngineKind, Gate, GuestRam, LimiterSeed};

use super::driver::{Buffer, DriverQueue};
use super::options::Options;
use super::rig::{Rig, Subject, wait_until};

/// Makes the device under test.
pub type MakeSubject = fn() -> Subject;

/// Fails a test that needs io_uring where there is none: it must not pass for the wrong reason.
pub fn require(engine: EngineKind) {
    if let (EngineKind::Uring, Err(reason)) = (engine, ringlet_io::probe_uring()) {
        panic!("this test needs io_uring: {reason}");
    }
}

/// A rig with what is known of its device.
struct Bench {
    rig: Rig,
    queue: u16,
    request: fn(&GuestRam, u64) -> Vec<Buffer>,
    release: Option<Box<dyn Fn() + Send + Sync>>,
}

impl Bench {
    fn with(subject: MakeSubject, options: Options) -> Self {
        let mut subject = subject();
        let (queue, request, release) = (subject.queue, subject.request, subject.release.take());
        Self { rig: Rig::new(subject, options), queue, request, release }
    }

    /// A device that holds nothing.
    fn new(engine: EngineKind, subject: MakeSubject) -> Self {
        let bench = Self::with(subject, Options::new(engine));
        bench.release();
        bench
    }

    /// A device whose requests wait for their admission.
    fn gated(engine: EngineKind, subject: MakeSubject) -> (Self, Gate) {
        let gate = Gate::new();
        let limiter = LimiterSeed::gated(gate.clone());
        let bench = Self::with(subject, Options { limiter, ..Options::new(engine) });
        bench.release();
        (bench, gate)
    }

    /// A device that holds its requests in flight, if it can.
    fn held(engine: EngineKind, subject: MakeSubject) -> Option<Self> {
        let bench = Self::with(subject, Options::new(engine));
        bench.release.is_some().then_some(bench)
    }

    /// Lets what is in flight go on.
    fn release(&self) {
        if let Some(release) = &self.release {
            release();
        }
    }

    /// Brings the device up with all that it offers; gives the queue for requests.
    fn up(&self) -> DriverQueue {
        self.up_with(self.rig.offered())
    }

    fn up_with(&self, features: u64) -> DriverQueue {
        self.rig.bring_up(features).swap_remove(self.queue.into())
    }

    /// The buffers of request `n`, in memory of its own.
    fn buffers(&self, n: u64) -> Vec<Buffer> {
        (self.request)(&self.rig.ram, Rig::DATA + (n % 16) * 0x1_0000)
    }

    /// Offers request `n` and notifies; gives its head.
    fn ask(&self, queue: &mut DriverQueue, n: u64) -> u16 {
        let buffers = self.buffers(n);
        self.rig.send(queue, &buffers)
    }

    /// Makes a request and waits for its completion.
    fn serve(&self, queue: &mut DriverQueue, n: u64) {
        let head = self.ask(queue, n);
        let used = self.rig.used(queue);
        assert_eq!(used.head, head, "the chain that was offered is used");
    }

    /// Makes `count` requests that stay in flight.
    fn hold(&self, queue: &mut DriverQueue, count: u64) {
        for n in 0..count {
            let _ = self.ask(queue, n);
        }
        wait_until("requests are in flight", || self.rig.metrics.in_flight.get() == count as i64);
    }

    /// All of the guest's memory.
    fn memory(&self) -> Vec<Vec<u8>> {
        let copy = |gpa: u64, len: u64| {
            let mut bytes = vec![0; len as usize];
            self.rig.ram.read(gpa, &mut bytes).unwrap();
            bytes
        };
        self.rig.ram.regions().map(|region| copy(region.gpa, region.len)).collect()
    }

    /// Checks that nothing writes guest memory any more.
    fn assert_memory_rests(&self) {
        let before = self.memory();
        self.release();
        self.rig.settle();
        assert!(self.memory() == before, "guest memory changed after the reset was complete");
    }
}

/// Makes the conformance tests of a device: `virtio_conformance!(name, subject)` where `subject` is a
/// `fn() -> Subject`. They are in the module `name`, once for each engine.
#[macro_export]
macro_rules! virtio_conformance {
    ($name:ident, $subject:path) => {
        mod $name {
            #[allow(unused_imports, reason = "the subject is looked for where the macro is used")]
            use super::*;
            mod uring {
                #[allow(unused_imports, reason = "as above")]
                use super::*;
                $crate::virtio_conformance!(@all Uring, $subject);
            }
            mod epoll {
                #[allow(unused_imports, reason = "as above")]
                use super::*;
                $crate::virtio_conformance!(@all Epoll, $subject);
            }
        }
    };
    (@all $engine:ident, $subject:path) => {
        $crate::virtio_conformance!(@each $engine, $subject:
            sec_07_registers_say_what_the_device_is,
            sec_07_features_are_negotiated,
            sec_07_the_order_of_the_status_is_enforced,
            sec_07_queue_sizes_and_addresses_are_checked,
            sec_08_registers_take_any_access_at_any_time,
            sec_08_queue_registers_are_closed_while_the_queue_lives,
            sec_07_the_configuration_is_read_by_its_length,
            sec_08_a_doorbell_before_its_queue_is_ready_is_counted,
            a_request_is_served_and_interrupts,
            interrupts_are_sent_as_the_driver_asks,
            notifications_are_asked_for_when_the_ring_is_empty,
            indirect_chains_are_served,
            requests_across_regions_and_overlapping_ones_are_served,
            sec_07_malformed_chains_break_the_queue,
            sec_07_indirect_chains_that_were_not_negotiated_break_the_queue,
            sec_07_an_impossible_available_index_breaks_the_queue,
            sec_07_a_chain_that_is_offered_twice_breaks_the_queue,
            sec_02_without_cpu_time_nothing_is_begun_and_nothing_waits_for_that,
            sec_08_a_reset_takes_back_what_waits_for_admission,
            sec_08_a_reset_waits_for_what_is_in_flight,
            sec_08_a_queue_reset_waits_for_what_is_in_flight,
            a_queue_that_was_reset_starts_anew,
            suspending_takes_back_what_waits_for_admission,
            suspending_completes_what_is_in_flight,
            stopping_completes_what_is_in_flight,
            a_drain_that_takes_too_long_is_unrecoverable,
            a_saved_device_goes_on_where_it_was,
            sec_10_a_crafted_state_is_refused,
            sec_11_a_racing_driver_reaches_nothing_that_it_did_not_offer,
            sec_08_resets_under_load_leave_memory_alone,
        );
    };
    (@each $engine:ident, $subject:path: $($test:ident,)+) => {
        $(
            #[test]
            fn $test() {
                let engine = $crate::testing::EngineKind::$engine;
                $crate::testing::conformance::require(engine);
                $crate::testing::conformance::$test(engine, $subject);
            }
        )+
    };
}
