use super::*;
use crate::layout::IMAGE_START;
use crate::testing::{Part, elf, sample};
use std::os::unix::net::UnixListener;

#[test]
fn an_image_is_opened_and_prefers_pvh() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kernel");
    std::fs::write(&path, sample()).unwrap();
    let image = Image::open(&path).unwrap();
    assert_eq!(image.name(), path.to_str().unwrap());
    assert_eq!(image.protocol(), Protocol::Pvh);
    assert_eq!(image.entry(Protocol::Pvh), Some(IMAGE_START + 0x10));
    assert_eq!(image.entry(Protocol::Linux64), Some(IMAGE_START));
    assert_eq!(image.memory_end(), 0x10_3020);
    assert_eq!((image.len(), image.is_empty()), (sample().len(), false));
}

#[test]
fn without_a_note_the_entry_is_linux64() {
    let image = Image::from_bytes("x", elf(IMAGE_START, &[Part::code(IMAGE_START, 16)])).unwrap();
    assert_eq!(image.protocol(), Protocol::Linux64);
    assert!(!image.supports(Protocol::Pvh));
}

#[test]
fn messages_name_file_field_value_and_limit() {
    let mut bytes = sample();
    bytes[crate::testing::ehdr::PHNUM] = 99;
    let error = Image::from_bytes("boot/odd.elf", bytes).unwrap_err();
    assert_eq!(error.to_string(), "boot/odd.elf: e_phnum is 99; it must be between 1 and 64");
}

#[test]
fn sec_13_a_name_cannot_control_a_terminal() {
    let error = Image::from_bytes("a\x1b[31m\u{9b}b\n", vec![]).unwrap_err().to_string();
    assert!(!error.chars().any(char::is_control), "{error:?}");
    assert!(error.starts_with("a\\u{1b}[31m\\u{9b}b\\n: "), "{error:?}");
    assert_eq!(Image::from_bytes("a\tb", sample()).unwrap().name(), "a\\tb");
}

#[test]
fn sec_07_only_regular_files_are_read_and_nothing_waits() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    for (path, kind) in [
        (dir.path(), "a directory"),
        (&fifo, "a FIFO"),
        (&socket, "a socket"),
        (Path::new("/dev/zero"), "a character device"),
    ] {
        let error = Image::open(path).unwrap_err().to_string();
        assert_eq!(error, format!("{}: it is {kind}; only regular files are read", path.display()));
    }
    let error = Image::open(&dir.path().join("none")).unwrap_err().to_string();
    assert!(error.ends_with("/none: cannot be found: No such file or directory (os error 2)"), "{error}");
}

#[test]
fn sec_06_a_file_is_read_up_to_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(IMAGE_MAX + 1).unwrap();
    let error = Image::open(&path).unwrap_err().to_string();
    assert_eq!(error, format!("{}: it has 536870913 bytes; at most 536870912 are read", path.display()));
    // A file whose length says 0 but that has content (as in /proc) is bounded while it is read.
    let error = file::read(Path::new("/proc/self/maps"), 16).unwrap_err();
    assert!(matches!(error, FileError::TooLarge(17)), "{error:?}");
    assert_eq!(file::read(Path::new("/proc/self/comm"), 16).unwrap().last(), Some(&b'\n'));
}
