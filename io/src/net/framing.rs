//! Frames in a stream: four bytes of length, big-endian, then the frame. So do passt and QEMU's `-netdev stream`.
//!
//! Owns one fixed buffer a direction. Never waits, never allocates for a frame, and believes no length that no frame
//! has: after one of those, there is no telling where the next frame starts, so that is the end.

use super::MAX_FRAME;

/// Bytes of a length.
pub const PREFIX: usize = 4;
/// Bytes of the buffer of what came: more than one of the longest frames, so that one call brings many short ones.
const INCOMING: usize = 128 << 10;

const _: () = assert!(INCOMING >= PREFIX + MAX_FRAME);

/// A length that no frame has: more than [`MAX_FRAME`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer announces a frame of {0} bytes; {MAX_FRAME} is the most")]
pub struct BadLength(pub u32);

/// Takes a stream apart.
#[derive(Debug)]
pub struct Incoming {
    buffer: Box<[u8]>,
    /// What is there: from the next frame's length on.
    start: usize,
    end: usize,
}

impl Default for Incoming {
    fn default() -> Self {
        Self { buffer: vec![0; INCOMING].into(), start: 0, end: 0 }
    }
}

impl Incoming {
    /// Where the next bytes go; never empty after [`Incoming::next_frame`] gave none. Then tell by
    /// [`Incoming::came`] how many they are.
    pub fn room(&mut self) -> &mut [u8] {
        // To the front, unless there is room for the rest of any frame.
        if self.start == self.end || self.buffer.len() - self.start < PREFIX + MAX_FRAME {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// That many bytes are in the room's beginning.
    pub fn came(&mut self, count: usize) {
        self.end = self.end.saturating_add(count).min(self.buffer.len());
    }

    /// True if [`Incoming::next_frame`] has something to give, or an error.
    pub fn is_ready(&self) -> bool {
        !matches!(self.peek(), Ok(None))
    }

    /// Takes the next frame, if all of it is there. It may be empty, or too short to be one.
    ///
    /// # Errors
    /// [`BadLength`], and from then on always.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, BadLength> {
        let Some(length) = self.peek()? else { return Ok(None) };
        let from = self.start + PREFIX;
        self.start = from + length;
        Ok(self.buffer.get(from..self.start))
    }

    /// Length of the next frame, if all of it is there.
    fn peek(&self) -> Result<Option<usize>, BadLength> {
        let there = self.buffer.get(self.start..self.end).unwrap_or_default();
        let Some((prefix, rest)) = there.split_first_chunk::<PREFIX>() else { return Ok(None) };
        let told = u32::from_be_bytes(*prefix);
        match usize::try_from(told) {
            Ok(length) if length <= MAX_FRAME => Ok((rest.len() >= length).then_some(length)),
            _ => Err(BadLength(told)),
        }
    }
}

/// One frame on its way into a stream, which may take it in parts.
#[derive(Debug)]
pub struct Outgoing {
    buffer: Box<[u8]>,
    /// What is still to go.
    start: usize,
    end: usize,
}

impl Default for Outgoing {
    fn default() -> Self {
        Self { buffer: vec![0; PREFIX + MAX_FRAME].into(), start: 0, end: 0 }
    }
}

impl Outgoing {
    /// Puts a frame of `length` bytes here, which `fill` writes; what was here before is gone. `None`: too long.
    pub fn put<T>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> T) -> Option<T> {
        let told = u32::try_from(length).ok()?;
        let (prefix, rest) = self.buffer.split_first_chunk_mut::<PREFIX>()?;
        let filled = fill(rest.get_mut(..length)?);
        *prefix = told.to_be_bytes();
        (self.start, self.end) = (0, PREFIX + length);
        Some(filled)
    }

    /// What is still to go.
    pub fn rest(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// That many bytes of the rest have gone.
    pub fn gone(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.end);
    }

    /// Bytes of the frame of which a part has gone and a part has not; `None`: there is none.
    pub fn under_way(&self) -> Option<usize> {
        (self.start > 0 && self.start < self.end).then(|| self.end - PREFIX)
    }
}

#[cfg(test)]
#[path = "framing_test.rs"]
mod tests;
