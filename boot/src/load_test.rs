use super::*;
use crate::cmdline::CMDLINE_MAX;
use crate::elf;
use crate::layout::{BOOT_AREA_END, BOOT_PARAMS_ADDR, START_INFO_ADDR, ram_regions};
use crate::testing::{DATA_OFFSET, Part, elf, phdr, phdr_at, put, sample};
use proptest::prelude::*;
use ringlet_io::Backing;

const MIB: u64 = 1 << 20;

fn ram(size: u64) -> GuestRam {
    GuestRam::new(&ram_regions(size), Backing::Pages4K).unwrap()
}

fn image() -> Image {
    Image::from_bytes("sample", sample()).unwrap()
}

fn request(image: &Image) -> BootRequest<'_> {
    BootRequest { image, protocol: None, cmdline: "", args: &[], initrd: None, vcpus: 1 }
}

fn bytes(ram: &GuestRam, gpa: u64, len: usize) -> Vec<u8> {
    let mut buffer = vec![0; len];
    ram.read(gpa, &mut buffer).unwrap();
    buffer
}

#[test]
fn an_image_is_loaded_and_entered_by_each_protocol() {
    let image = image();
    for (protocol, rip) in [(Protocol::Pvh, 0x10_0010), (Protocol::Linux64, 0x10_0000)] {
        let ram = ram(4 * MIB);
        let args = ["x".to_owned()];
        let request =
            BootRequest { protocol: Some(protocol), cmdline: "quiet", args: &args, ..request(&image) };
        let init = load(&ram, &request).unwrap();
        assert_eq!((init.protocol, init.regs.rip), (protocol, rip));
        assert_eq!(bytes(&ram, 0x10_0000, 0x100), sample()[DATA_OFFSET..DATA_OFFSET + 0x100]);
        assert_eq!(bytes(&ram, 0x10_1000, 0x22), [vec![0xDA; 0x20], vec![0; 2]].concat());
        assert_eq!(bytes(&ram, CMDLINE_ADDR, 13), b"quiet -- \"x\"\0");
    }
    assert_eq!(load(&ram(4 * MIB), &request(&image)).unwrap().protocol, Protocol::Pvh);
}

#[test]
fn bss_and_everything_that_is_not_needed_stays_untouched() {
    let image = image();
    let ram = ram(4 * MIB);
    load(&ram, &request(&image)).unwrap();
    // The page of GDT, start info and command line; code; data, but not the bss behind it.
    assert_eq!(ram.take_host_dirty(), [0x8000, 0x10_0000, 0x10_1000]);
}

#[test]
fn an_initrd_is_at_the_top_of_low_ram() {
    let image = image();
    let content: Vec<u8> = (0..5000u32).map(|i| i as u8).collect();
    let initrd = Initrd::from_bytes("initrd", content.clone());
    for (size, top) in [(4 * MIB, 4 * MIB), (4096 * MIB, 3072 * MIB)] {
        let addr = top - 8192;
        let ram = ram(size);
        load(&ram, &BootRequest { initrd: Some(&initrd), ..request(&image) }).unwrap();
        assert_eq!(bytes(&ram, addr, content.len()), content);
        assert_eq!(ram.read_u64(ram.read_u64(START_INFO_ADDR + 16).unwrap()).unwrap(), addr);
    }
    let ram = ram(4 * MIB);
    let request = BootRequest { initrd: Some(&initrd), protocol: Some(Protocol::Linux64), ..request(&image) };
    load(&ram, &request).unwrap();
    assert_eq!(u64::from(ram.read_u32(BOOT_PARAMS_ADDR + 0x218).unwrap()), 4 * MIB - 8192);
}

#[test]
fn an_initrd_may_fill_all_that_is_free_and_no_more() {
    let image = image();
    let room = 4 * MIB - 0x10_4000;
    let ram = ram(4 * MIB);
    let fits = Initrd::from_bytes("fits", vec![1; room as usize]);
    load(&ram, &BootRequest { initrd: Some(&fits), ..request(&image) }).unwrap();
    for len in [room + 1, 5 * MIB] {
        let initrd = Initrd::from_bytes("root.cpio", vec![1; len as usize]);
        let error = load(&ram, &BootRequest { initrd: Some(&initrd), ..request(&image) }).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "root.cpio: it has {len} bytes; {room} are free between the image and the end of low RAM (give the VM more memory)"
            )
        );
    }
}

#[test]
fn the_image_must_fit_into_ram() {
    let parts = [Part::code(0x10_0000, 16), Part::data(0x20_0000, 16, 0x10_0000)];
    let image = Image::from_bytes("big", elf(0x10_0000, &parts)).unwrap();
    let error = load(&ram(3 * MIB), &request(&image)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "big: program header 1 ends at 0x300010; low RAM ends at 0x300000 (give the VM more memory)"
    );
    load(&ram(3 * MIB + 4096), &request(&image)).unwrap();
}

#[test]
fn a_protocol_can_be_forced_only_if_the_image_has_it() {
    let image = Image::from_bytes("plain", elf(0x10_0000, &[Part::code(0x10_0000, 16)])).unwrap();
    let error =
        load(&ram(2 * MIB), &BootRequest { protocol: Some(Protocol::Pvh), ..request(&image) }).unwrap_err();
    assert_eq!(error.to_string(), "plain: it has no pvh entry");
}

#[test]
fn vcpus_are_bounded() {
    let image = image();
    for (vcpus, ok) in [(0, false), (1, true), (254, true), (255, false), (u32::MAX, false)] {
        match load(&ram(4 * MIB), &BootRequest { vcpus, ..request(&image) }) {
            Ok(_) => assert!(ok, "{vcpus}"),
            Err(error) => assert_eq!(error.to_string(), format!("{vcpus} vCPUs; a VM has between 1 and 254")),
        }
    }
}

#[test]
fn ram_must_be_laid_out_as_the_layout_says() {
    let image = image();
    let many: Vec<_> = (0..15).map(|i| (if i == 0 { 0 } else { (3 + i) << 30 }, 4 * MIB)).collect();
    for (regions, message) in [
        (vec![(4096, 4 * MIB)], "low RAM must be one piece"),
        (vec![(0, MIB)], "RAM must reach beyond the first MiB"),
        (vec![(0, 2 * MIB), (3 * MIB, MIB)], "low RAM must be one piece"),
        (vec![(0, 2 * MIB), (0xC000_0000, MIB)], "low RAM must be one piece"),
        (vec![(1 << 32, MIB)], "RAM must reach beyond the first MiB"),
        (many, "one region too many"),
    ] {
        let ram = GuestRam::new(&regions, Backing::Pages4K).unwrap();
        let error = load(&ram, &request(&image)).unwrap_err().to_string();
        assert!(error.contains(message), "{regions:x?}: {error}");
    }
    let two = GuestRam::new(&[(0, 2 * MIB), (2 * MIB, 2 * MIB), (1 << 32, MIB)], Backing::Pages4K).unwrap();
    load(&two, &request(&image)).unwrap();
}

#[test]
fn a_failed_load_writes_nothing() {
    let image = image();
    let ram = ram(2 * MIB);
    let initrd = Initrd::from_bytes("initrd", vec![1; 2 * MIB as usize]);
    let good = request(&image);
    for request in [
        BootRequest { cmdline: "a -- b", ..good },
        BootRequest { initrd: Some(&initrd), ..good },
        BootRequest { vcpus: 0, ..good },
    ] {
        load(&ram, &request).unwrap_err();
        assert_eq!(ram.take_host_dirty(), [0u64; 0]);
    }
}

#[test]
fn the_longest_command_line_and_memory_map_stay_in_the_boot_area() {
    let image = image();
    let cmdline = "x".repeat(CMDLINE_MAX);
    for protocol in [Protocol::Pvh, Protocol::Linux64] {
        let ram = ram(4 * MIB);
        load(&ram, &BootRequest { protocol: Some(protocol), cmdline: &cmdline, ..request(&image) }).unwrap();
        assert_eq!(bytes(&ram, CMDLINE_ADDR, CMDLINE_MAX + 2), format!("{cmdline}\0\0").into_bytes());
        assert!(ram.take_host_dirty().iter().all(|&page| !(BOOT_AREA_END..IMAGE_START).contains(&page)));
    }
}

/// Checks that whatever `load` wrote is in the boot area or in the file-backed part of a segment.
fn check_written(ram: &GuestRam, image: &Image) {
    let allowed = |gpa: u64| {
        (PAGE_SIZE..BOOT_AREA_END).contains(&gpa)
            || image.segments().iter().any(|s| (s.paddr..s.paddr + s.filesz).contains(&gpa))
    };
    for page in ram.take_host_dirty() {
        let touched = (page..page + PAGE_SIZE).any(allowed);
        assert!(touched, "page {page:#x} was written without need");
        for (gpa, byte) in (page..).zip(bytes(ram, page, PAGE_SIZE as usize)) {
            assert!(byte == 0 || allowed(gpa), "{gpa:#x} was written");
        }
    }
}

/// A field of the sample image and what to put there.
fn mutation() -> impl Strategy<Value = (usize, Vec<u8>)> {
    let fields = (0..3usize).prop_flat_map(|index| {
        prop::sample::select(vec![
            phdr::TYPE,
            phdr::FLAGS,
            phdr::OFFSET,
            phdr::PADDR,
            phdr::FILESZ,
            phdr::MEMSZ,
        ])
        .prop_map(move |field| phdr_at(index, field))
    });
    let values = prop_oneof![
        prop::sample::select(vec![
            0u64, 1, 4, 0x20, 0x1000, 0x1100, 0x10_0000, 0x10_0FF0, 0x20_0000, 0x3F_FFFF, 0x40_0000
        ])
        .prop_map(|value| value.to_le_bytes().to_vec()),
        prop::sample::select(vec![u64::MAX, 1 << 63, 1 << 32, 0xC000_0000])
            .prop_map(|v| v.to_le_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 1..8),
    ];
    let anywhere = prop_oneof![0..64usize, 64..64 + 3 * 56usize, 0x1000..0x1138usize];
    (prop_oneof![3 => fields, 1 => anywhere], values)
}

proptest! {
    #[test]
    fn sec_06_mutated_images_neither_panic_nor_write_elsewhere(
        mutations in prop::collection::vec(mutation(), 1..4),
        linux64: bool,
        cut in prop::option::weighted(0.1, 0..0x1140usize),
    ) {
        let mut file = sample();
        for (offset, bytes) in mutations {
            put(&mut file, offset, &bytes);
        }
        file.truncate(cut.unwrap_or(file.len()));
        let parsed = elf::parse(&file);
        let Ok(image) = Image::from_bytes("mutated", file) else {
            prop_assert!(parsed.is_err());
            return Ok(());
        };
        let protocol = if linux64 { Protocol::Linux64 } else { Protocol::Pvh };
        let protocol = image.supports(protocol).then_some(protocol);
        let ram = ram(4 * MIB);
        match load(&ram, &BootRequest { protocol, cmdline: "a", ..request(&image) }) {
            Ok(init) => prop_assert!(image.segments().iter().any(|s| s.executable && (s.paddr..s.end()).contains(&init.regs.rip))),
            Err(BootError::ImageTooLarge { .. }) => {}
            Err(error) => prop_assert!(false, "what the pre-pass accepts, linux-loader copies: {error}"),
        }
        check_written(&ram, &image);
    }

    #[test]
    fn images_that_obey_the_rules_are_loaded(
        sizes in prop::collection::vec((1..5000usize, 0..9000u64, 0..5000u64), 1..8),
    ) {
        let mut parts = Vec::new();
        let mut next = IMAGE_START;
        for (len, bss, gap) in sizes {
            parts.push(Part { bss, ..Part::code(next + gap, len) });
            next += gap + len as u64 + bss;
        }
        let first = parts[0].paddr;
        parts.reverse();
        let image = Image::from_bytes("regular", elf(first, &parts)).unwrap();
        let ram = ram(4 * MIB);
        load(&ram, &request(&image)).unwrap();
        for part in &parts {
            prop_assert_eq!(bytes(&ram, part.paddr, part.bytes.len()), &part.bytes[..]);
        }
        check_written(&ram, &image);
    }
}
