//! The bounded pre-pass over an untrusted ELF64 image.
//!
//! Decides whether an image may be loaded, where its segments go and which entries it has. Looks at each header
//! once, allocates in proportion to the number of segments (at most [`PHNUM_MAX`]) and never writes anything.
//! linux-loader, which copies afterwards, validates none of this.

use std::fmt::Display;
use std::ops::Range;

use crate::layout::{IMAGE_START, MMIO_GAP_START};

/// Most program headers that are looked at.
pub(crate) const PHNUM_MAX: u16 = 64;
/// Most bytes of all note segments together.
pub(crate) const NOTES_MAX: u64 = 64 << 10;

const EHDR_SIZE: u64 = 64;
const PHDR_SIZE: u16 = 56;
const NHDR_SIZE: usize = 12;
const ELFCLASS64: u8 = 2;
const ELFDATA2LSB: u8 = 1;
const EV_CURRENT: u8 = 1;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
const PF_X: u32 = 1;
/// Note of name "Xen" that carries the PVH entry (Xen public/elfnote.h, `XEN_ELFNOTE_PHYS32_ENTRY`).
const XEN_PHYS32_ENTRY: u32 = 18;

/// A field of an image that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) field: String,
    pub(crate) value: String,
    pub(crate) rule: String,
}

fn problem(field: impl Into<String>, value: impl Display, rule: impl Into<String>) -> Problem {
    Problem { field: field.into(), value: value.to_string(), rule: rule.into() }
}

/// A `PT_LOAD` program header that occupies memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Index of its program header, for messages.
    pub(crate) index: u16,
    pub(crate) paddr: u64,
    pub(crate) filesz: u64,
    pub(crate) memsz: u64,
    pub(crate) executable: bool,
}

impl Segment {
    /// One past its last byte in memory. Cannot overflow: checked when it was parsed.
    pub(crate) fn end(&self) -> u64 {
        self.paddr.saturating_add(self.memsz)
    }

    fn has_code_at(&self, address: u64) -> bool {
        self.executable && (self.paddr..self.paddr.saturating_add(self.filesz)).contains(&address)
    }
}

/// What the pre-pass found: everything that loading needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Elf {
    /// Ascending by address, disjoint, between [`IMAGE_START`] and [`MMIO_GAP_START`]. Never empty.
    pub(crate) segments: Vec<Segment>,
    /// `e_entry`, if it is the physical address of code in the image.
    pub(crate) linux64_entry: Option<u64>,
    /// Entry of the PVH note, if there is one. Always the address of code in the image.
    pub(crate) pvh_entry: Option<u32>,
}

impl Elf {
    /// One past the last byte of the last segment.
    pub(crate) fn end(&self) -> u64 {
        self.segments.last().map_or(0, Segment::end)
    }
}

/// Checks `image` and says how to load it, or what is wrong with it.
pub(crate) fn parse(image: &[u8]) -> Result<Elf, Problem> {
    let header = parse_header(image)?;
    let mut segments = Vec::new();
    let mut notes = Notes::default();
    for index in 0..header.phnum {
        let program = ProgramHeader::read(image, header.phoff, index)?;
        match program.kind {
            PT_LOAD if program.memsz > 0 || program.filesz > 0 => segments.push(program.segment()?),
            PT_NOTE => notes.scan(image, &program)?,
            PT_INTERP => {
                let rule =
                    "an image must not need a dynamic linker: this is an ordinary program, not a kernel";
                return Err(problem(program.field("p_type"), "PT_INTERP", rule));
            }
            _ => {}
        }
    }
    check_segments(&mut segments)?;
    let pvh_entry = check_pvh_entry(notes.entry, &segments)?;
    let is_code = segments.iter().any(|segment| segment.has_code_at(header.entry));
    if !is_code && pvh_entry.is_none() {
        let rule = "it must be the physical address of code in an executable segment (or the image must have a PVH note)";
        return Err(problem("e_entry", format_args!("{:#x}", header.entry), rule));
    }
    Ok(Elf { segments, linux64_entry: is_code.then_some(header.entry), pvh_entry })
}

struct Header {
    entry: u64,
    phoff: u64,
    phnum: u16,
}

fn parse_header(image: &[u8]) -> Result<Header, Problem> {
    check_magic(image)?;
    let short = || {
        problem("length", image.len(), format!("an ELF64 image has a header of at least {EHDR_SIZE} bytes"))
    };
    let (Some(entry), Some(phoff)) = (le64(image, 24), le64(image, 32)) else { return Err(short()) };
    let (Some(kind), Some(machine), Some(phentsize), Some(phnum)) =
        (le16(image, 16), le16(image, 18), le16(image, 54), le16(image, 56))
    else {
        return Err(short());
    };
    if image.len() < EHDR_SIZE as usize {
        return Err(short());
    }
    check_identity(image, machine, kind)?;
    if phentsize != PHDR_SIZE {
        return Err(problem("e_phentsize", phentsize, format!("it must be {PHDR_SIZE}")));
    }
    if phnum == 0 || phnum > PHNUM_MAX {
        return Err(problem("e_phnum", phnum, format!("it must be between 1 and {PHNUM_MAX}")));
    }
    if phoff < EHDR_SIZE {
        return Err(problem("e_phoff", phoff, format!("it must be at least {EHDR_SIZE}")));
    }
    let table = u64::from(phnum) * u64::from(PHDR_SIZE);
    check_file_range(image, "e_phoff", phoff, table)?;
    Ok(Header { entry, phoff, phnum })
}

fn check_magic(image: &[u8]) -> Result<(), Problem> {
    if image.starts_with(b"\x7fELF") {
        return Ok(());
    }
    if image.get(0x202..0x206) == Some(b"HdrS") {
        let rule = "a Linux bzImage cannot be booted; extract its vmlinux (ELF64) first";
        return Err(problem("format", "bzImage", rule));
    }
    let magic: String = image.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    Err(problem("magic", format_args!("0x{magic}"), "an ELF64 image begins with 0x7f454c46"))
}

fn check_identity(image: &[u8], machine: u16, kind: u16) -> Result<(), Problem> {
    for (field, offset, wanted, what) in [
        ("EI_CLASS", 4, ELFCLASS64, "64-bit images"),
        ("EI_DATA", 5, ELFDATA2LSB, "little-endian images"),
        ("EI_VERSION", 6, EV_CURRENT, "this version of ELF"),
    ] {
        let value = image.get(offset).copied().unwrap_or_default();
        if value != wanted {
            return Err(problem(field, value, format!("only {what} ({wanted}) can be booted")));
        }
    }
    if machine != EM_X86_64 {
        return Err(problem("e_machine", machine, format!("only x86-64 images ({EM_X86_64}) can be booted")));
    }
    match kind {
        ET_EXEC => Ok(()),
        ET_DYN => Err(problem(
            "e_type",
            "3 (ET_DYN, position-independent)",
            "an image must be linked for a fixed address (ET_EXEC, 2), and be a kernel: a Linux program is no guest",
        )),
        _ => Err(problem("e_type", kind, format!("it must be an executable image (ET_EXEC, {ET_EXEC})"))),
    }
}

struct ProgramHeader {
    index: u16,
    kind: u32,
    flags: u32,
    offset: u64,
    paddr: u64,
    filesz: u64,
    memsz: u64,
}

impl ProgramHeader {
    /// Reads header `index`, whose table is known to be in the file, and checks its file range.
    fn read(image: &[u8], phoff: u64, index: u16) -> Result<Self, Problem> {
        let at = phoff.saturating_add(u64::from(index) * u64::from(PHDR_SIZE));
        let bytes = usize::try_from(at).ok().and_then(|at| image.get(at..)).unwrap_or_default();
        let (Some(kind), Some(flags), Some(offset), Some(paddr), Some(filesz), Some(memsz)) = (
            le32(bytes, 0),
            le32(bytes, 4),
            le64(bytes, 8),
            le64(bytes, 24),
            le64(bytes, 32),
            le64(bytes, 40),
        ) else {
            return Err(problem("e_phoff", phoff, "the program headers must be inside the file"));
        };
        let header = Self { index, kind, flags, offset, paddr, filesz, memsz };
        if matches!(kind, PT_LOAD | PT_NOTE) && filesz > 0 {
            check_file_range(image, &header.field("p_offset"), offset, filesz)?;
        }
        Ok(header)
    }

    fn field(&self, name: &str) -> String {
        format!("program header {}: {name}", self.index)
    }

    fn segment(&self) -> Result<Segment, Problem> {
        let hex = |value: u64| format!("{value:#x}");
        if self.filesz > self.memsz {
            let rule = format!("it must not be above p_memsz ({:#x})", self.memsz);
            return Err(problem(self.field("p_filesz"), hex(self.filesz), rule));
        }
        if self.paddr < IMAGE_START {
            let rule = format!("segments load at {IMAGE_START:#x} or above: boot structures are below");
            return Err(problem(self.field("p_paddr"), hex(self.paddr), rule));
        }
        match self.paddr.checked_add(self.memsz) {
            Some(end) if end <= MMIO_GAP_START => {}
            _ => {
                let value = format!("{:#x}+{:#x}", self.paddr, self.memsz);
                let rule = format!("segments end at {MMIO_GAP_START:#x} or below: device registers follow");
                return Err(problem(self.field("p_paddr+p_memsz"), value, rule));
            }
        }
        Ok(Segment {
            index: self.index,
            paddr: self.paddr,
            filesz: self.filesz,
            memsz: self.memsz,
            executable: self.flags & PF_X != 0,
        })
    }
}

fn check_file_range(image: &[u8], field: &str, offset: u64, len: u64) -> Result<(), Problem> {
    let size = image.len() as u64;
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => {
            let value = format!("{offset:#x} with {len:#x} bytes");
            Err(problem(field, value, format!("the file ends at {size:#x}")))
        }
    }
}

/// Sorts the segments by address and refuses overlaps.
fn check_segments(segments: &mut [Segment]) -> Result<(), Problem> {
    if segments.is_empty() {
        return Err(problem("number of loadable segments", 0, "an image has at least one"));
    }
    segments.sort_unstable_by_key(|segment| (segment.paddr, segment.index));
    let mut pairs = segments.windows(2);
    let overlap = pairs.find_map(|pair| match pair {
        [below, above] if below.end() > above.paddr => Some((*below, *above)),
        _ => None,
    });
    let Some((below, above)) = overlap else { return Ok(()) };
    let field = format!("program header {}: p_paddr", above.index);
    let Range { start, end } = below.paddr..below.end();
    let rule = format!("it overlaps program header {}, which occupies {start:#x}..{end:#x}", below.index);
    Err(problem(field, format_args!("{:#x}", above.paddr), rule))
}

fn check_pvh_entry(entry: Option<u64>, segments: &[Segment]) -> Result<Option<u32>, Problem> {
    let Some(address) = entry else { return Ok(None) };
    match u32::try_from(address) {
        Ok(low) if segments.iter().any(|segment| segment.has_code_at(address)) => Ok(Some(low)),
        _ => {
            let rule = "it must be the physical address of code in an executable segment";
            Err(problem("PVH note: entry", format_args!("{address:#x}"), rule))
        }
    }
}

/// The note segments seen so far.
#[derive(Default)]
struct Notes {
    bytes: u64,
    entry: Option<u64>,
}

impl Notes {
    /// Walks the notes of one segment, each of which must lie inside it. The first PVH note of an image counts.
    fn scan(&mut self, image: &[u8], program: &ProgramHeader) -> Result<(), Problem> {
        self.bytes = self.bytes.saturating_add(program.filesz);
        if self.bytes > NOTES_MAX {
            let rule = format!("all notes together must not be above {NOTES_MAX} bytes");
            return Err(problem(program.field("p_filesz"), program.filesz, rule));
        }
        let range = usize::try_from(program.offset).ok().zip(usize::try_from(program.filesz).ok());
        let mut rest = range.and_then(|(start, len)| image.get(start..)?.get(..len)).unwrap_or_default();
        while !rest.is_empty() {
            let Some((note, tail)) = Note::split(rest) else {
                let rule = "the notes of a segment must fill it exactly";
                let value = format!("{} bytes", rest.len());
                return Err(problem(program.field("malformed note, rest"), value, rule));
            };
            rest = tail;
            if self.entry.is_none() && note.kind == XEN_PHYS32_ENTRY && note.name == b"Xen\0" {
                self.entry = Some(note.address(program)?);
            }
        }
        Ok(())
    }
}

struct Note<'a> {
    kind: u32,
    name: &'a [u8],
    desc: &'a [u8],
}

impl<'a> Note<'a> {
    /// Takes one note off the front; name and descriptor are padded to 4 bytes (as every x86-64 toolchain does).
    fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let name_len = usize::try_from(le32(bytes, 0)?).ok()?;
        let desc_len = usize::try_from(le32(bytes, 4)?).ok()?;
        let kind = le32(bytes, 8)?;
        let name = bytes.get(NHDR_SIZE..)?;
        let after_name = name.get(name_len.checked_next_multiple_of(4)?..)?;
        let rest = after_name.get(desc_len.checked_next_multiple_of(4)?..)?;
        Some((Self { kind, name: name.get(..name_len)?, desc: after_name.get(..desc_len)? }, rest))
    }

    /// The 32-bit address in the descriptor, which some toolchains write as 64 bits.
    fn address(&self, program: &ProgramHeader) -> Result<u64, Problem> {
        match self.desc.len() {
            4 => le32(self.desc, 0).map(u64::from),
            8 => le64(self.desc, 0),
            _ => None,
        }
        .ok_or_else(|| {
            problem(program.field("PVH note: size"), self.desc.len(), "its address has 4 or 8 bytes")
        })
    }
}

fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
#[path = "elf_test.rs"]
mod tests;
