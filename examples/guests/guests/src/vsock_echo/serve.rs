//! The server: sends back what comes, as long as it comes, and then ends the connection.

use core::convert::Infallible;

use ringlet_guest::println;
use ringlet_guest::vsock::{Handle, Vsock};

use crate::Failure;
use crate::options::Options;

/// Connections that wait to be looked at.
const BACKLOG: usize = 256;
/// Bytes that are moved at once.
const PIECE: usize = 16 << 10;

/// Serves until the device breaks.
pub(crate) fn run(vsock: &mut Vsock, options: &Options) -> Result<Infallible, Failure> {
    let mut open = 0;
    let mut piece = [0; PIECE];
    println!("vsock-echo: ready on port {}, CID {}", options.port, vsock.cid());
    vsock.listen(options.port, BACKLOG);
    loop {
        vsock.poll()?;
        while let Some(handle) = vsock.accept(options.port) {
            if open >= options.connections {
                vsock.remove(handle);
                continue;
            }
            open += 1;
            open -= usize::from(!echo(vsock, handle, &mut piece));
        }
        while let Some(handle) = vsock.news() {
            open -= usize::from(!echo(vsock, handle, &mut piece));
        }
        vsock.poll()?;
        vsock.wait(None)?;
    }
}

/// Sends back what has come of one connection; whether it goes on.
fn echo(vsock: &mut Vsock, handle: Handle, piece: &mut [u8; PIECE]) -> bool {
    loop {
        let room = vsock.socket(handle).room().min(PIECE);
        let len = vsock.read(handle, &mut piece[..room]);
        if len == 0 {
            break;
        }
        // There is room for all of it.
        vsock.write(handle, &piece[..len]);
    }
    let socket = vsock.socket(handle);
    if socket.end().is_some() {
        vsock.remove(handle);
        return false;
    }
    if socket.has_ended() || !socket.may_write() {
        vsock.close(handle);
    }
    true
}
