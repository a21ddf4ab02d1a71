//! The rules one by one, on the table alone: what has to be injected is a return value here.

use proptest::prelude::*;

use super::super::Route;
use super::Table;
use crate::bus::Action;
use crate::error::GuestError;
use crate::state::{IoapicState, StateError};

const MASKED: u32 = 1 << 16;
const LEVEL: u32 = 1 << 15;
const REMOTE_IRR: u32 = 1 << 14;
const ACTIVE_LOW: u32 = 1 << 13;
const DELIVERY_STATUS: u32 = 1 << 12;
const LOGICAL: u32 = 1 << 11;
const LOWEST: u32 = 1 << 8;

impl Table {
    fn write_at(&mut self, index: u8, value: u32) -> Result<Action, GuestError> {
        self.select = index;
        self.write(value)
    }

    fn read_at(&mut self, index: u8) -> Result<u32, GuestError> {
        self.select = index;
        self.read()
    }

    fn low(&mut self, pin: u8, value: u32) -> Result<Action, GuestError> {
        self.write_at(0x10 + 2 * pin, value)
    }

    fn high(&mut self, pin: u8, value: u32) -> Result<Action, GuestError> {
        self.write_at(0x11 + 2 * pin, value)
    }

    fn read_low(&mut self, pin: u8) -> u32 {
        self.read_at(0x10 + 2 * pin).unwrap()
    }

    /// Programs a pin and installs; returns what is injected.
    fn program(&mut self, pin: u8, low: u32) -> u32 {
        let _ = self.low(pin, low);
        let _ = self.routes();
        self.installed()
    }

    fn has_remote_irr(&mut self, pin: u8) -> bool {
        self.read_low(pin) & REMOTE_IRR != 0
    }
}

/// A table with `low` installed at pin 3.
fn table(low: u32) -> Table {
    let mut table = Table::new();
    assert_eq!(table.program(3, low), 0);
    table
}

const PIN: u32 = 1 << 3;

#[test]
fn after_reset_every_pin_is_masked() {
    let mut table = Table::new();
    for pin in 0..24 {
        assert_eq!((table.read_low(pin), table.read_at(0x11 + 2 * pin)), (MASKED, Ok(0)));
    }
    assert_eq!(table.routes(), []);
    assert_eq!(table.installed(), 0);
}

#[test]
fn identification_version_and_arbitration() {
    let mut table = Table::new();
    assert_eq!(table.read_at(1), Ok(0x0017_0020), "24 pins, version 0x20");
    assert_eq!(table.write_at(0, 0xFFFF_FFFF), Ok(Action::None));
    assert_eq!((table.read_at(0), table.read_at(2)), (Ok(0x0F00_0000), Ok(0x0F00_0000)));
    assert_eq!(table.read_at(3), Ok(1), "message delivery");
    for index in [1, 2, 3] {
        assert_eq!(table.write_at(index, 0), Err(GuestError::ReadOnlyIndex { index }));
    }
    assert_eq!(table.read_at(1), Ok(0x0017_0020));
}

#[test]
fn sec_07_indexes_without_a_register_are_refused() {
    let mut table = Table::new();
    for index in (4..0x10).chain(0x40..=0xFF) {
        assert_eq!(table.read_at(index), Err(GuestError::BadIndex { index }));
        assert_eq!(table.write_at(index, !0), Err(GuestError::BadIndex { index }));
    }
    assert_eq!(table.routes(), []);
}

#[test]
fn read_only_and_reserved_bits_ignore_writes() {
    let mut table = Table::new();
    let _ = table.high(5, 0xFFFF_FFFF);
    let _ = table.low(5, 0xFFFF_FFFF);
    assert_eq!(table.read_at(0x1B), Ok(0xFF00_0000));
    assert_eq!(table.read_low(5), 0x0001_AFFF);
    let _ = table.low(5, MASKED | LEVEL | REMOTE_IRR | DELIVERY_STATUS);
    assert_eq!(table.read_low(5), MASKED | LEVEL);
}

#[test]
fn a_set_remote_irr_survives_a_write_of_zero() {
    let mut table = table(LEVEL | 0x40);
    assert!(table.signal(3, true, false));
    assert_eq!(table.low(3, LEVEL | 0x40), Ok(Action::None));
    assert!(table.has_remote_irr(3));
    assert_eq!(table.low(3, LEVEL | ACTIVE_LOW | 0x40), Ok(Action::None));
    assert!(table.has_remote_irr(3));
}

#[test]
fn only_we_build_the_message() {
    for (low, high, address, data) in [
        (0x0000_0031, 0x0000_0000, 0xFEE0_0000, 0x31),
        (0x0000_0031, 0xAB00_0000, 0xFEEA_B000, 0x31),
        (0x0000_0031, 0x01FF_FFFF, 0xFEE0_1000, 0x31),
        (0x0000_0010, 0xFF00_0000, 0xFEEF_F000, 0x10),
        (LOGICAL | 0x31, 0x0300_0000, 0xFEE0_3004, 0x31),
        (LOWEST | 0x31, 0x0300_0000, 0xFEE0_3008, 0x131),
        (LOGICAL | LOWEST | 0x31, 0x0300_0000, 0xFEE0_300C, 0x131),
        (LEVEL | 0x31, 0x0000_0000, 0xFEE0_0000, 0xC031),
        (LEVEL | ACTIVE_LOW | 0xFF, 0x0000_0000, 0xFEE0_0000, 0xC0FF),
        (REMOTE_IRR | DELIVERY_STATUS | 0x31, 0x0000_0000, 0xFEE0_0000, 0x31),
    ] {
        let mut table = Table::new();
        let _ = table.high(9, high);
        assert_eq!(table.low(9, low), Ok(Action::Routes));
        assert_eq!(table.routes(), [Route { gsi: 9, address, data }], "{low:#x} {high:#x}");
    }
}

#[test]
fn masked_is_no_route() {
    let mut table = table(0x40);
    assert_eq!(table.routes().len(), 1);
    assert_eq!(table.low(3, MASKED | 0x40), Ok(Action::Routes));
    assert_eq!(table.routes(), []);
    assert_eq!(table.installed(), 0);
    assert!(!table.signal(3, true, false));
}

#[test]
fn routes_are_the_runtimes_business_only_if_they_change() {
    let mut table = Table::new();
    assert_eq!(table.low(3, MASKED | 0x40), Ok(Action::None), "masked before and after");
    assert_eq!(table.high(3, 0x0100_0000), Ok(Action::None));
    assert_eq!(table.low(3, 0x40), Ok(Action::Routes), "unmasked");
    assert_eq!(table.low(3, 0x40), Ok(Action::None), "the same again");
    assert_eq!(table.low(3, ACTIVE_LOW | 0x40), Ok(Action::None), "polarity is not in the message");
    assert_eq!(table.low(3, 0x41), Ok(Action::Routes), "vector");
    assert_eq!(table.high(3, 0x0200_0000), Ok(Action::Routes), "destination");
    assert_eq!(table.high(3, 0x02FF_FFFF), Ok(Action::None), "reserved bits");
    assert_eq!(table.low(3, LEVEL | 0x41), Ok(Action::Routes), "trigger mode");
    assert_eq!(table.low(3, MASKED | LEVEL | 0x41), Ok(Action::Routes), "masked");
    assert_eq!(table.low(3, MASKED | 0x50), Ok(Action::None), "masked before and after");
}

#[test]
fn other_delivery_modes_are_dropped_and_told() {
    for mode in [2, 3, 4, 5, 6, 7] {
        let mut table = table(0x40);
        let entry = 0x41 | u32::from(mode) << 8;
        assert_eq!(
            table.low(3, entry),
            Err(GuestError::DeliveryMode { pin: 3, mode, action: Action::Routes }),
            "it took the place of a route"
        );
        assert_eq!(table.read_low(3), entry, "it reads back as written");
        assert_eq!(table.routes(), []);
        assert_eq!(table.installed(), 0);
        assert!(!table.signal(3, true, true));
        assert_eq!(
            table.high(3, 0x0100_0000),
            Err(GuestError::DeliveryMode { pin: 3, mode, action: Action::None })
        );
        assert_eq!(table.low(3, entry | MASKED), Ok(Action::None), "masked, it may say what it likes");
    }
}

#[test]
fn vectors_of_the_processor_are_refused() {
    for vector in 0..16 {
        let mut table = table(0x40);
        let refused = GuestError::Vector { pin: 3, vector, action: Action::Routes };
        assert_eq!(table.low(3, vector.into()), Err(refused));
        assert_eq!(table.routes(), []);
    }
    assert_eq!(Table::new().low(3, 0x10), Ok(Action::Routes));
}

#[test]
fn an_edge_pin_interrupts_once_a_rising_edge() {
    let mut table = table(0x40);
    assert!(table.signal(3, true, false));
    assert!(!table.signal(3, true, false));
    assert!(!table.signal(3, false, false));
    assert!(table.signal(3, true, false));
    assert!(!table.has_remote_irr(3));
    assert_eq!(table.end_of_interrupt(0x40), 0, "an edge pin has no end of interrupt");
}

#[test]
fn a_line_still_asserted_on_unmask_is_injected_once() {
    let mut table = Table::new();
    assert!(!table.signal(3, true, false));
    assert_eq!(table.program(3, 0x40), PIN);
    assert_eq!(table.program(3, 0x40), 0);
}

#[test]
fn a_line_still_asserted_on_a_rewrite_is_injected_once() {
    let mut table = table(0x40);
    assert!(table.signal(3, true, false));
    assert_eq!(table.program(3, 0x41), PIN);
    assert_eq!(table.program(3, 0x41), 0, "the same again is no rewrite");
}

#[test]
fn a_line_taken_back_before_unmask_is_owed_nothing() {
    let mut table = Table::new();
    assert!(!table.signal(3, true, true));
    assert!(!table.signal(3, false, false));
    assert_eq!(table.program(3, 0x40), 0);
}

#[test]
fn a_pulse_is_an_edge_whatever_the_line_does() {
    let mut table = table(0x40);
    assert!(table.pulse(3) && table.pulse(3));
    assert!(table.signal(3, true, false));
    assert!(table.pulse(3));
    assert!(!table.signal(3, true, false), "the line stayed asserted");
}

#[test]
fn a_pulse_while_masked_is_remembered_once() {
    let mut table = Table::new();
    assert!(!table.pulse(3) && !table.pulse(3));
    assert_eq!(table.program(3, 0x40), PIN);
    assert_eq!(table.program(3, MASKED), 0);
    assert_eq!(table.program(3, 0x40), 0);
}

#[test]
fn between_a_rewrite_and_its_installation_nothing_is_lost() {
    let mut table = Table::new();
    assert_eq!(table.low(3, 0x40), Ok(Action::Routes));
    assert!(!table.signal(3, true, false), "the kernel does not know the route yet");
    assert_eq!(table.routes().len(), 1);
    assert!(!table.pulse(3), "nor now");
    assert_eq!(table.installed(), PIN);
    assert!(table.pulse(3), "but now");
}

#[test]
fn a_route_changed_again_waits_for_its_own_installation() {
    let mut table = table(0x40);
    assert_eq!(table.low(3, 0x41), Ok(Action::Routes));
    let _ = table.routes();
    assert_eq!(table.low(3, 0x42), Ok(Action::Routes), "by another vCPU, meanwhile");
    assert!(!table.signal(3, true, false));
    assert_eq!(table.installed(), 0, "what was installed is out of date");
    assert_eq!(table.routes(), [Route { gsi: 3, address: 0xFEE0_0000, data: 0x42 }]);
    assert_eq!(table.installed(), PIN);
}

#[test]
fn a_failed_installation_is_made_up_for_by_the_next() {
    let mut table = Table::new();
    assert_eq!(table.low(3, 0x40), Ok(Action::Routes));
    let _ = table.routes();
    assert!(!table.signal(3, true, false));
    let _ = table.routes();
    assert_eq!(table.installed(), PIN);
}

#[test]
fn a_rewrite_leaves_other_pins_alone() {
    let mut table = table(0x40);
    assert_eq!(table.low(7, 0x41), Ok(Action::Routes));
    assert!(table.signal(3, true, false));
    let _ = table.routes();
    assert!(table.pulse(3));
    assert_eq!(table.installed(), 0);
}

#[test]
fn a_level_pin_waits_for_the_end_of_its_interrupt() {
    let mut table = table(LEVEL | 0x40);
    assert!(table.signal(3, true, false));
    assert!(table.has_remote_irr(3));
    assert!(!table.signal(3, true, false));
    assert!(!table.signal(3, false, false));
    assert!(!table.signal(3, true, true), "still being handled");
    assert_eq!(table.end_of_interrupt(0x40), PIN, "still asserted: again");
    assert!(table.has_remote_irr(3));
    assert!(!table.signal(3, false, false));
    assert_eq!(table.end_of_interrupt(0x40), 0);
    assert!(!table.has_remote_irr(3));
    assert!(table.signal(3, true, false));
}

#[test]
fn an_end_of_interrupt_ends_every_pin_with_that_vector() {
    let mut table = Table::new();
    for (pin, vector) in [(3, 0x40), (4, 0x40), (5, 0x41), (23, 0x40)] {
        assert_eq!(table.program(pin, LEVEL | vector), 0);
        assert!(table.signal(pin, true, false));
    }
    assert!(!table.signal(4, false, false));
    assert_eq!(table.end_of_interrupt(0x99), 0);
    assert_eq!(table.end_of_interrupt(0x40), 1 << 3 | 1 << 23);
    let remote_irr = [3, 4, 5, 23].map(|pin| table.has_remote_irr(pin));
    assert_eq!(remote_irr, [true, false, true, true]);
}

#[test]
fn writing_edge_clears_remote_irr() {
    let mut table = table(LEVEL | 0x40);
    assert!(table.signal(3, true, false) && table.has_remote_irr(3));
    assert_eq!(table.low(3, 0x40), Ok(Action::Routes));
    assert!(!table.has_remote_irr(3));
    let _ = table.low(3, LEVEL | 0x40);
    assert!(!table.has_remote_irr(3));
}

#[test]
fn writing_edge_clears_a_remote_irr_that_was_restored_masked() {
    let mut state = Table::new().save();
    state.entries[3] = u64::from(MASKED | LEVEL | REMOTE_IRR | 0x40);
    let mut table = Table::try_from(&state).unwrap();
    assert!(table.has_remote_irr(3));
    assert_eq!(table.low(3, MASKED | 0x40), Ok(Action::None));
    assert!(!table.has_remote_irr(3));
    assert!(Table::try_from(&table.save()).is_ok());
}

/// Linux ends an interrupt of an old I/O APIC so, and masks during threaded handlers.
#[test]
fn masking_a_level_pin_does_not_lose_it() {
    let mut table = table(LEVEL | 0x40);
    assert!(table.signal(3, true, false));
    assert_eq!(table.program(3, MASKED | LEVEL | 0x40), 0);
    // The guest ends its interrupt here; without a route KVM does not report it.
    assert!(!table.has_remote_irr(3));
    assert_eq!(table.program(3, LEVEL | 0x40), PIN, "still asserted");
    assert!(table.has_remote_irr(3));
    assert!(!table.signal(3, false, false));
    assert_eq!(table.program(3, MASKED | LEVEL | 0x40), 0);
    assert_eq!(table.program(3, LEVEL | 0x40), 0, "served meanwhile");
}

#[test]
fn pins_that_do_not_exist_do_nothing() {
    let mut table = table(0x40);
    for pin in [24, 31, 32, 255] {
        assert!(!table.signal(pin, true, true) && !table.pulse(pin));
    }
    assert_eq!(table.save(), self::table(0x40).save());
}

#[test]
fn a_saved_table_continues_where_it_was() {
    let mut table = table(LEVEL | 0x40);
    let _ = table.write_at(0, 0x0500_0000);
    assert!(table.signal(3, true, false));
    assert_eq!(table.program(6, 0x50), 0);
    assert!(!table.pulse(7));
    let state = table.save();
    let state: IoapicState = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();

    let mut other = Table::try_from(&state).unwrap();
    assert_eq!(other.save(), state);
    assert!(!other.pulse(6), "no route is installed yet");
    assert_eq!(other.routes(), table.routes());
    assert_eq!(other.installed(), 1 << 6);
    assert!(other.has_remote_irr(3), "the interrupt is still being handled");
    assert_eq!(other.end_of_interrupt(0x40), PIN);
    assert_eq!(other.program(7, 0x51), 1 << 7);
}

#[test]
fn sec_10_hostile_states_are_refused() {
    let good = table(LEVEL | 0x40).save();
    let refused = |change: &dyn Fn(&mut IoapicState)| {
        let mut state = good.clone();
        change(&mut state);
        Table::try_from(&state).err()
    };
    let field = |field, value| Some(StateError::Field { device: "ioapic", field, value });
    assert_eq!(refused(&|state| state.id = 0x10), field("id", 0x10));
    assert_eq!(refused(&|state| state.asserted = 1 << 24), field("asserted", 1 << 24));
    assert_eq!(refused(&|state| state.pending = 1 << 31), field("pending", 1 << 31));
    for bit in (0..64).filter(|bit| [12].contains(bit) || (17..56).contains(bit)) {
        assert_eq!(refused(&|state| state.entries[0] |= 1 << bit), field("entries", 0x1_0000 | 1 << bit));
    }
    let edge_irr = u64::from(REMOTE_IRR);
    assert_eq!(refused(&|state| state.entries[23] = edge_irr), field("entries", edge_irr));
    let version = StateError::Version { device: "ioapic", found: 9, supported: 1 };
    assert_eq!(refused(&|state| state.version = 9), Some(version));
    assert_eq!(refused(&|_| {}), None);
}

#[test]
fn sec_10_a_state_can_ask_for_no_more_than_a_guest() {
    let mut state = Table::new().save();
    state.entries[0] = 0x0240; // SMI
    state.entries[1] = 0x0005; // vector 5
    state.asserted = 3;
    let mut table = Table::try_from(&state).unwrap();
    assert_eq!(table.routes(), []);
    assert_eq!(table.installed(), 0);
}

/// One thing that can happen to an I/O APIC.
#[derive(Debug, Clone)]
enum Step {
    Write(u8, u32),
    Signal(u8, bool, bool),
    Pulse(u8),
    End(u8),
    Routes,
    Installed,
}

fn step() -> impl Strategy<Value = Step> {
    // Few pins and vectors, so that they meet.
    let low =
        (0_u32..0x14, prop::bits::u32::masked(0x1_FF00)).prop_map(|(vector, flags)| vector << 1 | flags);
    prop_oneof![
        (0x10_u8..0x16, prop_oneof![low, any::<u32>()]).prop_map(|(index, value)| Step::Write(index, value)),
        (any::<u8>(), any::<u32>()).prop_map(|(index, value)| Step::Write(index, value)),
        (0_u8..3, any::<bool>(), any::<bool>()).prop_map(|(pin, up, edge)| Step::Signal(pin, up, edge)),
        (0_u8..3).prop_map(Step::Pulse),
        (0_u8..0x28).prop_map(Step::End),
        Just(Step::Routes),
        Just(Step::Installed),
    ]
}

proptest! {
    /// Whatever happens in whatever order: nothing panics, only routed pins are injected, a level pin never
    /// while it is handled, the state can always be saved and restored, and once the routes are installed
    /// no line that is asserted and unmasked is forgotten.
    #[test]
    fn sec_06_rules_hold_in_any_order(script in prop::collection::vec(step(), 0..200)) {
        let mut table = Table::new();
        let mut installed: Vec<Route> = Vec::new();
        let mut offered: Vec<Route> = Vec::new();
        for step in script {
            let before = table.save();
            let injected = match step {
                Step::Write(index, value) => {
                    let _ = table.write_at(index, value);
                    0
                }
                Step::Signal(pin, up, edge) => u32::from(table.signal(pin, up, edge)) << pin,
                Step::Pulse(pin) => u32::from(table.pulse(pin)) << pin,
                Step::End(vector) => table.end_of_interrupt(vector),
                Step::Routes => {
                    offered = table.routes();
                    0
                }
                Step::Installed => {
                    installed.clone_from(&offered);
                    table.installed()
                }
            };
            for pin in (0..24).filter(|pin| injected >> pin & 1 == 1) {
                let now = table.entries[pin].msi().unwrap();
                let route = Route { gsi: pin as u32, address: now.address, data: now.data };
                prop_assert!(installed.contains(&route), "injected without its route: {route:?}");
                let ended = matches!(step, Step::End(_));
                prop_assert!(ended || before.entries[pin] & u64::from(REMOTE_IRR) == 0);
            }
            prop_assert_eq!(Table::try_from(&table.save()).map(|table| table.save()), Ok(table.save()));
        }
        let _ = table.routes();
        let _ = table.installed();
        for (pin, entry) in table.entries.iter().enumerate().filter(|(_, entry)| entry.msi().is_some()) {
            let owed = table.pending >> pin & 1 == 1;
            prop_assert!(!owed || entry.remote_irr(), "pin {pin} is owed an edge");
            let asserted = table.asserted >> pin & 1 == 1;
            prop_assert!(!(asserted && entry.is_level()) || entry.remote_irr(), "pin {pin} is forgotten");
        }
    }
}
