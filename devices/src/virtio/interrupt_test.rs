use ringlet_metrics::{DeviceKind, Registry, VmInfo};

use super::*;
use crate::ioapic::Ioapic;
use crate::test_util::{Probe, program};

fn signals() -> (Arc<Signals>, Probe) {
    let vm = Registry::new().register_vm(VmInfo::default());
    let ioapic = Arc::new(Ioapic::new());
    let (line, probe) = Probe::connect(&ioapic, 5);
    program(&ioapic, 5, 0x30);
    (Signals::new(line, Doorbell::new().unwrap(), vm.register_device("d", DeviceKind::Block)), probe)
}

#[test]
fn an_acknowledgement_that_was_not_looked_at_is_of_what_had_been_read() {
    let (signals, probe) = signals();
    let interrupt = QueueInterrupt::new(&signals);
    let acknowledge = || signals.acknowledgements().sender().ring();
    interrupt.used();
    // Reading changes nothing.
    assert_eq!((signals.read_isr(), signals.read_isr(), signals.isr()), (isr::USED, isr::USED, isr::USED));
    acknowledge();
    assert_eq!((signals.isr(), signals.read_isr()), (0, 0));
    // What comes before the acknowledgement and after the read stays, as often as it was acknowledged.
    interrupt.used();
    assert_eq!(signals.read_isr(), isr::USED);
    interrupt.used();
    acknowledge();
    acknowledge();
    assert_eq!((signals.isr(), signals.read_isr()), (isr::USED, isr::USED));
    acknowledge();
    // What comes after the acknowledgement stays as well, and other bits are not touched.
    signals.add_status(status::DRIVER_OK);
    interrupt.used();
    interrupt.config_changed();
    assert_eq!(signals.read_isr(), isr::USED | isr::CONFIG);
    acknowledge();
    assert_eq!(signals.read_isr(), isr::CONFIG);
    signals.acknowledge(isr::CONFIG);
    assert_eq!((signals.read_isr(), probe.fired()), (0, 5));
}

#[test]
fn an_acknowledgement_that_is_looked_at_holds_at_once() {
    let (signals, _probe) = signals();
    QueueInterrupt::new(&signals).used();
    signals.acknowledge(isr::USED);
    assert_eq!(signals.isr(), 0);
    // One of long ago takes nothing away.
    signals.acknowledgements().sender().ring();
    QueueInterrupt::new(&signals).used();
    assert_eq!((signals.isr(), signals.read_isr()), (isr::USED, isr::USED));
}
