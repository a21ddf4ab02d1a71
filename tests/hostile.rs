//! Guests that do their worst, beside guests that must not notice.
//!
//! | attack | what holds |
//! |---|---|
//! | `hostile`, 1,000 seeds | the VM beside it prints what it always prints; each attacker ends by itself |
//! | I/O APIC entries rewritten without end | no faster than the meter allows, and stopped at once |
//! | ports and addresses that nobody claims | counted one by one, logged a few times |
//! | output that nobody reads, on a shared console | dropped and counted; the guest is not held up, nor is its neighbour |
//! | triple faults one after the other | each is an outcome of its own VM |
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::guest::Code;
use common::{Host, block_on, on_both_engines, small, within};
use ringlet::{Console, CrashCause, EngineChoice, LineConsole, Outcome, Resources, VmConfig};

const IOAPIC_SELECT: u32 = 0xFEC0_0000;
const IOAPIC_WINDOW: u32 = 0xFEC0_0010;
/// Low word of the redirection entry of pin 4.
const ENTRY_4: u32 = 0x18;
/// Claimed by nobody.
const NO_PORT: u16 = 0x1234;
const NO_DEVICE: u32 = 0xD000_0000;

/// Attackers beside one innocent VM.
const AT_ONCE: usize = 4;
const SEEDS: u32 = 1000;

#[test]
fn sec_01_a_thousand_hostile_seeds_leave_the_vm_beside_them_alone() {
    let host = Host::new(EngineChoice::Auto);
    let alone = host.bundled("hello", &[]);
    block_on(alone.outcome());
    let expected = alone.printed();
    assert!(expected.contains("primes below 10000: 1229"), "{expected}");
    let seeds: Vec<String> = (0..SEEDS).map(|seed| seed.to_string()).collect();
    for batch in seeds.chunks(AT_ONCE) {
        let attacker = |seed: &String| {
            let config = VmConfig::new("hostile").memory_mib(16).vcpus(2).args([seed]);
            host.bundled_with(config.timeout(Duration::from_secs(50)))
        };
        let attackers: Vec<_> = batch.iter().map(attacker).collect();
        let innocent = host.bundled("hello", &[]);
        assert_eq!(*block_on(innocent.outcome()), Outcome::Exited { code: 0 }, "beside {batch:?}");
        assert_eq!(innocent.printed(), expected, "beside {batch:?}");
        for (seed, attacker) in batch.iter().zip(attackers) {
            let outcome = block_on(attacker.outcome());
            let own = matches!(&*outcome, Outcome::Exited { .. } | Outcome::Reset | Outcome::Crashed(_));
            assert!(own, "seed {seed}: {outcome}");
        }
    }
}

/// Every write changes the route of pin 4.
fn rewrite_routes() -> Code {
    let select = Code::new().write32(IOAPIC_SELECT, ENTRY_4);
    select.write32(IOAPIC_WINDOW, 0x40).write32(IOAPIC_WINDOW, 0x41)
}

on_both_engines! {
    async fn sec_02_route_changes_are_held_to_their_rate(host: Host) {
        // 1,000 changes, of which 256 are free and the others cost a millisecond each.
        let begun = Instant::now();
        let guest = host.launch(&Code::new().times(500, rewrite_routes()).exit(0));
        assert_eq!(*guest.outcome().await, Outcome::Exited { code: 0 });
        assert!(begun.elapsed() >= Duration::from_millis(700), "{:?}", begun.elapsed());
        let metrics = host.runtime.registry().encode();
        assert!(value(&metrics, guest.vm.id(), "ioapic_rate") > 0, "the waits are not counted");
    }

    async fn sec_02_a_guest_that_waits_for_its_route_changes_is_stopped_and_paused_at_once(host: Host) {
        let guest = host.launch(&Code::new().forever(rewrite_routes()));
        guest.until_exits(2_000);
        within(guest.vm.pause()).await.unwrap();
        within(guest.vm.resume()).await.unwrap();
        assert_eq!(*within(guest.vm.stop()).await, Outcome::Stopped);
    }

    async fn sec_02_output_that_nobody_reads_is_dropped_and_holds_nobody_up(host: Host) {
        let (reader, writer) = std::io::pipe().unwrap();
        let console = Console::Lines(LineConsole::new(writer.into()).with_prefix("[loud] "));
        let loud = Code::new().print_pattern(100_000).exit(3);
        let resources = Resources { console, image: Some(loud.image()), ..Resources::default() };
        let vm = host.runtime.launch(&small(), resources).unwrap();
        let quiet = host.launch(&Code::new().print("fine").exit(0));
        assert_eq!(*quiet.outcome().await, Outcome::Exited { code: 0 });
        assert_eq!(quiet.printed(), "fine");
        common::until_exits(&vm, 100_000);
        assert_eq!(vm.metrics().serial_sent_bytes.get(), 100_000);
        vm.request_stop();
        within(vm.wait()).await;
        assert!(vm.metrics().serial_dropped_bytes.get() > 0, "nothing was dropped");
        drop(reader);
    }

    async fn sec_01_triple_faults_are_outcomes_of_their_own_vms(host: Host) {
        let beside = host.launch(&Code::new().times(20_000, Code::new().inb(NO_PORT)).print("done").exit(7));
        for _ in 0..50 {
            let outcome = host.launch(&Code::new().triple_fault()).outcome().await;
            assert!(matches!(&*outcome, Outcome::Crashed(c) if c.cause == CrashCause::TripleFault), "{outcome}");
        }
        assert_eq!(*beside.outcome().await, Outcome::Exited { code: 7 });
        assert_eq!(beside.printed(), "done");
    }
}

/// The count of a kind of guest error of one VM.
fn value(metrics: &str, vm: &str, kind: &str) -> u64 {
    let series = format!("ringlet_guest_errors_total{{vm=\"{vm}\",kind=\"{kind}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&series)).expect("the series is there");
    line.parse().unwrap()
}

/// Where the log goes while this program runs.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn sec_09_each_mistake_is_counted_and_the_log_names_a_few() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    // Guests log from their vCPU threads. The other tests of this program log into it too, for other VMs.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let host = Host::new(EngineChoice::Auto);
    let mistakes = Code::new().inb(NO_PORT).outl(NO_PORT, 1).read32(NO_DEVICE);
    let resources =
        Resources { image: Some(Code::new().times(1000, mistakes).exit(0).image()), ..Resources::default() };
    let vm = host.runtime.launch(&small().name("clumsy"), resources).unwrap();
    assert_eq!(*block_on(vm.wait()), Outcome::Exited { code: 0 });
    let metrics = host.runtime.registry().encode();
    assert_eq!(value(&metrics, vm.id(), "unknown_port"), 2000);
    assert_eq!(value(&metrics, vm.id(), "unknown_mmio"), 1000);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let lines = |what: &str| text.lines().filter(|line| line.contains(what)).count();
    for what in
        ["read of 1 bytes at port 0x1234", "write of 0x1 (4 bytes)", "read of 4 bytes at address 0xd0000000"]
    {
        assert!((1..100).contains(&lines(what)), "{what}: {} lines\n{text}", lines(what));
    }
}
