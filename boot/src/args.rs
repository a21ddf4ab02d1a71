//! How arguments travel on a guest's command line: the encoder, and the decoder that guests use.
//!
//! This file needs only `core`, so that a guest can include it as a module of its own.
//!
//! # The encoding
//! ```text
//! line      = options [ "--" *( " " argument ) ]         ; "--" is a word: spaces or the line's ends around it
//! argument  = DQUOTE *( plain / escape ) DQUOTE
//! plain     = any of 0x20..=0x7E except DQUOTE and "\"
//! escape    = "\x" 2( "0"-"9" / "a"-"f" )                ; one byte
//! ```
//! * The first word `--` of the line begins the arguments. Words are separated by spaces only, quotes do not
//!   matter for finding it. Options never contain that word (the builder refuses it), so nothing in the
//!   options can be taken for arguments.
//! * Each byte of an argument that is not printable ASCII, and every `"` and `\`, is written as an escape. A
//!   quote character on the line therefore always begins or ends an argument: no content can break out, for
//!   this decoder and for parsers that know quotes but no escapes (Linux) alike.
//! * Arguments are UTF-8 before encoding. A decoder must check that again: a guest does not trust its line.

use core::fmt;

/// The word that separates options from arguments.
pub const SEPARATOR: &str = "--";

/// What an encoded argument list violates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecodeError {
    /// An argument does not begin with a quote.
    NotQuoted,
    /// An argument's closing quote is missing.
    Unterminated,
    /// Something other than a space follows a closing quote.
    NoSpace,
    /// A byte that is not printable ASCII.
    Unprintable,
    /// A backslash that does not begin `\xNN` with two lower-case hexadecimal digits.
    BadEscape,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotQuoted => "an argument does not begin with a quote",
            Self::Unterminated => "an argument has no closing quote",
            Self::NoSpace => "no space follows a closing quote",
            Self::Unprintable => "an argument has a byte that is not printable ASCII",
            Self::BadEscape => "an argument has a backslash that does not begin \\xNN",
        })
    }
}

impl core::error::Error for DecodeError {}

/// Writes `argument` with its quotes to `out`. Fails only if `out` does.
pub fn encode(argument: &str, out: &mut impl fmt::Write) -> fmt::Result {
    out.write_char('"')?;
    for byte in argument.bytes() {
        match byte {
            b'"' | b'\\' => write!(out, "\\x{byte:02x}")?,
            b' '..=b'~' => out.write_char(char::from(byte))?,
            _ => write!(out, "\\x{byte:02x}")?,
        }
    }
    out.write_char('"')
}

/// Splits a command line (without its NUL) into options and encoded arguments. Without a separator there are no
/// arguments. Spaces around the separator belong to neither.
pub fn split(line: &[u8]) -> (&[u8], &[u8]) {
    let mut start = 0;
    for word in line.split(|&byte| byte == b' ') {
        let end = start + word.len();
        if word == SEPARATOR.as_bytes() {
            let options = line.get(..start).unwrap_or_default();
            let arguments = line.get(end..).unwrap_or_default();
            return (trim_end(options), arguments);
        }
        start = end + 1;
    }
    (line, &[])
}

fn trim_end(mut bytes: &[u8]) -> &[u8] {
    while let [head @ .., b' '] = bytes {
        bytes = head;
    }
    bytes
}

/// Iterates over the arguments in the second half of [`split`]. After an error it ends.
pub fn decode(encoded: &[u8]) -> Arguments<'_> {
    Arguments { rest: encoded }
}

/// Iterator made by [`decode`].
#[derive(Debug, Clone)]
pub struct Arguments<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Arguments<'a> {
    type Item = Result<Argument<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        while let [b' ', tail @ ..] = self.rest {
            self.rest = tail;
        }
        if self.rest.is_empty() {
            return None;
        }
        let argument = split_argument(self.rest);
        self.rest = argument.as_ref().map_or(&[], |(_, rest)| rest);
        Some(argument.map(|(argument, _)| argument))
    }
}

/// Takes one argument off the front of `bytes`, which must not be empty.
fn split_argument(bytes: &[u8]) -> Result<(Argument<'_>, &[u8]), DecodeError> {
    let [b'"', inner @ ..] = bytes else { return Err(DecodeError::NotQuoted) };
    let mut parts = inner.splitn(2, |&byte| byte == b'"');
    let (Some(body), Some(rest)) = (parts.next(), parts.next()) else {
        return Err(DecodeError::Unterminated);
    };
    if !matches!(rest, [] | [b' ', ..]) {
        return Err(DecodeError::NoSpace);
    }
    let mut remaining = body;
    while !remaining.is_empty() {
        remaining = split_byte(remaining)?.1;
    }
    Ok((Argument { body }, rest))
}

/// Decodes one byte off the front of `body`, which must not be empty.
fn split_byte(body: &[u8]) -> Result<(u8, &[u8]), DecodeError> {
    match body {
        [b'\\', b'x', high, low, rest @ ..] => match (hex(*high), hex(*low)) {
            (Some(high), Some(low)) => Ok((high << 4 | low, rest)),
            _ => Err(DecodeError::BadEscape),
        },
        [b'\\', ..] => Err(DecodeError::BadEscape),
        [plain @ b' '..=b'~', rest @ ..] => Ok((*plain, rest)),
        _ => Err(DecodeError::Unprintable),
    }
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// One valid encoded argument. Nothing is copied until its bytes are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argument<'a> {
    body: &'a [u8],
}

impl<'a> Argument<'a> {
    /// The decoded bytes. Encoders write UTF-8; whoever wants text checks it.
    pub fn bytes(&self) -> impl Iterator<Item = u8> + use<'a> {
        let mut rest = self.body;
        core::iter::from_fn(move || {
            let (byte, tail) = split_byte(rest).ok()?;
            rest = tail;
            Some(byte)
        })
    }

    /// Copies the decoded bytes to the front of `buffer` and returns how many; `None` if they do not fit.
    pub fn copy_to(&self, buffer: &mut [u8]) -> Option<usize> {
        let mut len = 0;
        for byte in self.bytes() {
            *buffer.get_mut(len)? = byte;
            len += 1;
        }
        Some(len)
    }
}

#[cfg(test)]
#[path = "args_test.rs"]
mod tests;
