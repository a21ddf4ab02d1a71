//! Hand-made ELF images for tests.

use crate::layout::IMAGE_START;

/// File offset of the first segment's bytes; headers are below.
pub(crate) const DATA_OFFSET: usize = 0x1000;
pub(crate) const PT_LOAD: u32 = 1;
pub(crate) const PT_NOTE: u32 = 4;
pub(crate) const READ_EXECUTE: u32 = 5;
pub(crate) const READ_WRITE: u32 = 6;

/// Offsets of ELF header fields.
pub(crate) mod ehdr {
    pub(crate) const CLASS: usize = 4;
    pub(crate) const DATA: usize = 5;
    pub(crate) const VERSION: usize = 6;
    pub(crate) const TYPE: usize = 16;
    pub(crate) const MACHINE: usize = 18;
    pub(crate) const ENTRY: usize = 24;
    pub(crate) const PHOFF: usize = 32;
    pub(crate) const PHENTSIZE: usize = 54;
    pub(crate) const PHNUM: usize = 56;
}

/// Offsets of program header fields.
pub(crate) mod phdr {
    pub(crate) const TYPE: usize = 0;
    pub(crate) const FLAGS: usize = 4;
    pub(crate) const OFFSET: usize = 8;
    pub(crate) const PADDR: usize = 24;
    pub(crate) const FILESZ: usize = 32;
    pub(crate) const MEMSZ: usize = 40;
}

/// Where a field of program header `index` is in the file.
pub(crate) fn phdr_at(index: usize, field: usize) -> usize {
    64 + index * 56 + field
}

/// A segment to be put into an image.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) kind: u32,
    pub(crate) flags: u32,
    pub(crate) paddr: u64,
    pub(crate) bytes: Vec<u8>,
    /// Memory beyond the bytes.
    pub(crate) bss: u64,
}

impl Part {
    pub(crate) fn code(paddr: u64, len: usize) -> Self {
        let bytes = (0..len).map(|i| i as u8 | 1).collect();
        Self { kind: PT_LOAD, flags: READ_EXECUTE, paddr, bytes, bss: 0 }
    }

    pub(crate) fn data(paddr: u64, len: usize, bss: u64) -> Self {
        Self { kind: PT_LOAD, flags: READ_WRITE, paddr, bytes: vec![0xDA; len], bss }
    }

    pub(crate) fn note(bytes: Vec<u8>) -> Self {
        Self { kind: PT_NOTE, flags: 4, paddr: 0, bytes, bss: 0 }
    }

    pub(crate) fn pvh(entry: u32) -> Self {
        Self::note(note(b"Xen\0", 18, &entry.to_le_bytes()))
    }
}

/// One ELF note, padded.
pub(crate) fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [name.len() as u32, desc.len() as u32, kind] {
        bytes.extend(word.to_le_bytes());
    }
    for field in [name, desc] {
        bytes.extend(field);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// An image of the given parts whose `e_entry` is `entry`.
pub(crate) fn elf(entry: u64, parts: &[Part]) -> Vec<u8> {
    let mut file = vec![0; DATA_OFFSET];
    put(&mut file, 0, b"\x7fELF\x02\x01\x01");
    put(&mut file, ehdr::TYPE, &2u16.to_le_bytes());
    put(&mut file, ehdr::MACHINE, &62u16.to_le_bytes());
    put(&mut file, ehdr::ENTRY, &entry.to_le_bytes());
    put(&mut file, ehdr::PHOFF, &64u64.to_le_bytes());
    put(&mut file, ehdr::PHENTSIZE, &56u16.to_le_bytes());
    put(&mut file, ehdr::PHNUM, &(parts.len() as u16).to_le_bytes());
    for (index, part) in parts.iter().enumerate() {
        let len = part.bytes.len() as u64;
        let offset = file.len() as u64;
        put(&mut file, phdr_at(index, phdr::TYPE), &part.kind.to_le_bytes());
        put(&mut file, phdr_at(index, phdr::FLAGS), &part.flags.to_le_bytes());
        for (field, value) in [
            (phdr::OFFSET, offset),
            (phdr::PADDR, part.paddr),
            (phdr::FILESZ, len),
            (phdr::MEMSZ, len + part.bss),
        ] {
            put(&mut file, phdr_at(index, field), &value.to_le_bytes());
        }
        file.extend(&part.bytes);
        file.resize(file.len().next_multiple_of(16), 0);
    }
    file
}

/// The image that most tests start from: code at 1 MiB, data and bss behind it, both entries.
///
/// Program headers: 0 code (0x100 bytes), 1 data (0x20 bytes, 0x2000 of bss), 2 the PVH note.
pub(crate) fn sample() -> Vec<u8> {
    let parts = [
        Part::code(IMAGE_START, 0x100),
        Part::data(IMAGE_START + 0x1000, 0x20, 0x2000),
        Part::pvh(IMAGE_START as u32 + 0x10),
    ];
    elf(IMAGE_START, &parts)
}

/// Overwrites bytes of an image.
pub(crate) fn put(file: &mut [u8], offset: usize, bytes: &[u8]) {
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
}
