//! Guests that mean harm, on real KVM: what they do stays in their VM, costs the host a bounded amount, and is told.
//!
//! | attack | what holds |
//! |---|---|
//! | `hostile`, 1,000 seeds, on one and two vCPUs | the VMs beside it print what they always print; each attacker ends by itself |
//! | triple faults one after the other | each is an outcome of its own VM |
//! | storms: addresses and ports without a device, I/O APIC entries, output | the VM beside them answers; each is paused and stopped at once |
//! | I/O APIC entries rewritten without end | no faster than the meter allows |
//! | output that nobody reads, on a shared console | dropped and counted; the guest is not held up |
//! | string instructions, wrong widths, registers that are none | taken apart, refused one by one; nothing changes |
//! | mistakes without end | counted one by one by kind; ten log lines, then one a second |
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use common::guest::{Code, START};
use common::process::{Running, ringlet};
use common::{Guest, Host, deadline, on_both_engines, rounds, small};
use ringlet::{Console, CrashCause, LineConsole, Outcome, Resources, VmConfig, VmState};
use ringlet_metrics::GuestErrorKind;

/// Seeds that cover all that the guest `hostile` does.
const SEEDS: u64 = 1_000;
/// Hostile VMs at a time.
const AT_ONCE: usize = 5;

const IOAPIC_SELECT: u32 = 0xFEC0_0000;
const IOAPIC_WINDOW: u32 = 0xFEC0_0010;
/// An address where no device is.
const NO_DEVICE: u32 = 0xD000_0000;
const NO_PORT: u16 = 0x1234;

/// A VM that harms nobody: it echoes what is typed. Paused while nobody types, because it polls.
struct Innocent {
    guest: Guest,
    typed: String,
}

impl Innocent {
    async fn new(host: &Host) -> Self {
        let guest = host.launch(&Code::new().print("?").echo_until_q().exit(0));
        guest.until_printed("?");
        guest.vm.pause().await.unwrap();
        Self { guest, typed: "?".into() }
    }

    /// Types `text` and expects to see it, and nothing else ever.
    async fn echo(&mut self, text: &str) {
        self.guest.vm.resume().await.unwrap();
        assert!(self.guest.vm.serial_input().send(text.into()).await);
        self.typed += text;
        self.guest.until_printed(&self.typed);
        self.guest.vm.pause().await.unwrap();
        assert_eq!(self.guest.printed(), self.typed);
    }

    async fn end(mut self) {
        self.guest.vm.resume().await.unwrap();
        assert!(self.guest.vm.serial_input().send(b"q".to_vec()).await);
        self.typed += "q";
        assert_eq!(*self.guest.outcome().await, Outcome::Exited { code: 0 });
        assert_eq!(self.guest.printed(), self.typed);
        let metrics = self.guest.vm.metrics();
        assert_eq!(metrics.guest_errors.total(), 0);
        assert_eq!(metrics.serial_sent_bytes.get(), self.typed.len() as u64);
    }
}

/// How a guest may end whatever it does; anything else is a failure of ours.
#[track_caller]
fn assert_guests_own_end(outcome: &Outcome, what: &str) {
    let own = matches!(outcome, Outcome::Exited { .. } | Outcome::Reset | Outcome::Crashed(_));
    assert!(own, "{what}: {outcome}");
}

/// An attacker; every third seed has two vCPUs, so that each of the ten kinds comes with one and with two.
fn attacker(host: &Host, seed: u64) -> Guest {
    let config = VmConfig::new("hostile").memory_mib(8).timeout(deadline()).args([seed.to_string()]);
    host.bundled_with(config.vcpus(1 + u32::from(seed % 3 == 2)))
}

on_both_engines! {
    async fn sec_01_a_thousand_hostile_seeds_do_not_touch_the_vms_beside_them(host: Host) {
        let mut innocent = Innocent::new(&host).await;
        // The seeds 10 n to 10 n + 9 are of all kinds: each engine gets every second ten.
        let parity = u64::from(host.is_epoll());
        let seeds: Vec<_> = (0..rounds(SEEDS)).filter(|seed| seed / 10 % 2 == parity).collect();
        let mut triple_faults = 0;
        for batch in seeds.chunks(AT_ONCE) {
            let attackers: Vec<_> = batch.iter().map(|&seed| attacker(&host, seed)).collect();
            let another = host.bundled("hello", &["--brief"]);
            innocent.echo(&format!("{}.", batch[0])).await;
            assert_eq!(*another.outcome().await, Outcome::Exited { code: 0 });
            assert_eq!(another.printed(), "hello\n");
            for (guest, seed) in attackers.iter().zip(batch) {
                let outcome = guest.outcome().await;
                assert_guests_own_end(&outcome, &format!("seed {seed}"));
                assert!(guest.vm.metrics().guest_errors.total() > 100, "seed {seed} was tame");
                triple_faults += usize::from(matches!(*outcome, Outcome::Crashed(_)));
            }
        }
        assert!(triple_faults > 0, "some of the seeds end in a triple fault");
        innocent.end().await;
    }

    async fn sec_01_triple_faults_in_a_row_end_only_their_own_vms(host: Host) {
        let mut innocent = Innocent::new(&host).await;
        let code = Code::new().triple_fault();
        for round in 0..rounds(50) {
            let crashing: Vec<_> = (0..4).map(|_| host.launch(&code)).collect();
            innocent.echo(&format!("{round} ")).await;
            for guest in crashing {
                let outcome = guest.outcome().await;
                assert!(matches!(&*outcome, Outcome::Crashed(c) if c.cause == CrashCause::TripleFault), "{outcome}");
            }
        }
        innocent.end().await;
    }

    async fn sec_01_storms_do_not_stop_the_vm_beside_them(host: Host) {
        let mut innocent = Innocent::new(&host).await;
        let storms = [
            Code::new().forever(Code::new().write32(NO_DEVICE, 1).read32(NO_DEVICE)),
            Code::new().forever(Code::new().outl(NO_PORT, 1).inb(NO_PORT)),
            Code::new().forever(redirect(5, 0x41).write32(IOAPIC_WINDOW, 0x42)),
            Code::new().forever(Code::new().print("storm\n")),
        ];
        let storms: Vec<_> = storms.iter().map(|code| host.launch(code)).collect();
        for round in 0..10 {
            innocent.echo(&format!("{round} ")).await;
        }
        for guest in &storms {
            guest.until_exits(100);
            guest.vm.pause().await.unwrap();
            assert_eq!(*guest.vm.stop().await, Outcome::Stopped);
        }
        innocent.end().await;
    }

    async fn sec_02_interrupt_routes_are_rewritten_no_faster_than_the_meter_allows(host: Host) {
        // 256 changes are free, each further one costs a millisecond.
        let begun = Instant::now();
        let code = Code::new().times(378, redirect(5, 0x41).write32(IOAPIC_WINDOW, 0x42)).exit(0);
        let guest = host.launch(&code);
        // By then it waits most of the time, and obeys all the same.
        guest.until_exits(800);
        guest.vm.pause().await.unwrap();
        guest.vm.resume().await.unwrap();
        assert_eq!(*guest.outcome().await, Outcome::Exited { code: 0 });
        let spent = begun.elapsed();
        assert!(spent >= Duration::from_millis(490), "756 changes in {spent:?}");
        // A slow machine never brings the guest above the rate.
        let held_back = guest.errors(GuestErrorKind::IoapicRate) > 0;
        assert!(held_back || spent > Duration::from_millis(500), "756 changes in {spent:?}, none held back");
    }

    async fn sec_02_output_that_nobody_reads_is_dropped_and_does_not_hold_up_a_shared_console(host: Host) {
        const BYTES: u32 = 90_000;
        let (reader, writer) = std::io::pipe().unwrap();
        rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
        let code = Code::new().print_pattern(BYTES).exit(0);
        let console = Console::Lines(LineConsole::new(writer.into()));
        let resources = Resources { console, image: Some(code.image()), ..Resources::default() };
        let vm = host.runtime.launch(&small(), resources).unwrap();
        common::eventually("the guest ends", || vm.state() == VmState::Stopping);
        assert_eq!(vm.metrics().serial_sent_bytes.get(), u64::from(BYTES));
        assert!(vm.metrics().serial_dropped_bytes.get() > 0);
        assert_eq!(*common::within(vm.stop()).await, Outcome::Exited { code: 0 });
        drop(reader);
    }

    async fn sec_06_string_instructions_are_taken_apart_and_panic_nowhere(host: Host) {
        let buffer = 0x20_0000;
        // Four bytes to the exit port are four writes of the wrong width, not one exit code.
        let code = Code::new()
            .string(0xF4, START, 4, 0x6E)
            .string(NO_PORT, buffer, 300, 0x6C)
            .read32(buffer)
            .expect(u32::MAX, 1)
            .read32(buffer + 296)
            .expect(u32::MAX, 2)
            .read32(buffer + 300)
            .expect(0, 3)
            .string(0xFFFE, START, 100, 0x6F)
            .string(0x3FE, buffer, 3, 0x6D)
            .exit(9);
        let guest = host.launch(&code);
        assert_eq!(*guest.outcome().await, Outcome::Exited { code: 9 });
        assert_eq!(guest.errors(GuestErrorKind::BadWidth), 4);
        assert_eq!(guest.errors(GuestErrorKind::UnknownPort), 300 + 100 + 3);

        // A 32-bit string write to the exit port ends the VM with its first element.
        let code = Code::new().string(0xF4, START, 2, 0x6F).exit(9);
        let first = u32::from_le_bytes(code.bytes()[..4].try_into().unwrap());
        assert_eq!(*host.launch(&code).outcome().await, Outcome::Exited { code: first });
    }

    async fn sec_07_accesses_that_no_register_takes_read_as_ones_and_change_nothing(host: Host) {
        let reads = [
            (Code::new().read_port(NO_PORT, 1), 0xFF),
            (Code::new().read_port(NO_PORT, 2), 0xFFFF),
            (Code::new().read_port(NO_PORT, 4), u32::MAX),
            (Code::new().read_port(0xFFFF, 1), 0xFF),
            (Code::new().read_port(0xF4, 1), 0xFF), // write-only
            (Code::new().read_port(0xF4, 4), u32::MAX),
            (Code::new().read_port(0x3F8, 4), u32::MAX), // too wide
            (Code::new().read_port(0x3FF, 2), 0xFFFF),   // over the end of the device
            (Code::new().read_port(0x70, 2), 0xFFFF),
            (Code::new().outb(0x70, 0x20).read_port(0x71, 1), 0), // CMOS memory
            (Code::new().read32(NO_DEVICE), u32::MAX),
            (Code::new().read32(IOAPIC_SELECT + 2), u32::MAX), // not aligned
            (Code::new().read32(IOAPIC_SELECT + 8), u32::MAX), // no register
        ];
        let writes = Code::new()
            .outl(NO_PORT, 1)
            .outl(0x3F8, 0x2121_2121) // too wide: prints nothing
            .outb(0xF4, 77) // no exit
            .outb(0xF5, 1) // not ready
            .outb(0x64, 0x01) // no reset
            .write32(NO_DEVICE, 1)
            .write32(IOAPIC_SELECT + 2, 1)
            .write32(IOAPIC_SELECT + 8, 1);
        let code = (1..).zip(reads).fold(writes, |code, (number, (read, value))| {
            code.raw(read.bytes()).expect(value, number)
        });
        let guest = host.launch(&code.print("fine").exit(0));
        assert_eq!(*guest.outcome().await, Outcome::Exited { code: 0 });
        assert_eq!((guest.printed().as_str(), guest.vm.time_to_ready()), ("fine", None));
        assert!(guest.errors(GuestErrorKind::UnknownPort) >= 5);
        assert_eq!(guest.errors(GuestErrorKind::UnknownMmio), 2);
        assert_eq!(guest.errors(GuestErrorKind::BadValue), 2);
        assert_eq!(guest.errors(GuestErrorKind::WriteOnly), 2);
        assert!(guest.errors(GuestErrorKind::BadWidth) >= 3);
        assert_eq!(guest.vm.metrics().guest_errors.total(), 20);
    }

    async fn sec_09_every_mistake_is_counted_by_kind_and_no_guest_adds_a_series(host: Host) {
        let code = Code::new()
            .times(500, Code::new().outl(NO_PORT, 1))
            .times(300, Code::new().read32(NO_DEVICE))
            .times(200, Code::new().outb(0xF4, 1))
            .exit(0);
        let created = host.create(&code);
        let series = |text: &str| text.lines().filter(|line| line.contains("guest_errors_total{")).count();
        let before = host.runtime.registry().encode();
        created.vm.start().await.unwrap();
        assert_eq!(*created.outcome().await, Outcome::Exited { code: 0 });
        let text = host.runtime.registry().encode();
        for (kind, count) in [("unknown_port", 500), ("unknown_mmio", 300), ("bad_width", 200)] {
            let line = format!("ringlet_guest_errors_total{{vm=\"vm-1\",kind=\"{kind}\"}} {count}");
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
        assert_eq!(series(&text), series(&before));
    }
}

/// Writes a redirection entry of the I/O APIC: fixed delivery of `vector`, not masked.
fn redirect(pin: u32, vector: u32) -> Code {
    Code::new().write32(IOAPIC_SELECT, 0x10 + 2 * pin).write32(IOAPIC_WINDOW, vector)
}

/// Runs a guest in the real binary, for at most `limit`; what it logged, and for how long it ran.
fn logged(code: &Code, limit: &str) -> (Vec<String>, Duration) {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("storm.elf");
    std::fs::write(&image, code.elf(false)).unwrap();
    let begun = Instant::now();
    let command = &mut ringlet(&["run", image.to_str().unwrap(), "--timeout", limit]);
    let finished = Running::start(command).finish();
    let lines = finished.stderr.lines().filter(|line| line.contains("ringlet::guest"));
    (lines.map(str::to_owned).collect(), begun.elapsed())
}

#[test]
fn sec_02_a_storm_of_mistakes_prints_ten_lines_and_then_one_a_second() {
    let code = Code::new().forever(Code::new().outl(NO_PORT, 0xCAFE));
    let (lines, time) = logged(&code, "2500ms");
    let allowed = 10 + time.as_secs() + 1;
    assert!(lines.len() as u64 <= allowed, "{} lines in {time:?}", lines.len());
    assert!(lines.len() >= 10, "{lines:?}");
    // The last one tells how many there were that it does not show.
    let last = lines.last().unwrap();
    let suppressed = last.split_whitespace().find_map(|word| word.strip_prefix("suppressed=")).unwrap();
    assert!(suppressed.parse::<u64>().unwrap() > 100, "{last}");
}

#[test]
fn sec_09_a_mistake_is_logged_with_vm_device_register_and_value_though_nobody_asked_for_it() {
    let code = Code::new()
        .outl(NO_PORT, 0xCAFE)
        .outl(0x3F8, 0x1234_5678)
        .outb(0x64, 0x55)
        .read32(NO_DEVICE)
        .write32(IOAPIC_SELECT + 8, 0xBEEF)
        .exit(0);
    let (lines, _) = logged(&code, "60s");
    let expected = [
        "write of 0xcafe (4 bytes) at port 0x1234: no device",
        "serial: write of 0x12345678 (4 bytes) at port 0x3f8: no access of 4 bytes at offset 0x0",
        "i8042: write of 0x55 (1 bytes) at port 0x64: value 0x55 means nothing at offset 0x0",
        "read of 4 bytes at address 0xd0000000: no device",
        "ioapic: write of 0xbeef (4 bytes) at address 0xfec00008",
    ];
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, text) in lines.iter().zip(expected) {
        assert!(line.contains(text) && line.contains("WARN") && line.contains("vm=vm-1"), "{line}");
    }
}
