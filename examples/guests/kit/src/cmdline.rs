//! The command line: options, then `--` and the program's arguments. The encoding is [`encoding`]'s, the same file
//! that the VMM encodes with.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

#[path = "../../../../boot/src/args.rs"]
pub mod encoding;

/// Splits a command line into options and encoded arguments.
fn split(cmdline: &str) -> (&str, &[u8]) {
    let (options, arguments) = encoding::split(cmdline.as_bytes());
    (&cmdline[..options.len()], arguments)
}

/// The words of the options.
pub fn words(cmdline: &str) -> impl Iterator<Item = &str> {
    split(cmdline).0.split_ascii_whitespace()
}

/// The arguments; what is not encoded as it should be ends them.
#[must_use]
pub fn args(cmdline: &str) -> Args<'_> {
    Args(encoding::decode(split(cmdline).1))
}

/// A number as kernel parameters have it: decimal, or hexadecimal after `0x`; then nothing, or `K`, `M`, `G` or `T`
/// for powers of 1024.
#[must_use]
pub fn size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()?.to_ascii_uppercase() {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        b'T' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let number = match digits.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok()?,
        None => digits.parse().ok()?,
    };
    number.checked_mul(1 << shift)
}

/// Arguments of the program, in order.
#[derive(Clone, Debug)]
pub struct Args<'a>(encoding::Arguments<'a>);

impl<'a> Iterator for Args<'a> {
    type Item = Arg<'a>;

    fn next(&mut self) -> Option<Arg<'a>> {
        self.0.next()?.ok().map(Arg)
    }
}

/// One argument, decoded as it is read: comparing and printing it allocates nothing.
#[derive(Clone, Copy, Debug)]
pub struct Arg<'a>(encoding::Argument<'a>);

impl<'a> Arg<'a> {
    /// The argument's bytes.
    pub fn bytes(self) -> impl Iterator<Item = u8> + use<'a> {
        self.0.bytes()
    }

    /// The argument as text, if it is UTF-8.
    #[must_use]
    pub fn text(self) -> Option<String> {
        String::from_utf8(self.bytes().collect::<Vec<u8>>()).ok()
    }

    /// The argument as a decimal number, or as a hexadecimal one after `0x`.
    #[must_use]
    pub fn number(self) -> Option<u64> {
        let mut buffer = [0; 20];
        let len = self.0.copy_to(&mut buffer)?;
        let text = str::from_utf8(&buffer[..len]).ok()?;
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

/// Printable ASCII as it is, everything else escaped.
impl fmt::Display for Arg<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes().try_for_each(|byte| fmt::Display::fmt(&byte.escape_ascii(), f))
    }
}
