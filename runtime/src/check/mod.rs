//! What this host offers to VMs, in words that help: the report behind `ringlet check`.
//!
//! [`report`] looks at the host (`probe`) and judges what it saw (`judge`); the judgement is a pure
//! function of plain `facts`, so every verdict is tested with fabricated hosts. It owns the report's
//! format, which is stable (see [`Report`]). It never changes anything on the host, starts no guest code
//! and needs no privilege; the only thing it creates is one empty VM, gone before it returns.

mod facts;
mod judge;
mod judge_confine;
mod judge_kvm;
mod judge_net;
mod probe;
mod probe_cgroup;
mod probe_kvm;

use ringlet_metrics::Escaped;
use serde::Serialize;
use std::io::{self, Write};

/// What an item says about the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Only worth knowing.
    Info,
    /// VMs run, but something is missing, slower or less confined than it could be.
    Warn,
    /// No VM can run.
    Fail,
}

impl Status {
    /// The name in JSON, which is also the word in the text.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }

    /// ANSI "select graphic rendition" parameter.
    const fn colour(self) -> u8 {
        match self {
            Self::Ok => 32,
            Self::Info => 36,
            Self::Warn => 33,
            Self::Fail => 31,
        }
    }
}

/// One thing that was looked at.
///
/// Texts hold no control characters: what came from the host is escaped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Item {
    /// Stable identifier, such as `kvm.device`.
    pub id: &'static str,
    /// What it is, for people.
    pub name: &'static str,
    /// The verdict.
    pub status: Status,
    /// What was found on this host.
    pub found: String,
    /// What that means for VMs.
    pub means: String,
    /// The command that mends it, where there is one and something is to be mended.
    pub remedy: Option<String>,
}

impl Item {
    fn new(id: &'static str, name: &'static str) -> Self {
        Self { id, name, status: Status::Info, found: String::new(), means: String::new(), remedy: None }
    }

    /// The verdict, what was found, and what it means.
    fn verdict(mut self, status: Status, found: impl AsRef<str>, means: impl Into<String>) -> Self {
        self.status = status;
        self.found = Escaped(found.as_ref()).to_string();
        self.means = means.into();
        self
    }

    fn remedy(mut self, command: impl AsRef<str>) -> Self {
        self.remedy = Some(Escaped(command.as_ref()).to_string());
        self
    }

    fn print(&self, out: &mut impl Write, colour: bool) -> io::Result<()> {
        let word = self.status.as_str();
        match colour {
            true => write!(out, "\x1b[{}m{word:<5}\x1b[0m", self.status.colour())?,
            false => write!(out, "{word:<5}")?,
        }
        writeln!(out, "{:<18} {}", self.name, self.found)?;
        writeln!(out, "{:24}{}", "", self.means)?;
        match &self.remedy {
            Some(command) => writeln!(out, "{:24}to mend it: {command}", ""),
            None => Ok(()),
        }
    }
}

/// Everything that was looked at.
///
/// As JSON, which is a stable format: an object with
/// * `schema`: 1; a higher number means that a field was removed or changed its meaning (new fields, new
///   items and new texts do not count),
/// * `version`: Ringlet's version,
/// * `can_run`: whether a VM can run,
/// * `items`: an array of objects with `id`, `name`, `status` (`ok`, `info`, `warn` or `fail`), `found`,
///   `means` (strings) and `remedy` (a string or null). Each `id` occurs once; `docs/hosts.md` lists them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Version of this format.
    pub schema: u32,
    /// Ringlet's version.
    pub version: &'static str,
    /// Whether a VM can run: no item has failed.
    pub can_run: bool,
    /// In the order in which they matter.
    pub items: Vec<Item>,
}

impl Report {
    fn new(items: Vec<Item>) -> Self {
        let can_run = items.iter().all(|item| item.status != Status::Fail);
        Self { schema: 1, version: env!("CARGO_PKG_VERSION"), can_run, items }
    }

    /// Whether a VM can run on this host.
    #[must_use]
    pub const fn can_run(&self) -> bool {
        self.can_run
    }

    /// Prints the report for people; `colour` adds ANSI colours.
    ///
    /// # Errors
    /// What writing to `out` returns.
    pub fn print(&self, out: &mut impl Write, colour: bool) -> io::Result<()> {
        for item in &self.items {
            item.print(out, colour)?;
        }
        let count = |status| self.items.iter().filter(|item| item.status == status).count();
        let verdict = if self.can_run { "VMs can run on this host" } else { "VMs cannot run on this host" };
        let (failed, warned) = (count(Status::Fail), count(Status::Warn));
        writeln!(out, "\n{verdict}: {failed} failed, {warned} warned, {} looked at", self.items.len())
    }
}

/// Looks at the host that this process runs on.
///
/// Takes a few milliseconds, most of them for creating and closing one VM without memory.
#[must_use]
pub fn report() -> Report {
    Report::new(judge::judge(&probe::probe()))
}

#[cfg(test)]
#[path = "check_test.rs"]
mod tests;
