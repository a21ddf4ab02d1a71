use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::*;
use crate::Registry;

fn vm() -> (Registry, Arc<VmMetrics>) {
    let registry = Registry::new();
    let vm = registry.register_vm(VmInfo { id: "vm".into(), ..VmInfo::default() });
    (registry, vm)
}

fn settable() -> (Arc<AtomicU64>, Box<dyn Fn() -> u64 + Send + Sync>) {
    let time = Arc::new(AtomicU64::new(0));
    let source = time.clone();
    (time, Box::new(move || source.load(Relaxed)))
}

#[test]
fn a_vcpu_clock_is_read_when_asked() {
    let (_registry, vm) = vm();
    let (time, source) = settable();
    vm.set_vcpu_clock(0, source);
    time.store(7, Relaxed);
    assert_eq!(vm.vcpu_cpu_nanos(), [(0, 7)]);
    time.store(9, Relaxed);
    assert_eq!(vm.vcpu_cpu_nanos(), [(0, 9)]);
}

#[test]
fn a_clock_that_falls_back_does_not_take_the_counter_along() {
    let (_registry, vm) = vm();
    let (time, source) = settable();
    vm.set_vcpu_clock(0, source);
    time.store(100, Relaxed);
    assert_eq!(vm.vcpu_cpu_nanos(), [(0, 100)]);
    time.store(0, Relaxed);
    assert_eq!(vm.vcpu_cpu_nanos(), [(0, 100)]);
    vm.freeze_vcpu_clock(0, 50);
    assert_eq!(vm.vcpu_cpu_nanos(), [(0, 100)]);
}

#[test]
fn a_frozen_clock_is_not_asked_again() {
    let (_registry, vm) = vm();
    let (time, source) = settable();
    vm.set_vcpu_clock(3, source);
    vm.freeze_vcpu_clock(3, 80);
    assert_eq!(Arc::strong_count(&time), 1, "the source is dropped with the freeze");
    vm.freeze_vcpu_clock(3, 500);
    assert_eq!(vm.vcpu_cpu_nanos(), [(3, 80)], "the first freeze counts");
}

#[test]
fn a_new_thread_goes_on_where_the_last_one_ended() {
    let (_registry, vm) = vm();
    vm.freeze_vcpu_clock(1, 40);
    let (time, source) = settable();
    vm.set_vcpu_clock(1, source);
    assert_eq!(vm.vcpu_cpu_nanos(), [(1, 40)]);
    time.store(2, Relaxed);
    assert_eq!(vm.vcpu_cpu_nanos(), [(1, 42)]);
    let (_second, source) = settable();
    vm.set_vcpu_clock(1, source);
    assert_eq!(vm.vcpu_cpu_nanos(), [(1, 42)], "also without a freeze between");
}

#[test]
fn vcpus_are_told_in_order() {
    let (_registry, vm) = vm();
    for vcpu in [2, 0, 10, 1] {
        vm.freeze_vcpu_clock(vcpu, u64::from(vcpu));
    }
    assert_eq!(vm.vcpu_cpu_nanos(), [(0, 0), (1, 1), (2, 2), (10, 10)]);
}

#[test]
fn sec_02_a_vm_costs_less_than_two_kib() {
    let text = "\u{1b}".repeat(10_000);
    let info = VmInfo { id: text.clone(), name: text.clone(), image: text.clone(), tenant: text };
    let registry = Registry::new();
    let vm = registry.register_vm(info);
    for vcpu in 0..8 {
        vm.set_vcpu_clock(vcpu, Box::new(|| 0));
    }
    let labels = [&vm.labels.id, &vm.labels.name, &vm.labels.image, &vm.labels.tenant];
    let labels: usize = labels.iter().map(|label| label.len()).sum();
    let clocks = lock(&vm.clocks).capacity() * size_of::<VcpuClock>();
    let counts = 2 * size_of::<usize>();
    let listed = 2 * size_of::<(u64, Weak<VmMetrics>)>();
    let total = size_of::<VmMetrics>() + labels + clocks + counts + listed;
    assert!(total < 2048, "{total} bytes ({} of them the struct)", size_of::<VmMetrics>());
}
