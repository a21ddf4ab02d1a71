use std::sync::Arc;

use proptest::prelude::*;
use ringlet_metrics::VmMetrics;

use super::Serial;
use crate::ioapic::Ioapic;
use crate::output::{Overflow, SerialOutput};
use crate::state::{SerialState, StateError};
use crate::test_util::{Calls, Probe, metrics, program};
use crate::{Action, BusDevice, GuestError};

const DATA: u64 = 0;
const IER: u64 = 1;
const IIR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const EDGE: u32 = 0x30;
const LEVEL: u32 = 0x8030;
const MASKED: u32 = 0x1_0000;

/// A UART on an I/O APIC pin that is unmasked, edge.
struct Rig {
    serial: Serial,
    output: Arc<SerialOutput>,
    ioapic: Arc<Ioapic>,
    interrupts: Probe,
    rung: Calls,
    drained: Calls,
    metrics: Arc<VmMetrics>,
}

impl Rig {
    fn new(capacity: usize, overflow: Overflow) -> Self {
        let ioapic = Arc::new(Ioapic::new());
        let (line, interrupts) = Probe::connect(&ioapic, Serial::PIN);
        let (metrics, rung, drained) = (metrics(), Calls::default(), Calls::default());
        let output = Arc::new(SerialOutput::new(capacity, overflow, rung.callback(), Arc::clone(&metrics)));
        let serial = Serial::new(line, Arc::clone(&output), drained.callback(), Arc::clone(&metrics));
        program(&ioapic, Serial::PIN, EDGE);
        Self { serial, output, ioapic, interrupts, rung, drained, metrics }
    }

    fn write(&self, register: u64, value: u8) -> Action {
        self.serial.write(register, &[value]).unwrap()
    }

    fn read(&self, register: u64) -> u8 {
        let mut byte = [0];
        assert_eq!(self.serial.read(register, &mut byte), Ok(Action::None));
        byte[0]
    }

    fn taken(&self) -> Vec<u8> {
        let mut taken = Vec::new();
        let _ = self.output.take(&mut taken);
        taken
    }
}

fn rig() -> Rig {
    Rig::new(16, Overflow::Park)
}

#[test]
fn what_the_guest_sends_reaches_the_output_in_order() {
    let rig = rig();
    for byte in *b"hello" {
        assert_eq!(rig.write(DATA, byte), Action::None);
    }
    assert_eq!(rig.rung.take(), 1);
    assert_eq!(rig.taken(), b"hello");
    assert_eq!(rig.metrics.serial_sent_bytes.get(), 5);
    assert_eq!(rig.interrupts.fired(), 0);
}

#[test]
fn a_full_output_makes_the_vcpu_wait_and_repeat() {
    let rig = Rig::new(2, Overflow::Park);
    let _ = rig.write(IER, 0x02);
    rig.read(IIR);
    let _ = rig.interrupts.fired();
    assert_eq!((rig.write(DATA, 1), rig.write(DATA, 2)), (Action::None, Action::None));
    rig.read(IIR);
    let _ = rig.interrupts.fired();
    for _ in 0..3 {
        assert_eq!(rig.write(DATA, 3), Action::WaitForSerial);
    }
    assert_eq!(rig.interrupts.fired(), 0, "the byte was not sent");
    assert_eq!(rig.taken(), [1, 2]);
    assert!(rig.output.has_room());
    assert_eq!(rig.write(DATA, 3), Action::None);
    assert_eq!(rig.interrupts.fired(), 1);
    assert_eq!(rig.taken(), [3]);
    assert_eq!((rig.metrics.serial_sent_bytes.get(), rig.metrics.serial_dropped_bytes.get()), (3, 0));
}

#[test]
fn a_full_output_holds_up_nothing_but_the_data_register() {
    let rig = Rig::new(1, Overflow::Park);
    assert_eq!(rig.write(DATA, 1), Action::None);
    for register in 1..8 {
        assert_eq!(rig.write(register, 0x80), Action::None, "register {register}");
    }
    // DLAB is set: this is the divisor latch.
    assert_eq!(rig.write(DATA, 0x0C), Action::None);
    assert_eq!(rig.write(LCR, 0x03), Action::None);
    // Loopback: this goes to the receive FIFO.
    assert_eq!(rig.write(MCR, 0x10), Action::None);
    assert_eq!(rig.write(DATA, 2), Action::None);
    assert_eq!(rig.read(DATA), 2);
    assert_eq!(rig.write(MCR, 0), Action::None);
    assert_eq!(rig.write(DATA, 3), Action::WaitForSerial);
    assert_eq!(rig.taken(), [1]);
}

#[test]
fn drop_oldest_never_makes_a_vcpu_wait() {
    let rig = Rig::new(2, Overflow::DropOldest);
    for byte in 0..5 {
        assert_eq!(rig.write(DATA, byte), Action::None);
    }
    assert_eq!(rig.taken(), [3, 4]);
    assert_eq!((rig.output.dropped(), rig.metrics.serial_dropped_bytes.get()), (3, 3));
}

#[test]
fn input_is_bounded_by_the_fifo_and_the_guest_asks_for_more() {
    let rig = rig();
    assert_eq!(rig.serial.room(), 64);
    assert_eq!(rig.serial.input(&[7; 100]), 64);
    assert_eq!((rig.serial.room(), rig.serial.input(&[8])), (0, 0));
    for _ in 0..63 {
        assert_eq!(rig.read(LSR) & 1, 1);
        assert_eq!(rig.read(DATA), 7);
        assert_eq!(rig.drained.take(), 0);
    }
    assert_eq!(rig.read(DATA), 7);
    assert_eq!(rig.drained.take(), 1);
    assert_eq!(rig.read(LSR) & 1, 0);
    assert_eq!(rig.serial.input(&[8; 36]), 36);
    (0..40).for_each(|_| assert!(rig.read(DATA) < 9));
    assert_eq!(rig.drained.take(), 0, "everything was accepted, so nobody waits");
    assert_eq!(rig.metrics.serial_received_bytes.get(), 100);
}

#[test]
fn input_waits_for_the_end_of_loopback() {
    let rig = rig();
    let _ = rig.write(MCR, 0x10);
    assert_eq!((rig.serial.room(), rig.serial.input(&[1])), (0, 0));
    assert_eq!(rig.drained.take(), 0);
    let _ = rig.write(MCR, 0);
    assert_eq!((rig.drained.take(), rig.serial.input(&[1])), (1, 1));
}

#[test]
fn sec_09_what_loopback_cannot_hold_is_an_overrun() {
    let rig = rig();
    let _ = rig.write(MCR, 0x10);
    (0..64).for_each(|byte| assert_eq!(rig.write(DATA, byte), Action::None));
    assert_eq!(rig.serial.write(DATA, &[64]), Err(GuestError::SerialOverrun));
    (0..64).for_each(|byte| assert_eq!(rig.read(DATA), byte));
    assert_eq!(rig.write(DATA, 65), Action::None);
}

#[test]
fn received_data_interrupts_until_it_is_acknowledged() {
    let rig = rig();
    assert_eq!(rig.serial.input(&[1]), 1);
    assert_eq!((rig.interrupts.fired(), rig.serial.asserted()), (0, false), "not enabled");
    let _ = rig.write(IER, 0x01);
    assert_eq!((rig.interrupts.fired(), rig.serial.asserted()), (1, true));
    assert_eq!(rig.serial.input(&[2]), 1);
    assert_eq!(rig.interrupts.fired(), 0, "one interrupt for both");
    assert_eq!(rig.read(IIR), 0xC4);
    assert!(!rig.serial.asserted());
    assert_eq!((rig.read(DATA), rig.read(DATA)), (1, 2));
    assert_eq!(rig.serial.input(&[3]), 1);
    assert_eq!((rig.interrupts.fired(), rig.serial.asserted()), (1, true));
    assert_eq!((rig.read(DATA), rig.serial.asserted()), (3, false), "reading the data acknowledges, too");
}

#[test]
fn a_second_cause_is_an_edge_of_its_own() {
    let rig = rig();
    let _ = rig.write(IER, 0x03);
    assert_eq!((rig.interrupts.fired(), rig.serial.asserted()), (1, true));
    assert_eq!(rig.serial.input(&[1]), 1);
    assert_eq!(rig.interrupts.fired(), 1, "the line was asserted already, and yet");
}

#[test]
fn disabling_an_interrupt_takes_the_line_back_and_enabling_raises_it() {
    let rig = rig();
    let _ = rig.write(IER, 0x02);
    assert_eq!((rig.interrupts.fired(), rig.serial.asserted()), (1, true));
    let _ = rig.write(IER, 0);
    assert_eq!((rig.interrupts.fired(), rig.serial.asserted()), (0, false));
    let _ = rig.write(IER, 0x02);
    assert_eq!((rig.interrupts.fired(), rig.serial.asserted()), (1, true));
}

#[test]
fn an_interrupt_that_came_while_masked_is_injected_once_on_unmask() {
    let rig = rig();
    let _ = rig.write(IER, 0x01);
    program(&rig.ioapic, Serial::PIN, EDGE | MASKED);
    assert_eq!(rig.serial.input(&[1]), 1);
    assert_eq!(rig.interrupts.fired(), 0);
    program(&rig.ioapic, Serial::PIN, EDGE);
    assert_eq!(rig.interrupts.fired(), 1);

    program(&rig.ioapic, Serial::PIN, EDGE | MASKED);
    assert_eq!(rig.read(DATA), 1);
    program(&rig.ioapic, Serial::PIN, EDGE);
    assert_eq!(rig.interrupts.fired(), 0, "acknowledged before it could be delivered");
}

#[test]
fn a_level_pin_repeats_until_the_guest_acknowledges() {
    let rig = rig();
    program(&rig.ioapic, Serial::PIN, LEVEL);
    let _ = rig.write(IER, 0x01);
    assert_eq!(rig.serial.input(&[1]), 1);
    assert_eq!(rig.interrupts.fired(), 1);
    rig.ioapic.inject(rig.ioapic.end_of_interrupt(0x30));
    assert_eq!(rig.interrupts.fired(), 1);
    assert_eq!(rig.read(DATA), 1);
    rig.ioapic.inject(rig.ioapic.end_of_interrupt(0x30));
    assert_eq!(rig.interrupts.fired(), 0);
}

#[test]
fn sec_07_only_bytes_and_only_eight_registers() {
    let rig = rig();
    for width in [2, 4, 8] {
        let error = GuestError::BadWidth { offset: 0, width };
        assert_eq!(rig.serial.write(0, &[b'x'; 8][..width]), Err(error.clone()));
        assert_eq!(rig.serial.read(0, &mut [0; 8][..width]), Err(error));
    }
    for offset in [8, 0xFF, 0x100, u64::MAX] {
        assert_eq!(rig.serial.write(offset, b"x"), Err(GuestError::BadRegister { offset }));
        assert_eq!(rig.serial.read(offset, &mut [0]), Err(GuestError::BadRegister { offset }));
    }
    assert_eq!(rig.taken(), b"");
}

#[test]
fn a_saved_uart_continues_where_it_was() {
    let rig = rig();
    let _ = rig.write(LCR, 0x83);
    let _ = rig.write(DATA, 0x01);
    let _ = rig.write(IER, 0x02);
    let _ = rig.write(LCR, 0x1B);
    let _ = rig.write(MCR, 0x0B);
    let _ = rig.write(7, 0x5A);
    let _ = rig.write(IER, 0x01);
    assert_eq!(rig.serial.input(b"abc"), 3);
    assert_eq!(rig.read(DATA), b'a');
    assert_eq!(rig.serial.input(b"d"), 1);
    let state = rig.serial.save();
    assert_eq!((state.divisor, &state.received[..]), (0x0201, &b"bcd"[..]));
    let state: SerialState = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();

    let other = Rig::new(16, Overflow::Park);
    other.serial.restore(&state).unwrap();
    assert_eq!(other.serial.save(), state);
    assert_eq!((other.interrupts.fired(), other.serial.asserted()), (1, true));
    assert_eq!([LCR, MCR, 7, IER].map(|register| other.read(register)), [0x1B, 0x0B, 0x5A, 0x01]);
    assert_eq!([(); 3].map(|()| other.read(DATA)), *b"bcd");
}

#[test]
fn sec_10_hostile_states_are_refused() {
    let rig = rig();
    let good = rig.serial.save();
    let field = |field, value| Err(StateError::Field { device: "serial", field, value });
    let restore = |change: fn(&mut SerialState)| {
        let mut state = good.clone();
        change(&mut state);
        rig.serial.restore(&state)
    };
    assert_eq!(restore(|state| state.interrupt_enable = 0x10), field("interrupt_enable", 0x10));
    for (bad, refused) in [(0, true), (1, false), (2, false), (3, true), (4, false), (6, false), (8, true)] {
        let state = SerialState { interrupt_identification: bad, ..good.clone() };
        assert_eq!(rig.serial.restore(&state).is_err(), refused, "{bad}");
    }
    assert_eq!(restore(|state| state.received = vec![0; 65]), field("received", 65));
    assert_eq!(
        restore(|state| state.version = 0),
        Err(StateError::Version { device: "serial", found: 0, supported: 1 })
    );
    assert_eq!(restore(|state| state.received = vec![0; 64]), Ok(()));
}

proptest! {
    /// Whatever a guest did, its state is one that is accepted, and it comes back the same.
    #[test]
    fn sec_10_every_reachable_state_is_restored(
        script in prop::collection::vec((0_u64..8, any::<u8>(), any::<bool>(), 0_usize..80), 0..60),
    ) {
        let rig = Rig::new(8, Overflow::Park);
        for (register, value, write, input) in script {
            if write {
                let _ = rig.serial.write(register, &[value]);
            } else {
                let _ = rig.read(register);
            }
            let _ = rig.serial.input(&vec![value; input]);
        }
        let state = rig.serial.save();
        let other = Rig::new(8, Overflow::Park);
        prop_assert_eq!(other.serial.restore(&state), Ok(()));
        prop_assert_eq!(other.serial.asserted(), rig.serial.asserted());
        prop_assert_eq!(other.serial.save(), state);
        prop_assert_eq!(other.read(LSR), rig.read(LSR));
    }
}
