//! A command of a network interface's control queue, against a plain reading of the specification (virtio 1.2, section
//! 5.1.6.5).
//!
//! Input: features (le64), the command. Fails on a panic, and if a command is understood otherwise than by the plain
//! reading.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use ringlet_devices::net::Mac;
use ringlet_devices::net::control::{Command, MAX_ADDRESSES, MAX_COMMAND};

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Some((features, command)) = bytes.split_first_chunk::<8>() else { return Corpus::Reject };
    if command.len() > MAX_COMMAND {
        return Corpus::Reject;
    }
    let features = u64::from_le_bytes(*features);
    assert_eq!(Command::parse(command, features).ok(), plain(command, features), "{command:?}");
    Corpus::Keep
});

fn plain(command: &[u8], features: u64) -> Option<Command> {
    let has = |bit: u32| features & 1 << bit != 0;
    let data = command.get(2..)?;
    match (command[0], command[1]) {
        // VIRTIO_NET_CTRL_RX: PROMISC and ALLMULTI of CTRL_RX, the others of CTRL_RX_EXTRA.
        (0, kind @ 0..=5) => {
            let negotiated = if kind < 2 { has(18) } else { has(20) };
            (negotiated && data.len() == 1 && data[0] < 2).then_some(Command::ReceiveMode)
        }
        // MAC_TABLE_SET: two tables, and nothing behind them.
        (1, 0) if has(18) => {
            let first = table(data)?;
            let second = table(&data[first..])?;
            (first + second == data.len()).then_some(Command::Addresses)
        }
        (1, 1) if has(23) && data.len() == 6 => {
            let mut mac = [0; 6];
            mac.copy_from_slice(data);
            Some(Command::Mac(Mac(mac)))
        }
        (4, 0) if has(22) && data.len() == 2 => {
            Some(Command::Pairs(u16::from(data[0]) | u16::from(data[1]) << 8))
        }
        (5, 0) if has(2) && data.len() == 8 => {
            let wanted = data.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
            offloads(wanted, features).then_some(Command::Offloads(wanted))
        }
        _ => None,
    }
}

/// Bytes of a table of addresses that is all there.
fn table(bytes: &[u8]) -> Option<usize> {
    let count = bytes.get(..4)?.iter().rev().fold(0_usize, |value, byte| value << 8 | usize::from(*byte));
    let len = 4 + 6 * count;
    (count <= MAX_ADDRESSES && len <= bytes.len()).then_some(len)
}

/// GUEST_CSUM, _TSO4, _TSO6, _ECN, _UFO, _USO4, _USO6: negotiated, each with what it needs.
fn offloads(wanted: u64, features: u64) -> bool {
    let has = |bit: u32| wanted & 1 << bit != 0;
    let known = [1, 7, 8, 9, 10, 54, 55].iter().fold(0, |mask, bit| mask | 1_u64 << bit);
    let need_checksum = [7, 8, 10, 54, 55].iter().any(|bit| has(*bit));
    wanted & !(known & features) == 0 && (has(1) || !need_checksum) && (!has(9) || has(7) || has(8))
}
