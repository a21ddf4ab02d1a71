//! The console: a 16550 at port 0x3F8, as every VMM has it.
//!
//! The transmitter is not polled: each poll is an exit that costs as much as the byte, and VMMs take bytes as fast as
//! they come (or make the processor wait).

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

use crate::port::{inb, outb};
use crate::sync::SpinLock;

const DATA: u16 = 0x3f8;
const LINE_STATUS: u16 = 0x3fd;

static CONSOLE: SpinLock<Console> = SpinLock::new(Console);
/// Set by a processor that reports its end and must not wait for the lock of another.
static FORCED: AtomicBool = AtomicBool::new(false);

struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        write_bytes(text.as_bytes());
        Ok(())
    }
}

/// Writes raw bytes, as they are.
pub fn write_bytes(bytes: &[u8]) {
    for &byte in bytes {
        outb(DATA, byte);
    }
}

/// Takes a byte that was typed, if there is one.
#[must_use]
pub fn read_byte() -> Option<u8> {
    (inb(LINE_STATUS) & 1 != 0).then(|| inb(DATA))
}

/// From now on printing ignores the lock: for the last words of a guest.
pub(crate) fn force() {
    FORCED.store(true, Ordering::Relaxed);
}

/// What [`print!`](crate::print!) calls.
#[doc(hidden)]
pub fn print(arguments: fmt::Arguments<'_>) {
    // A `Display` of the caller's may fail; the port cannot.
    let _ = if FORCED.load(Ordering::Relaxed) {
        Console.write_fmt(arguments)
    } else {
        CONSOLE.lock().write_fmt(arguments)
    };
}

/// Prints on the console.
#[macro_export]
macro_rules! print {
    ($($argument:tt)*) => { $crate::serial::print(::core::format_args!($($argument)*)) };
}

/// Prints on the console, and ends the line.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($argument:tt)*) => { $crate::serial::print(::core::format_args!("{}\n", ::core::format_args!($($argument)*))) };
}
