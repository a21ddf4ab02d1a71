//! Log lines on standard error, bounded in what a guest can make Ringlet print.

use std::io::{IsTerminal, stderr};
use std::time::Instant;

use clap::ValueEnum;
use ringlet_metrics::{ThrottledTargets, Verdict};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::prelude::*;

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
    let (targets, begun) = (ThrottledTargets::default(), Instant::now());
    let level = LevelFilter::from(level);
    let limited = filter_fn(move |metadata| {
        !metadata.is_event()
            || matches!(targets.admit(metadata.target(), begun.elapsed()), Verdict::Pass { .. })
    });
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .with_filter(level.and(limited));
    // Fails only if the process has a subscriber already, which is then as good.
    let _ = tracing_subscriber::registry().with(lines).try_init();
}
