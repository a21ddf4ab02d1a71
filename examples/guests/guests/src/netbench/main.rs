//! Measures a network: streams, and requests with responses, by TCP and UDP, in both directions. One guest serves, or
//! anything else that speaks `wire.rs`; another measures.

#![no_std]
#![no_main]

extern crate alloc;

mod datagrams;
#[path = "../blkbench/histogram.rs"]
mod histogram;
mod iperf;
mod iperf_wire;
mod options;
#[expect(dead_code, reason = "how many connections there are is for those who tell")]
#[path = "../pool.rs"]
mod pool;
mod report;
mod serve;
mod tcp;
mod udp;
mod wire;

use core::fmt;

use ringlet_guest::net::{self, Net};
use ringlet_guest::{Context, println};

use options::{Mode, Options};

ringlet_guest::entry!(main);

/// Most packets between two looks at the sockets.
const BATCH: usize = 64;
/// Nanoseconds without an answer after which there is none to be expected.
const PATIENCE: u64 = 10_000_000_000;

/// Why there is no result; the exit code is the variant's.
#[derive(Debug)]
enum Failure {
    /// What came is not what was sent.
    Mismatch,
    /// The arguments make no sense.
    Usage(&'static str),
    Network(net::Error),
    /// No memory for buffers.
    Memory,
    /// The peer cannot be reached, or says nothing any more.
    NoAnswer,
    /// The peer has ended a connection.
    Ended,
    /// The peer's name has no address, as far as a resolver tells.
    Name,
}

impl From<net::Error> for Failure {
    fn from(error: net::Error) -> Self {
        Self::Network(error)
    }
}

impl Failure {
    fn code(&self) -> u32 {
        match self {
            Self::Mismatch => 1,
            Self::Usage(_) => 2,
            Self::Network(net::Error::NoDevice) => 3,
            Self::Network(net::Error::Device(_) | net::Error::Queue) => 4,
            Self::Network(net::Error::NoAddress | net::Error::NoRouter) => 5,
            Self::Memory | Self::Network(net::Error::Memory) => 6,
            Self::NoAnswer => 7,
            Self::Ended => 8,
            Self::Name => 9,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mismatch => "the peer has taken other bytes than were sent",
            Self::Usage(what) => what,
            Self::Network(error) => return error.fmt(f),
            Self::Memory => "not enough memory: give the VM more",
            Self::NoAnswer => "the peer does not answer",
            Self::Name => "the peer's name has no address, or no resolver tells it",
            Self::Ended => "the peer has ended the connection, or refuses one",
        })
    }
}

fn main(context: &Context) -> u32 {
    let options = match Options::parse(context) {
        Ok(options) => options,
        Err(failure) => {
            println!("netbench: {failure}\n{}", options::USAGE);
            return failure.code();
        }
    };
    match bench(context, &options) {
        Ok(()) => 0,
        Err(failure) => {
            println!("netbench: failed: {failure}");
            failure.code()
        }
    }
}

fn bench(context: &Context, options: &Options) -> Result<(), Failure> {
    let mut net = Net::open(context, &options.settings)?;
    net.configure()?;
    options.fits(net.mtu())?;
    println!("netbench: {net}");
    let options = &options.resolved(&mut net)?;
    let result = match options.mode {
        Mode::Serve => serve::run(&mut net, options.peer.port)?,
        Mode::Iperf3 => iperf::run(&mut net, options.peer.port)?,
        Mode::TcpSend | Mode::TcpReceive | Mode::TcpRr => tcp::run(&mut net, options)?,
        Mode::UdpSend => udp::send(&mut net, options)?,
        Mode::UdpReceive => udp::receive(&mut net, options)?,
        Mode::UdpRr => udp::rr(&mut net, options)?,
    };
    report::print(&net, options, &result);
    Ok(())
}

/// Takes packets in, as many as may come between two looks at the sockets.
fn take_in(net: &mut Net, mut after_each: impl FnMut(&mut Net)) -> Result<(), Failure> {
    for _ in 0..BATCH {
        if !net.receive()? {
            break;
        }
        after_each(net);
    }
    Ok(())
}
