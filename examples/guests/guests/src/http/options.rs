//! Arguments.

use ringlet_guest::net::Settings;
use ringlet_guest::{Context, cmdline};

use crate::connection::Patience;

pub(crate) const USAGE: &str =
    "usage: http [OPTION VALUE]... [ip=ADDRESS/PREFIX] [gw=ADDRESS] [net=N] [offloads=on|off]
  --port N          TCP port (80)
  --connections N   most connections at once, 1 to 64 (64); further ones are refused
  --timeout S       seconds that a request may take without progress, 1 to 3600 (10)
  --idle S          seconds between two requests of a connection, 1 to 3600 (30)
Without ip= of IPv4 the address comes by DHCP; the words in lower case may also be on the command line.";

const SECOND: u64 = 1_000_000_000;
const CONNECTIONS_MAX: u64 = 64;

/// The arguments, within their ranges.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) settings: Settings,
    pub(crate) port: u16,
    pub(crate) connections: usize,
    pub(crate) patience: Patience,
}

impl Options {
    pub(crate) fn parse(context: &Context) -> Result<Self, &'static str> {
        let mut options = Self {
            settings: Settings::of(cmdline::words(context.cmdline())).map_err(|senseless| senseless.0)?,
            port: 80,
            connections: CONNECTIONS_MAX as usize,
            patience: Patience { work: 10 * SECOND, idle: 30 * SECOND },
        };
        let mut args = context.args();
        while let Some(argument) = args.next() {
            let word = argument.text().ok_or("an argument is no text")?;
            if options.settings.set(&word).map_err(|senseless| senseless.0)? {
                continue;
            }
            let value = args.next().and_then(|value| value.text());
            options.set(&word, &value.ok_or("an option is unknown, or lacks its value")?)?;
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), &'static str> {
        let number = |range: core::ops::RangeInclusive<u64>| {
            let number = cmdline::size(value).filter(|number| range.contains(number));
            number.ok_or("a number is none, or out of its range")
        };
        match name {
            "--port" => self.port = number(1..=u64::from(u16::MAX))? as u16,
            "--connections" => self.connections = number(1..=CONNECTIONS_MAX)? as usize,
            "--timeout" => self.patience.work = number(1..=3600)? * SECOND,
            "--idle" => self.patience.idle = number(1..=3600)? * SECOND,
            _ => return Err("an option is unknown"),
        }
        Ok(())
    }
}
