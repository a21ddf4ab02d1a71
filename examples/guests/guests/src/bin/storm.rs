//! Asks for one thing again and again, for ever, to see what that costs its neighbours; or, calm, for nothing.
//!
//! Its argument names the storm. Those that need a disk take the first one, and leave it as it is.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::alloc::{Layout, alloc_zeroed};
use core::ptr::NonNull;

use ringlet_guest::virtio::drivers::transport::Transport as _;
use ringlet_guest::virtio::{self, Buffer, Line, Ring, Shape, Slot, Transport, feature};
use ringlet_guest::{Context, cpu, lapic, println, ready, serial};

ringlet_guest::entry!(main);

const USAGE: &str = "usage: storm NAME
  bells   notifies a disk of nothing
  resets  resets a disk and brings it up
  output  prints
  timer   has a timer that is always due
  calm    uses its disk once, says that it is ready, and sleeps";

/// Device type (virtio 1.2, 5.2), and the request type of a read (5.2.6).
const BLOCK: u32 = 2;
const IN: u32 = 0;
const SECTOR: u32 = 512;
/// Descriptors of the queue that is reset.
const QUEUE_SIZE: u32 = 16;
const PAGE: usize = 4096;

const WRONG_USAGE: u32 = 2;
const NO_DISK: u32 = 3;
const DISK_FAILED: u32 = 4;

/// What a failure exits with.
type Result<T> = core::result::Result<T, u32>;

fn main(context: &Context) -> u32 {
    let mut args = context.args();
    let name = args.next().and_then(|argument| argument.text());
    let over = match name.as_deref() {
        Some("bells") => bells(context),
        Some("resets") => resets(context),
        Some("output") => output(),
        Some("timer") => timer(),
        Some("calm") => calm(context),
        _ => {
            println!("{USAGE}");
            Err(WRONG_USAGE)
        }
    };
    match over {
        Ok(never) => match never {},
        Err(code) => code,
    }
}

/// What a storm that never ends returns.
enum Never {}

/// The first disk.
fn disk(context: &Context) -> Result<(Slot, Transport)> {
    let slot = virtio::find(context, BLOCK).next().ok_or(NO_DISK)?;
    let transport = slot.open().map_err(|_| DISK_FAILED)?;
    Ok((slot, transport))
}

/// Brings a disk up with room for one request.
fn start(transport: &mut Transport) -> Result<Ring> {
    let features = virtio::negotiate(transport, feature::EVENT_IDX).map_err(|_| DISK_FAILED)?;
    let ring = Ring::new(transport, 0, Shape { slots: 1, buffers: 3, features }).ok_or(DISK_FAILED)?;
    virtio::finish(transport);
    Ok(ring)
}

fn bells(context: &Context) -> Result<Never> {
    let (_, mut transport) = disk(context)?;
    let _ring = start(&mut transport)?;
    ready();
    loop {
        transport.notify(0);
    }
}

fn resets(context: &Context) -> Result<Never> {
    let (_, mut transport) = disk(context)?;
    let queue = memory(3 * PAGE)?.expose_provenance().get() as u64;
    ready();
    loop {
        virtio::negotiate(&mut transport, feature::EVENT_IDX).map_err(|_| DISK_FAILED)?;
        transport.queue_set(0, QUEUE_SIZE, queue, queue + PAGE as u64, queue + 2 * PAGE as u64);
        virtio::finish(&mut transport);
        transport.notify(0);
    }
}

fn output() -> Result<Never> {
    ready();
    loop {
        serial::write_bytes(
            b"as much as goes out, and then more of it, until somebody says that it is enough\n",
        );
    }
}

fn timer() -> Result<Never> {
    ready();
    loop {
        lapic::arm_timer(1);
        ringlet_guest::interrupts::wait();
    }
}

fn calm(context: &Context) -> Result<Never> {
    let (slot, mut transport) = disk(context)?;
    let line = slot.line();
    let mut ring = start(&mut transport)?;
    read(&mut ring, &mut transport, &line)?;
    ready();
    cpu::park();
}

/// Reads the first sector.
fn read(ring: &mut Ring, transport: &mut Transport, line: &Line) -> Result<()> {
    let memory = memory(PAGE)?;
    let address = memory.expose_provenance().get() as u64;
    let (header, data, status) = (address, address + 512, address + 1024);
    // SAFETY: the header, in memory that nobody refers to; the rest of it, the sector's number, is 0.
    unsafe { memory.cast::<u32>().write_volatile(IN) };
    // SAFETY: the memory is never freed, nor touched until the request is answered.
    unsafe {
        ring.offer(
            0,
            &[
                Buffer { address: header, len: 16, device_writes: false },
                Buffer { address: data, len: SECTOR, device_writes: true },
                Buffer { address: status, len: 1, device_writes: true },
            ],
        );
    }
    if ring.publish() {
        transport.notify(0);
    }
    while !ring.listen() {
        let _ = line.wait();
    }
    match ring.pop() {
        Ok(Some((0, len))) if len == SECTOR + 1 => Ok(()),
        Ok(_) | Err(_) => Err(DISK_FAILED),
    }
}

/// Zeroed pages, for good.
fn memory(len: usize) -> Result<NonNull<u8>> {
    let layout = Layout::from_size_align(len, PAGE).map_err(|_| DISK_FAILED)?;
    // SAFETY: the layout is not empty.
    NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(DISK_FAILED)
}
