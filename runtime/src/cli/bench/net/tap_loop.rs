//! The ceiling: the frames of two taps, each carried to the other on the tap facade alone, through guest RAM that no guest
//! runs in. A process of its own, as the other contenders are.

use std::io::{self, Write};
use std::process::ExitCode;
use std::rc::Rc;

use clap::Args;
use ringlet_io::net::{HEADER, MAX_PACKET, NetPort, NetSource, Offloads, Received, Sent, Tap};
use ringlet_io::{Backing, GuestRam, GuestRange, LeaseUse, Owner, PAGE_SIZE, ShardContext};

use super::super::own_shard::run_on_shard;
use super::peer::READY;
use crate::cli::CliResult;
use crate::cli::run::EngineArg;

/// Frames that are carried one way before everybody else has a turn.
const BATCH: usize = 64;
/// From one direction's buffer to the other's.
const STRIDE: u64 = (MAX_PACKET as u64).next_multiple_of(PAGE_SIZE);

/// Options of the loop.
#[derive(Debug, Args)]
pub(in super::super) struct TapLoopArgs {
    /// What the event loop waits with
    #[arg(long, value_enum)]
    io_engine: EngineArg,

    /// The tap in front, and the one of the peer
    #[arg(num_args = 2, required = true)]
    taps: Vec<String>,
}

/// Carries frames until it is killed.
pub(in super::super) fn run(args: &TapLoopArgs) -> CliResult<ExitCode> {
    let engine = ringlet_io::select(args.io_engine.into())?;
    let taps: Vec<_> = args.taps.iter().map(|name| Tap::open(name, 1)).collect::<Result<_, _>>()?;
    let ram = GuestRam::new(&[(0, 2 * STRIDE)], Backing::Pages4K)?;
    run_on_shard(engine.kind, |cx| async move { carry_both(&cx, taps, ram).await })??;
    Ok(ExitCode::SUCCESS)
}

/// Both ways, until one of the taps is gone.
async fn carry_both(cx: &ShardContext, taps: Vec<Tap>, ram: GuestRam) -> io::Result<()> {
    // As a guest does it whose stack takes long segments, and leaves checksums to others, but no segmentation.
    let kinds = [|has: Offloads| has, |has: Offloads| Offloads { checksum: has.checksum, ..Offloads::NONE }];
    let mut ports = Vec::new();
    for (tap, kind) in taps.into_iter().zip(kinds) {
        let source = NetSource::Tap(tap);
        let accepted = kind(source.info().offloads);
        for port in source.attach(cx)? {
            port.set_offloads(accepted).await?;
            ports.push(port);
        }
    }
    let [one, other] =
        <[Rc<dyn NetPort>; 2]>::try_from(ports).map_err(|_| io::Error::other("not two queues"))?;
    let lane = |from: &Rc<dyn NetPort>, to: &Rc<dyn NetPort>, base| {
        let lane = Lane { from: Rc::clone(from), to: Rc::clone(to), ram: ram.clone(), base };
        let context = cx.clone();
        cx.spawn(&Owner::shard(), async move { lane.carry(&context).await })
    };
    let back = lane(&other, &one, STRIDE);
    let forth = lane(&one, &other, 0);
    writeln!(io::stdout(), "{READY} none: it carries frames")?;
    forth.await.map_err(io::Error::other)??;
    back.await.map_err(io::Error::other)?
}

/// One direction.
struct Lane {
    from: Rc<dyn NetPort>,
    to: Rc<dyn NetPort>,
    ram: GuestRam,
    /// Where the buffer is.
    base: u64,
}

impl Lane {
    async fn carry(&self, cx: &ShardContext) -> io::Result<()> {
        loop {
            let mut carried = 0;
            while carried < BATCH && self.carry_one().await? {
                carried += 1;
            }
            if carried < BATCH {
                self.from.readable().await?;
            } else {
                cx.next_turn().await;
            }
        }
    }

    /// Carries a frame, if there is one; whether there was.
    async fn carry_one(&self) -> io::Result<bool> {
        let range = |from: usize, to: usize| GuestRange {
            gpa: self.base + from as u64,
            len: u32::try_from(to.saturating_sub(from)).unwrap_or(0),
        };
        let into = self.ram.lease(&[range(0, MAX_PACKET)], LeaseUse::Target).map_err(io::Error::other)?;
        let len = match self.from.receive(&into)? {
            None => return Ok(false),
            Some(Received::Packet(len)) => len,
            Some(Received::TooLong | Received::TooShort) => return Ok(true),
        };
        let mut header = [0; HEADER];
        self.ram.read(self.base, &mut header).map_err(io::Error::other)?;
        let frame = self.ram.lease(&[range(HEADER, len)], LeaseUse::Source).map_err(io::Error::other)?;
        while self.to.send(&header, &frame)? == Sent::Later {
            self.to.writable().await?;
        }
        Ok(true)
    }
}
