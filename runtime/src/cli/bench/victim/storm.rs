//! The neighbours that mean harm.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use ringlet::{Drive, Outcome, Runtime, VmConfig};
use tokio::sync::Notify;

use super::super::launched::{Launched, executor};
use super::placement::Placement;
use crate::cli::CliResult;

/// A VM of a storm that lives longer is made anew.
const LONGEST: Duration = Duration::from_secs(2);
/// Bytes of its null disk.
const DISK_SIZE: u64 = 64 << 20;

/// A kind of neighbour: one VM at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Storm {
    /// Part of the figures' identifiers.
    pub(super) id: &'static str,
    /// What the VM does.
    pub(super) name: &'static str,
    image: &'static str,
    arguments: Arguments,
    /// Give it a disk, a console and a source of random numbers.
    devices: bool,
    /// The ratios that there are targets for: their identifiers, and words.
    pub(super) targets: &'static [(&'static str, &'static str)],
}

#[derive(Debug, Clone, Copy)]
enum Arguments {
    Seed,
    Words(&'static [&'static str]),
}

macro_rules! targets {
    ($id:literal, $name:literal) => {
        &[
            (concat!("victim.null.", $id, ".of_solo"), concat!("null disk beside ", $name, ", of solo")),
            (concat!("victim.file.", $id, ".of_solo"), concat!("cached file beside ", $name, ", of solo")),
        ]
    };
}

pub(super) const STORMS: [Storm; 9] = [
    Storm {
        id: "spin",
        name: "a computing VM",
        image: "spin",
        arguments: Arguments::Words(&[]),
        devices: false,
        targets: targets!("spin", "a computing VM"),
    },
    Storm {
        id: "boot",
        name: "VMs that come and go",
        image: "hello",
        arguments: Arguments::Words(&["--brief"]),
        devices: true,
        targets: targets!("boot", "VMs that come and go"),
    },
    Storm {
        id: "disk",
        name: "a VM with a busy disk",
        image: "blkbench",
        arguments: Arguments::Words(&["--mode", "randrw", "--depth", "128", "--duration", "60"]),
        devices: true,
        // It asks for as much as the victim does, and gets as much: half of the event loop.
        targets: &[],
    },
    Storm {
        id: "bells",
        name: "a VM that notifies without end",
        image: "storm",
        arguments: Arguments::Words(&["bells"]),
        devices: true,
        targets: targets!("bells", "a VM that notifies without end"),
    },
    Storm {
        id: "resets",
        name: "a VM that resets its disk without end",
        image: "storm",
        arguments: Arguments::Words(&["resets"]),
        devices: true,
        targets: targets!("resets", "a VM that resets its disk without end"),
    },
    Storm {
        id: "output",
        name: "a VM that prints without end",
        image: "storm",
        arguments: Arguments::Words(&["output"]),
        devices: true,
        targets: targets!("output", "a VM that prints without end"),
    },
    Storm {
        id: "timer",
        name: "a VM with timers without end",
        image: "storm",
        arguments: Arguments::Words(&["timer"]),
        devices: true,
        targets: targets!("timer", "a VM with timers without end"),
    },
    Storm {
        id: "hostile",
        name: "hostile accesses",
        image: "hostile",
        arguments: Arguments::Seed,
        devices: true,
        targets: targets!("hostile", "hostile accesses"),
    },
    Storm {
        id: "hostile-virtio",
        name: "hostile drivers",
        image: "hostile-virtio",
        arguments: Arguments::Seed,
        devices: true,
        targets: targets!("hostile-virtio", "hostile drivers"),
    },
];

impl Storm {
    /// Runs `victim` while the storm rages. `seed` is the next of all storms.
    pub(super) fn beside<T>(
        &self,
        runtime: &Runtime,
        placement: Placement,
        seed: &mut u64,
        victim: impl FnOnce() -> CliResult<T>,
    ) -> CliResult<T> {
        let (over, next) = (Over::default(), AtomicU64::new(*seed));
        let result = std::thread::scope(|scope| {
            let (raging, begun) = mpsc::channel();
            let (over, next) = (&over, &next);
            let rage = move || self.rage(runtime, next, over, &raging).map_err(|error| error.to_string());
            let storm = scope.spawn(move || placement.beside_storm(rage));
            // If it cannot begin, its own error is the one to tell.
            let result = begun.recv().map(|()| victim());
            over.tell();
            storm.join().map_err(|_| "the thread of a storm panicked")???;
            result?
        });
        *seed = next.into_inner();
        result
    }

    /// One VM after the other until it is over.
    fn rage(
        &self,
        runtime: &Runtime,
        next: &AtomicU64,
        over: &Over,
        raging: &mpsc::Sender<()>,
    ) -> CliResult<()> {
        let executor = executor()?;
        while !over.is_told() {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let launched = Launched::new(runtime, &self.config(seed))?;
            // Told again and again, heard once.
            let _ = raging.send(());
            let outcome = executor.block_on(async {
                tokio::select! {
                    outcome = launched.vm.wait() => outcome,
                    () = over.told() => launched.vm.stop().await,
                }
            });
            if let Outcome::Failed { error } = &*outcome {
                return Err(format!("{} {seed}: {error}", self.image).into());
            }
        }
        Ok(())
    }

    fn config(&self, seed: u64) -> VmConfig {
        let mut config = VmConfig::new(self.image).timeout(LONGEST);
        config = match self.arguments {
            Arguments::Seed => config.args([seed.to_string()]),
            Arguments::Words(words) => config.args(words.iter().copied()),
        };
        if self.devices {
            config.drives.push(Drive::null("disk0", DISK_SIZE));
            config = config.entropy().console();
        }
        config
    }
}

/// Tells a storm that it is over.
#[derive(Debug, Default)]
struct Over {
    flag: AtomicBool,
    notify: Notify,
}

impl Over {
    fn tell(&self) {
        self.flag.store(true, Ordering::Release);
        self.notify.notify_one();
    }

    fn is_told(&self) -> bool {
        self.flag.load(Ordering::Acquire)
    }

    /// For one waiter.
    async fn told(&self) {
        self.notify.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_storm_has_targets_of_its_own() {
        for storm in STORMS {
            for (&(figure, what), disk) in storm.targets.iter().zip(["null", "file"]) {
                assert_eq!(figure, format!("victim.{disk}.{}.of_solo", storm.id));
                assert!(what.contains(storm.name));
            }
        }
    }

    #[test]
    fn every_storm_can_be_configured() {
        for storm in STORMS {
            storm.config(7).validate().unwrap();
            assert!(ringlet::images::find(storm.image).is_some(), "{} is not bundled", storm.image);
        }
    }
}
