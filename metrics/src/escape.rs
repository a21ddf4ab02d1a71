//! Text from outside, made safe to print and bounded in length.
//!
//! Owns: the one rule by which bytes that a guest, a peer or a file name chose reach a log line or a metric
//! label (SEC-13). Never: prints anything.

use std::fmt::{self, Write};
use std::hash::{DefaultHasher, Hasher};

/// Displays a text with every character that could steer a terminal escaped: C0 and C1 controls and DEL as
/// `\n`, `\r`, `\t` or `\u{1b}`, and the Unicode line separators and direction overrides likewise.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| write_escaped(f, c))
    }
}

fn write_escaped(out: &mut impl Write, c: char) -> fmt::Result {
    if steers_a_terminal(c) { write!(out, "{}", c.escape_default()) } else { out.write_char(c) }
}

/// Controls, line separators, and characters that reorder what is shown around them.
fn steers_a_terminal(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Formats a message, escaped, into at most `limit` bytes; what does not fit is replaced by `…`.
/// Memory and work are bounded by `limit`, however long the message is.
pub(crate) fn escape_bounded(message: fmt::Arguments<'_>, limit: usize) -> String {
    BoundedText::format(message, limit).text
}

/// A label value: escaped, at most `limit` bytes. A longer one is cut and closed with a hash of the whole,
/// so that two long names that begin alike stay two series.
pub(crate) fn label_value(text: &str, limit: usize) -> Box<str> {
    const HASH: usize = 17; // '~' and 16 hexadecimal digits
    let mut bounded = BoundedText::format(format_args!("{text}"), limit);
    if bounded.full {
        let mut hasher = DefaultHasher::new();
        hasher.write(text.as_bytes());
        bounded.cut(limit.saturating_sub(HASH));
        // Writing to a String cannot fail.
        let _ = write!(bounded.text, "~{:016x}", hasher.finish());
    }
    bounded.text.into()
}

struct BoundedText {
    text: String,
    limit: usize,
    full: bool,
}

impl BoundedText {
    const ELLIPSIS: char = '…';

    fn format(message: fmt::Arguments<'_>, limit: usize) -> Self {
        let mut out = Self { text: String::new(), limit, full: false };
        // An error means "full" (marked as such) or a Display that fails; what was written stands.
        let _ = out.write_fmt(message);
        out
    }

    /// Ends the text with the mark, at most `limit` bytes in all.
    fn close(&mut self) {
        self.full = true;
        self.cut(self.limit.saturating_sub(Self::ELLIPSIS.len_utf8()));
        self.text.push(Self::ELLIPSIS);
    }

    /// Takes whole characters off until at most `len` bytes are left.
    fn cut(&mut self, len: usize) {
        while self.text.len() > len {
            self.text.pop();
        }
    }
}

impl Write for BoundedText {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for c in s.chars() {
            if self.full {
                return Err(fmt::Error);
            }
            let before = self.text.len();
            write_escaped(&mut self.text, c)?;
            if self.text.len() > self.limit {
                self.text.truncate(before);
                self.close();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "escape_test.rs"]
mod tests;
