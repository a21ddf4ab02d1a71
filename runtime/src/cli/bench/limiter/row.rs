//! What is measured of a disk's limits: which bucket, which requests, and how they compare.

use std::time::Duration;

use ringlet::{Bucket, Drive, EngineKind, RateLimiter, VmConfig};

use super::super::report::{Figure, Report, Unit};
use super::super::stats::Samples;
use super::window::{Least, Obtained};

/// The disk, as its limiter is called.
pub(super) const DISK: &str = "disk0";
/// Bytes of it.
const DISK_SIZE: u64 = 64 << 20;
/// Bytes of a request.
const BLOCK: u64 = 4 << 10;
/// Bytes of one that is larger than its bucket: no multiple of that.
const LARGE_BLOCK: u64 = 10 << 10;
/// Requests that a guest has under way: as many as it can, so that it is not what holds them back.
const DEPTH: &str = "128";
/// Time that no guest needs, in seconds.
const FOREVER: &str = "100000";

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effort {
    /// Refills of a window, of up to 1 s and above.
    pub(super) refills: [u32; 2],
    pub(super) requests: u64,
    /// The shortest window.
    shortest: Duration,
    /// The longest refill time, in milliseconds.
    longest_refill: u64,
}

impl Effort {
    pub(super) const USUAL: Self =
        Self { refills: [100, 30], requests: 1000, shortest: Duration::from_secs(2), longest_refill: 10_000 };
    pub(super) const QUICK: Self =
        Self { refills: [8, 8], requests: 8, shortest: Duration::from_millis(300), longest_refill: 100 };

    pub(super) fn is_quick(self) -> bool {
        self.longest_refill < Self::USUAL.longest_refill
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meter {
    Operations,
    Bytes,
}

/// The tokens of a request, compared with those of the full bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Below,
    At,
    Above,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
    Mixed,
}

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) engine: EngineKind,
    pub(super) refill_ms: u64,
    pub(super) meter: Meter,
    request: Request,
    access: Access,
    queues: u16,
}

/// What is measured on each engine: every value of each dimension, and each refill time with several of them.
const ROWS: [(u64, Meter, Request, Access, u16); 18] = [
    (1, Meter::Operations, Request::Below, Access::Read, 1),
    (1, Meter::Operations, Request::At, Access::Write, 8),
    (1, Meter::Bytes, Request::Below, Access::Mixed, 8),
    (1, Meter::Bytes, Request::At, Access::Read, 1),
    (1, Meter::Bytes, Request::Above, Access::Write, 8),
    (10, Meter::Operations, Request::Below, Access::Mixed, 8),
    (10, Meter::Operations, Request::At, Access::Read, 1),
    (10, Meter::Bytes, Request::Below, Access::Write, 1),
    (10, Meter::Bytes, Request::At, Access::Read, 8),
    (10, Meter::Bytes, Request::Above, Access::Mixed, 1),
    (100, Meter::Operations, Request::Below, Access::Write, 1),
    (100, Meter::Operations, Request::At, Access::Mixed, 8),
    (100, Meter::Bytes, Request::Below, Access::Read, 8),
    (100, Meter::Bytes, Request::At, Access::Mixed, 1),
    (1000, Meter::Operations, Request::Below, Access::Mixed, 1),
    (1000, Meter::Bytes, Request::Below, Access::Write, 8),
    (10_000, Meter::Operations, Request::Below, Access::Read, 1),
    (10_000, Meter::Bytes, Request::Below, Access::Mixed, 8),
];

impl Row {
    pub(super) fn all(effort: Effort, engines: &[EngineKind]) -> Vec<Self> {
        let rows = engines.iter().flat_map(|&engine| {
            ROWS.into_iter().map(move |(refill_ms, meter, request, access, queues)| Self {
                engine,
                refill_ms,
                meter,
                request,
                access,
                queues,
            })
        });
        rows.filter(|row| row.refill_ms <= effort.longest_refill).collect()
    }

    /// Bytes of a request.
    pub(super) fn block(self) -> u64 {
        if self.request == Request::Above { LARGE_BLOCK } else { BLOCK }
    }

    /// Requests that the bucket holds, where it holds some.
    pub(super) fn count(self) -> u64 {
        match (self.request, self.refill_ms) {
            (Request::At | Request::Above, _) => 1,
            (Request::Below, ..=1) => 8,
            (Request::Below, ..=100) => 50,
            (Request::Below, _) => 100,
        }
    }

    /// Tokens of the bucket.
    pub(super) fn size(self) -> u64 {
        match self.meter {
            Meter::Operations => self.count(),
            Meter::Bytes => self.count() * BLOCK,
        }
    }

    /// Tokens of a request.
    pub(super) fn tokens(self) -> u64 {
        match self.meter {
            Meter::Operations => 1,
            Meter::Bytes => self.block(),
        }
    }

    pub(super) fn refill(self) -> Duration {
        Duration::from_millis(self.refill_ms)
    }

    /// Tokens a second.
    pub(super) fn asked(self) -> f64 {
        self.size() as f64 / self.refill().as_secs_f64()
    }

    pub(super) fn least(self, effort: Effort) -> Least {
        let [usual, long] = effort.refills;
        let refills = if self.refill_ms > 1000 { long } else { usual };
        Least { time: (self.refill() * refills).max(effort.shortest), operations: effort.requests }
    }

    /// How long its window will be.
    pub(super) fn window(self, effort: Effort) -> Duration {
        let least = self.least(effort);
        let tokens = least.operations * self.tokens();
        least.time.max(Duration::from_secs_f64(tokens as f64 / self.asked()))
    }

    pub(super) fn id(self) -> String {
        let Self { engine, refill_ms, meter, request, access, queues } = self;
        let (meter, request, access) = (meter.id(), request.id(), access.word());
        format!("limiter.disk.{engine}.{meter}.{refill_ms}.{request}.{access}.{queues}")
    }

    pub(super) fn group(self) -> String {
        let what = match self.meter {
            Meter::Operations => "requests",
            Meter::Bytes => "bytes",
        };
        format!("A disk's {what}, {} …", self.engine)
    }

    pub(super) fn name(self) -> String {
        let Self { refill_ms, access, queues, .. } = self;
        let (size, tokens, access) = (self.size(), self.tokens(), access.word());
        let queues = format!("{queues} queue{}", if queues == 1 { "" } else { "s" });
        match self.meter {
            Meter::Operations => format!("{size} in {refill_ms} ms, {access}, {queues}"),
            Meter::Bytes => format!("{size} in {refill_ms} ms by {tokens}, {access}, {queues}"),
        }
    }

    pub(super) fn config(self) -> VmConfig {
        let bucket = Some(Bucket { size: self.size(), one_time_burst: None, refill_time: self.refill_ms });
        let limiter = match self.meter {
            Meter::Operations => RateLimiter { ops: bucket, bandwidth: None },
            Meter::Bytes => RateLimiter { ops: None, bandwidth: bucket },
        };
        let drive = Drive::null(DISK, DISK_SIZE).queues(self.queues).rate_limiter(limiter);
        let mut config = VmConfig::new("blkbench").memory_mib(32).args(arguments(
            self.access.word(),
            self.block(),
            self.queues,
            DEPTH,
        ));
        config.drives.push(drive);
        config
    }

    pub(super) fn error(self, obtained: Obtained) -> f64 {
        self.rate(obtained) / self.asked() - 1.0
    }

    /// Tokens a second.
    pub(super) fn rate(self, obtained: Obtained) -> f64 {
        let tokens = match self.meter {
            Meter::Operations => obtained.operations,
            Meter::Bytes => obtained.bytes,
        };
        tokens as f64 / obtained.time.as_secs_f64()
    }

    pub(super) fn add_figures(self, obtained: Option<Obtained>, report: &mut Report) {
        let (id, group, name) = (self.id(), self.group(), self.name());
        let one = |value: Option<f64>| value.into_iter().collect::<Samples>();
        let unit = match self.meter {
            Meter::Operations => Unit::PerSecond,
            Meter::Bytes => Unit::BytesPerSecond,
        };
        let rate = obtained.map(|obtained| self.rate(obtained));
        report.add(Figure::new(format!("{id}.obtained"), group.clone(), &name, unit, &one(rate)));
        let error = obtained.map(|obtained| self.error(obtained));
        let name = "… more than asked";
        report.add(Figure::new(format!("{id}.error"), group, name, Unit::Share, &one(error)));
    }
}

impl Meter {
    fn id(self) -> &'static str {
        match self {
            Self::Operations => "operations",
            Self::Bytes => "bytes",
        }
    }
}

impl Request {
    fn id(self) -> &'static str {
        match self {
            Self::Below => "below",
            Self::At => "at",
            Self::Above => "above",
        }
    }
}

impl Access {
    /// The guest's word for it.
    fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Mixed => "mixed",
        }
    }
}

/// What a guest is told that asks for requests without end.
pub(super) fn arguments(access: &str, block: u64, queues: u16, depth: &str) -> Vec<String> {
    let (block, queues) = (block.to_string(), queues.to_string());
    [
        ["--mode", access],
        ["--block-size", &block],
        ["--queues", &queues],
        ["--depth", depth],
        ["--duration", FOREVER],
        ["--timeout", FOREVER],
    ]
    .iter()
    .flatten()
    .map(|&word| word.to_owned())
    .collect()
}
#[cfg(test)]
#[path = "row_test.rs"]
mod tests;
