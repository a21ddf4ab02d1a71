//! The server of a benchmark: on each of four ports it does something else, and measures what only the guest can know.

use alloc::collections::BTreeMap;
use alloc::format;
use core::convert::Infallible;

use ringlet_guest::virtio::{self, Slot};
use ringlet_guest::vsock::{Handle, Vsock};
use ringlet_guest::{Context, port, println, time};

use crate::Failure;
use crate::options::Options;

/// Connections that wait to be looked at, of each port.
const BACKLOG: usize = 256;
/// Bytes that are moved at once.
const PIECE: usize = 16 << 10;
/// Exits of each kind that are timed at once, and how often: the middle one tells, so that what comes between does not count.
const EXITS: u64 = 10;
const TIMES: usize = 51;
/// The line status of the 16550 (its register 5): reading it changes nothing as long as nobody types.
const LINE_STATUS: u16 = 0x3fd;
/// Device type (virtio 1.2, 5.10), and a register that is always there (4.2.2).
const VSOCK: u32 = 19;
const MAGIC_VALUE: u64 = 0;

/// What a connection is for: how far its port is from the first.
#[derive(Clone, Copy)]
enum Job {
    /// 0: sends back what comes.
    Echo,
    /// 1: takes what comes; after the end it says how many bytes that were, and in how many nanoseconds they came.
    Sink { bytes: u64, start: u64, end: u64 },
    /// 2: sends until the other side has enough.
    Source,
    /// 3: says how many exits to the VMM were timed, and how many nanoseconds they took by port and by memory.
    Exits,
    /// All was said.
    Said,
}

impl Job {
    const ALL: [Self; 4] = [Self::Echo, Self::Sink { bytes: 0, start: 0, end: 0 }, Self::Source, Self::Exits];
}

/// Serves until the device breaks.
pub(crate) fn run(context: &Context, vsock: &mut Vsock, options: &Options) -> Result<Infallible, Failure> {
    let last = Job::ALL.len() as u32 - 1;
    let first = options.port;
    if first > u32::MAX - 1 - last {
        return Err(Failure::Usage("there are no three ports behind this one"));
    }
    let slot =
        virtio::find(context, VSOCK).next().ok_or(Failure::Socket(ringlet_guest::vsock::Error::NoDevice))?;
    let mut server = Server { slot, jobs: BTreeMap::new(), piece: [0; PIECE] };
    for index in 0..=last {
        vsock.listen(first + index, BACKLOG);
    }
    println!("vsock-echo: ready on ports {first} to {}, CID {}", first + last, vsock.cid());
    loop {
        vsock.poll()?;
        for (port, job) in (first..).zip(Job::ALL) {
            while let Some(handle) = vsock.accept(port) {
                if server.jobs.len() >= options.connections {
                    vsock.remove(handle);
                    continue;
                }
                server.jobs.insert(handle, job);
                server.advance(vsock, handle);
            }
        }
        while let Some(handle) = vsock.news() {
            server.advance(vsock, handle);
        }
        vsock.poll()?;
        vsock.wait(None)?;
    }
}

struct Server {
    slot: Slot,
    jobs: BTreeMap<Handle, Job>,
    piece: [u8; PIECE],
}

impl Server {
    /// Does what can be done now on a connection.
    fn advance(&mut self, vsock: &mut Vsock, handle: Handle) {
        let Some(mut job) = self.jobs.get(&handle).copied() else { return };
        job = match job {
            Job::Echo => self.echo(vsock, handle),
            Job::Sink { bytes, start, end } => self.sink(vsock, handle, (bytes, start, end)),
            Job::Source => self.source(vsock, handle),
            Job::Exits => self.exits(vsock, handle),
            Job::Said => Job::Said,
        };
        if vsock.socket(handle).end().is_some() {
            self.jobs.remove(&handle);
            vsock.remove(handle);
        } else {
            self.jobs.insert(handle, job);
        }
    }

    fn echo(&mut self, vsock: &mut Vsock, handle: Handle) -> Job {
        loop {
            let room = vsock.socket(handle).room().min(PIECE);
            let len = vsock.read(handle, &mut self.piece[..room]);
            if len == 0 {
                break;
            }
            vsock.write(handle, &self.piece[..len]);
        }
        let socket = vsock.socket(handle);
        if socket.has_ended() || !socket.may_write() {
            vsock.close(handle);
        }
        Job::Echo
    }

    fn sink(
        &mut self,
        vsock: &mut Vsock,
        handle: Handle,
        (mut bytes, mut start, mut end): (u64, u64, u64),
    ) -> Job {
        loop {
            let len = vsock.read(handle, &mut self.piece);
            if len == 0 {
                break;
            }
            end = time::now();
            if bytes == 0 {
                start = end;
            }
            bytes += len as u64;
        }
        if !vsock.socket(handle).has_ended() {
            return Job::Sink { bytes, start, end };
        }
        vsock.write(handle, format!("{bytes} {}\n", end - start).as_bytes());
        vsock.close(handle);
        Job::Said
    }

    fn source(&mut self, vsock: &mut Vsock, handle: Handle) -> Job {
        // Nobody has anything to say here.
        while vsock.read(handle, &mut self.piece) > 0 {}
        self.piece.fill(0);
        while vsock.socket(handle).room() > 0 {
            vsock.write(handle, &self.piece);
        }
        if vsock.socket(handle).has_ended() || !vsock.socket(handle).may_write() {
            vsock.close(handle);
        }
        Job::Source
    }

    fn exits(&mut self, vsock: &mut Vsock, handle: Handle) -> Job {
        let timed = |exit: &dyn Fn()| {
            let mut times = [0; TIMES];
            for time in &mut times {
                let start = time::now();
                (0..EXITS).for_each(|_| exit());
                *time = time::now() - start;
            }
            times.sort_unstable();
            times[TIMES / 2]
        };
        let by_port = timed(&|| _ = port::inb(LINE_STATUS));
        let by_memory = timed(&|| _ = self.slot.read(MAGIC_VALUE));
        vsock.write(handle, format!("{EXITS} {by_port} {by_memory}\n").as_bytes());
        vsock.close(handle);
        Job::Said
    }
}
