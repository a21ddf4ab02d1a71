use std::time::{Duration, Instant};

use proptest::prelude::*;
use ringlet_io::EngineKind;
use ringlet_io::net::Offloads;

use super::*;
use crate::net::test_util::*;
use crate::net::{Filter, NetOptions};
use crate::testing::{Buffer, Options, Rig, wait_until};

const ALL: u64 = u64::MAX;

fn table(counts: [u32; 2]) -> Vec<u8> {
    let list = |count: u32| [&count.to_le_bytes()[..], &vec![2; 6 * count as usize]].concat();
    [&[1, 0][..], &list(counts[0]), &list(counts[1])].concat()
}

#[test]
fn commands_are_what_the_specification_says() {
    let parse = |bytes: &[u8]| Command::parse(bytes, ALL);
    for command in 0..6 {
        assert_eq!(parse(&[0, command, 1]), Ok(Command::ReceiveMode));
    }
    assert_eq!(parse(&table([0, 0])), Ok(Command::Addresses));
    assert_eq!(parse(&table([64, 64])), Ok(Command::Addresses));
    assert_eq!(parse(&[1, 1, 2, 3, 4, 5, 6, 7]), Ok(Command::Mac(Mac([2, 3, 4, 5, 6, 7]))));
    assert_eq!(parse(&[4, 0, 2, 1]), Ok(Command::Pairs(0x102)));
    assert_eq!(parse(&[5, 0, 2, 0, 0, 0, 0, 0, 0, 0]), Ok(Command::Offloads(2)));
}

#[test]
fn sec_07_commands_of_the_wrong_length_or_content_are_refused() {
    let length = |bytes: &[u8]| {
        let (class, command, len) = (bytes[0], bytes[1], bytes.len() - 2);
        assert_eq!(
            Command::parse(bytes, ALL),
            Err(ControlError::Length { class, command, len }),
            "{bytes:?}"
        );
    };
    for bytes in
        [&[0, 0][..], &[0, 0, 2], &[0, 5, 0, 0], &[1, 1, 2, 0, 0, 0, 0], &[1, 1, 2, 0, 0, 0, 0, 0, 0]]
    {
        length(bytes);
    }
    for bytes in [&[4, 0, 1][..], &[5, 0, 1, 0, 0, 0, 0, 0, 0], &[1, 0], &[1, 0, 0, 0, 0, 0]] {
        length(bytes);
    }
    length(&table([65, 0]));
    length(&[&table([0, 1])[..], &[0]].concat());
    length(&[1, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0]);
    for bytes in [&[][..], &[0]] {
        assert_eq!(Command::parse(bytes, ALL), Err(ControlError::NoCommand { len: bytes.len() as u64 }));
    }
    for (class, command) in [(0, 6), (1, 2), (2, 0), (3, 0), (4, 1), (5, 1), (6, 0), (255, 255)] {
        assert_eq!(Command::parse(&[class, command, 0], ALL), Err(ControlError::Unknown { class, command }));
    }
}

#[test]
fn sec_07_what_was_not_negotiated_is_unknown() {
    for (bytes, features) in [
        (&[0, 0, 1][..], without(18)),
        (&[0, 2, 1], without(20)),
        (&table([0, 0]), without(18)),
        (&[1, 1, 2, 3, 4, 5, 6, 7], without(23)),
        (&[4, 0, 1, 0], without(22)),
        (&[5, 0, 0, 0, 0, 0, 0, 0, 0, 0], without(2)),
    ] {
        let unknown = ControlError::Unknown { class: bytes[0], command: bytes[1] };
        assert_eq!(Command::parse(bytes, features), Err(unknown), "{bytes:?}");
    }
    for (bits, features) in [
        (1u64 << 7 | 1 << 1, without(7)),
        (1 << 7, ALL),
        (1 << 9 | 1 << 1, ALL),
        (1 << 11, ALL),
        (1 << 63, ALL),
    ] {
        let bytes = [&[5, 0][..], &bits.to_le_bytes()].concat();
        assert_eq!(Command::parse(&bytes, features), Err(ControlError::Offloads(bits)));
    }
}

proptest! {
    #[test]
    fn sec_07_any_bytes_are_a_command_or_none(bytes in prop::collection::vec(any::<u8>(), 0..MAX_COMMAND), features: u64) {
        match Command::parse(&bytes, features) {
            Ok(Command::Offloads(bits)) => prop_assert!(bits & features == bits && is_consistent(bits)),
            Ok(_) => prop_assert!(bytes.len() >= 3),
            Err(_) => {}
        }
    }
}

#[test]
fn a_driver_turns_offloads_off_and_on() {
    let mut driver = Driver::new(ALL);
    let set = |driver: &mut Driver, bits: u64| driver.control(&[&[5, 0][..], &bits.to_le_bytes()].concat());
    assert_eq!(set(&mut driver, 0), 0);
    assert_eq!(driver.host.lock().offloads.last(), Some(&Offloads::NONE), "before it is answered");
    assert_eq!(set(&mut driver, 1 << 1 | 1 << 8), 0);
    let told = Offloads { checksum: true, tso6: true, ..Offloads::NONE };
    assert_eq!(driver.host.lock().offloads.last(), Some(&told));
    let count = driver.host.lock().offloads.len();
    assert_eq!(set(&mut driver, 1 << 1 | 1 << 8), 0);
    assert_eq!(set(&mut driver, 1 << 8), 1);
    assert_eq!(set(&mut driver, 1 << 54), 1);
    assert_eq!(driver.host.lock().offloads.len(), count, "the host hears of changes only");
    assert_eq!(driver.rig.errors(GuestErrorKind::BadRequest), 2);
    assert_eq!(set(&mut driver, 1 << 1 | 1 << 54 | 1 << 55), 0);
    let told = Offloads { checksum: true, uso4: true, uso6: true, ..Offloads::NONE };
    assert_eq!(driver.host.lock().offloads.last(), Some(&told));
}

#[test]
fn a_driver_sets_an_address_that_it_may_have() {
    let mut driver = Driver::new(ALL);
    assert_eq!(driver.control(&[1, 1, 2, 0, 0, 0, 0, 9]), 0);
    let mut mac = [0; 6];
    driver.rig.read_config(&mut mac);
    assert_eq!(mac, [2, 0, 0, 0, 0, 9]);
    for bad in [[1, 0, 0, 0, 0, 9], [0; 6], [0xFF; 6]] {
        assert_eq!(driver.control(&[&[1, 1][..], &bad].concat()), 1);
    }
    driver.rig.read_config(&mut mac);
    assert_eq!(mac, [2, 0, 0, 0, 0, 9]);
    // Where it is pinned, that is not even offered.
    let options = NetOptions { filter: Filter { mac: Some(MAC), ..Filter::default() }, ..options() };
    let rig = Options::new(EngineKind::Epoll);
    let mut driver = Driver::with(TestHost::new(1), options, rig, ALL);
    assert_eq!(driver.control(&[1, 1, 2, 0, 0, 0, 0, 9]), 1);
}

#[test]
fn sec_07_hostile_commands_are_answered_and_change_nothing() {
    let mut driver = Driver::with(TestHost::new(2), options(), Options::new(EngineKind::Epoll), ALL);
    let long = vec![0; MAX_COMMAND + 1];
    let commands: [&[u8]; 9] = [
        &[],
        &[0],
        &[4, 0, 0, 0],
        &[4, 0, 3, 0],
        &[4, 0, 255, 255],
        &[9, 9, 9],
        &[5, 0, 255],
        &long,
        &table([65, 1]),
    ];
    for command in commands {
        assert_eq!(driver.control(command), 1, "{:?}", &command[..command.len().min(8)]);
    }
    assert_eq!(driver.rig.errors(GuestErrorKind::BadRequest), 9);
    // Nowhere to answer.
    let last = driver.queues.len() - 1;
    let (rig, queue) = driver.split(last);
    rig.send(queue, &[Buffer::readable(Rig::DATA, 3)]);
    assert_eq!(driver.used(last), 0);
    assert_eq!(driver.rig.metrics.requests(RequestKind::Control, RequestStatus::IoError), 9);
    assert_eq!(driver.control(&[4, 0, 2, 0]), 0, "the queue goes on");
    assert_eq!(driver.host.lock().pairs.last(), Some(&2));
}

#[test]
fn a_host_that_cannot_is_an_error_and_the_link_is_down() {
    let mut driver = Driver::new(ALL);
    driver.rig.settle();
    driver.host.change(|state| state.error = Some(std::io::ErrorKind::NotConnected));
    assert_eq!(driver.control(&[5, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 1);
    let mut config = [0; 7];
    driver.rig.read_config(&mut config);
    assert_eq!(config[6], 0);
}

#[test]
fn a_command_that_waits_for_the_host_holds_up_no_stop() {
    let mut driver = Driver::new(ALL);
    driver.host.change(|state| state.held = true);
    let last = driver.queues.len() - 1;
    driver.rig.ram.write(Rig::DATA, &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    let (rig, queue) = driver.split(last);
    rig.send(queue, &[Buffer::readable(Rig::DATA, 10), Buffer::writable(Rig::DATA + 0x100, 1)]);
    driver.rig.settle();
    driver.rig.suspend().unwrap();
    assert_eq!(driver.queues[last].take_used(), None);
    driver.host.change(|state| state.held = false);
    driver.rig.resume().unwrap();
    assert_eq!(driver.used(last), 1);
    assert_eq!(driver.host.lock().offloads.last(), Some(&Offloads::NONE));
}

/// The host's lock is held while a change is made: a driver that asks for one after the other has it for a part of the
/// time only, also if the host fails.
#[test]
fn sec_02_after_a_change_that_took_long_the_host_is_left_alone_for_longer() {
    for error in [None, Some(std::io::ErrorKind::NotConnected)] {
        let mut driver = Driver::with(TestHost::new(2), options(), Options::new(EngineKind::Epoll), ALL);
        assert_eq!(driver.control(&[4, 0, 2, 0]), 0);
        let last = driver.queues.len() - 1;
        driver.host.change(|state| state.held = true);
        let begun = driver.host.lock().begun;
        driver.rig.ram.write(Rig::DATA, &[4, 0, 1, 0]).unwrap();
        let (rig, queue) = driver.split(last);
        rig.send(queue, &[Buffer::readable(Rig::DATA, 4), Buffer::writable(Rig::DATA + 0x100, 1)]);
        wait_until("the change is under way", || driver.host.lock().begun > begun);
        let start = Instant::now();
        // How long the host takes for it.
        std::thread::sleep(Duration::from_millis(20));
        let took = start.elapsed().min(Duration::from_millis(100));
        let released = Instant::now();
        driver.host.change(|state| (state.held, state.error) = (false, error));
        driver.used(last);
        driver.host.change(|state| state.error = None);
        assert_eq!(driver.control(&[4, 0, 2, 0]), 0);
        assert!(released.elapsed() >= took * 10, "{:?} after {took:?}", released.elapsed());
    }
}
