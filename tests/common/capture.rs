//! What passes the interfaces of a network: every frame is captured as the kernel has it, and its checksums are verified.
//!
//! A frame whose checksum is left to a device that comes later (an offload) holds the sum of its pseudo-header where the
//! checksum will be; that is verified, too, and counted apart.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with};

const ETHERNET: usize = 14;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86DD;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// `ETH_P_ALL`.
const ALL: u16 = 3;

/// Frames of one direction.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Checksums that are whole.
    pub(crate) whole: u64,
    /// Those that somebody is still to finish.
    pub(crate) partial: u64,
    /// Bytes of the longest frame.
    pub(crate) longest: usize,
    /// What is neither.
    pub(crate) wrong: Vec<String>,
}

/// A capture that goes on.
pub(crate) struct Capture {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<[Tally; 2]>,
}

impl Capture {
    /// Begins, on all interfaces of this network; `station` is whose frames are told from all others.
    pub(crate) fn of(station: [u8; 6]) -> Self {
        let protocol = Protocol::from_raw(u32::from(ALL.to_be()).try_into().unwrap());
        let socket =
            socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))
                .unwrap();
        // Only so that it looks whether it is to end.
        set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_millis(20))).unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let is_ended = Arc::clone(&ended);
        let thread = std::thread::spawn(move || tally(&socket, station, &is_ended));
        Self { ended, thread }
    }

    /// Ends: what that station has sent, and what the others have.
    pub(crate) fn finish(self) -> [Tally; 2] {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn tally(socket: &OwnedFd, station: [u8; 6], is_ended: &AtomicBool) -> [Tally; 2] {
    let mut tallies = [Tally::default(), Tally::default()];
    let mut frame = vec![0; 1 << 17];
    loop {
        match recv(socket, &mut frame[..], RecvFlags::empty()) {
            Ok((len, _)) => {
                let frame = &frame[..len];
                let [own, others] = &mut tallies;
                let tally = if frame.get(6..12) == Some(&station[..]) { own } else { others };
                tally.longest = tally.longest.max(len);
                tally.add(frame);
            }
            // What was sent before the end is there before the timeout.
            Err(_) if is_ended.load(Ordering::Relaxed) => return tallies,
            Err(_) => {}
        }
    }
}

impl Tally {
    fn add(&mut self, frame: &[u8]) {
        let packet = &frame[ETHERNET..];
        match (u16::from_be_bytes([frame[12], frame[13]]), packet[0] >> 4) {
            (IPV4, 4) => self.add_ipv4(packet),
            (IPV6, 6) => {
                let len = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
                // Whatever has a header of options in between is none of ours.
                self.add_payload(packet[6], &packet[8..40], &packet[40..40 + len]);
            }
            _ => {}
        }
    }

    fn add_ipv4(&mut self, packet: &[u8]) {
        let header = usize::from(packet[0] & 15) * 4;
        let len = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
        if sum(&[&packet[..header]]) != 0xFFFF {
            self.wrong.push(format!("an IPv4 header: {:02x?}", &packet[..header]));
        }
        let is_fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x3FFF != 0;
        if !is_fragment {
            self.add_payload(packet[9], &packet[12..20], &packet[header..len]);
        }
    }

    /// `addresses`: source and destination.
    fn add_payload(&mut self, protocol: u8, addresses: &[u8], payload: &[u8]) {
        let at = match protocol {
            TCP => 16,
            UDP => 6,
            ICMP | ICMPV6 => 2,
            _ => return,
        };
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let pseudo = [addresses, &length[..], &[0, 0, 0, protocol]];
        let pseudo = if protocol == ICMP { 0 } else { sum(&pseudo) };
        if sum(&[payload, &pseudo.to_be_bytes()]) == 0xFFFF {
            // Odd payloads are followed by a zero byte in the sum; `sum` adds the slices one by one.
            self.whole += 1;
        } else if matches!(protocol, TCP | UDP) && payload[at..at + 2] == pseudo.to_be_bytes() {
            self.partial += 1;
        } else {
            self.wrong.push(format!(
                "protocol {protocol}, {} bytes: {:02x?}",
                payload.len(),
                &payload[..20.min(payload.len())]
            ));
        }
    }
}

/// The sum in ones' complement (RFC 1071); each slice begins at an even place.
pub(crate) fn sum(slices: &[&[u8]]) -> u16 {
    let words = slices.iter().flat_map(|slice| slice.chunks(2));
    let mut sum: u32 = 0;
    for word in words {
        sum += u32::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]));
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}
