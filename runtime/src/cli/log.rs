//! Log lines on standard error, bounded in what a guest can make Ringlet print.
//!
//! A thread of its own writes them: a vCPU or an event loop that has something to say never waits for the reader of
//! standard error. What does not fit into its queue is dropped and counted.

use std::io::{self, IsTerminal, Write, stderr};
use std::time::Instant;

use clap::ValueEnum;
use ringlet_metrics::{ThrottledTargets, Verdict};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Metadata, Subscriber};
use tracing_log::NormalizeEvent;
use tracing_subscriber::filter::FilterExt;
use tracing_subscriber::layer::{Context, Filter};
use tracing_subscriber::prelude::*;

use super::log_writer::{self, LogWriter};

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Off => Self::OFF,
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
        }
    }
}

/// Starts logging to standard error. Records of crates that log what a guest wrote are limited in rate.
pub(super) fn start(level: LogLevel) {
    let limited = Limited { targets: ThrottledTargets::default(), begun: Instant::now() };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(|| Background)
        .with_ansi(stderr().is_terminal() && !no_color())
        .with_filter(LevelFilter::from(level).and(limited));
    // Fails only if the process has a subscriber already, which is then as good.
    let _ = tracing_subscriber::registry().with(lines).try_init();
}

/// What writes log lines, once there is one to write.
static WRITER: LogWriter = LogWriter::new();

/// Writes log lines by way of [`WRITER`]; each call of `write` is given whole lines.
struct Background;

impl Write for Background {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        WRITER.write(lines, stderr(), log_writer::spawn);
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes out what is queued, for a second at most, and says how much was dropped.
pub(super) fn finish() {
    let dropped = WRITER.dropped();
    // Who does not read standard error is not waited for a second time.
    if WRITER.finish() && dropped > 0 {
        let why = "standard error was not read in time, or there was no thread to write them";
        let _ = writeln!(stderr(), "ringlet: log lines dropped: {dropped}; {why}");
    }
}

/// The user wants no colours (<https://no-color.org>).
pub(super) fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// Lets through what [`ThrottledTargets`] admits.
struct Limited {
    targets: ThrottledTargets,
    begun: Instant,
}

impl<S: Subscriber> Filter<S> for Limited {
    /// Only events are counted, one by one: an answer by call site would be remembered.
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        // A record of the `log` crate has its own target in the normalized metadata only.
        let normalized = event.normalized_metadata();
        let target = normalized.as_ref().unwrap_or_else(|| event.metadata()).target();
        match self.targets.admit(target, self.begun.elapsed()) {
            Verdict::Pass { suppressed: 0 } => true,
            Verdict::Pass { suppressed } => {
                let line = format!("ringlet: {suppressed} more records of {target} were left out\n");
                let _ = Background.write_all(line.as_bytes());
                true
            }
            Verdict::Suppress => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn sec_02_crates_that_log_what_a_guest_does_are_held_to_a_rate() {
        let lines = Lines::default();
        let writer = lines.clone();
        let limited = Limited { targets: ThrottledTargets::default(), begun: Instant::now() };
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .with_filter(LevelFilter::WARN.and(limited));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            for _ in 0..10_000 {
                tracing::error!(target: "virtio_queue::chain", "guest");
                tracing::error!(target: "ringlet", "ours");
            }
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let count = |word| text.lines().filter(|line| line.ends_with(word)).count();
        assert_eq!(count("ours"), 10_000);
        assert!((1..100).contains(&count("guest")), "{}", count("guest"));
    }
}
