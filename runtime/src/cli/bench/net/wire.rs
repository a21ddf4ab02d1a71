//! What is said to the guest `netbench`, and by it (`examples/guests/guests/src/netbench/wire.rs`): over TCP a first line,
//! `sink`, `source` or `echo`; over UDP a header before each datagram, of which the numbers are big-endian.

/// Its port, of TCP and UDP.
pub(super) const PORT: u16 = 5001;
/// Bytes of a datagram's header.
pub(super) const HEADER: usize = 40;
const MAGIC: [u8; 4] = *b"rnb1";

/// What a datagram is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It is counted; `number` counts from 0.
    Data = 0,
    /// Asks for datagrams of `first` bytes, for `second` nanoseconds, as many as go.
    Send = 3,
    /// Asks for a [`Report`](Self::Report).
    Query = 4,
    /// `number` datagrams came, and `second` nanoseconds lie between the first and the last.
    Report = 5,
}

/// The header of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// Tells one measurement from another.
    pub(super) flow: u64,
    pub(super) number: u64,
    pub(super) first: u64,
    pub(super) second: u64,
}

impl Header {
    pub(super) fn of(kind: Kind, flow: u64) -> Self {
        Self { kind, flow, number: 0, first: 0, second: 0 }
    }

    /// `None` of what is no datagram of these.
    pub(super) fn parse(datagram: &[u8]) -> Option<Self> {
        let (start, numbers) = datagram.first_chunk::<HEADER>()?.split_at(8);
        let kind = start.strip_prefix(&MAGIC)?.first()?;
        let kinds = [Kind::Data, Kind::Send, Kind::Query, Kind::Report];
        let kind = kinds.into_iter().find(|known| *known as u8 == *kind)?;
        let mut numbers = numbers.as_chunks::<8>().0.iter().map(|number| u64::from_be_bytes(*number));
        let mut next = || numbers.next();
        Some(Self { kind, flow: next()?, number: next()?, first: next()?, second: next()? })
    }

    pub(super) fn encode(self) -> [u8; HEADER] {
        let [a, b, c, d] = MAGIC;
        let start = [a, b, c, d, self.kind as u8, 0, 0, 0];
        let numbers = [self.flow, self.number, self.first, self.second].map(u64::to_be_bytes);
        let bytes = start.into_iter().chain(numbers.into_iter().flatten());
        let mut header = [0; HEADER];
        header.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_what_it_was() {
        for kind in [Kind::Data, Kind::Send, Kind::Query, Kind::Report] {
            let header = Header { kind, flow: 1 << 40, number: 2, first: 3, second: u64::MAX };
            assert_eq!(Header::parse(&header.encode()), Some(header));
        }
        let bytes = Header::of(Kind::Query, 0x0102).encode();
        assert_eq!(bytes[..16], *b"rnb1\x04\0\0\0\0\0\0\0\0\0\x01\x02");
    }

    #[test]
    fn what_is_no_header_is_none() {
        let good = Header::of(Kind::Data, 1).encode();
        assert_eq!(Header::parse(&good[..HEADER - 1]), None);
        for (place, byte) in [(0, b'R'), (4, 1), (4, 200)] {
            let mut bad = good;
            bad[place] = byte;
            assert_eq!(Header::parse(&bad), None);
        }
    }
}
