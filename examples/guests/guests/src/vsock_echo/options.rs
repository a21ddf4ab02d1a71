//! Arguments.

use ringlet_guest::{Context, cmdline};

use crate::Failure;

pub(crate) const USAGE: &str = "usage: vsock-echo [MODE] [OPTION VALUE]...
  listen             send back what comes on a port, until the VM is stopped (this, if no mode is given)
  send               connect to the host, send bytes and end; the same have to come back
  rr                 connect to the host; requests, each after the answer to the last one
  bench              as listen; and on the ports behind: count what comes, send without end, time exits
  --port N           the guest's port to listen on, or the host's to connect to (1024)
  --connections N    listen, bench: most at once, 1 to 20000 (10000); further ones are refused
  --bytes N          send: of each connection (1M)
  --streams N        send: connections at once, 1 to 1000 (1)
  --requests N       rr: how many (10000)
  --size N           rr: bytes of a request and of its answer, 1 to 32K (64)
Numbers may have a suffix K, M or G.";

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Listen,
    Send,
    Requests,
    Bench,
}

impl Mode {
    const ALL: [(&'static str, Self); 4] =
        [("listen", Self::Listen), ("send", Self::Send), ("rr", Self::Requests), ("bench", Self::Bench)];

    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, mode)| *mode == self).map_or("", |(name, _)| name)
    }
}

/// The arguments, within their ranges.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) mode: Mode,
    pub(crate) port: u32,
    pub(crate) connections: usize,
    pub(crate) bytes: u64,
    pub(crate) streams: usize,
    pub(crate) requests: u64,
    pub(crate) size: usize,
}

impl Options {
    pub(crate) fn parse(context: &Context) -> Result<Self, Failure> {
        let mut options = Self {
            mode: Mode::Listen,
            port: 1024,
            connections: 10_000,
            bytes: 1 << 20,
            streams: 1,
            requests: 10_000,
            size: 64,
        };
        let mut args = context.args();
        while let Some(argument) = args.next() {
            let word = argument.text().ok_or(Failure::Usage("an argument is no text"))?;
            if let Some((_, mode)) = Mode::ALL.iter().find(|(name, _)| *name == word) {
                options.mode = *mode;
                continue;
            }
            let value = args.next().and_then(|value| value.text());
            options.set(&word, &value.ok_or(Failure::Usage("an option is unknown, or lacks its value"))?)?;
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), Failure> {
        let number = |least: u64, most: u64| {
            let number = cmdline::size(value).filter(|number| (least..=most).contains(number));
            number.ok_or(Failure::Usage("a number is none, or out of its range"))
        };
        match name {
            "--port" => self.port = number(0, u64::from(u32::MAX) - 1)? as u32,
            "--connections" => self.connections = number(1, 20_000)? as usize,
            "--bytes" => self.bytes = number(0, 1 << 50)?,
            "--streams" => self.streams = number(1, 1000)? as usize,
            "--requests" => self.requests = number(1, 1 << 40)?,
            "--size" => self.size = number(1, 32 << 10)? as usize,
            _ => return Err(Failure::Usage("an option is unknown")),
        }
        Ok(())
    }
}
