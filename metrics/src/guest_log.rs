//! The guest-error log: every mistake of a guest is counted, and some are printed.
//!
//! Owns: the rate limit per call site *and* VM (SEC-09: a mistake leaves a trace that needs no verbose
//! logging; SEC-02: a guest cannot buy unbounded log lines with it), and the escaping of what is printed
//! (SEC-13). Never: decides what a mistake is, or fails.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::escape::escape_bounded;
use crate::families::{MAX_LABEL_BYTES, VmMetrics};
use crate::labels::GuestErrorKind;
use crate::registry::lock;
use crate::throttle::{Gcra, Rate, Verdict};

/// Longest message that is printed, in bytes; the rest is replaced by `…`.
pub const MAX_MESSAGE_BYTES: usize = 512;

/// The log target of printed guest errors.
pub const TARGET: &str = "ringlet::guest";

/// A place in the source that reports guest errors. Made by [`guest_error!`](crate::guest_error), which puts
/// one `static` at each call; the address of the static is its identity.
#[derive(Debug)]
pub struct Site {
    file: &'static str,
    line: u32,
}

impl Site {
    /// A site at `file:line`.
    pub const fn new(file: &'static str, line: u32) -> Self {
        Self { file, line }
    }
}

/// The guest-error log of one VM. `Send + Sync`; its memory is bounded by the number of call sites in the
/// program, not by what the guest does.
pub struct GuestLog {
    vm: Box<str>,
    metrics: Arc<VmMetrics>,
    epoch: Instant,
    sites: Mutex<Vec<(&'static Site, Gcra)>>,
}

impl GuestLog {
    /// The log of VM `vm`, whose errors are counted in `metrics`. The name is escaped and bounded.
    pub fn new(vm: impl Into<String>, metrics: Arc<VmMetrics>) -> Self {
        let vm: String = vm.into();
        let vm = escape_bounded(format_args!("{vm}"), MAX_LABEL_BYTES).into();
        Self { vm, metrics, epoch: Instant::now(), sites: Mutex::default() }
    }

    /// The numbers that this log counts in.
    pub fn metrics(&self) -> &Arc<VmMetrics> {
        &self.metrics
    }

    /// Counts one guest error of `kind`, and prints `message` (device, register or offset, value) unless
    /// `site` has printed [`Rate::LOG_LINES`] for this VM already. The message is formatted only if printed.
    ///
    /// Use [`guest_error!`](crate::guest_error), which makes the site.
    pub fn report(&self, site: &'static Site, kind: GuestErrorKind, message: fmt::Arguments<'_>) {
        self.metrics.guest_errors.inc(kind);
        let now = u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
        if let Verdict::Pass { suppressed } = self.judge(site, now) {
            self.print(site, kind, suppressed, message);
        }
    }

    /// Whether `site` may print at `now`, in nanoseconds since the log was made.
    fn judge(&self, site: &'static Site, now: u64) -> Verdict {
        let mut sites = lock(&self.sites);
        let state = match sites.iter().position(|(known, _)| std::ptr::eq(*known, site)) {
            Some(index) => sites.get_mut(index),
            None => {
                sites.push((site, Gcra::new()));
                sites.last_mut()
            }
        };
        state.map_or(Verdict::Suppress, |(_, gcra)| gcra.admit(now, Rate::LOG_LINES))
    }

    #[cold]
    fn print(&self, site: &Site, kind: GuestErrorKind, suppressed: u64, message: fmt::Arguments<'_>) {
        let message = escape_bounded(message, MAX_MESSAGE_BYTES);
        tracing::warn!(
            target: TARGET,
            vm = %self.vm,
            kind = kind.as_str(),
            suppressed = (suppressed > 0).then_some(suppressed),
            site = %format_args!("{}:{}", site.file, site.line),
            "{message}"
        );
    }
}

impl fmt::Debug for GuestLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuestLog({})", self.vm)
    }
}

/// Reports a guest error to a [`GuestLog`](crate::GuestLog): `guest_error!(log, kind, "message {}", argument)`.
///
/// Always counted; printed under the rate limit of this call site and the log's VM. Arguments are evaluated
/// either way and formatted only when printed.
#[macro_export]
macro_rules! guest_error {
    ($log:expr, $kind:expr, $($message:tt)+) => {{
        static SITE: $crate::Site = $crate::Site::new(::std::file!(), ::std::line!());
        $crate::GuestLog::report(&$log, &SITE, $kind, ::std::format_args!($($message)+));
    }};
}

#[cfg(test)]
#[path = "guest_log_test.rs"]
mod tests;
