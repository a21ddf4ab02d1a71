//! Guests made by hand: a few dozen bytes of machine code in an ELF64 file that owes nothing to the guest kit.
//!
//! The instructions mean the same in 32-bit protected mode (PVH entry) and in 64-bit mode (Linux entry), so one
//! image serves both. They run in ring 0 without a stack, an IDT or interrupts.

use ringlet::Image;

/// Where the code is loaded and entered.
pub(crate) const START: u32 = 0x10_0000;

const COM1: u16 = 0x3F8;
const COM1_LINE_STATUS: u16 = 0x3FD;
const I8042_COMMAND: u16 = 0x64;
const EXIT_PORT: u16 = 0xF4;

/// Machine code. EBP counts the iterations of [`Code::times`], ECX and EAX those of the printing loops.
#[derive(Debug, Clone, Default)]
pub(crate) struct Code(Vec<u8>);

impl Code {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn word(self, opcode: u8, word: u32) -> Self {
        self.raw(&[opcode]).raw(&word.to_le_bytes())
    }

    /// `mov dx, port`
    fn port(self, port: u16) -> Self {
        self.raw(&[0x66, 0xBA]).raw(&port.to_le_bytes())
    }

    /// Writes a byte to a port.
    pub(crate) fn outb(self, port: u16, value: u8) -> Self {
        self.port(port).raw(&[0xB0, value, 0xEE])
    }

    /// Writes 32 bits to a port.
    pub(crate) fn outl(self, port: u16, value: u32) -> Self {
        self.port(port).word(0xB8, value).raw(&[0xEF])
    }

    /// Reads a byte from a port.
    pub(crate) fn inb(self, port: u16) -> Self {
        self.port(port).raw(&[0xEC])
    }

    /// Reads `width` bytes (1, 2 or 4) from a port into EAX, whose other bytes are 0.
    pub(crate) fn read_port(self, port: u16, width: u8) -> Self {
        let code = self.word(0xB8, 0).port(port);
        match width {
            1 => code.raw(&[0xEC]),
            2 => code.raw(&[0x66, 0xED]),
            _ => code.raw(&[0xED]),
        }
    }

    /// Transfers `count` elements between a port and memory with one string instruction: INSB 0x6C, INSD 0x6D, OUTSB
    /// 0x6E, OUTSD 0x6F.
    pub(crate) fn string(self, port: u16, memory: u32, count: u32, instruction: u8) -> Self {
        // mov esi, memory; mov edi, memory; mov ecx, count; rep …
        self.port(port).word(0xBE, memory).word(0xBF, memory).word(0xB9, count).raw(&[0xF3, instruction])
    }

    /// Ends with code `otherwise` unless EAX is `value`.
    pub(crate) fn expect(self, value: u32, otherwise: u32) -> Self {
        let end = Self::new().exit(otherwise);
        let over = u8::try_from(end.0.len()).unwrap();
        self.word(0x3D, value).raw(&[0x74, over]).raw(&end.0)
    }

    /// Writes 32 bits to a physical address.
    pub(crate) fn write32(self, address: u32, value: u32) -> Self {
        self.word(0xBF, address).raw(&[0xC7, 0x07]).raw(&value.to_le_bytes())
    }

    /// Agrees with the virtio device whose registers are at `base` on VIRTIO_F_VERSION_1 and nothing else, up to
    /// FEATURES_OK. The last write takes the device's shard.
    pub(crate) fn negotiate(self, base: u32) -> Self {
        const STATUS: u32 = 0x70;
        const FEATURES_SEL: u32 = 0x24;
        const FEATURES: u32 = 0x20;
        [(STATUS, 1), (STATUS, 3), (FEATURES_SEL, 1), (FEATURES, 1), (STATUS, 11)]
            .into_iter()
            .fold(self, |code, (register, value)| code.write32(base + register, value))
    }

    /// Reads 32 bits from a physical address.
    pub(crate) fn read32(self, address: u32) -> Self {
        self.word(0xBF, address).raw(&[0x8B, 0x07])
    }

    /// Transmits `text`, byte by byte.
    pub(crate) fn print(self, text: &str) -> Self {
        text.bytes().fold(self, |code, byte| code.outb(COM1, byte))
    }

    /// Transmits `count` bytes: 0, 1, 2 … 255, 0 …
    pub(crate) fn print_pattern(self, count: u32) -> Self {
        // xor eax, eax; mov ecx, count; 1: out dx, al; inc al; dec ecx; jnz 1b
        self.port(COM1).raw(&[0x31, 0xC0]).word(0xB9, count).raw(&[0xEE, 0xFE, 0xC0, 0xFF, 0xC9, 0x75, 0xF9])
    }

    /// Spins `count` times without leaving the guest.
    pub(crate) fn spin(self, count: u32) -> Self {
        // mov ecx, count; 1: dec ecx; jnz 1b
        self.word(0xB9, count).raw(&[0xFF, 0xC9, 0x75, 0xFC])
    }

    /// Runs `body` `count` times (no nesting).
    pub(crate) fn times(self, count: u32, body: Self) -> Self {
        let code = self.word(0xBD, count).raw(&body.0).raw(&[0xFF, 0xCD, 0x0F, 0x85]);
        code.jump_back(body.0.len() + 4)
    }

    /// Runs `body` for ever.
    pub(crate) fn forever(self, body: Self) -> Self {
        let code = self.raw(&body.0).raw(&[0xE9]);
        code.jump_back(body.0.len() + 1)
    }

    /// The displacement of a jump over the `back` bytes before it.
    fn jump_back(self, back: usize) -> Self {
        let displacement = -(i32::try_from(back).unwrap() + 4);
        self.raw(&displacement.to_le_bytes())
    }

    /// Transmits what it receives, polling, until that is a `q`.
    pub(crate) fn echo_until_q(self) -> Self {
        let poll = Self::new().inb(COM1_LINE_STATUS).raw(&[0xA8, 0x01]); // test al, 1
        let poll_len = poll.0.len();
        let code = self.raw(&poll.0).raw(&[0x74, -(i8::try_from(poll_len).unwrap() + 2) as u8]); // jz poll
        // in al, dx; out dx, al; cmp al, 'q'; jne poll
        let echo = Self::new().inb(COM1).raw(&[0xEE, 0x3C, b'q', 0x0F, 0x85]);
        let back = poll_len + 2 + echo.0.len();
        code.raw(&echo.0).jump_back(back)
    }

    /// Ends with an exit code.
    pub(crate) fn exit(self, code: u32) -> Self {
        self.outl(EXIT_PORT, code).halt()
    }

    /// Ends with a reset by the keyboard controller.
    pub(crate) fn reset(self) -> Self {
        self.outb(I8042_COMMAND, 0xFE).halt()
    }

    /// Says that it is ready.
    pub(crate) fn ready(self) -> Self {
        self.outb(0xF5, 123)
    }

    /// Halts for ever, interrupts off.
    pub(crate) fn halt(self) -> Self {
        self.raw(&[0xFA, 0xF4, 0xEB, 0xFC])
    }

    /// An undefined instruction without an IDT: a triple fault.
    pub(crate) fn triple_fault(self) -> Self {
        self.raw(&[0x0F, 0x0B])
    }

    /// Goes on at a physical address.
    pub(crate) fn jump(self, address: u32) -> Self {
        self.word(0xB8, address).raw(&[0xFF, 0xE0])
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// An image with both entries, which PVH is chosen from by default.
    pub(crate) fn image(&self) -> Image {
        Image::from_bytes("hand-made", self.elf(true)).unwrap()
    }

    /// An ELF64 file: one segment at 1 MiB; with `pvh`, a PVH note beside the entry point.
    pub(crate) fn elf(&self, pvh: bool) -> Vec<u8> {
        let headers = if pvh { 2 } else { 1 };
        let note = pvh_note();
        let note_at = 64 + 56 * u64::from(headers);
        let code_at = 0x1000_u64;
        let mut file = Vec::new();
        file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        file.extend([2, 0, 62, 0, 1, 0, 0, 0]); // ET_EXEC, EM_X86_64, EV_CURRENT
        for word in [u64::from(START), 64, 0] {
            file.extend(word.to_le_bytes()); // e_entry, e_phoff, e_shoff
        }
        file.extend([0; 4]); // e_flags
        for half in [64, 56, headers, 0, 0, 0] {
            file.extend(u16::to_le_bytes(half)); // e_ehsize, e_phentsize, e_phnum, no sections
        }
        program_header(&mut file, (1, 5), code_at, u64::from(START), self.0.len() as u64);
        if pvh {
            program_header(&mut file, (4, 4), note_at, 0, note.len() as u64);
            file.extend(&note);
        }
        file.resize(usize::try_from(code_at).unwrap(), 0);
        file.extend(&self.0);
        file
    }
}

/// Type and flags, offset in the file, address, size.
fn program_header(file: &mut Vec<u8>, (kind, flags): (u32, u32), offset: u64, address: u64, size: u64) {
    file.extend(kind.to_le_bytes());
    file.extend(flags.to_le_bytes());
    for word in [offset, address, address, size, size, 4] {
        file.extend(word.to_le_bytes());
    }
}

/// Note 18 of "Xen": the 32-bit entry.
fn pvh_note() -> Vec<u8> {
    let mut note = Vec::new();
    for word in [4, 4, 18] {
        note.extend(u32::to_le_bytes(word));
    }
    note.extend(b"Xen\0");
    note.extend(START.to_le_bytes());
    note
}

/// What [`Code::print_pattern`] transmits.
pub(crate) fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|index| index as u8).collect()
}
