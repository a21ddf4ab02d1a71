//! The ceiling: a thread of this process that does on a Unix socket what the guest does behind one, with calls that wait.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::super::traffic::PIECE;
use super::client::{PATIENCE, Service};

/// Bytes of the longest line that asks for a port.
const LINE: u64 = 32;

/// Serves at a path, one connection after the other, until it is dropped.
#[derive(Debug)]
pub(super) struct HostLoop {
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl HostLoop {
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        let serve = move || {
            while let Ok((stream, _)) = listener.accept() {
                // A client that goes away in the middle is its own concern.
                if serve(stream).unwrap_or(false) {
                    break;
                }
            }
        };
        let thread = thread::Builder::new().name("host-loop".to_owned()).spawn(serve)?;
        Ok(Self { path: path.to_owned(), thread: Some(thread) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for HostLoop {
    /// Says that it is over, by a connection that asks for nothing.
    fn drop(&mut self) {
        let told = UnixStream::connect(&self.path).and_then(|mut stream| stream.write_all(b"END\n"));
        if let Some(thread) = self.thread.take().filter(|_| told.is_ok()) {
            // If it panicked, that was said.
            let _ = thread.join();
        }
    }
}

/// Does what the first line asks for; whether that is to end.
fn serve(mut stream: UnixStream) -> io::Result<bool> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // Nothing comes behind the line until it is answered.
    let mut line = String::new();
    BufReader::new((&stream).take(LINE)).read_line(&mut line)?;
    if line == "END\n" {
        return Ok(true);
    }
    let port: Option<u32> = line.strip_prefix("CONNECT ").and_then(|port| port.trim_end().parse().ok());
    let services = [Service::Echo, Service::Sink, Service::Source];
    let Some(service) = services.into_iter().find(|service| Some(service.port()) == port) else {
        return Ok(false);
    };
    stream.write_all(b"OK 1\n")?;
    let mut piece = vec![0; PIECE];
    match service {
        Service::Source => loop {
            stream.write_all(&piece)?;
        },
        Service::Echo => while pass(&mut stream, &mut piece, true)? > 0 {},
        _ => {
            let (bytes, time) = sink(&mut stream, &mut piece)?;
            writeln!(stream, "{bytes} {}", time.as_nanos())?;
        }
    }
    Ok(false)
}

/// Takes what comes, and sends it back if that is wanted; how much.
fn pass(stream: &mut UnixStream, piece: &mut [u8], back: bool) -> io::Result<usize> {
    let count = stream.read(piece)?;
    if back {
        stream.write_all(piece.get(..count).unwrap_or_default())?;
    }
    Ok(count)
}

/// Bytes until the end, and the time between the first and the last.
fn sink(stream: &mut UnixStream, piece: &mut [u8]) -> io::Result<(u64, Duration)> {
    let mut bytes = pass(stream, piece, false)? as u64;
    let begun = Instant::now();
    let mut time = Duration::ZERO;
    loop {
        match pass(stream, piece, false)? {
            0 => return Ok((bytes, time)),
            count => bytes += count as u64,
        }
        time = begun.elapsed();
    }
}
