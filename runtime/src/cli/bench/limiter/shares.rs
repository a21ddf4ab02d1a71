//! What VMs of a tenant get of its disk limits by their weights, on two shards; and what one gets of its guarantee beside
//! a neighbour that wants everything.

use std::num::NonZero;
use std::thread;
use std::time::{Duration, Instant};

use ringlet::{DiskLimits, Drive, EngineKind, LimitsConfig, TenantConfig, TenantLimits, VmConfig};

use super::super::launched::{Launched, settle};
use super::super::report::{Figure, Report, Unit};
use super::super::stats::Samples;
use super::super::target::{Limit, Quantity, Target};
use super::super::undisturbed::Undisturbed;
use super::super::{CliResult, progress};
use super::disk::{engines, look, runtime, stop};
use super::row::{DISK, arguments};
use super::window::Look;

/// Bytes of a disk.
const DISK_SIZE: u64 = 64 << 20;
/// Requests a second of a tenant.
const REQUESTS: u64 = 5000;
/// Bytes a second of one whose bytes are limited.
const BYTES: u64 = 16 << 20;
/// Shards.
const SHARDS: NonZero<u32> = NonZero::<u32>::MIN.saturating_add(1);
/// Between looks.
const INTERVAL: Duration = Duration::from_millis(2);
/// All VMs want something after this, at the latest.
const START: Duration = Duration::from_secs(30);

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effort {
    counts: &'static [u32],
    /// Requests that the VM with the least is to get.
    requests: u64,
}

impl Effort {
    pub(super) const USUAL: Self = Self { counts: &[2, 8, 64], requests: 500 };
    pub(super) const QUICK: Self = Self { counts: &[8], requests: 150 };
}

/// A VM of the tenant.
#[derive(Debug, Clone, Copy)]
struct Wish {
    weight: u32,
    /// Bytes of its requests.
    block: u64,
    depth: &'static str,
}

/// What VMs of a tenant obtained, each of its share.
#[derive(Debug, PartialEq)]
struct Shares(Vec<f64>);

impl Shares {
    /// Of what each obtained, and its weight. `None` if nobody obtained anything.
    fn of(obtained: &[(u64, u32)]) -> Option<Self> {
        let sum: u64 = obtained.iter().map(|(tokens, _)| tokens).sum();
        let weights: u64 = obtained.iter().map(|&(_, weight)| u64::from(weight)).sum();
        let share = |&(tokens, weight): &(u64, u32)| {
            tokens as f64 / sum as f64 * (weights as f64 / f64::from(weight))
        };
        (sum > 0 && weights > 0).then(|| Self(obtained.iter().map(share).collect()))
    }

    /// By how much the one that is furthest off is off.
    fn error(&self) -> f64 {
        self.0.iter().map(|share| (share - 1.0).abs()).fold(0.0, f64::max)
    }

    /// Jain's index: 1 if all are equal, one by their number if one has everything.
    fn jain(&self) -> f64 {
        let (sum, squares) =
            self.0.iter().fold((0.0, 0.0), |(sum, squares), share| (sum + share, share * share + squares));
        sum * sum / squares / self.0.len() as f64
    }
}

fn wish(weight: u32) -> Wish {
    Wish { weight, block: 4 << 10, depth: "64" }
}

/// Weights of so many VMs.
fn weights(count: u32, equal: bool) -> Vec<u32> {
    // Neighbours in the list are on different shards; so each shard has some of each.
    (0..count).map(|n| if equal { 100 } else { 100 * (n / 2 % 4 + n % 2 + 1) }).collect()
}

fn config(wish: Wish, disk: DiskLimits) -> VmConfig {
    let tenant =
        TenantConfig { name: "bench".to_owned(), limits: TenantLimits { disk, ..TenantLimits::default() } };
    let weight = DiskLimits { weight: Some(wish.weight), ..DiskLimits::default() };
    let mut config = VmConfig::new("blkbench")
        .memory_mib(32)
        .args(arguments("read", wish.block, 1, wish.depth))
        .limits(LimitsConfig::default().disk(weight))
        .tenant(tenant);
    config.drives.push(Drive::null(DISK, DISK_SIZE));
    config
}

/// What each VM of a tenant was admitted between two moments, and the time between these. All want more all the time.
fn measure(
    engine: EngineKind,
    wishes: &[Wish],
    disk: DiskLimits,
    time: Duration,
) -> CliResult<(Vec<(Look, Look)>, Duration)> {
    let runtime = runtime(engine, Some(SHARDS))?;
    let vms = wishes.iter().map(|wish| Launched::new(&runtime, &config(*wish, disk)));
    let vms: Vec<_> = vms.collect::<CliResult<_>>()?;
    let begun = Instant::now();
    let all = || vms.iter().map(|vm| look(vm, DISK, begun)).collect::<Option<Vec<_>>>();
    // Each has been given something since all were: so the tenant's bucket is empty, and everyone in line.
    let up = until(begun, &all, |look| look.operations > 0)?;
    let later = |look: &Look| up.iter().all(|first| look.at > first.at + Duration::from_millis(300));
    let first = until(begun, &all, later)?;
    thread::sleep(time);
    let last = all().ok_or("a VM of a tenant has lost its disk")?;
    stop(vms)?;
    settle(&runtime);
    let time = first.iter().zip(&last).map(|(first, last)| last.at.saturating_sub(first.at)).min();
    Ok((first.into_iter().zip(last).collect(), time.unwrap_or_default()))
}

/// Looks at all VMs until all are as they should be.
fn until(
    begun: Instant,
    all: &impl Fn() -> Option<Vec<Look>>,
    mut is: impl FnMut(&Look) -> bool,
) -> CliResult<Vec<Look>> {
    while begun.elapsed() < START {
        if let Some(looks) = all().filter(|looks| looks.iter().all(&mut is)) {
            return Ok(looks);
        }
        thread::sleep(INTERVAL);
    }
    Err(format!("VMs of a tenant were given nothing in {START:?}").into())
}

/// Requests of all VMs of a tenant are limited.
fn operations() -> DiskLimits {
    DiskLimits { iops: Some(REQUESTS), ..DiskLimits::default() }
}

/// Measures shares by weight.
fn shares(
    engine: EngineKind,
    effort: Effort,
    undisturbed: &mut Undisturbed,
    report: &mut Report,
) -> CliResult<f64> {
    let mut worst = 0.0_f64;
    for &count in effort.counts {
        for (id, equal) in [("equal", true), ("unequal", false)] {
            progress(&format!("shares of {count} VMs of a tenant, weights {id}, {engine}"));
            let weights = weights(count, equal);
            let all: u32 = weights.iter().sum();
            let least = f64::from(weights.iter().copied().min().unwrap_or(1)) / f64::from(all);
            let time =
                Duration::from_secs_f64(effort.requests as f64 / (REQUESTS as f64 * least)).max(SHORTEST);
            let wishes: Vec<_> = weights.iter().copied().map(wish).collect();
            let (looks, _) = undisturbed.measure(|| measure(engine, &wishes, operations(), time))?;
            let obtained = looks.iter().map(|(first, last)| last.operations - first.operations);
            let shares = Shares::of(&obtained.zip(weights).collect::<Vec<_>>());
            worst = worst.max(shares.as_ref().map_or(1.0, Shares::error));
            let mut add = |what: &str, words: &str, unit, value: Option<f64>| {
                let (id, name) = (
                    format!("limiter.share.{engine}.{id}.{count}.{what}"),
                    format!("{count}, weights {id}: {words}"),
                );
                let samples = value.into_iter().collect::<Samples>();
                let group = format!("VMs of a tenant, on two shards, {engine} …");
                report.add(Figure::new(id, group, name, unit, &samples));
            };
            add("error", "largest error of a share", Unit::Share, shares.as_ref().map(Shares::error));
            add("jain", "Jain's index", Unit::Ratio, shares.as_ref().map(Shares::jain));
        }
    }
    Ok(worst)
}

/// The shortest look at shares.
const SHORTEST: Duration = Duration::from_secs(1);

/// A VM with a guarantee, and the neighbour that wants everything.
struct Guarantee {
    id: &'static str,
    name: &'static str,
    disk: DiskLimits,
    own: Wish,
    neighbour: Wish,
}

fn guarantees() -> [Guarantee; 3] {
    let saturating = |weight, block| Wish { weight, block, depth: "128" };
    let bytes = DiskLimits { bps: Some(BYTES), ..DiskLimits::default() };
    [
        Guarantee {
            id: "requests",
            name: "a fourth of the requests",
            disk: operations(),
            own: wish(100),
            neighbour: saturating(300, 4 << 10),
        },
        Guarantee {
            id: "bytes",
            name: "half of the bytes, by 4 KiB beside 64 KiB",
            disk: bytes,
            own: wish(100),
            neighbour: saturating(100, 64 << 10),
        },
        Guarantee {
            id: "most",
            name: "nine tenths of the requests",
            disk: operations(),
            own: wish(900),
            neighbour: saturating(100, 4 << 10),
        },
    ]
}

/// Measures guarantees.
fn guaranteed(
    engine: EngineKind,
    effort: Effort,
    undisturbed: &mut Undisturbed,
    report: &mut Report,
) -> CliResult<f64> {
    let mut worst = f64::INFINITY;
    for Guarantee { id, name, disk, own, neighbour } in guarantees() {
        progress(&format!("a VM that is guaranteed {name}, {engine}"));
        let time = Duration::from_millis(effort.requests * 6);
        let (looks, time) = undisturbed.measure(|| measure(engine, &[own, neighbour], disk, time))?;
        let part = f64::from(own.weight) / f64::from(own.weight + neighbour.weight);
        let (first, last) = looks.first().ok_or("a VM with a guarantee was not looked at")?;
        let (limit, obtained) = match disk.bps {
            Some(bytes) => (bytes, last.bytes - first.bytes),
            None => (REQUESTS, last.operations - first.operations),
        };
        let share = obtained as f64 / (limit as f64 * part * time.as_secs_f64());
        worst = worst.min(share);
        let (id, samples) =
            (format!("limiter.guarantee.{engine}.{id}"), [share].into_iter().collect::<Samples>());
        let group = format!("Beside one that wants everything, {engine}, of …");
        report.add(Figure::new(id, group, name, Unit::Ratio, &samples));
    }
    Ok(worst)
}

/// Measures all.
pub(super) fn measure_all(
    effort: Effort,
    undisturbed: &mut Undisturbed,
    report: &mut Report,
) -> CliResult<()> {
    let (mut error, mut least) = (0.0_f64, f64::INFINITY);
    for &engine in engines().0 {
        error = error.max(shares(engine, effort, undisturbed, report)?);
        least = least.min(guaranteed(engine, effort, undisturbed, report)?);
    }
    let [error, guaranteed] = &[error, least].map(|value| [value].into_iter().collect::<Samples>());
    let (group, words) = ("Tenants, the worst of these", "share, obtained of guaranteed");
    report.add(Figure::new("limiter.share.error", group, "error of a share", Unit::Share, error));
    report.add(Figure::new("limiter.guarantee", group, words, Unit::Ratio, guaranteed));
    if effort.counts.len() < Effort::USUAL.counts.len() {
        report.note("--quick leaves out the tenants with 2 and 64 VMs");
    }
    Ok(())
}

/// What the figures should be.
pub(super) const TARGETS: [Target; 2] = [
    Target {
        id: "limiter.share.error",
        what: "what a VM gets of its share of a tenant's limit, by how much it is off",
        figure: "limiter.share.error",
        quantity: Quantity::Median,
        limit: Limit::AtMost(0.02),
    },
    Target {
        id: "limiter.guarantee",
        what: "what a VM gets of its guarantee beside one that wants everything",
        figure: "limiter.guarantee",
        quantity: Quantity::Median,
        limit: Limit::AtLeast(0.95),
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_compared_with_weights() {
        let even = Shares::of(&[(100, 100), (300, 300)]).unwrap();
        assert!(even.error() < 1e-9 && (even.jain() - 1.0).abs() < 1e-9);
        let off = Shares::of(&[(90, 100), (110, 100)]).unwrap();
        assert!((off.error() - 0.1).abs() < 1e-9 && off.jain() < 1.0);
    }

    #[test]
    fn one_that_has_everything_is_as_unfair_as_can_be() {
        let one = Shares::of(&[(400, 100), (0, 100), (0, 100), (0, 100)]).unwrap();
        assert!((one.jain() - 0.25).abs() < 1e-9 && (one.error() - 3.0).abs() < 1e-9);
        assert_eq!(Shares::of(&[(0, 100), (0, 200)]), None);
    }

    #[test]
    fn unequal_weights_differ_and_are_on_both_shards() {
        for &count in Effort::USUAL.counts {
            let weights = weights(count, false);
            assert!(weights.iter().min() < weights.iter().max());
            if count > 2 {
                let of = |shard| weights.iter().skip(shard).step_by(2).collect::<Vec<_>>();
                let differs = |shard: usize| of(shard).iter().min() < of(shard).iter().max();
                assert!(differs(0) && differs(1));
            }
        }
    }

    #[test]
    fn every_vm_can_be_configured() {
        for Guarantee { disk, own, neighbour, .. } in guarantees() {
            config(own, disk).validate().unwrap();
            config(neighbour, disk).validate().unwrap();
        }
    }
}
