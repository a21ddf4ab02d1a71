//! Which flow a frame belongs to: packets of one connection stay in order, so they go through one queue.

const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A number that all frames of a connection have in common, and that frames of others mostly have not. 0 for what is no
/// packet of IP.
pub(super) fn of(frame: &[u8]) -> u32 {
    let (kind, packet) = (frame.get(12..14), frame.get(14..).unwrap_or_default());
    // Where the protocol, the addresses, and the ports are; fragments have no ports behind the first.
    let places = match (kind, packet) {
        (Some(kind), [first, _, _, _, _, _, fragment, offset, ..]) if kind == IPV4 => {
            let is_whole = fragment & 0x3f == 0 && *offset == 0;
            Some((9, 12..20, is_whole.then_some(usize::from(first & 15) * 4)))
        }
        (Some(kind), [..]) if kind == IPV6 => Some((6, 8..40, Some(40))),
        _ => None,
    };
    let Some((protocol, addresses, ports)) = places else { return 0 };
    let has_ports = matches!(packet.get(protocol), Some(&(TCP | UDP)));
    let ports = ports.filter(|_| has_ports).and_then(|at| packet.get(at..at + 4)).unwrap_or_default();
    let addresses = packet.get(addresses).unwrap_or_default();
    let words = addresses.iter().chain(ports);
    // FNV-1a, whose low bits are worth as much as the others only when they are mixed once more.
    let hash = words.fold(0x811c_9dc5_u32, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    hash ^ hash >> 16
}
