use super::*;

const LOW: u64 = 1 << 20;
const HIGH: u64 = 1 << 32;

fn split() -> GuestRam {
    GuestRam::new(&[(0, LOW), (HIGH, LOW)], Backing::Pages4K).unwrap()
}

#[test]
fn copies_in_and_out() {
    let ram = split();
    ram.write(HIGH + 4090, b"across a page").unwrap();
    let mut back = [0; 13];
    ram.read(HIGH + 4090, &mut back).unwrap();
    assert_eq!(&back, b"across a page");
    ram.write_u64(8, 0x0102_0304_0506_0708).unwrap();
    assert_eq!(ram.read_u32(8).unwrap(), 0x0506_0708);
    assert_eq!(ram.read_u64(8).unwrap(), 0x0102_0304_0506_0708);
}

#[test]
fn sec_07_accesses_outside_ram_are_refused_whole() {
    let ram = split();
    for (gpa, len) in
        [(LOW - 1, 2), (LOW, 1), (HIGH - 1, 1), (HIGH + LOW - 4, 8), (u64::MAX, 1), (u64::MAX - 3, 8)]
    {
        assert!(!ram.contains(gpa, len), "{gpa:#x}+{len}");
        let mut buf = vec![7; len as usize];
        assert!(matches!(ram.read(gpa, &mut buf), Err(RamError::OutOfBounds { .. })), "{gpa:#x}+{len}");
        assert!(buf.iter().all(|&b| b == 7), "a refused read copied something");
        assert!(ram.write(gpa, &buf).is_err());
    }
    let mut last = [0];
    ram.read(LOW - 1, &mut last).unwrap();
    assert_eq!(last, [0], "a refused write wrote its first byte");
    assert!(!ram.contains(0, u64::MAX));
}

#[test]
fn adjacent_regions_are_one_range_and_a_gap_is_not() {
    let ram = GuestRam::new(&[(0, LOW), (LOW, LOW), (4 * LOW, LOW)], Backing::Pages4K).unwrap();
    assert!(ram.contains(LOW - 8, 16));
    ram.write(LOW - 8, &[1; 16]).unwrap();
    assert!(!ram.contains(2 * LOW - 8, 16));
    let regions: Vec<_> = ram.regions().map(|r| (r.gpa, r.len, r.file_offset)).collect();
    assert_eq!(regions, [(0, LOW, 0), (LOW, LOW, LOW), (4 * LOW, LOW, 2 * LOW)]);
    assert_eq!(ram.size(), 3 * LOW);
}

#[test]
fn the_memfd_cannot_be_resized() {
    let ram = split();
    for size in [0, LOW, 4 * LOW] {
        assert_eq!(ram.file().set_len(size).unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
    }
    let more = rustix::fs::fcntl_add_seals(ram.file(), SealFlags::WRITE);
    assert_eq!(more, Err(rustix::io::Errno::PERM), "seals can still be added");
}

#[test]
fn host_writes_are_marked_dirty_once() {
    let ram = split();
    ram.write(4095, &[1, 2]).unwrap();
    ram.write(HIGH + 8192, &[1]).unwrap();
    ram.read(20480, &mut [0; 8]).unwrap();
    assert_eq!(ram.take_host_dirty(), [0, 4096, HIGH + 8192]);
    assert_eq!(ram.take_host_dirty(), [0u64; 0]);
}

#[test]
fn bad_regions_are_named() {
    for (regions, what) in [
        (&[(0, 0)][..], "multiples"),
        (&[(0, 100)], "multiples"),
        (&[(1, 4096)], "multiples"),
        (&[(4096, 4096), (0, 4096)], "sorted"),
        (&[(0, 8192), (4096, 4096)], "sorted"),
        (&[(u64::MAX - 4095, 4096)], "64-bit"),
        (&[], "out of range"),
    ] {
        let error = GuestRam::new(regions, Backing::Pages4K).unwrap_err().to_string();
        assert!(error.contains(what), "{regions:?}: {error}");
    }
    let error = GuestRam::new(&[(0, 4096)], Backing::Huge2M).unwrap_err();
    assert!(matches!(error, RamError::Region { .. }), "{error}");
}

#[test]
fn the_mapping_is_gone_with_the_last_clone() {
    let ram = GuestRam::new(&[(0, 64 << 20)], Backing::Pages4K).unwrap();
    let addr = ram.regions().next().unwrap().host_addr;
    let mapped = || std::fs::read_to_string("/proc/self/maps").unwrap().contains(&format!("{addr:x}-"));
    let clone = ram.clone();
    drop(ram);
    assert!(mapped());
    drop(clone);
    assert!(!mapped());
}

#[test]
fn sec_01_huge_pages_that_the_host_lacks_are_an_error_and_not_a_sigbus_later() {
    // No host has a pool of 16 TiB.
    let error = GuestRam::new(&[(0, 16 << 40)], Backing::Huge2M).unwrap_err();
    assert!(error.to_string().contains("vm.nr_hugepages"), "{error}");
}
