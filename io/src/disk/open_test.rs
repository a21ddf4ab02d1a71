use std::os::unix::fs::PermissionsExt;

use super::*;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn file(folder: &tempfile::TempDir, size: u64) -> PathBuf {
    let path = folder.path().join("disk.img");
    fs::File::create(&path).unwrap().set_len(size).unwrap();
    path
}

const WRITE: DiskOptions = DiskOptions { read_only: false, direct: false };
const READ: DiskOptions = DiskOptions { read_only: true, direct: false };

/// Opens what cannot be a disk; the message names the file and contains `words`.
fn refused(path: &Path, options: DiskOptions, words: &[&str]) -> DiskError {
    let error = DiskFile::open(path, options).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&path.display().to_string()), "{text}");
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
    error
}

#[test]
fn a_file_is_a_disk_of_its_size() {
    let folder = folder();
    let path = file(&folder, 1 << 20);
    let disk = DiskFile::open(&path, WRITE).unwrap();
    let info = disk.info();
    assert_eq!((info.size, info.block_size, info.read_only, info.write_zeroes), (1 << 20, 512, false, true));
    assert_eq!(disk.path(), path);
    // An operation on a disk may wait.
    assert!(!fcntl_getfl(&disk.fd).unwrap().intersects(OFlags::NONBLOCK | OFlags::DIRECT));
    assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 20, "finding out about holes has changed the size");
}

#[test]
fn a_second_writer_is_refused_in_the_same_process_too() {
    let folder = folder();
    let path = file(&folder, 4096);
    let first = DiskFile::open(&path, WRITE).unwrap();
    let error = refused(&path, WRITE, &["in use by another disk", "stop the other VM"]);
    assert!(matches!(error, DiskError::InUse { read_only: false, .. }));
    let error = refused(&path, READ, &["in use by a disk that writes"]);
    assert!(matches!(error, DiskError::InUse { read_only: true, .. }));
    // Other programs that lock are heard as well.
    drop(first);
    let other = fs::File::open(&path).unwrap();
    flock(&other, FlockOperation::LockExclusive).unwrap();
    refused(&path, WRITE, &["in use"]);
    drop(other);
    DiskFile::open(&path, WRITE).unwrap();
}

#[test]
fn a_lock_is_of_the_file_whatever_it_is_called() {
    let folder = folder();
    let path = file(&folder, 4096);
    let (hard, soft) = (folder.path().join("hard"), folder.path().join("soft"));
    fs::hard_link(&path, &hard).unwrap();
    std::os::unix::fs::symlink(&path, &soft).unwrap();
    let _first = DiskFile::open(&path, WRITE).unwrap();
    refused(&hard, WRITE, &["in use"]);
    refused(&soft, WRITE, &["in use"]);
}

#[test]
fn readers_share_a_file_and_keep_writers_out() {
    let folder = folder();
    let path = file(&folder, 4096);
    let readers = [DiskFile::open(&path, READ).unwrap(), DiskFile::open(&path, READ).unwrap()];
    assert!(readers.iter().all(|disk| disk.info().read_only && !disk.info().discard));
    refused(&path, WRITE, &["in use", "`readonly` in both"]);
    drop(readers);
    DiskFile::open(&path, WRITE).unwrap();
}

#[test]
fn a_read_only_disk_cannot_be_written_through_its_descriptor() {
    let folder = folder();
    let path = file(&folder, 4096);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    let disk = DiskFile::open(&path, READ).unwrap();
    assert_eq!(rustix::io::pwrite(&disk.fd, b"x", 0), Err(Errno::BADF));
}

#[test]
fn only_files_and_block_devices_are_disks() {
    let folder = folder();
    refused(folder.path(), WRITE, &["a folder", "regular file"]);
    refused(folder.path(), READ, &["a folder"]);
    refused(Path::new("/dev/null"), WRITE, &["a character device"]);
    let fifo = folder.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, 0o600.into(), 0).unwrap();
    // And nobody waits for its other end.
    refused(&fifo, READ, &["a FIFO"]);
    refused(&fifo, WRITE, &["a FIFO"]);
    let socket = folder.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    refused(&socket, WRITE, &["a socket"]);
}

#[test]
fn what_cannot_be_opened_is_named_with_a_remedy() {
    let folder = folder();
    let error = refused(&folder.path().join("none"), WRITE, &["No such file", "truncate -s"]);
    assert!(matches!(error, DiskError::Open { .. }));
    refused(&folder.path().join("none/none"), READ, &["No such file"]);
    let denied = io::Error::from(io::ErrorKind::PermissionDenied);
    assert!(open_remedy(&denied, false).contains("`readonly`"));
    assert!(open_remedy(&denied, true).contains("read it"));
    assert!(open_remedy(&Errno::BUSY.into(), false).contains("mounted"));
}

#[test]
fn sizes_are_whole_sectors() {
    let folder = folder();
    for size in [0, 1, 511, 513, (1 << 20) + 100] {
        let error =
            refused(&file(&folder, size), WRITE, &[&size.to_string(), "multiple of 512", "truncate -s %512"]);
        assert!(matches!(error, DiskError::Size { unit: 512, .. }));
    }
    assert_eq!(DiskFile::open(file(&folder, 512), WRITE).unwrap().info().size, 512);
}

#[test]
fn direct_disks_are_whole_blocks() {
    let blocks = Some(Alignment { memory: 512, offset: 4096 });
    let check = |size| check_size(Path::new("d"), size, blocks);
    assert!(matches!(check(4096 + 512), Err(DiskError::Size { unit: 4096, .. })));
    check(8192).unwrap();
    let small = Some(Alignment { memory: 1, offset: 1 });
    assert!(matches!(check_size(Path::new("d"), 100, small), Err(DiskError::Size { unit: 512, .. })));
}

#[test]
fn direct_disks_know_what_the_kernel_asks_for() {
    let folder = folder();
    let disk =
        DiskFile::open(file(&folder, 1 << 20), DiskOptions { read_only: false, direct: true }).unwrap();
    let alignment = disk.direct.unwrap();
    assert!(fcntl_getfl(&disk.fd).unwrap().contains(OFlags::DIRECT));
    assert!(alignment.memory.is_power_of_two() && alignment.offset.is_power_of_two());
    assert!(disk.info().block_size >= alignment.offset.max(512));
}

#[test]
fn direct_io_that_is_not_there_is_named() {
    // /proc has regular files that know no direct I/O (and have no size).
    let options = DiskOptions { read_only: true, direct: true };
    let error = refused(Path::new("/proc/version"), options, &["no direct I/O", "leave out `direct`"]);
    assert!(matches!(error, DiskError::Direct { .. }));
}
