//! A disk that does what a test says, and requests on a real ring without a queue task.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use ringlet_io::disk::{Disk, DiskFuture, DiskInfo};
use ringlet_io::{Backing, Cost, GuestRam, Lease};
use ringlet_metrics::{DeviceKind, DeviceMetrics, VmMetrics};
use tokio::sync::oneshot;

use super::device::Serial;
use super::durability::{Cache, Durability};
use super::handler::{Handler, Shared};
use super::report::LogLimits;
use super::request::Rules;
use crate::test_util::{log, metrics};
use crate::virtio::{Chain, Queue, RawLayout, RequestHandler};

/// What a disk was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Read { offset: u64, len: u64 },
    Write { offset: u64, len: u64 },
    Flush,
    Discard { offset: u64, len: u64 },
    WriteZeroes { offset: u64, len: u64, may_unmap: bool },
}

/// A disk with a cache that loses what was not flushed, and forgets that it did: after a flush that failed, what it
/// should have made durable is gone, and the next flush succeeds. Clones are the same disk.
#[derive(Clone)]
pub(super) struct TestDisk(Arc<Mutex<State>>);

struct State {
    info: DiskInfo,
    contents: Vec<u8>,
    /// What a crash would leave.
    stable: Vec<u8>,
    /// Sectors whose contents are not stable.
    dirty: BTreeSet<usize>,
    log: Vec<Op>,
    held: bool,
    failing: bool,
    waiting: Vec<(Op, oneshot::Sender<bool>)>,
}

const SECTOR: usize = 512;

impl TestDisk {
    /// A disk with every feature, whose bytes are the low bits of their sector's number.
    pub(super) fn new(sectors: u64) -> Self {
        let contents: Vec<u8> = (0..sectors as usize * SECTOR).map(|byte| (byte / SECTOR) as u8).collect();
        let info = DiskInfo {
            size: sectors * SECTOR as u64,
            block_size: 512,
            read_only: false,
            discard: true,
            write_zeroes: true,
        };
        let stable = contents.clone();
        let (dirty, log, waiting) = Default::default();
        let state = State { info, contents, stable, dirty, log, held: false, failing: false, waiting };
        Self(Arc::new(Mutex::new(state)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Changes what it says of itself.
    pub(super) fn set_info(&self, change: impl FnOnce(&mut DiskInfo)) {
        change(&mut self.lock().info);
    }

    /// What it was asked for since the last call.
    pub(super) fn take_log(&self) -> Vec<Op> {
        std::mem::take(&mut self.lock().log)
    }

    /// What a crash would leave.
    pub(super) fn after_crash(&self, offset: usize, len: usize) -> Vec<u8> {
        self.lock().stable[offset..offset + len].to_vec()
    }

    /// Operations fail from now on, or not.
    pub(super) fn set_failing(&self, failing: bool) {
        self.lock().failing = failing;
    }

    /// Operations wait for the test from now on.
    pub(super) fn hold(&self) {
        self.lock().held = true;
    }

    /// Operations that wait.
    pub(super) fn waiting(&self) -> Vec<Op> {
        self.lock().waiting.iter().map(|(op, _)| *op).collect()
    }

    /// Ends one that waits, well or not.
    pub(super) fn release(&self, index: usize, well: bool) {
        let (_, sender) = self.lock().waiting.remove(index);
        let _ = sender.send(well);
    }

    /// Ends all that wait, and holds no further.
    pub(super) fn release_all(&self) {
        let mut state = self.lock();
        state.held = false;
        for (_, sender) in state.waiting.drain(..) {
            let _ = sender.send(true);
        }
    }

    async fn step(&self, op: Op) -> io::Result<()> {
        let wait = {
            let mut state = self.lock();
            state.log.push(op);
            let (sender, receiver) = oneshot::channel();
            if state.held {
                state.waiting.push((op, sender));
            } else {
                let _ = sender.send(!state.failing);
            }
            receiver
        };
        if wait.await.unwrap_or(false) { Ok(()) } else { Err(io::Error::other("bad sector")) }
    }

    fn change(&self, offset: u64, bytes: &[u8]) {
        let offset = offset as usize;
        let mut state = self.lock();
        state.contents[offset..offset + bytes.len()].copy_from_slice(bytes);
        state.dirty.extend(offset / SECTOR..(offset + bytes.len()).div_ceil(SECTOR));
    }
}

impl Disk for TestDisk {
    fn info(&self) -> DiskInfo {
        self.lock().info
    }

    fn bytes_to_read(&self, _offset: u64, len: u64) -> u64 {
        len.next_multiple_of(self.info().block_size.into())
    }

    fn bytes_to_write(&self, offset: u64, len: u64) -> u64 {
        let whole = self.bytes_to_read(offset, len);
        if whole == len { len } else { 2 * whole }
    }

    fn read(&self, lease: Lease, offset: u64) -> DiskFuture<'_, (io::Result<()>, Lease)> {
        Box::pin(async move {
            let len = lease.len();
            if let Err(error) = self.step(Op::Read { offset, len }).await {
                return (Err(error), lease);
            }
            let bytes = self.lock().contents[offset as usize..][..len as usize].to_vec();
            (lease.copy_in(&bytes, 0).map_err(io::Error::other), lease)
        })
    }

    fn write(&self, lease: Lease, offset: u64) -> DiskFuture<'_, (io::Result<()>, Lease)> {
        Box::pin(async move {
            let mut bytes = vec![0; lease.len() as usize];
            let result = self.step(Op::Write { offset, len: lease.len() }).await;
            if result.is_ok() {
                lease.copy_out(&mut bytes, 0).unwrap();
                self.change(offset, &bytes);
            }
            (result, lease)
        })
    }

    fn flush(&self) -> DiskFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let (dirty, contents) = {
                let mut state = self.lock();
                (std::mem::take(&mut state.dirty), state.contents.clone())
            };
            self.step(Op::Flush).await?;
            let mut state = self.lock();
            for sector in dirty {
                let range = sector * SECTOR..(sector + 1) * SECTOR;
                state.stable[range.clone()].copy_from_slice(&contents[range]);
            }
            Ok(())
        })
    }

    fn discard(&self, offset: u64, len: u64) -> DiskFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.step(Op::Discard { offset, len }).await?;
            self.change(offset, &vec![0; len as usize]);
            Ok(())
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> DiskFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.step(Op::WriteZeroes { offset, len, may_unmap }).await?;
            self.change(offset, &vec![0; len as usize]);
            Ok(())
        })
    }

    fn refresh_size(&self) -> io::Result<u64> {
        Ok(self.lock().info.size)
    }
}

/// Where chains of tests have their parts.
pub(super) const HEADER: u64 = 0x1_0000;
pub(super) const DATA: u64 = 0x2_0000;
pub(super) const STATUS: u64 = 0x1_8000;
/// What guest RAM holds before a request.
pub(super) const UNTOUCHED: u8 = 0xA5;

/// One descriptor: address, length, whether the device writes.
pub(super) type Part = (u64, u32, bool);

/// A handler, and a ring to make chains with.
pub(super) struct Bench {
    pub(super) ram: GuestRam,
    pub(super) disk: TestDisk,
    pub(super) handler: Rc<Handler>,
    pub(super) metrics: Arc<DeviceMetrics>,
    pub(super) vm: Arc<VmMetrics>,
    queue: Queue,
    offered: u16,
}

/// A request under way.
pub(super) struct Job(Pin<Box<dyn Future<Output = u32>>>);

impl Job {
    /// Polls it once; bytes written if it has ended.
    pub(super) fn poll(&mut self) -> Option<u32> {
        match self.0.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(written) => Some(written),
            Poll::Pending => None,
        }
    }
}

impl Bench {
    /// A disk of 64 sectors in writeback mode, with everything negotiated.
    pub(super) fn new() -> Self {
        Self::with(TestDisk::new(64), Cache::Writeback)
    }

    pub(super) fn with(disk: TestDisk, cache: Cache) -> Self {
        let ram = GuestRam::new(&[(0, 1 << 20)], Backing::Pages4K).unwrap();
        let raw = RawLayout { size: 256, descriptors: 0x1000, driver: 0x3000, device: 0x4000 };
        let features = crate::virtio::spec::feature::VERSION_1;
        let queue = Queue::new(raw.check(256, &ram).unwrap(), features, &ram).unwrap();
        let info = disk.info();
        let rules = Rules {
            capacity: info.size / 512,
            read_only: info.read_only,
            discard: info.discard,
            write_zeroes: info.write_zeroes,
        };
        let shared = Rc::new(Shared {
            disk: Rc::new(disk.clone()) as Rc<dyn Disk>,
            serial: Serial::new("serial-of-the-disk"),
            rules: Cell::new(rules),
            durability: Durability::new(cache),
            limits: LogLimits::default(),
        });
        shared.durability.set_writeback(true);
        let vm = metrics();
        let metrics = vm.register_device("disk0", DeviceKind::Block);
        let log = Arc::new(log(&vm));
        let handler = Rc::new(Handler { shared, metrics: Arc::clone(&metrics), log });
        Self { ram, disk, handler, metrics, vm, queue, offered: 0 }
    }

    /// Offers these descriptors and takes them from the ring as a chain.
    pub(super) fn chain(&mut self, parts: &[Part]) -> Chain {
        for (index, (gpa, len, write)) in parts.iter().enumerate() {
            let last = index + 1 == parts.len();
            let flags = u16::from(!last) | u16::from(*write) << 1;
            let mut bytes = gpa.to_le_bytes().to_vec();
            bytes.extend(len.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend((index as u16 + 1).to_le_bytes());
            self.ram.write(0x1000 + index as u64 * 16, &bytes).unwrap();
        }
        self.ram.write(0x3004 + u64::from(self.offered % 256) * 2, &[0, 0]).unwrap();
        self.offered = self.offered.wrapping_add(1);
        self.ram.write(0x3002, &self.offered.to_le_bytes()).unwrap();
        let chain = self.queue.peek().unwrap().unwrap();
        let token = self.queue.consume(&chain).unwrap();
        self.queue.complete(token, 0).unwrap();
        chain
    }

    /// Puts a header where chains have it.
    pub(super) fn header(&self, kind: u32, sector: u64) {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(sector.to_le_bytes());
        self.ram.write(HEADER, &bytes).unwrap();
    }

    /// Parses the request of a chain and starts it.
    pub(super) fn start(&mut self, parts: &[Part]) -> (Cost, Job) {
        let chain = self.chain(parts);
        let (request, cost) = self.handler.parse(&self.ram, &chain);
        let job = Rc::clone(&self.handler).execute(self.ram.clone(), chain, request);
        (cost, Job(Box::pin(job)))
    }

    /// A request of header, data and status, that ends at once: status, bytes written.
    pub(super) fn request(&mut self, kind: u32, sector: u64, data: &[Part]) -> (u8, u32) {
        self.header(kind, sector);
        self.ram.write(STATUS, &[UNTOUCHED]).unwrap();
        let parts = [&[(HEADER, 16, false)], data, &[(STATUS, 1, true)]].concat();
        let written = self.start(&parts).1.poll().unwrap();
        (self.bytes(STATUS, 1)[0], written)
    }

    pub(super) fn bytes(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read(gpa, &mut bytes).unwrap();
        bytes
    }

    /// Fills guest memory from `gpa` on.
    pub(super) fn fill(&self, gpa: u64, len: usize, byte: u8) {
        self.ram.write(gpa, &vec![byte; len]).unwrap();
    }
}
