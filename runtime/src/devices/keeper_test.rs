//! Real workers of devices that misbehave, and what becomes of their VM.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ringlet_devices::ioapic::Ioapic;
use ringlet_devices::state::StateError;
use ringlet_devices::virtio::{
    ConfigSpace, DeviceState, Identity, LocalBoxFuture, MakeDevice, MmioTransport, QueueParts, QueueState,
    VirtioDevice, VirtioSpec,
};
use ringlet_devices::{Action, BusDevice};
use ringlet_io::{InterruptLine, LimiterSeed};
use ringlet_metrics::{DeviceKind, GuestLog};

use crate::assembly::VmParts;
use crate::config::VmConfig;
use crate::console::Console;
use crate::devices::seed;
use crate::lifecycle::tests::{Host, block_on, eventually, on_both_engines};
use crate::outcome::Outcome;
use crate::vm::Vm;

const LIMIT: Duration = Duration::from_millis(50);

/// A device whose requests never end.
struct Stuck {
    identity: Identity,
    config: ConfigSpace,
}

impl VirtioDevice for Stuck {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn start_queue(&mut self, _index: u16, _parts: QueueParts, _state: Option<QueueState>) {}

    fn stop_queue(&mut self, _index: u16) -> LocalBoxFuture<Option<QueueState>> {
        Box::pin(std::future::pending())
    }

    fn reset(&mut self) {}

    fn save(&self) -> DeviceState {
        DeviceState::Stateless
    }

    fn restore(&mut self, _state: &DeviceState) -> Result<(), StateError> {
        Ok(())
    }
}

fn identity() -> Identity {
    Identity { id: "stuck0".into(), device_type: 4, features: 0, queue_sizes: vec![8] }
}

/// Gives a VM such a device, made by `make`.
fn add(parts: &mut VmParts, make: MakeDevice) -> Arc<MmioTransport> {
    let machine = &parts.task.machine;
    let line = Arc::new(Ioapic::new()).line(5, InterruptLine::new().unwrap()).unwrap();
    let controls = parts.task.life.controls.clone();
    let spec = VirtioSpec {
        identity: identity(),
        config: ConfigSpace::new([]),
        device: make,
        line,
        ram: machine.ram.clone(),
        limiter: LimiterSeed::unlimited(),
        metrics: machine.metrics.register_device("stuck0", DeviceKind::Entropy),
        log: Arc::new(GuestLog::new("vm", Arc::clone(&machine.metrics))),
        wake: Box::new(move || controls.iter().for_each(|vcpu| vcpu.shard_replied())),
        drain_deadline: LIMIT,
    };
    let (transport, worker) = spec.assemble().unwrap();
    parts.devices.push(seed("stuck0".into(), worker));
    transport
}

/// Does what a driver does to start the queue.
fn start_queue(transport: &MmioTransport) {
    let writes = [
        (0x70, 1),
        (0x70, 3),
        (0x24, 1),
        (0x20, 1),
        (0x70, 11),
        (0x38, 8),
        (0x80, 0x1000),
        (0x90, 0x2000),
        (0xA0, 0x3000),
        (0x44, 1),
        (0x70, 15),
    ];
    for (register, value) in writes {
        if let Action::Wait(wait) = transport.write(register, &u32::to_le_bytes(value)).unwrap() {
            eventually("the worker answers", || wait.is_over());
        }
    }
}

/// A VM whose device has requests in flight that never end.
fn stuck_vm(host: &Host) -> (Vm, Arc<MmioTransport>) {
    let (vm, mut parts) = host.spinner();
    let make: MakeDevice = Box::new(|_, _| {
        Ok(Box::new(Stuck { identity: identity(), config: ConfigSpace::new([]) }) as Box<dyn VirtioDevice>)
    });
    let transport = add(&mut parts, make);
    assert!(host.shard.send(parts).is_ok());
    start_queue(&transport);
    (vm, transport)
}

#[track_caller]
fn assert_lost(outcome: &Outcome, before: &str) {
    let Outcome::Failed { error } = outcome else { panic!("{outcome}") };
    assert!(error.contains("stuck0") && error.contains("did not drain within 50ms"), "{error}");
    assert!(error.contains("unrecoverable") && error.ends_with(before), "{error}");
}

#[test]
fn a_vm_whose_device_does_not_drain_ends_with_its_pause() {
    on_both_engines(|host| {
        let (vm, _transport) = stuck_vm(&host);
        assert!(block_on(vm.pause()).unwrap_err().to_string().contains("has ended"));
        assert_lost(&block_on(vm.wait()), "the VM is unrecoverable");
    });
}

#[test]
fn a_vm_whose_device_does_not_drain_ends_within_the_time_for_it() {
    on_both_engines(|host| {
        let (vm, _transport) = stuck_vm(&host);
        assert_lost(&block_on(vm.stop()), "Before that: stopped by the host");
    });
}

#[test]
fn sec_08_a_reset_that_does_not_drain_is_never_complete_and_ends_the_vm() {
    on_both_engines(|host| {
        let (vm, transport) = stuck_vm(&host);
        let Action::Wait(wait) = transport.write(0x70, &[0; 4]).unwrap() else { panic!("a reset is slow") };
        assert_lost(&block_on(vm.wait()), "the VM is unrecoverable");
        assert!(!wait.is_over(), "a driver that hears of a reset may use its memory again");
    });
}

#[test]
fn a_device_that_cannot_be_made_ends_its_vm_with_its_name_and_the_reason() {
    on_both_engines(|host| {
        let (vm, mut parts) = host.create(&VmConfig::new("spin").memory_mib(16), Console::Discard);
        add(&mut parts, Box::new(|_, _| Err(io::Error::other("it is on fire"))));
        assert!(host.shard.send(parts).is_ok());
        assert_eq!(*block_on(vm.wait()), Outcome::Failed { error: "stuck0: it is on fire".into() });
    });
}
