//! What the guest `netbench` does as a server, done by this machine's kernel and a program: behind the tap loop, it stands
//! for a guest that costs nothing. A process of its own, in a network of its own.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;

use super::super::traffic::PIECE;
use super::client::{BATCH, set_up};
use super::place::ip;
use super::wire::{Header, Kind, PORT};
use crate::cli::CliResult;

/// What is printed when it can be asked; the guest says so, too.
pub(super) const READY: &str = "ready on port";
/// Bytes of the longest line that says what is wanted.
const LINE: u64 = 64;

/// Options of the server.
#[derive(Debug, Args)]
pub(in super::super) struct PeerArgs {
    /// The interface that comes into this network before standard input ends
    #[arg(long)]
    device: String,

    /// Its address, with the prefix
    #[arg(long)]
    address: String,
}

/// Serves until it is killed.
pub(in super::super) fn run(args: &PeerArgs) -> CliResult<ExitCode> {
    io::stdin().read_to_end(&mut Vec::new())?;
    ip(&format!("address add {} dev {}", args.address, args.device))?;
    ip(&format!("link set dev {} up", args.device))?;
    let tcp = listen(Ipv4Addr::UNSPECIFIED)?;
    writeln!(io::stdout(), "{READY} {PORT}")?;
    Ok(accept(&tcp)?)
}

/// Listens at an address for connections, and serves those who send datagrams there.
fn listen(address: Ipv4Addr) -> io::Result<TcpListener> {
    let (tcp, udp) = (TcpListener::bind((address, PORT))?, UdpSocket::bind((address, PORT))?);
    thread::Builder::new().name("datagrams".to_owned()).spawn(move || serve_datagrams(&udp))?;
    Ok(tcp)
}

/// Serves whoever connects; ends only if that is no longer possible.
fn accept<T>(tcp: &TcpListener) -> io::Result<T> {
    loop {
        let (stream, _) = tcp.accept()?;
        // A client that goes away in the middle is its own concern.
        thread::Builder::new().name("connection".to_owned()).spawn(move || drop(serve(stream)))?;
    }
}

/// Does what the first line of a connection asks for.
fn serve(mut stream: TcpStream) -> io::Result<()> {
    set_up(&stream)?;
    let mut input = BufReader::with_capacity(PIECE, stream.try_clone()?);
    let mut line = String::new();
    input.by_ref().take(LINE).read_line(&mut line)?;
    let mut piece = vec![0; PIECE];
    let (mut bytes, mut begun) = (0_u64, None);
    loop {
        if line == "source\n" {
            stream.write_all(&piece)?;
            continue;
        }
        let count = input.read(&mut piece)?;
        begun.get_or_insert_with(Instant::now);
        if count == 0 {
            break;
        }
        bytes += count as u64;
        if line == "echo\n" {
            stream.write_all(piece.get(..count).unwrap_or_default())?;
        }
    }
    let time = begun.map_or(Duration::ZERO, |begun| begun.elapsed());
    if line == "sink\n" { writeln!(stream, "{bytes} {}", time.as_nanos()) } else { Ok(()) }
}

/// What came of the last flow.
#[derive(Debug, Default)]
struct Flow {
    id: u64,
    count: u64,
    begun: Option<Instant>,
    time: Duration,
}

/// Counts datagrams, sends some, and tells how many there were; until the socket breaks.
fn serve_datagrams(socket: &UdpSocket) -> io::Result<()> {
    let mut datagram = vec![0; 1 << 16];
    let (mut flow, mut served) = (Flow::default(), 0);
    loop {
        let (len, from) = socket.recv_from(&mut datagram)?;
        let Some(header) = datagram.get(..len).and_then(Header::parse) else { continue };
        match header.kind {
            Kind::Data => {
                if flow.id != header.flow {
                    flow = Flow { id: header.flow, ..Flow::default() };
                }
                flow.count += 1;
                flow.time = flow.begun.get_or_insert_with(Instant::now).elapsed();
            }
            Kind::Query => {
                let mut report = Header::of(Kind::Report, header.flow);
                (report.number, report.second) =
                    (flow.count, u64::try_from(flow.time.as_nanos()).unwrap_or(u64::MAX));
                socket.send_to(&report.encode(), from)?;
            }
            // Asked again for what it has done already.
            Kind::Send if served == header.flow => {}
            Kind::Send => {
                served = header.flow;
                send(socket, header, from)?;
            }
            Kind::Report => {}
        }
    }
}

fn send(socket: &UdpSocket, wish: Header, to: SocketAddr) -> io::Result<()> {
    let mut datagram = vec![0; usize::try_from(wish.first).unwrap_or(0).min(1400)];
    let (begun, time) = (Instant::now(), Duration::from_nanos(wish.second));
    let mut header = Header::of(Kind::Data, wish.flow);
    while header.number == 0 || begun.elapsed() < time {
        for _ in 0..BATCH {
            datagram.iter_mut().zip(header.encode()).for_each(|(place, byte)| *place = byte);
            socket.send_to(&datagram, to)?;
            header.number += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::client::Scenario;
    use super::*;

    /// Both sides of all that is measured, on an address that no other test of this machine has.
    #[test]
    fn the_client_measures_the_peer() {
        let [.., a, b] = std::process::id().to_be_bytes();
        let address = Ipv4Addr::new(127, 99, a, b.max(1));
        let tcp = listen(address).unwrap();
        thread::spawn(move || accept::<()>(&tcp));
        for scenario in Scenario::ALL {
            let measured = scenario.run(address, Duration::from_millis(50)).unwrap();
            assert!(measured.rate() > 0.0, "{scenario:?}: {measured:?}");
            assert_eq!(measured.percentile(99) > Duration::ZERO, scenario == Scenario::Requests);
            assert!(measured.percentile(50) <= measured.percentile(99));
        }
    }
}
