//! What is sent: bytes whose place in their stream can be told, and that are others in every stream.

/// A prime, so that pieces of any usual size do not look alike.
const PERIOD: usize = 251;
/// Bytes at hand, besides one period to begin anywhere in.
pub(crate) const PIECE: usize = 16 << 10;

static BYTES: [u8; PIECE + PERIOD] = {
    let mut bytes = [0; PIECE + PERIOD];
    let mut at = 0;
    while at < bytes.len() {
        bytes[at] = (at % PERIOD) as u8;
        at += 1;
    }
    bytes
};

/// Up to [`PIECE`] bytes of stream number `stream` from `at` on, where it has `len`.
pub(crate) fn piece(stream: usize, at: u64, len: u64) -> &'static [u8] {
    let first = ((at + 7 * stream as u64) % PERIOD as u64) as usize;
    let len = (len - at).min(PIECE as u64) as usize;
    &BYTES[first..first + len]
}
