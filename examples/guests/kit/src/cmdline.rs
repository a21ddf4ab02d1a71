//! The command line: words, then `--` and the program's arguments.
//!
//! The VMM encodes arguments as ` -- "first" "second"`: each in double quotes, `\"` and `\\` escaped, every byte that
//! is not printable ASCII as `\xNN`.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

const SEPARATOR: &str = "--";

/// Where the arguments begin: after the first `--` that stands alone and is followed by nothing or a quote.
fn split(cmdline: &str) -> (&str, &str) {
    let mut from = 0;
    while let Some(found) = cmdline[from..].find(SEPARATOR) {
        let at = from + found;
        let (before, after) = (&cmdline[..at], &cmdline[at + SEPARATOR.len()..]);
        let alone =
            (before.is_empty() || before.ends_with(' ')) && (after.is_empty() || after.starts_with(' '));
        if alone && matches!(after.trim_start().as_bytes().first(), None | Some(b'"')) {
            return (before, after);
        }
        from = at + SEPARATOR.len();
    }
    (cmdline, "")
}

/// The words before the arguments.
pub fn words(cmdline: &str) -> impl Iterator<Item = &str> {
    split(cmdline).0.split_ascii_whitespace()
}

/// The arguments.
#[must_use]
pub fn args(cmdline: &str) -> Args<'_> {
    Args { rest: split(cmdline).1 }
}

/// Arguments of the program, in order.
#[derive(Clone, Debug)]
pub struct Args<'a> {
    rest: &'a str,
}

impl<'a> Iterator for Args<'a> {
    type Item = Arg<'a>;

    fn next(&mut self) -> Option<Arg<'a>> {
        let body = self.rest.trim_start().strip_prefix('"')?;
        let mut escaped = false;
        let end = body.bytes().position(|byte| {
            let ends = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            ends
        })?;
        self.rest = &body[end + 1..];
        Some(Arg { encoded: &body[..end] })
    }
}

/// One argument, decoded as it is read: comparing and printing it allocates nothing.
#[derive(Clone, Copy, Debug)]
pub struct Arg<'a> {
    encoded: &'a str,
}

impl<'a> Arg<'a> {
    /// The argument's bytes.
    pub fn bytes(self) -> impl Iterator<Item = u8> + use<'a> {
        let mut rest = self.encoded.as_bytes();
        core::iter::from_fn(move || {
            let (byte, len) = match *rest {
                [b'\\', b'x', high, low, ..] => (hex(high) << 4 | hex(low), 4),
                [b'\\', byte, ..] => (byte, 2),
                [byte, ..] => (byte, 1),
                [] => return None,
            };
            rest = &rest[len..];
            Some(byte)
        })
    }

    /// The argument as text, if it is UTF-8.
    #[must_use]
    pub fn text(self) -> Option<String> {
        String::from_utf8(self.bytes().collect::<Vec<u8>>()).ok()
    }

    /// The argument as a decimal number, or as a hexadecimal one after `0x`.
    #[must_use]
    pub fn number(self) -> Option<u64> {
        let mut text = [0; 20];
        let mut len = 0;
        for byte in self.bytes() {
            *text.get_mut(len)? = byte;
            len += 1;
        }
        let text = str::from_utf8(&text[..len]).ok()?;
        match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        }
    }
}

impl PartialEq<str> for Arg<'_> {
    fn eq(&self, other: &str) -> bool {
        self.bytes().eq(other.bytes())
    }
}

impl PartialEq<&str> for Arg<'_> {
    fn eq(&self, other: &&str) -> bool {
        self == *other
    }
}

/// As it is encoded: always printable ASCII.
impl fmt::Display for Arg<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.encoded)
    }
}

fn hex(digit: u8) -> u8 {
    (digit as char).to_digit(16).unwrap_or(0) as u8
}
