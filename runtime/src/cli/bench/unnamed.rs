//! Files without a name, for processes that want one: they are gone with this process, however it ends.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// A file that has no name in its folder.
#[derive(Debug)]
pub(super) struct Unnamed {
    file: File,
    path: PathBuf,
}

impl Unnamed {
    /// Makes an empty file on the file system of `folder`.
    pub(super) fn new_in(folder: &Path) -> io::Result<Self> {
        let file = tempfile::tempfile_in(folder)?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into();
        Ok(Self { file, path })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Opens the file, for processes of the same user, as long as this is not dropped. Has no comma in it.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_path_leads_to_the_file_and_nothing_is_in_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let unnamed = Unnamed::new_in(folder.path()).unwrap();
        unnamed.file().write_all(b"content").unwrap();
        let output = std::process::Command::new("cat").arg(unnamed.path()).output().unwrap();
        assert_eq!(output.stdout, b"content");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
