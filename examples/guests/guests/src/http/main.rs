//! A server of HTTP/1.1: small, bounded in all that a client may make it hold, and halted while nobody asks.

#![no_std]
#![no_main]

extern crate alloc;

mod connection;
mod options;
#[expect(dead_code, reason = "nothing is asked of its connections together")]
#[path = "../pool.rs"]
mod pool;
mod request;
mod response;
mod server;
mod site;

use ringlet_guest::net::{Error, Net};
use ringlet_guest::{Context, println};

use options::Options;
use server::Server;

ringlet_guest::entry!(main);

const USAGE: u32 = 2;
const NO_DEVICE: u32 = 3;
const DEVICE_FAILED: u32 = 4;
const NO_ADDRESS: u32 = 5;
const MEMORY: u32 = 6;

fn main(context: &Context) -> u32 {
    let options = match Options::parse(context) {
        Ok(options) => options,
        Err(what) => {
            println!("http: {what}\n{}", options::USAGE);
            return USAGE;
        }
    };
    let Err(error) = serve(context, &options);
    println!("http: {error}");
    match error {
        Error::NoDevice => NO_DEVICE,
        Error::Device(_) | Error::Queue => DEVICE_FAILED,
        Error::NoAddress | Error::NoRouter => NO_ADDRESS,
        Error::Memory => MEMORY,
    }
}

/// Serves until the device breaks.
fn serve(context: &Context, options: &Options) -> Result<core::convert::Infallible, Error> {
    let mut net = Net::open(context, &options.settings)?;
    net.configure()?;
    println!("http: {net}");
    let mut server = Server::new(options, &mut net);
    println!("http: ready on port {}", options.port);
    server.run(&mut net)
}
