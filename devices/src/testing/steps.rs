//! What a driver does with a device: from reset to requests.

use std::time::Duration;

use ringlet_io::{Bound, MonoTime};
use ringlet_metrics::GuestErrorKind;

use super::driver::{Buffer, DriverQueue, Used};
use super::rig::{Rig, wait_until};
use crate::virtio::spec::{feature, register, status};

impl Rig {
    /// The VM has no CPU time for its devices from now on.
    pub fn take_cpu_time(&self) {
        let hour = Duration::from_secs(3600);
        let renewed_at = MonoTime::now() + hour;
        self.hold.set(Some(Bound { nanos: 0, renewed_at, quota: hour, period: hour }));
    }

    /// It has all that it wants again.
    pub fn give_cpu_time(&self) {
        self.hold.set(None);
        let hold = self.hold.clone();
        self.on_shard(|_| async move { hold.wake() });
    }

    /// How many errors of a kind the guest has made.
    pub fn errors(&self, kind: GuestErrorKind) -> u64 {
        self.vm.guest_errors.get(kind)
    }

    /// Interrupts since the last call.
    pub fn take_interrupts(&self) -> u64 {
        self.line.take_pending()
    }

    /// The device status register.
    pub fn status(&self) -> u32 {
        self.read(register::STATUS)
    }

    /// The features that the device offers.
    pub fn offered(&self) -> u64 {
        self.write(register::DEVICE_FEATURES_SEL, 1);
        let high = self.read(register::DEVICE_FEATURES);
        self.write(register::DEVICE_FEATURES_SEL, 0);
        u64::from(high) << 32 | u64::from(self.read(register::DEVICE_FEATURES))
    }

    /// From reset to FEATURES_OK, which is not checked.
    pub fn negotiate(&self, features: u64) {
        self.write(register::STATUS, 0);
        self.write(register::STATUS, status::ACKNOWLEDGE);
        self.write(register::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        for (sel, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(register::DRIVER_FEATURES_SEL, sel);
            self.write(register::DRIVER_FEATURES, half);
        }
        self.write(register::STATUS, status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
    }

    /// Programs and enables a queue.
    pub fn enable(&self, queue: &DriverQueue) {
        self.program(queue);
        self.write(register::QUEUE_READY, 1);
    }

    /// Programs a queue's size and addresses.
    pub fn program(&self, queue: &DriverQueue) {
        self.write(register::QUEUE_SEL, queue.index.into());
        self.write(register::QUEUE_NUM, queue.size.into());
        let areas = [
            (register::QUEUE_DESC_LOW, queue.descriptors),
            (register::QUEUE_DRIVER_LOW, queue.driver),
            (register::QUEUE_DEVICE_LOW, queue.device),
        ];
        for (low, gpa) in areas {
            self.write(low, gpa as u32);
            self.write(low + 4, (gpa >> 32) as u32);
        }
    }

    /// DRIVER_OK.
    pub fn go(&self) {
        self.write(register::STATUS, self.status() | status::DRIVER_OK);
    }

    /// Everything that a driver does, with all queues at their longest; gives them.
    pub fn bring_up(&self, features: u64) -> Vec<DriverQueue> {
        self.negotiate(features);
        assert_ne!(self.status() & status::FEATURES_OK, 0, "the features are accepted");
        let queues: Vec<DriverQueue> = self.queues();
        queues.iter().for_each(|queue| self.enable(queue));
        self.go();
        let all = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
        assert_eq!(self.status(), all, "the device runs");
        queues
    }

    /// Fresh rings for every queue, at their longest.
    pub fn queues(&self) -> Vec<DriverQueue> {
        let queue = |(index, size): (usize, &u16)| {
            let base = Self::RINGS + index as u64 * DriverQueue::SPAN;
            DriverQueue::new(&self.ram, index as u16, *size, base)
        };
        self.identity.queue_sizes.iter().enumerate().map(queue).collect()
    }

    /// All features of the core, without the device's own.
    pub fn core_features() -> u64 {
        feature::CORE
    }

    /// Acknowledges used buffers, as an ioeventfd does.
    pub fn acknowledge_used(&self) {
        self.transport.acknowledgements().sender().ring();
    }

    /// Rings a queue's doorbell, as an ioeventfd does.
    pub fn ring(&self, queue: u16) {
        self.transport.doorbells()[usize::from(queue)].ring();
    }

    /// Offers a chain and notifies.
    pub fn send(&self, queue: &mut DriverQueue, buffers: &[Buffer]) -> u16 {
        let head = queue.add(buffers);
        self.ring(queue.index);
        head
    }

    /// Waits for the next used entry.
    pub fn used(&self, queue: &mut DriverQueue) -> Used {
        wait_until("a chain is used", || queue.used_index() != queue.taken);
        queue.take_used().unwrap()
    }
}
