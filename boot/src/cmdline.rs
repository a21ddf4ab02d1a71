//! Builds a guest's command line from the user's options and arguments.
//!
//! Owns the rules for what may be on it; the encoding of arguments is in [`crate::args`]. linux-loader's builder
//! is not used: it refuses arguments without options, and trims what it is given.

use crate::args::{SEPARATOR, encode};
use crate::layout::CMDLINE_SIZE;

/// Most characters of a command line, arguments included, NUL excluded. Linux keeps the first 2047.
pub const CMDLINE_MAX: usize = CMDLINE_SIZE as usize - 1;

/// Why a command line cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CmdlineError {
    /// A character that is not printable ASCII.
    #[error("command line: byte {offset} is {character:?}; only printable ASCII is allowed")]
    Character {
        /// Byte offset of the character in the options.
        offset: usize,
        /// The character.
        character: char,
    },
    /// The options contain the word that begins the arguments.
    #[error(
        "command line: byte {offset} begins the word `--`; pass arguments separately, they are encoded after it"
    )]
    Separator {
        /// Byte offset of the word in the options.
        offset: usize,
    },
    /// An odd number of quotes in the options: arguments would be read as a part of a quoted option.
    #[error("command line: it has {count} quote characters; their number must be even")]
    Quotes {
        /// Quote characters found.
        count: usize,
    },
    /// The line does not fit.
    #[error("command line: with its encoded arguments it has {len} characters or more; at most {limit} fit")]
    TooLong {
        /// Characters that are needed at least.
        len: usize,
        /// Characters that fit, [`CMDLINE_MAX`].
        limit: usize,
    },
}

/// The command line of `options` and `args`, without a NUL: the options as they are, then, if there are
/// arguments, ` -- ` and each argument encoded. At most [`CMDLINE_MAX`] bytes of printable ASCII.
pub fn build(options: &str, args: &[String]) -> Result<String, CmdlineError> {
    check_length(args.iter().fold(options.len(), |len, arg| len.saturating_add(arg.len())))?;
    check_options(options)?;
    let mut line = String::from(options);
    if !args.is_empty() {
        if !options.is_empty() {
            line.push(' ');
        }
        line.push_str(SEPARATOR);
    }
    for arg in args {
        line.push(' ');
        // Writing to a String cannot fail.
        let _ = encode(arg, &mut line);
        check_length(line.len())?;
    }
    Ok(line)
}

fn check_length(len: usize) -> Result<(), CmdlineError> {
    if len > CMDLINE_MAX { Err(CmdlineError::TooLong { len, limit: CMDLINE_MAX }) } else { Ok(()) }
}

fn check_options(options: &str) -> Result<(), CmdlineError> {
    if let Some((offset, character)) = options.char_indices().find(|(_, c)| !matches!(c, ' '..='~')) {
        return Err(CmdlineError::Character { offset, character });
    }
    let mut offset = 0;
    for word in options.split(' ') {
        if word == SEPARATOR {
            return Err(CmdlineError::Separator { offset });
        }
        offset += word.len() + 1;
    }
    match options.bytes().filter(|&byte| byte == b'"').count() {
        count if count % 2 == 1 => Err(CmdlineError::Quotes { count }),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "cmdline_test.rs"]
mod tests;
