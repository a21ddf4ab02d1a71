//! The ring: reads and writes of files and streams, the same on both engines.
//!
//! Buffers are handed over and come back with the result, so that a dropped future leaves the kernel
//! a buffer that still exists. Owns the bound on operations under way. Never changes the flags of a
//! descriptor that it is given: stdin and stdout are shared with other processes, which would be surprised
//! by `O_NONBLOCK`.
//!
//! # What waits where
//! | descriptor | uring | epoll |
//! |---|---|---|
//! | regular file, block device, `/dev/null` | ring operation | pool of [`FILE_THREADS`] threads |
//! | pipe, FIFO, socket, eventfd, terminal | readiness, then a read or write that cannot wait (`nowait.rs`) | the same |
//! | other devices, terminals that cannot be opened again | readiness, then a pool of [`STREAM_THREADS`] | the same |
//!
//! In the first two rows a dropped read has taken nothing from a stream. In the last one, a read that is
//! dropped after readiness may still take input; and if another process takes the input in between,
//! the thread waits for more. When the shard stops it stays behind (logged), holding its own buffer and descriptor.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::PollFlags;
use tokio::io::Interest;
use tokio::sync::Semaphore;

use crate::charge::Ledger;
use crate::engine::EngineKind;
use crate::epoll::Pool;
use crate::nowait::Relay;
use crate::operation::{CURRENT_POSITION, Kind, Memory, Outcome, Places, Request};
use crate::owner::Owner;
use crate::ring::InFlight;
pub use crate::ring_file::RingFile;
use crate::ring_file::{Attempt, Claim};

/// Threads of a shard that do file I/O in the epoll engine.
pub const FILE_THREADS: usize = 8;
/// How many of them one owner (a VM) may hold. What they do cannot be cancelled, so a VM whose storage hangs
/// must leave some to others.
pub const FILE_THREADS_PER_OWNER: u32 = 4;
/// Threads of a shard that read and write streams on which every call may wait.
pub const STREAM_THREADS: usize = 2;
/// Operations on streams that a ring holds at most, besides those on files.
const STREAM_OPERATIONS: u32 = 16;
/// Smallest and largest submission queue.
const ENTRIES: std::ops::RangeInclusive<u32> = 32..=4096;

/// What an operation gives back: how many bytes, or why not, and the buffer.
pub type BufResult = (io::Result<usize>, Vec<u8>);

/// How many operations a ring of `entries` entries may have under way, on files and on streams.
pub(crate) fn ring_entries(entries: u32) -> u32 {
    entries.clamp(*ENTRIES.start(), *ENTRIES.end())
}

/// I/O of one shard. Clones are the same ring; `!Send`.
#[derive(Clone)]
pub struct Ring(Rc<RingInner>);

struct RingInner {
    backend: Backend,
    files: Arc<Semaphore>,
    file_operations: u32,
    streams: Arc<Semaphore>,
    relay: Relay,
    /// For streams on which every call may wait. Not the ring: it would make the loop's thread wait.
    waiting: Pool,
    ledger: Rc<Ledger>,
}

enum Backend {
    Uring(Rc<InFlight>),
    Epoll { files: Pool },
}

impl Ring {
    pub(crate) fn uring(in_flight: Rc<InFlight>, entries: u32) -> Self {
        Self::new(Backend::Uring(in_flight), entries)
    }

    pub(crate) fn epoll(entries: u32) -> Self {
        let files = Pool::new("ringlet-file", FILE_THREADS);
        Self::new(Backend::Epoll { files }, entries)
    }

    fn new(backend: Backend, entries: u32) -> Self {
        let file_operations = ring_entries(entries) - STREAM_OPERATIONS;
        Self(Rc::new(RingInner {
            backend,
            files: semaphore(file_operations),
            file_operations,
            streams: semaphore(STREAM_OPERATIONS),
            relay: Relay::default(),
            waiting: Pool::new("ringlet-stream", STREAM_THREADS),
            ledger: Rc::default(),
        }))
    }

    /// The engine behind this ring.
    pub fn engine(&self) -> EngineKind {
        match self.0.backend {
            Backend::Uring(_) => EngineKind::Uring,
            Backend::Epoll { .. } => EngineKind::Epoll,
        }
    }

    /// Operations on files that may be under way at once; further ones wait their turn.
    pub fn capacity(&self) -> u32 {
        self.0.file_operations
    }

    /// Takes over a descriptor for `owner`, who has a share of the operations under way: half of
    /// [`Ring::capacity`], or [`FILE_THREADS_PER_OWNER`] on the epoll engine. Further ones wait, in their order.
    pub fn file_of(&self, owner: &Owner, fd: impl Into<OwnedFd>) -> RingFile {
        self.owned(owner, fd.into(), true)
    }

    /// As [`Ring::file_of`], for a file that was opened with `O_DIRECT`.
    pub fn direct_file_of(&self, owner: &Owner, fd: impl Into<OwnedFd>) -> RingFile {
        self.owned(owner, fd.into(), false)
    }

    fn owned(&self, owner: &Owner, fd: OwnedFd, cached: bool) -> RingFile {
        let most = match self.0.backend {
            Backend::Uring(_) => (self.0.file_operations / 2).max(1),
            Backend::Epoll { .. } => FILE_THREADS_PER_OWNER,
        };
        let share = owner.file_operations(|| semaphore(most));
        RingFile::with(fd, Some(Claim { owner: owner.clone(), share }), cached)
    }

    /// Reads up to `buf.len()` bytes at `offset`; fewer at the end of the file.
    pub async fn read_at(&self, file: &RingFile, buf: Vec<u8>, offset: u64) -> BufResult {
        self.on_file(file, buf, 0, Kind::Read(offset)).await
    }

    /// Writes up to `buf.len()` bytes at `offset`.
    pub async fn write_at(&self, file: &RingFile, buf: Vec<u8>, offset: u64) -> BufResult {
        self.on_file(file, buf, 0, Kind::Write(offset)).await
    }

    /// Writes all of `buf` at `offset`. Gives the number of bytes, which is less only with an error
    /// (`WriteZero` if the kernel takes none).
    pub async fn write_all_at(&self, file: &RingFile, mut buf: Vec<u8>, offset: u64) -> BufResult {
        let mut done = 0;
        while done < buf.len() {
            let result;
            let at = Kind::Write(offset.saturating_add(done as u64));
            (result, buf) = self.on_file(file, buf, done, at).await;
            match result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buf),
                Ok(count) => done += count,
                Err(error) => return (Err(error), buf),
            }
        }
        (Ok(done), buf)
    }

    /// Makes all that was written to `file` durable, with its metadata.
    ///
    /// # Errors
    /// What `fsync(2)` says; after an error, nothing is known about earlier writes.
    pub async fn fsync(&self, file: &RingFile) -> io::Result<()> {
        self.on_file(file, Vec::new(), 0, Kind::SyncAll).await.0.map(drop)
    }

    /// Makes the data that was written to `file` durable (`fdatasync(2)`).
    ///
    /// # Errors
    /// As [`Ring::fsync`].
    pub async fn fdatasync(&self, file: &RingFile) -> io::Result<()> {
        self.on_file(file, Vec::new(), 0, Kind::SyncData).await.0.map(drop)
    }

    /// Reads up to `buf.len()` bytes from a stream, as soon as there are some; 0 at its end.
    /// Cancel-safe as the table above says.
    pub async fn read(&self, file: &RingFile, mut buf: Vec<u8>) -> BufResult {
        loop {
            match wait_and_try(file, Interest::READABLE, || self.try_read(file, &mut buf)).await {
                Ok(Attempt::Done(result)) => return (result, buf),
                Ok(Attempt::NotReady) => {}
                Ok(Attempt::MayWait) => {
                    let result;
                    (result, buf) = self.on_stream(file, buf, 0, Kind::Read(CURRENT_POSITION)).await;
                    match result {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        result => return (result, buf),
                    }
                }
                Err(error) => return (Err(error), buf),
            }
        }
    }

    /// Writes some of `buf` to a stream, as soon as it takes some. Never raises SIGPIPE's default action
    /// (Rust programs ignore the signal): a closed pipe is an error of kind `BrokenPipe`.
    pub async fn write(&self, file: &RingFile, buf: Vec<u8>) -> BufResult {
        self.write_from(file, buf, 0).await
    }

    /// Writes all of `buf` to a stream.
    pub async fn write_all(&self, file: &RingFile, mut buf: Vec<u8>) -> BufResult {
        let mut done = 0;
        while done < buf.len() {
            let result;
            (result, buf) = self.write_from(file, buf, done).await;
            match result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buf),
                Ok(count) => done += count,
                Err(error) => return (Err(error), buf),
            }
        }
        (Ok(done), buf)
    }

    async fn write_from(&self, file: &RingFile, mut buf: Vec<u8>, start: usize) -> BufResult {
        // Mostly there is room: try before asking.
        let mut attempt = if file.watch().is_ok_and(|watch| watch.is_some()) {
            Ok(self.try_write(file, &buf, start))
        } else {
            Ok(Attempt::NotReady)
        };
        loop {
            match attempt {
                Ok(Attempt::Done(result)) => return (result, buf),
                Ok(Attempt::NotReady) => {}
                Ok(Attempt::MayWait) => {
                    let result;
                    (result, buf) = self.on_stream(file, buf, start, Kind::Write(CURRENT_POSITION)).await;
                    match result {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        result => return (result, buf),
                    }
                }
                Err(error) => return (Err(error), buf),
            }
            attempt = wait_and_try(file, Interest::WRITABLE, || self.try_write(file, &buf, start)).await;
        }
    }

    /// Waits until a read would give something (data, end, or an error). Cancel-safe on everything; at once
    /// on regular files. Another process may still take the input first.
    ///
    /// # Errors
    /// The descriptor cannot be registered, or the loop is shutting down.
    pub async fn readable(&self, file: &RingFile) -> io::Result<()> {
        let Some(watch) = file.watch()? else { return Ok(()) };
        loop {
            let mut guard = watch.ready(Interest::READABLE).await?;
            if file.is_ready(PollFlags::IN) {
                return Ok(());
            }
            guard.clear_ready();
        }
    }

    fn try_read(&self, file: &RingFile, buf: &mut [u8]) -> Attempt {
        let result = file.0.nowait.read(&file.0.fd, &self.0.relay, buf);
        file.outcome(result, PollFlags::IN)
    }

    fn try_write(&self, file: &RingFile, buf: &[u8], start: usize) -> Attempt {
        let part = buf.get(start..).unwrap_or_default();
        let result = file.0.nowait.write(&file.0.fd, &self.0.relay, part);
        file.outcome(result, PollFlags::OUT)
    }

    /// Runs an operation on bytes of ours, from `start` on.
    pub(crate) async fn on_file(&self, file: &RingFile, buf: Vec<u8>, start: usize, kind: Kind) -> BufResult {
        let (result, memory) = self.operate(file, Memory::Ours(buf), start, kind, Sort::File).await;
        (result, memory.into_bytes())
    }

    async fn on_stream(&self, file: &RingFile, buf: Vec<u8>, start: usize, kind: Kind) -> BufResult {
        // What cannot be polled is a file that is used as a stream: its operations end by themselves.
        let pollable = file.0.watch.get().is_some_and(Option::is_some);
        let sort = if pollable { Sort::Stream } else { Sort::File };
        let (result, memory) = self.operate(file, Memory::Ours(buf), start, kind, sort).await;
        (result, memory.into_bytes())
    }

    /// Runs one operation. Dropped before it started, nothing has happened; later, the operation goes on.
    pub(crate) async fn operate(
        &self,
        file: &RingFile,
        memory: Memory,
        start: usize,
        kind: Kind,
        sort: Sort,
    ) -> Outcome {
        let Some(places) = self.places(file, sort).await else {
            return (Err(io::ErrorKind::NotConnected.into()), memory);
        };
        let request = Request { fd: Arc::clone(&file.0.fd), memory, start, kind, places };
        match (&self.0.backend, sort) {
            (_, Sort::Stream) => self.0.waiting.submit(request).await,
            (Backend::Uring(in_flight), Sort::File) => {
                let bytes = if file.0.cached { request.bytes() } else { 0 };
                self.0.ledger.note(file.0.claim.as_ref().map(|claim| &claim.owner), bytes);
                in_flight.submit(request).await
            }
            (Backend::Epoll { files }, Sort::File) => files.submit(request).await,
        }
    }

    /// Waits until one more operation may be under way: first among the owner's, then among all, each in order of
    /// arrival. So owners that always have more to do get equal shares.
    async fn places(&self, file: &RingFile, sort: Sort) -> Option<Places> {
        let permits = match sort {
            Sort::File => &self.0.files,
            Sort::Stream => &self.0.streams,
        };
        let owner = match (&file.0.claim, sort) {
            (Some(claim), Sort::File) => Some(Arc::clone(&claim.share).acquire_owned().await.ok()?),
            _ => None,
        };
        Some(Places { _shard: Arc::clone(permits).acquire_owned().await.ok()?, _owner: owner })
    }

    /// True while the loop has to park again and again for the sake of operations under way.
    pub(crate) fn is_submitting(&self) -> bool {
        matches!(self.0.backend, Backend::Uring(_)) && self.awaits_files()
    }

    /// True while operations on files are under way.
    pub(crate) fn awaits_files(&self) -> bool {
        self.0.files.available_permits() < usize::try_from(self.0.file_operations).unwrap_or(0)
    }

    /// Waits until no operation on a file is under way (those on streams may never end).
    pub(crate) async fn idle(&self) {
        let _ = self.0.files.acquire_many(self.0.file_operations).await;
    }

    /// Where it is noted what the next park submits.
    pub(crate) fn ledger(&self) -> Rc<Ledger> {
        Rc::clone(&self.0.ledger)
    }

    /// Ends the pools' threads.
    pub(crate) fn stop(&self) {
        if let Backend::Epoll { files } = &self.0.backend {
            files.stop(Duration::from_secs(60));
        }
        self.0.waiting.stop(Duration::from_millis(100));
    }
}

/// Whether an operation ends by itself.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sort {
    File,
    Stream,
}

fn semaphore(permits: u32) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(usize::try_from(permits).unwrap_or(usize::MAX)))
}

/// Waits for readiness and tries once; what cannot be polled may always be tried.
async fn wait_and_try(
    file: &RingFile,
    interest: Interest,
    attempt: impl FnOnce() -> Attempt,
) -> io::Result<Attempt> {
    let Some(watch) = file.watch()? else { return Ok(Attempt::MayWait) };
    let mut guard = watch.ready(interest).await?;
    let attempt = attempt();
    if matches!(attempt, Attempt::NotReady) {
        guard.clear_ready();
    }
    Ok(attempt)
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("engine", &self.engine()).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "file_test.rs"]
mod tests;
