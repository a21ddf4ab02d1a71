//! Both ways to a guest: its Unix socket, and this process's own streams.

use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use ringlet::{Vm, VsockStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use super::client::{PATIENCE, Reach, Wire};

/// Bytes of the longest answer to `CONNECT`.
const ANSWER: usize = 32;

/// Whoever listens at a path and knows Firecracker's convention.
pub(super) struct AtPath<'a>(pub(super) &'a Path);

impl Reach for AtPath<'_> {
    fn connect(&self, port: u32) -> io::Result<Box<dyn Wire + '_>> {
        let mut stream = UnixStream::connect(self.0)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
        // Byte by byte: what is behind the line is the guest's. That is how everybody does it who does not peek.
        let (mut answer, mut byte) = (Vec::new(), [0]);
        while answer.len() < ANSWER && byte != *b"\n" {
            stream.read_exact(&mut byte)?;
            answer.extend(byte);
        }
        if !answer.starts_with(b"OK ") || !answer.ends_with(b"\n") {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        Ok(Box::new(stream))
    }
}

impl Wire for UnixStream {
    fn finish(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// A VM of this process, and tokio, which its streams are for.
pub(super) struct Within<'a> {
    vm: &'a Vm,
    executor: Runtime,
}

impl<'a> Within<'a> {
    pub(super) fn new(vm: &'a Vm) -> io::Result<Self> {
        Ok(Self { vm, executor: Builder::new_current_thread().enable_all().build()? })
    }
}

impl Reach for Within<'_> {
    fn connect(&self, port: u32) -> io::Result<Box<dyn Wire + '_>> {
        let stream = self.executor.block_on(self.vm.vsock_connect(port)).map_err(io::Error::other)?;
        Ok(Box::new(Driven { stream, executor: &self.executor }))
    }
}

/// A stream of tokio's whose calls wait.
struct Driven<'a> {
    stream: VsockStream,
    executor: &'a Runtime,
}

impl Driven<'_> {
    /// Waits for what is to come, but not for ever.
    fn wait<T>(
        &mut self,
        mut poll: impl FnMut(Pin<&mut VsockStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> io::Result<T> {
        let Self { stream, executor } = self;
        executor
            .block_on(async { timeout(PATIENCE, poll_fn(|cx| poll(Pin::new(&mut *stream), cx))).await })?
    }
}

impl Read for Driven<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(into);
        self.wait(|stream, cx| stream.poll_read(cx, &mut buffer))?;
        Ok(buffer.filled().len())
    }
}

impl Write for Driven<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.wait(|stream, cx| stream.poll_write(cx, bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Wire for Driven<'_> {
    fn finish(&mut self) -> io::Result<()> {
        self.wait(VsockStream::poll_shutdown)
    }
}
