//! Reads files that a user names: regular files only, never more than a limit, never waiting for a writer.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

/// Why a file could not be read.
#[derive(Debug)]
pub(crate) enum FileError {
    Io(&'static str, io::Error),
    NotRegular(&'static str),
    TooLarge(u64),
}

/// The whole content of the regular file at `path`, which has at most `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    // Looked at before it is opened: opening a device may already do something, and a FIFO's open waits.
    let stat = rustix::fs::stat(path).map_err(|errno| match errno {
        Errno::NOENT | Errno::NOTDIR => FileError::Io("cannot be found", errno.into()),
        _ => FileError::Io("cannot be looked at", errno.into()),
    })?;
    check_regular(FileType::from_raw_mode(stat.st_mode))?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|errno| FileError::Io("cannot be opened", errno.into()))?;
    // Looked at again: another file may have taken the name since.
    let stat = rustix::fs::fstat(&fd).map_err(|errno| FileError::Io("cannot be read", errno.into()))?;
    check_regular(FileType::from_raw_mode(stat.st_mode))?;
    let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
    if size > limit {
        return Err(FileError::TooLarge(size));
    }
    read_at_most(File::from(fd), size, limit)
}

fn read_at_most(file: File, size: u64, limit: u64) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default().saturating_add(1));
    // One byte more than the limit shows that the file has grown beyond it.
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| FileError::Io("cannot be read", error))?;
    match bytes.len() as u64 {
        len if len > limit => Err(FileError::TooLarge(len)),
        _ => Ok(bytes),
    }
}

fn check_regular(kind: FileType) -> Result<(), FileError> {
    Err(FileError::NotRegular(match kind {
        FileType::RegularFile => return Ok(()),
        FileType::Directory => "a directory",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        _ => "not a file",
    }))
}

/// `name` without characters that could control a terminal: they are shown as escapes.
pub(crate) fn printable(name: &str) -> String {
    let mut shown = String::with_capacity(name.len());
    for character in name.chars() {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}
