//! What the integration tests share: a runtime on either engine, guests made by hand, deadlines, and a look at the
//! process itself. Nothing here sleeps to be right.
#![allow(dead_code, unused_macros, unused_imports, reason = "each test program uses its own part of this")]

pub(crate) mod capture;
pub(crate) mod guest;
pub(crate) mod network;
pub(crate) mod process;

use std::io::Read;
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringlet::{
    Console, ConsoleBuffer, EngineChoice, EngineKind, Outcome, Resources, Runtime, RuntimeOptions, Vm,
    VmConfig,
};

use guest::Code;

/// How long anything may take before it counts as hanging. Machines that run tests are slow and busy, and an
/// emulated one (see [`rounds`]) is slower still.
pub(crate) fn deadline() -> Duration {
    Duration::from_secs(if divisor() == 1 { 60 } else { 240 })
}

/// What the number of rounds of a long test is divided by, as `RINGLET_TEST_DIVISOR` says.
fn divisor() -> u64 {
    std::env::var("RINGLET_TEST_DIVISOR").map_or(1, |text| text.parse().unwrap())
}

/// Guest RAM of the tests, in MiB: as little as there may be.
pub(crate) const MEMORY: u32 = 4;

/// Makes each `async fn name(host: Host)` a test on io_uring and a test on epoll.
macro_rules! on_both_engines {
    ($($(#[$meta:meta])* async fn $name:ident($host:ident: Host) $body:block)*) => {
        $($(#[$meta])* async fn $name($host: Host) $body)*

        mod uring {
            $(#[test] fn $name() { crate::common::on(ringlet::EngineChoice::Uring, super::$name); })*
        }

        mod epoll {
            $(#[test] fn $name() { crate::common::on(ringlet::EngineChoice::Epoll, super::$name); })*
        }
    };
}
pub(crate) use on_both_engines;

/// Runs a test with a runtime of its own on `engine`.
pub(crate) fn on(engine: EngineChoice, test: impl AsyncFnOnce(Host)) {
    // A test may take longer than a step of it.
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    run(&executor, deadline() * 10, test(Host::new(engine)));
}

/// Runs a future to its end, or panics after [`deadline`].
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    // Without I/O it takes no descriptors, which tests count.
    let executor = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    run(&executor, deadline(), future)
}

fn run<T>(executor: &tokio::runtime::Runtime, deadline: Duration, future: impl Future<Output = T>) -> T {
    executor.block_on(async { tokio::time::timeout(deadline, future).await.expect("it hangs") })
}

/// Awaits `future`, or panics after [`deadline`].
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(deadline(), future).await.expect("it hangs")
}

/// How many rounds of a long test to run: `usual`, or a part of them where `RINGLET_TEST_DIVISOR` says so (on an
/// emulated machine a round takes a hundred times as long).
pub(crate) fn rounds(usual: u64) -> u64 {
    let rounds = usual.div_ceil(divisor());
    println!("{rounds} rounds of {usual}");
    rounds
}

/// Waits for something that tells nobody when it happens, or panics after [`deadline`].
#[track_caller]
pub(crate) fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !happened() {
        assert!(begun.elapsed() < deadline(), "never: {what}");
        // Between two looks at what tells nobody when it happens.
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A runtime with one shard, so that the VMs of a test meet on it.
pub(crate) struct Host {
    pub(crate) runtime: Runtime,
}

impl Host {
    pub(crate) fn new(engine: EngineChoice) -> Self {
        Self::with(RuntimeOptions { engine, ..RuntimeOptions::default() })
    }

    /// With one shard, whatever the options say.
    pub(crate) fn with(options: RuntimeOptions) -> Self {
        let options = RuntimeOptions { shards: NonZero::new(1), ..options };
        Self { runtime: Runtime::new(options).unwrap() }
    }

    /// VMs that have ended and are not closed yet.
    pub(crate) fn backlog(&self) -> i64 {
        self.runtime.registry().runtime().reaper_backlog.get()
    }

    pub(crate) fn is_epoll(&self) -> bool {
        self.runtime.engine().kind == EngineKind::Epoll
    }

    /// Launches a hand-made guest; its output is kept.
    pub(crate) fn launch(&self, code: &Code) -> Guest {
        self.launch_with(code, small())
    }

    pub(crate) fn launch_with(&self, code: &Code, config: VmConfig) -> Guest {
        let (resources, console) = buffered(code);
        Guest { vm: self.runtime.launch(&config, resources).unwrap(), console }
    }

    /// Makes a hand-made guest that is not started.
    pub(crate) fn create(&self, code: &Code) -> Guest {
        self.create_with(code, &small())
    }

    pub(crate) fn create_with(&self, code: &Code, config: &VmConfig) -> Guest {
        let (resources, console) = buffered(code);
        Guest { vm: self.runtime.create(config, resources).unwrap(), console }
    }

    /// Launches a hand-made guest that prints into a pipe of one page.
    pub(crate) fn launch_piped(&self, code: &Code, config: VmConfig) -> (Vm, Pipe) {
        let (pipe, console) = Pipe::new();
        let resources = Resources { console, image: Some(code.image()), ..Resources::default() };
        (self.runtime.launch(&config, resources).unwrap(), pipe)
    }

    /// Launches a guest that comes with Ringlet.
    pub(crate) fn bundled(&self, name: &str, args: &[&str]) -> Guest {
        self.bundled_with(VmConfig::new(name).memory_mib(16).args(args.iter().copied()))
    }

    pub(crate) fn bundled_with(&self, config: VmConfig) -> Guest {
        let console = ConsoleBuffer::new(1 << 20);
        let resources = Resources { console: Console::Buffer(console.clone()), ..Resources::default() };
        Guest { vm: self.runtime.launch(&config, resources).unwrap(), console }
    }

    /// Makes a guest that comes with Ringlet, and does not start it.
    pub(crate) fn create_bundled(&self, config: &VmConfig) -> Guest {
        let console = ConsoleBuffer::new(1 << 20);
        let resources = Resources { console: Console::Buffer(console.clone()), ..Resources::default() };
        Guest { vm: self.runtime.create(config, resources).unwrap(), console }
    }
}

/// The configuration of a hand-made guest, whose image comes as a resource.
pub(crate) fn small() -> VmConfig {
    VmConfig::new("hand-made").memory_mib(MEMORY)
}

pub(crate) fn buffered(code: &Code) -> (Resources, ConsoleBuffer) {
    let console = ConsoleBuffer::new(1 << 20);
    let resources = Resources {
        console: Console::Buffer(console.clone()),
        image: Some(code.image()),
        ..Resources::default()
    };
    (resources, console)
}

/// A VM and what it has printed.
pub(crate) struct Guest {
    pub(crate) vm: Vm,
    pub(crate) console: ConsoleBuffer,
}

impl Guest {
    pub(crate) fn printed(&self) -> String {
        String::from_utf8_lossy(&self.console.contents()).into_owned()
    }

    /// How many mistakes of one kind the guest has made.
    pub(crate) fn errors(&self, kind: ringlet_metrics::GuestErrorKind) -> u64 {
        self.vm.metrics().guest_errors.get(kind)
    }

    pub(crate) async fn outcome(&self) -> Arc<Outcome> {
        within(self.vm.wait()).await
    }

    /// Waits until the guest has printed `text`.
    pub(crate) fn until_printed(&self, text: &str) {
        eventually(text, || self.printed().contains(text));
    }

    /// Waits until the guest has left for the host `count` times.
    pub(crate) fn until_exits(&self, count: u64) {
        until_exits(&self.vm, count);
    }
}

/// Waits until the guest has left for the host `count` times, as closely as a thread can look.
pub(crate) fn until_exits(vm: &Vm, count: u64) {
    let begun = Instant::now();
    while vm.metrics().exits.total() < count {
        assert!(begun.elapsed() < deadline(), "the guest does not come to its exit {count}");
        std::thread::yield_now();
    }
}

/// The reading end of a pipe of one page that nobody reads unless the test does.
pub(crate) struct Pipe(std::io::PipeReader);

impl Pipe {
    /// The pipe, and its writing end as a console.
    pub(crate) fn new() -> (Self, Console) {
        let (reader, writer) = std::io::pipe().unwrap();
        let writer = OwnedFd::from(writer);
        rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
        (Self(reader), Console::Stream(ringlet::StreamConsole::new(writer)))
    }

    /// All that is written until the last writing end is closed, read on a thread of its own.
    pub(crate) fn read_to_end(mut self) -> std::thread::JoinHandle<Vec<u8>> {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            self.0.read_to_end(&mut bytes).unwrap();
            bytes
        })
    }
}

/// Waits until a guest that prints into a full pipe has stopped making exits: it waits for its shard. Should the
/// machine be so slow that this is a guess gone wrong, the test still tests something true.
pub(crate) fn until_output_is_full(vm: &Vm) {
    eventually("64 KiB printed", || vm.metrics().serial_sent_bytes.get() > 64 << 10);
    let mut last = (0, Instant::now());
    eventually("the guest waits", || {
        let exits = vm.metrics().exits.total();
        if exits != last.0 {
            last = (exits, Instant::now());
        }
        last.1.elapsed() > Duration::from_millis(20)
    });
}
