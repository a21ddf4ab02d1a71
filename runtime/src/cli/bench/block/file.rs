//! The file that every contender reads and writes.

use std::fs::OpenOptions;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::super::unnamed::Unnamed;
use crate::cli::CliResult;

const CHUNK: usize = 1 << 20;

/// A file with content everywhere, in the page cache and on the disk.
pub(super) fn make(folder: &Path, size: u64) -> CliResult<Unnamed> {
    let said = |error: io::Error| format!("a file of {} MiB in {}: {error}", size >> 20, folder.display());
    let unnamed = Unnamed::new_in(folder).map_err(said)?;
    let chunk: Vec<u8> = (0..CHUNK).map(|byte| (byte.wrapping_mul(0x9e37_79b1) >> 24) as u8).collect();
    let mut file = unnamed.file();
    for _ in 0..size / CHUNK as u64 {
        file.write_all(&chunk).map_err(said)?;
    }
    file.sync_all().map_err(said)?;
    Ok(unnamed)
}

/// Reads the file, so that all of it is in the page cache.
pub(super) fn warm(file: &Unnamed) -> io::Result<()> {
    let mut file = file.file();
    file.seek(SeekFrom::Start(0))?;
    let mut chunk = vec![0; CHUNK];
    while file.read(&mut chunk)? > 0 {}
    Ok(())
}

/// Takes the file out of the page cache: a direct write of what is in it has to remove that first, and is slow.
pub(super) fn cool(file: &Unnamed) -> io::Result<()> {
    file.file().sync_all()?;
    rustix::fs::fadvise(file.file(), 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}

/// Why the file cannot be read past the page cache, if so.
pub(super) fn why_not_direct(file: &Unnamed) -> Option<String> {
    let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    let opened = OpenOptions::new().read(true).custom_flags(direct).open(file.path());
    opened.err().map(|error| format!("its file system has no direct I/O: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_its_size_and_no_holes() {
        let file = make(&std::env::temp_dir(), 4 << 20).unwrap();
        let metadata = file.file().metadata().unwrap();
        assert_eq!(metadata.len(), 4 << 20);
        assert!(std::os::unix::fs::MetadataExt::blocks(&metadata) * 512 >= 4 << 20);
        warm(&file).unwrap();
        cool(&file).unwrap();
        warm(&file).unwrap();
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error = make(Path::new("/nonexistent"), 1 << 20).unwrap_err().to_string();
        assert!(error.contains("1 MiB in /nonexistent"), "{error}");
    }
}
