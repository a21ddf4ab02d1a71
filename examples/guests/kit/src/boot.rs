//! What the VMM hands over: hvm_start_info (PVH) or boot_params (Linux 64-bit). Read where it lies, never copied;
//! [`memory`](crate::memory) keeps the pages out of the heap.

use core::cell::UnsafeCell;
use core::slice;

use crate::cmdline::{self, Args};
use crate::layout::PAGE;
use crate::memory::{MemoryMap, Span};
use crate::paging;

/// `hvm_start_info.magic`.
const START_INFO_MAGIC: u32 = 0x336e_c578;
/// Longest command line that is read.
const CMDLINE_MAX: usize = 64 << 10;

/// How the image was entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The entry named by the ELF note, in 32-bit mode.
    Pvh,
    /// The ELF entry, in 64-bit mode with `boot_params`.
    Linux64,
}

/// The machine as the VMM described it.
#[derive(Debug)]
pub struct Context {
    protocol: Protocol,
    cmdline: &'static str,
    memory: MemoryMap,
    initrd: Option<Span>,
    /// Memory that holds what the VMM handed over.
    pub(crate) reserved: [Span; 4],
}

impl Context {
    const EMPTY: Self = Self {
        protocol: Protocol::Pvh,
        cmdline: "",
        memory: MemoryMap::EMPTY,
        initrd: None,
        reserved: [Span::EMPTY; 4],
    };

    /// How the image was entered.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The whole command line, arguments included.
    #[must_use]
    pub fn cmdline(&self) -> &'static str {
        self.cmdline
    }

    /// The arguments after `--`, decoded.
    #[must_use]
    pub fn args(&self) -> Args<'static> {
        cmdline::args(self.cmdline)
    }

    /// Whether the command line, before the arguments, has this word.
    #[must_use]
    pub fn has_word(&self, word: &str) -> bool {
        cmdline::words(self.cmdline).any(|found| found == word)
    }

    /// The value of the command line's first word `key=value`.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&'static str> {
        cmdline::words(self.cmdline).find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    /// Number of processors: the VMM's word `ringlet.vcpus=N`, else 1.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.value("ringlet.vcpus").and_then(|count| count.parse().ok()).unwrap_or(1).max(1)
    }

    /// The memory map as the VMM gave it.
    #[must_use]
    pub fn memory(&self) -> &MemoryMap {
        &self.memory
    }

    /// The initial RAM disk.
    #[must_use]
    pub fn initrd(&self) -> Option<&'static [u8]> {
        let span = self.initrd?;
        // SAFETY: the VMM's module lies in RAM that `memory` keeps out of the heap, and nothing writes to it.
        Some(unsafe {
            slice::from_raw_parts(
                core::ptr::with_exposed_provenance(span.start as usize),
                span.len() as usize,
            )
        })
    }
}

struct Boot(UnsafeCell<Context>);

// SAFETY: written once by `adopt`, before anything else runs.
unsafe impl Sync for Boot {}

static BOOT: Boot = Boot(UnsafeCell::new(Context::EMPTY));

/// The machine as the VMM described it.
pub(crate) fn context() -> &'static Context {
    // SAFETY: never written after `adopt`.
    unsafe { &*BOOT.0.get() }
}

/// Reads what the VMM handed over.
///
/// # Safety
/// Once only, before other processors run, with `info` as the entry received it.
pub(crate) unsafe fn adopt(kind: u32, info: u64) -> &'static Context {
    // SAFETY: `info` points to what the protocol says, by the caller's promise.
    let context = unsafe { if kind == 2 { linux(info) } else { pvh(info) } };
    // SAFETY: nobody else runs.
    unsafe { *BOOT.0.get() = context };
    self::context()
}

/// Maps the null page if something lies in it.
fn reach(address: u64) {
    if address < PAGE {
        paging::map_null_page();
    }
}

/// Reads a field of what the VMM handed over.
///
/// # Safety
/// `address` must lie in mapped RAM.
unsafe fn field<T: Copy>(address: u64) -> T {
    reach(address);
    // SAFETY: mapped RAM, any alignment.
    unsafe { core::ptr::with_exposed_provenance::<T>(address as usize).read_unaligned() }
}

/// See xen/include/public/arch-x86/hvm/start_info.h.
unsafe fn pvh(info: u64) -> Context {
    let mut context = Context { protocol: Protocol::Pvh, ..Context::EMPTY };
    context.reserved[0] = Span::of(info, 0x38);
    // SAFETY: offsets of hvm_start_info at the address that the VMM gave.
    unsafe {
        if field::<u32>(info) != START_INFO_MAGIC {
            return context;
        }
        let version: u32 = field(info + 4);
        let modules: u32 = field(info + 12);
        let module_list: u64 = field(info + 16);
        (context.cmdline, context.reserved[1]) = cmdline_at(field(info + 24));
        if version >= 1 {
            context.memory = MemoryMap::new(field(info + 40), field(info + 48), 24);
            context.reserved[2] = context.memory.span();
            reach(context.reserved[2].start);
        }
        if modules > 0 {
            context.reserved[3] = Span::of(module_list, 32);
            context.initrd = Some(Span::of(field(module_list), field(module_list + 8)));
        }
    }
    context
}

/// See Documentation/arch/x86/{boot,zero-page}.rst of Linux.
unsafe fn linux(info: u64) -> Context {
    let mut context = Context { protocol: Protocol::Linux64, ..Context::EMPTY };
    context.reserved[0] = Span::of(info, PAGE);
    // SAFETY: offsets of boot_params at the address that the VMM gave.
    unsafe {
        let wide = |low: u64, high: u64| {
            u64::from(field::<u32>(info + low)) | u64::from(field::<u32>(info + high)) << 32
        };
        (context.cmdline, context.reserved[1]) = cmdline_at(wide(0x228, 0xc8));
        context.memory = MemoryMap::new(info + 0x2d0, u32::from(field::<u8>(info + 0x1e8)).min(128), 20);
        let size = wide(0x21c, 0xc4);
        if size > 0 {
            context.initrd = Some(Span::of(wide(0x218, 0xc0), size));
        }
    }
    context
}

/// The zero-terminated command line at `address`, as far as it is UTF-8.
///
/// # Safety
/// `address` must be 0 or lie in mapped RAM.
unsafe fn cmdline_at(address: u64) -> (&'static str, Span) {
    if address == 0 {
        return ("", Span::EMPTY);
    }
    reach(address);
    // SAFETY: mapped RAM by the caller's promise; nothing writes to it later.
    let bytes = unsafe {
        let start = core::ptr::with_exposed_provenance::<u8>(address as usize);
        let len = (0..CMDLINE_MAX).find(|&at| *start.add(at) == 0).unwrap_or(CMDLINE_MAX);
        slice::from_raw_parts(start, len)
    };
    let text = match str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or(""),
    };
    (text, Span::of(address, bytes.len() as u64 + 1))
}
