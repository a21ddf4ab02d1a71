use super::*;
use crate::testing::{DATA_OFFSET, Part, ehdr, elf, note, phdr, phdr_at, put, sample};

fn message(image: &[u8]) -> String {
    let Problem { field, value, rule } = parse(image).unwrap_err();
    format!("{field} is {value}; {rule}")
}

#[test]
fn a_valid_image_is_understood() {
    let image = parse(&sample()).unwrap();
    assert_eq!(image.linux64_entry, Some(0x10_0000));
    assert_eq!(image.pvh_entry, Some(0x10_0010));
    assert_eq!(image.end(), 0x10_3020);
    let [code, data] = image.segments[..] else { panic!("{:?}", image.segments) };
    assert_eq!((code.paddr, code.filesz, code.memsz, code.executable), (0x10_0000, 0x100, 0x100, true));
    assert_eq!((data.paddr, data.filesz, data.memsz, data.executable), (0x10_1000, 0x20, 0x2020, false));
}

#[test]
fn segments_may_come_in_any_order_touch_and_be_empty() {
    let parts = [
        Part::data(0x20_0000, 16, 0x1000),
        Part { bytes: vec![], ..Part::code(0x10, 0) },
        Part::code(0x10_0000, 0x10_0000),
    ];
    let image = parse(&elf(0x10_0000, &parts)).unwrap();
    assert_eq!(image.segments.iter().map(|s| s.index).collect::<Vec<_>>(), [2, 0]);
    assert_eq!(image.pvh_entry, None);
}

#[test]
fn an_image_may_have_only_the_pvh_entry() {
    let mut image = sample();
    put(&mut image, ehdr::ENTRY, &0xFFFF_FFFF_8100_0000u64.to_le_bytes());
    let image = parse(&image).unwrap();
    assert_eq!((image.linux64_entry, image.pvh_entry), (None, Some(0x10_0010)));
}

#[test]
fn the_pvh_note_is_found_among_others() {
    let with = |notes: Vec<Vec<u8>>| {
        let parts = [Part::code(0x10_0000, 0x100), Part::note(notes.concat())];
        parse(&elf(0x10_0000, &parts)).unwrap().pvh_entry
    };
    let entry = 0x10_0020u32.to_le_bytes();
    let long = 0x10_0030u64.to_le_bytes();
    let others = [
        note(b"GNU\0", 3, &[7; 20]),
        note(b"Xen\0", 6, b"linux\0"),
        note(b"", 18, b""),
        note(b"X", 1, b"123"),
    ];
    assert_eq!(with(others.to_vec()), None);
    assert_eq!(with([&others[..], &[note(b"Xen\0", 18, &entry)]].concat()), Some(0x10_0020));
    assert_eq!(
        with(vec![note(b"Xen\0", 18, &long), note(b"Xen\0", 18, &entry)]),
        Some(0x10_0030),
        "the first counts"
    );
    assert_eq!(with(vec![note(b"Xem\0", 18, &entry), note(b"Xen\0", 17, &entry)]), None);
}

/// One test for each rejection: the sample image with some bytes replaced, and the message.
macro_rules! rejections {
    ($($name:ident: [$(($offset:expr, $bytes:expr)),+] => $message:literal;)+) => {
        $(#[test]
        fn $name() {
            let mut image = sample();
            $(put(&mut image, $offset, &$bytes);)+
            assert_eq!(message(&image), $message);
        })+
    };
}

rejections! {
    sec_07_wrong_magic: [(0, *b"\x7fELG")] =>
        "magic is 0x7f454c47; an ELF64 image begins with 0x7f454c46";
    sec_07_32_bit: [(ehdr::CLASS, [1])] => "EI_CLASS is 1; only 64-bit images (2) can be booted";
    sec_07_big_endian: [(ehdr::DATA, [2])] => "EI_DATA is 2; only little-endian images (1) can be booted";
    sec_07_elf_version: [(ehdr::VERSION, [0])] => "EI_VERSION is 0; only this version of ELF (1) can be booted";
    sec_07_machine: [(ehdr::MACHINE, [40, 0])] => "e_machine is 40; only x86-64 images (62) can be booted";
    sec_07_position_independent: [(ehdr::TYPE, [3])] =>
        "e_type is 3 (ET_DYN, position-independent); an image must be linked for a fixed address (ET_EXEC, 2), and be a kernel: a Linux program is no guest";
    sec_07_object_file: [(ehdr::TYPE, [1])] => "e_type is 1; it must be an executable image (ET_EXEC, 2)";
    sec_07_program_header_size: [(ehdr::PHENTSIZE, [32, 0])] => "e_phentsize is 32; it must be 56";
    sec_07_no_program_headers: [(ehdr::PHNUM, [0, 0])] => "e_phnum is 0; it must be between 1 and 64";
    sec_07_too_many_program_headers: [(ehdr::PHNUM, [65, 0])] => "e_phnum is 65; it must be between 1 and 64";
    sec_07_program_headers_in_the_header: [(ehdr::PHOFF, [63])] => "e_phoff is 63; it must be at least 64";
    sec_07_program_headers_outside: [(ehdr::PHOFF, 0x1200u64.to_le_bytes())] =>
        "e_phoff is 0x1200 with 0xa8 bytes; the file ends at 0x1140";
    sec_07_program_headers_wrap: [(ehdr::PHOFF, [0xFF; 8])] =>
        "e_phoff is 0xffffffffffffffff with 0xa8 bytes; the file ends at 0x1140";
    sec_07_segment_outside_the_file: [(phdr_at(1, phdr::OFFSET), 0x1130u64.to_le_bytes())] =>
        "program header 1: p_offset is 0x1130 with 0x20 bytes; the file ends at 0x1140";
    sec_07_segment_offset_wraps: [(phdr_at(0, phdr::OFFSET), [0xFF; 8])] =>
        "program header 0: p_offset is 0xffffffffffffffff with 0x100 bytes; the file ends at 0x1140";
    sec_07_more_file_than_memory: [(phdr_at(1, phdr::MEMSZ), 0x1Fu64.to_le_bytes())] =>
        "program header 1: p_filesz is 0x20; it must not be above p_memsz (0x1f)";
    sec_07_segment_over_boot_structures: [(phdr_at(0, phdr::PADDR), 0x8000u64.to_le_bytes())] =>
        "program header 0: p_paddr is 0x8000; segments load at 0x100000 or above: boot structures are below";
    sec_07_segment_in_the_mmio_gap: [(phdr_at(1, phdr::MEMSZ), 0xC000_0000u64.to_le_bytes())] =>
        "program header 1: p_paddr+p_memsz is 0x101000+0xc0000000; segments end at 0xc0000000 or below: device registers follow";
    sec_07_segment_wraps: [(phdr_at(1, phdr::MEMSZ), [0xFF; 8])] =>
        "program header 1: p_paddr+p_memsz is 0x101000+0xffffffffffffffff; segments end at 0xc0000000 or below: device registers follow";
    sec_07_segments_overlap: [(phdr_at(0, phdr::PADDR), 0x10_1010u64.to_le_bytes())] =>
        "program header 0: p_paddr is 0x101010; it overlaps program header 1, which occupies 0x101000..0x103020";
    sec_07_segments_overlap_in_bss: [(phdr_at(0, phdr::PADDR), 0x10_3000u64.to_le_bytes())] =>
        "program header 0: p_paddr is 0x103000; it overlaps program header 1, which occupies 0x101000..0x103020";
    sec_07_nothing_to_load: [(phdr_at(0, phdr::TYPE), [0]), (phdr_at(1, phdr::TYPE), [0])] =>
        "number of loadable segments is 0; an image has at least one";
    sec_07_dynamically_linked: [(phdr_at(1, phdr::TYPE), [3])] =>
        "program header 1: p_type is PT_INTERP; an image must not need a dynamic linker: this is an ordinary program, not a kernel";
    sec_07_entry_outside: [(phdr_at(2, phdr::TYPE), [0]), (ehdr::ENTRY, 0x10_0100u64.to_le_bytes())] =>
        "e_entry is 0x100100; it must be the physical address of code in an executable segment (or the image must have a PVH note)";
    sec_07_entry_in_data: [(phdr_at(2, phdr::TYPE), [0]), (ehdr::ENTRY, 0x10_1000u64.to_le_bytes())] =>
        "e_entry is 0x101000; it must be the physical address of code in an executable segment (or the image must have a PVH note)";
    sec_07_entry_in_bss: [(phdr_at(2, phdr::TYPE), [0]), (phdr_at(1, phdr::FLAGS), [7]), (ehdr::ENTRY, 0x10_1020u64.to_le_bytes())] =>
        "e_entry is 0x101020; it must be the physical address of code in an executable segment (or the image must have a PVH note)";
    sec_07_pvh_entry_outside: [(0x1140 - 16, 0x10_0100u32.to_le_bytes())] =>
        "PVH note: entry is 0x100100; it must be the physical address of code in an executable segment";
    sec_07_note_runs_out: [(0x1124, [5])] =>
        "program header 2: malformed note, rest is 20 bytes; the notes of a segment must fill it exactly";
    sec_07_note_length_wraps: [(0x1120, [0xFF; 8])] =>
        "program header 2: malformed note, rest is 20 bytes; the notes of a segment must fill it exactly";
    sec_07_pvh_note_too_short: [(0x1120, 4u32.to_le_bytes()), (0x1124, 0u32.to_le_bytes()), (phdr_at(2, phdr::FILESZ), [16])] =>
        "program header 2: PVH note: size is 0; its address has 4 or 8 bytes";
}

#[test]
fn sec_07_pvh_entry_above_4_gib() {
    let desc = 0x1_0010_0010u64.to_le_bytes();
    let parts = [Part::code(0x10_0000, 0x100), Part::note(note(b"Xen\0", 18, &desc))];
    assert_eq!(
        message(&elf(0x10_0000, &parts)),
        "PVH note: entry is 0x100100010; it must be the physical address of code in an executable segment"
    );
}

#[test]
fn sec_07_notes_are_bounded_together() {
    let half = || Part::note(note(b"", 0, &[0; 0x8000]));
    let parts = [Part::code(0x10_0000, 0x100), half(), half()];
    assert_eq!(
        message(&elf(0x10_0000, &parts)),
        "program header 2: p_filesz is 32780; all notes together must not be above 65536 bytes"
    );
}

#[test]
fn sec_06_a_truncated_image_is_refused_at_every_length() {
    let image = sample();
    for len in 0..image.len() {
        // Up to 12 bytes of padding behind the last part belong to nothing.
        let needed = len < 0x1134;
        assert_eq!(parse(&image[..len]).is_err(), needed, "{len} of {} bytes", image.len());
    }
    assert_eq!(message(b""), "magic is 0x; an ELF64 image begins with 0x7f454c46");
    assert_eq!(message(&image[..20]), "length is 20; an ELF64 image has a header of at least 64 bytes");
}

#[test]
fn a_bzimage_is_named() {
    let mut file = vec![0; DATA_OFFSET];
    put(&mut file, 0x202, b"HdrS");
    assert_eq!(
        message(&file),
        "format is bzImage; a Linux bzImage cannot be booted; extract its vmlinux (ELF64) first"
    );
}

#[test]
fn sec_06_sixty_four_segments_and_the_largest_notes_are_looked_at_once() {
    let mut parts: Vec<_> = (0..63).map(|i| Part::code(0x10_0000 + i * 0x1000, 0x10)).collect();
    parts.push(Part::note(note(b"", 0, &[]).repeat(64 * 1024 / 12)));
    let image = elf(0x10_0000, &parts);
    let start = std::time::Instant::now();
    assert_eq!(parse(&image).unwrap().segments.len(), 63);
    assert!(start.elapsed().as_millis() < 100, "{:?}", start.elapsed());
}
