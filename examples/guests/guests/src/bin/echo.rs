//! Sends back every line that comes in on the virtio console, and tells when the console is resized. The line `quit`
//! ends it.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use alloc::vec::Vec;

use ringlet_guest::virtio::drivers::device::console::{Size, VirtIOConsole};
use ringlet_guest::virtio::{self, GuestHal, Line, Transport};
use ringlet_guest::{Context, println};

ringlet_guest::entry!(main);

const CONSOLE: u32 = 3;
/// Longest line; a longer one is sent back in pieces.
const LINE_MAX: usize = 4096;

const USAGE: u32 = 2;
const NO_DEVICE: u32 = 3;
const DEVICE_FAILED: u32 = 4;

type Console = VirtIOConsole<GuestHal, Transport>;
type Result<T = ()> = virtio::drivers::Result<T>;

fn main(context: &Context) -> u32 {
    if context.args().next().is_some() {
        println!("usage: echo   (type lines into the virtio console; quit ends)");
        return USAGE;
    }
    let Some(slot) = virtio::find(context, CONSOLE).next() else {
        println!("echo: no console device; start with --console");
        return NO_DEVICE;
    };
    let line = slot.line();
    let Some(console) = slot.open().ok().and_then(|transport| Console::new(transport).ok()) else {
        println!("echo: the device does not come up");
        return DEVICE_FAILED;
    };
    match (Echo { console, line, text: Vec::new(), size: None, lines: 0, bytes: 0 }).run() {
        Ok((lines, bytes)) => {
            println!("echo: {lines} lines, {bytes} bytes");
            0
        }
        Err(error) => {
            println!("echo: {error}");
            DEVICE_FAILED
        }
    }
}

struct Echo {
    console: Console,
    line: Line,
    /// The line that is being typed.
    text: Vec<u8>,
    size: Option<Size>,
    lines: u64,
    bytes: u64,
}

impl Echo {
    /// Until `quit`; returns how many lines and bytes were sent back.
    fn run(mut self) -> Result<(u64, u64)> {
        self.size = self.console.size()?;
        match self.size {
            Some(size) => self.say(&format!("echo: ready, {size}\n"))?,
            None => self.say("echo: ready\n")?,
        }
        loop {
            while let Some(byte) = self.console.recv(true)? {
                if self.typed(byte)? {
                    return Ok((self.lines, self.bytes));
                }
            }
            self.line.acknowledge_change();
            let size = self.console.size()?;
            if let Some(size) = size.filter(|_| size != self.size) {
                self.say(&format!("echo: resized to {size}\n"))?;
            }
            self.size = size;
            let _ = self.line.wait();
        }
    }

    fn say(&mut self, text: &str) -> Result {
        self.console.send_bytes(text.as_bytes())
    }

    /// Takes a byte; whether that was the end.
    fn typed(&mut self, byte: u8) -> Result<bool> {
        let ends = byte == b'\n' || byte == b'\r';
        if !ends {
            self.text.push(byte);
        }
        if ends && self.text == b"quit" {
            return Ok(true);
        }
        if ends || self.text.len() == LINE_MAX {
            self.bytes += self.text.len() as u64;
            self.lines += u64::from(ends);
            if ends {
                self.text.push(b'\n');
            }
            self.console.send_bytes(&self.text)?;
            self.text.clear();
        }
        Ok(false)
    }
}
