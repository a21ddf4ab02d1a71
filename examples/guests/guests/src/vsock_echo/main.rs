//! Stream sockets between guest and host: sends back whatever comes on a port, on many connections at once; or connects to
//! a port of the host, and checks what comes back, or measures how long that takes. Serves a benchmark, too.

#![no_std]
#![no_main]

extern crate alloc;

mod bench;
#[path = "../blkbench/histogram.rs"]
mod histogram;
mod options;
mod pattern;
mod report;
mod requests;
mod serve;
mod transfer;

use core::fmt;

use ringlet_guest::vsock::{self, Vsock};
use ringlet_guest::{Context, println};

use options::{Mode, Options};

ringlet_guest::entry!(main);

/// Nanoseconds without an answer after which there is none to be expected.
const PATIENCE: u64 = 60_000_000_000;

/// Why there is no result; the exit code is the variant's.
#[derive(Debug)]
enum Failure {
    /// What came back is not what was sent.
    Mismatch,
    /// The arguments make no sense.
    Usage(&'static str),
    Socket(vsock::Error),
    /// The host says nothing any more.
    NoAnswer,
    /// Nobody listens on the host's port.
    Refused,
    /// The host has ended a connection too early.
    Ended,
}

impl From<vsock::Error> for Failure {
    fn from(error: vsock::Error) -> Self {
        Self::Socket(error)
    }
}

impl Failure {
    fn code(&self) -> u32 {
        match self {
            Self::Mismatch => 1,
            Self::Usage(_) => 2,
            Self::Socket(vsock::Error::NoDevice) => 3,
            Self::Socket(vsock::Error::Device(_) | vsock::Error::Queue) => 4,
            Self::Refused => 5,
            Self::Socket(vsock::Error::Memory) => 6,
            Self::NoAnswer => 7,
            Self::Ended => 8,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mismatch => "other bytes came back than were sent",
            Self::Usage(what) => what,
            Self::Socket(error) => return error.fmt(f),
            Self::NoAnswer => "the host does not answer",
            Self::Refused => "nobody listens on that port of the host",
            Self::Ended => "the host has ended a connection too early",
        })
    }
}

fn main(context: &Context) -> u32 {
    let options = match Options::parse(context) {
        Ok(options) => options,
        Err(failure) => {
            println!("vsock-echo: {failure}\n{}", options::USAGE);
            return failure.code();
        }
    };
    match run(context, &options) {
        Ok(()) => 0,
        Err(failure) => {
            println!("vsock-echo: failed: {failure}");
            failure.code()
        }
    }
}

fn run(context: &Context, options: &Options) -> Result<(), Failure> {
    let mut vsock = Vsock::open(context)?;
    let outcome = match options.mode {
        Mode::Listen => match serve::run(&mut vsock, options)? {},
        Mode::Bench => match bench::run(context, &mut vsock, options)? {},
        Mode::Send => transfer::run(&mut vsock, options)?,
        Mode::Requests => requests::run(&mut vsock, options)?,
    };
    report::print(&vsock, options, &outcome);
    Ok(())
}
