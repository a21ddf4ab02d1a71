use std::task::{Context, Waker};

use ringlet_io::limiter::LimitError;
use ringlet_io::{Cost, EngineKind, Gate, LimiterSeed};
use ringlet_metrics::{DeviceKind, GuestErrorKind};

use super::*;
use crate::testing::{Buffer, DriverQueue, Options, Rig, Subject, wait_until};
use crate::virtio::WorkerError;
use crate::virtio::spec::{feature, register, status};

/// A console and what is on both of its sides.
struct Bench {
    rig: Rig,
    typed: PipeWriter,
    rx: DriverQueue,
    tx: DriverQueue,
}

/// A console that takes its input from `input`.
fn subject(input: PipeReader, output: ConsoleOutput) -> Subject {
    let config = Console::config_of(ConsoleSize::default());
    let metrics = crate::test_util::metrics().register_device("console0", DeviceKind::Console);
    let parts = ConsoleParts { id: "console0".into(), config: config.clone(), input, output, metrics };
    Subject {
        identity: Console::identity_of("console0"),
        config,
        device: Box::new(|_, _| Ok(Box::new(Console::new(parts)))),
        queue: TRANSMIT,
        request: |_, gpa| vec![Buffer::readable(gpa, 1000)],
        release: None,
    }
}

fn output_conforming() -> Subject {
    subject(pipe(1).1, ConsoleOutput::discard())
}

/// A console at which somebody types without end.
fn input_conforming() -> Subject {
    let (typed, input) = pipe(PIPE_CAPACITY);
    std::thread::spawn(move || while typed.write_all_blocking(&[b'x'; 1024]).is_ok() {});
    Subject {
        queue: RECEIVE,
        request: |_, gpa| vec![Buffer::writable(gpa, 100), Buffer::writable(gpa + 0x1000, 5000)],
        ..subject(input, ConsoleOutput::discard())
    }
}

crate::virtio_conformance!(output_conformance, output_conforming);
crate::virtio_conformance!(input_conformance, input_conforming);

fn options() -> Options {
    Options::new(EngineKind::Epoll)
}

/// A console that is driven; its input holds 64 bytes.
fn bench_with(output: ConsoleOutput, options: Options) -> Bench {
    let (typed, input) = pipe(64);
    let rig = Rig::new(subject(input, output), options);
    let [rx, tx] = rig.bring_up(feature::VERSION_1 | F_SIZE).try_into().unwrap();
    Bench { rig, typed, rx, tx }
}

fn bench(output: ConsoleOutput) -> Bench {
    bench_with(output, options())
}

impl Bench {
    /// Offers `bytes` for output, in pieces of at most `piece`.
    fn print(&mut self, bytes: &[u8], piece: usize) {
        self.rig.ram.write(Rig::DATA, bytes).unwrap();
        let pieces = bytes.chunks(piece).scan(Rig::DATA, |gpa, part| {
            let len = part.len() as u32;
            *gpa += u64::from(len);
            Some(Buffer::readable(*gpa - u64::from(len), len))
        });
        self.rig.send(&mut self.tx, &pieces.collect::<Vec<_>>());
    }

    /// Waits until output was taken, and the device has counted it.
    fn printed(&mut self) {
        assert_eq!(self.rig.used(&mut self.tx).len, 0, "output writes nothing");
        self.rig.settle();
    }

    fn offer(&mut self, buffers: &[Buffer]) {
        self.rig.send(&mut self.rx, buffers);
    }

    /// Waits for input; gives the number of bytes.
    fn received(&mut self) -> u32 {
        let used = self.rig.used(&mut self.rx);
        self.rig.settle();
        used.len
    }

    fn contents(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.rig.ram.read(gpa, &mut bytes).unwrap();
        bytes
    }

    /// Requests of a kind that were served, and their bytes.
    fn count(&self, kind: RequestKind) -> (u64, u64) {
        (self.rig.metrics.requests(kind, RequestStatus::Ok), self.rig.metrics.bytes(kind))
    }
}

fn take(reader: &PipeReader) -> Vec<u8> {
    let mut bytes = Vec::new();
    reader.take(&mut bytes);
    bytes
}

/// Whether a future is done at its first poll.
fn at_once(future: impl Future) -> bool {
    std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

#[test]
fn output_reaches_the_log_in_order() {
    let log = ConsoleLog::new(1 << 20);
    let mut bench = bench(ConsoleOutput::log(log.clone()));
    let text: Vec<u8> = (0..50_000u32).map(|n| n as u8).collect();
    bench.print(&text, 7000);
    bench.printed();
    bench.print(b"end", 1);
    bench.printed();
    assert_eq!(log.contents(), [&text[..], b"end"].concat());
    assert_eq!(bench.count(RequestKind::Transmit), (2, 50_003));
    assert_eq!(bench.rig.metrics.dropped_bytes.get(), 0);
    assert!(bench.rig.take_interrupts() >= 1);
}

#[test]
fn a_full_log_drops_its_oldest_bytes_and_counts_them() {
    let log = ConsoleLog::new(4);
    let mut bench = bench(ConsoleOutput::log(log.clone()));
    bench.print(b"0123456789", 10);
    bench.printed();
    assert_eq!((log.contents(), log.dropped()), (b"6789".to_vec(), 6));
    assert_eq!(bench.rig.metrics.dropped_bytes.get(), 6);
}

#[test]
fn a_slow_reader_makes_the_guest_wait_and_loses_nothing() {
    let (stream, reader) = pipe(10);
    let mut bench = bench(ConsoleOutput::stream(stream));
    let text: Vec<u8> = (0..=255).collect();
    bench.print(&text, 33);
    wait_until("the pipe is full", || reader.available() == 10);
    bench.rig.settle();
    assert_eq!((bench.tx.take_used(), bench.rig.metrics.in_flight.get()), (None, 1));
    let mut read = Vec::new();
    wait_until("all is read", || {
        reader.take(&mut read);
        read.len() == text.len()
    });
    bench.printed();
    assert_eq!((read, bench.rig.metrics.in_flight.get()), (text, 0));
}

#[test]
fn stopping_does_not_wait_for_the_reader_and_output_goes_on_where_it_was() {
    let (stream, reader) = pipe(10);
    let mut bench = bench(ConsoleOutput::stream(stream));
    bench.print(b"abcdefghijklmnopqrstuvwxyz", 7);
    wait_until("the pipe is full", || reader.available() == 10);
    bench.rig.suspend().unwrap();
    let saved = bench.rig.save().unwrap();
    assert_eq!(saved.device, DeviceState::Console { columns: 80, rows: 24, sent: 10 });
    let queue = saved.queues[usize::from(TRANSMIT)].unwrap();
    assert_eq!((queue.next_avail, queue.next_used, bench.rig.metrics.in_flight.get()), (0, 0, 0));
    bench.rig.take_interrupts();
    bench.rig.resume().unwrap();
    assert!(bench.rig.take_interrupts() >= 1, "a spurious interrupt");
    let mut read = Vec::new();
    wait_until("all is read", || {
        reader.take(&mut read);
        read.len() >= 26
    });
    bench.printed();
    assert_eq!(read, b"abcdefghijklmnopqrstuvwxyz");
    bench.rig.suspend().unwrap();
    assert!(matches!(bench.rig.save().unwrap().device, DeviceState::Console { sent: 0, .. }));
    bench.print(b"more than fits", 20);
    bench.rig.resume().unwrap();
    wait_until("the pipe is full", || reader.available() == 10);
    assert!(bench.rig.stop().is_ok(), "the end does not wait either");
}

#[test]
fn another_console_goes_on_with_a_saved_one() {
    let (stream, reader) = pipe(4);
    let mut old = bench(ConsoleOutput::stream(stream));
    old.print(b"abcdefgh", 3);
    wait_until("the pipe is full", || reader.available() == 4);
    old.rig.notice(HostEvent::Resized { columns: 132, rows: 50 });
    old.rig.settle();
    old.rig.suspend().unwrap();
    let saved = old.rig.save().unwrap();
    let log = ConsoleLog::new(100);
    let restored = Some((old.rig.ram.clone(), saved.clone()));
    let (_typed, input) = pipe(1);
    let new = Rig::new(subject(input, ConsoleOutput::log(log.clone())), Options { restored, ..options() });
    assert_eq!(new.save().unwrap(), saved);
    let mut config = [0; 4];
    new.read_config(&mut config);
    assert_eq!(config, [132, 0, 50, 0]);
    new.resume().unwrap();
    new.used(&mut old.tx);
    assert_eq!((take(&reader), log.contents()), (b"abcd".to_vec(), b"efgh".to_vec()));
}

#[test]
fn a_reset_forgets_how_far_a_chain_had_got() {
    let (stream, reader) = pipe(4);
    let mut bench = bench(ConsoleOutput::stream(stream));
    bench.print(b"abcdefgh", 8);
    wait_until("the pipe is full", || reader.available() == 4);
    bench.rig.write(register::STATUS, 0);
    assert_eq!(take(&reader), b"abcd");
    [bench.rx, bench.tx] = bench.rig.bring_up(feature::VERSION_1).try_into().unwrap();
    bench.print(b"new", 3);
    bench.printed();
    assert_eq!(take(&reader), b"new");
}

#[test]
fn sec_10_a_saved_position_beyond_the_chain_ends_it_and_no_more() {
    let log = ConsoleLog::new(100);
    let mut bench = bench(ConsoleOutput::log(log.clone()));
    bench.rig.suspend().unwrap();
    let mut state = bench.rig.save().unwrap();
    state.device = DeviceState::Console { columns: 0, rows: 65535, sent: u32::MAX };
    let restored = Some((bench.rig.ram.clone(), state));
    let (_typed, input) = pipe(1);
    bench.rig = Rig::new(subject(input, ConsoleOutput::log(log.clone())), Options { restored, ..options() });
    bench.rig.resume().unwrap();
    bench.print(b"lost", 4);
    bench.printed();
    bench.print(b"next", 4);
    bench.printed();
    assert_eq!(log.contents(), b"next");
}

#[test]
fn sec_10_a_state_of_another_device_is_refused() {
    let (config, input) = (Console::config_of(ConsoleSize::default()), pipe(1).1);
    let metrics = crate::test_util::metrics().register_device("console0", DeviceKind::Console);
    let output = ConsoleOutput::discard();
    let mut console = Console::new(ConsoleParts { id: "console0".into(), config, input, output, metrics });
    let refused = console.restore(&DeviceState::Stateless);
    assert!(matches!(refused, Err(StateError::Field { device: "console", .. })));
}

#[test]
fn without_a_reader_output_is_lost_counted_and_makes_nobody_wait() {
    let (stream, reader) = pipe(4);
    let mut bench = bench(ConsoleOutput::stream(stream));
    bench.print(b"abcdefgh", 8);
    wait_until("the pipe is full", || reader.available() == 4);
    drop(reader);
    bench.printed();
    assert_eq!(bench.rig.metrics.dropped_bytes.get(), 4);
}

#[test]
fn input_waits_for_a_buffer_and_is_not_lost() {
    let mut bench = bench(ConsoleOutput::discard());
    assert_eq!(bench.typed.try_write(&[b'x'; 100]), Ok(64));
    bench.rig.settle();
    assert!(!at_once(bench.typed.room()), "who types waits while the guest takes nothing");
    bench.offer(&[Buffer::writable(Rig::DATA, 10), Buffer::writable(Rig::DATA + 0x1000, 20)]);
    assert_eq!(bench.received(), 30);
    assert_eq!(bench.contents(Rig::DATA, 11), [&[b'x'; 10][..], &[0]].concat());
    assert_eq!(bench.contents(Rig::DATA + 0x1000, 21), [&[b'x'; 20][..], &[0]].concat());
    assert!(at_once(bench.typed.room()));
    bench.offer(&[Buffer::writable(Rig::DATA, 4096)]);
    assert_eq!(bench.received(), 34);
    assert_eq!(bench.count(RequestKind::Receive), (2, 64));
}

#[test]
fn a_buffer_waits_for_input() {
    let mut bench = bench(ConsoleOutput::discard());
    bench.offer(&[Buffer::writable(Rig::DATA, 4096)]);
    bench.offer(&[Buffer::writable(Rig::DATA + 4096, 4096)]);
    bench.rig.settle();
    assert_eq!(bench.rx.take_used(), None);
    bench.typed.try_write(b"one").unwrap();
    assert_eq!(bench.received(), 3);
    assert_eq!(bench.rx.take_used(), None);
    bench.typed.try_write(b"two").unwrap();
    assert_eq!(bench.received(), 3);
    assert_eq!(bench.contents(Rig::DATA + 4096, 3), b"two");
    drop(bench.typed);
    bench.rig.settle();
    assert!(bench.rig.suspend().is_ok(), "the end of input is not the end of the queue");
}

#[test]
fn input_that_was_not_admitted_stays_where_it_is() {
    let gate = Gate::new();
    let limiter = LimiterSeed::gated(gate.clone());
    let mut bench = bench_with(ConsoleOutput::discard(), Options { limiter, ..options() });
    bench.typed.try_write(b"hello").unwrap();
    bench.offer(&[Buffer::writable(Rig::DATA, 3)]);
    bench.rig.settle();
    bench.rig.suspend().unwrap();
    let state = bench.rig.save().unwrap().queues[usize::from(RECEIVE)].unwrap();
    assert_eq!((state.next_avail, bench.rx.take_used()), (0, None));
    gate.open();
    bench.rig.resume().unwrap();
    assert_eq!(bench.received(), 3);
    bench.offer(&[Buffer::writable(Rig::DATA + 3, 100)]);
    assert_eq!(bench.received(), 2);
    assert_eq!(bench.contents(Rig::DATA, 5), b"hello");
    assert_eq!(gate.costs(), [Cost::read(3), Cost::read(2)]);
}

#[test]
fn chains_of_the_wrong_direction_are_refused_and_the_queues_go_on() {
    let log = ConsoleLog::new(100);
    let mut bench = bench(ConsoleOutput::log(log.clone()));
    bench.typed.try_write(b"in").unwrap();
    let mixed = [Buffer::readable(Rig::DATA, 8), Buffer::writable(Rig::DATA + 8, 8)];
    bench.offer(&mixed);
    assert_eq!(bench.received(), 0);
    bench.offer(&[Buffer::writable(Rig::DATA, 8)]);
    assert_eq!(bench.received(), 2);
    bench.rig.send(&mut bench.tx, &mixed);
    bench.printed();
    bench.rig.send(&mut bench.tx, &[Buffer::readable(Rig::DATA, 2)]);
    bench.printed();
    assert_eq!(log.contents(), b"in");
    assert_eq!(bench.rig.errors(GuestErrorKind::BadRequest), 2);
    assert_eq!(bench.rig.metrics.requests(RequestKind::Other, RequestStatus::IoError), 2);
}

#[test]
fn a_broken_queue_is_told_once_and_the_other_goes_on() {
    let log = ConsoleLog::new(100);
    let mut bench = bench(ConsoleOutput::log(log.clone()));
    bench.offer(&[Buffer::writable(u64::MAX - 4, 8)]);
    bench.rig.settle();
    assert_eq!(bench.rig.metrics.broken_queues.get(), 0, "no input, no look");
    bench.typed.try_write(b"x").unwrap();
    bench.rig.settle();
    bench.offer(&[Buffer::writable(Rig::DATA, 8)]);
    bench.rig.settle();
    assert_eq!((bench.rx.take_used(), bench.rig.metrics.broken_queues.get()), (None, 1));
    assert_eq!(bench.rig.errors(GuestErrorKind::BadChain), 1);
    assert_ne!(bench.rig.status() & status::NEEDS_RESET, 0);
    bench.print(b"fine", 4);
    bench.printed();
    assert_eq!(log.contents(), b"fine");
    bench.rig.suspend().unwrap();
    assert!(bench.rig.save().unwrap().queues[usize::from(RECEIVE)].unwrap().broken);
}

#[test]
fn a_driver_that_wants_to_know_is_told_of_a_new_size() {
    let bench = bench(ConsoleOutput::discard());
    let resized = HostEvent::Resized { columns: 132, rows: 50 };
    let config = || {
        let mut bytes = [0; 4];
        bench.rig.read_config(&mut bytes);
        bytes
    };
    let generation = bench.rig.read(register::CONFIG_GENERATION);
    assert_eq!(config(), [80, 0, 24, 0]);
    bench.rig.take_interrupts();
    bench.rig.notice(resized);
    bench.rig.settle();
    assert_eq!((config(), bench.rig.take_interrupts()), ([132, 0, 50, 0], 1));
    assert_ne!(bench.rig.read(register::CONFIG_GENERATION), generation);
    bench.rig.notice(resized);
    bench.rig.settle();
    assert_eq!(bench.rig.take_interrupts(), 0, "the same size is no change");
    bench.rig.bring_up(feature::VERSION_1);
    bench.rig.take_interrupts();
    bench.rig.notice(HostEvent::Resized { columns: 1, rows: 2 });
    bench.rig.settle();
    assert_eq!((config(), bench.rig.take_interrupts()), ([1, 0, 2, 0], 0), "it did not accept F_SIZE");
}

#[test]
fn the_configuration_has_the_size() {
    let config = Console::config_of(ConsoleSize { columns: 0x0102, rows: 0x0304 });
    assert_eq!(config.bytes(), [2, 1, 4, 3, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn an_emergency_byte_is_printed_without_a_queue_or_lost_and_counted() {
    let vm = crate::test_util::metrics();
    let metrics = vm.register_device("console0", DeviceKind::Console);
    let (stream, reader) = pipe(1);
    let (config, input) = (Console::config_of(ConsoleSize::default()), pipe(1).1);
    let output = ConsoleOutput::stream(stream);
    let parts = ConsoleParts { id: "console0".into(), config, input, output, metrics: Arc::clone(&metrics) };
    let mut console = Console::new(parts);
    assert_eq!(console.write_config(EMERG_WR, &[b'!', 0, 0, 0]), Ok(()));
    assert_eq!(console.write_config(EMERG_WR, &[b'?', 0, 0, 0]), Ok(()));
    assert_eq!((take(&reader), metrics.dropped_bytes.get()), (b"!".to_vec(), 1));
    assert_eq!(
        console.write_config(EMERG_WR, b"!"),
        Err(GuestError::BadWidth { offset: EMERG_WR, width: 1 })
    );
    for offset in [0, 2, 4, 9] {
        assert_eq!(console.write_config(offset, &[0; 4]), Err(GuestError::ReadOnly { offset }));
    }
    assert_eq!(metrics.requests(RequestKind::Other, RequestStatus::Ok), 2);
}

#[test]
fn an_emergency_byte_needs_no_negotiation() {
    let (stream, reader) = pipe(1);
    let rig = Rig::new(subject(pipe(1).1, ConsoleOutput::stream(stream)), options());
    rig.write(register::CONFIG + EMERG_WR, u32::from(b'!'));
    assert_eq!(take(&reader), b"!");
}

#[test]
fn sec_02_a_doorbell_is_waited_for_also_while_there_is_nothing_to_do() {
    // Nobody types, and nobody reads: neither queue looks at its ring.
    let (stream, _reader) = pipe(4);
    let mut bench = bench(ConsoleOutput::stream(stream));
    bench.print(b"more than four", 14);
    wait_until("the output waits for its reader", || bench.rig.metrics.in_flight.get() == 1);
    for queue in [RECEIVE, TRANSMIT] {
        let before = bench.rig.metrics.notifications.get();
        bench.rig.ring(queue);
        wait_until("the ring is taken, and paid for", || bench.rig.metrics.notifications.get() > before);
    }
}

#[test]
fn sec_02_endless_output_leaves_turns_to_others() {
    let mut bench = bench(ConsoleOutput::discard());
    let turn = |rig: &Rig| rig.on_shard(async |cx| cx.turn());
    let before = turn(&bench.rig);
    // Each of the 64 pieces is the same MiB.
    bench.rig.send(&mut bench.tx, &[Buffer::readable(Rig::DATA, 1 << 20); 64]);
    bench.printed();
    let turns = turn(&bench.rig) - before;
    assert!(turns > (64 << 20) / 8192 / 64, "{turns} turns for 64 MiB");
    assert_eq!(bench.count(RequestKind::Transmit), (1, 64 << 20));
}

#[test]
fn limits_that_cannot_be_are_an_error_and_not_a_wait() {
    let limiter = LimiterSeed::new(|_, _| Err(LimitError::Depth));
    let rig = Rig::new(subject(pipe(1).1, ConsoleOutput::discard()), Options { limiter, ..options() });
    let error = rig.stop().unwrap_err();
    assert!(matches!(&error, WorkerError::Device { device, .. } if device == "console0"), "{error}");
}

#[test]
fn sec_02_a_long_chain_passes_only_as_far_as_it_is_admitted() {
    let (gate, log) = (Gate::new(), ConsoleLog::new(1 << 20));
    let limiter = LimiterSeed::gated(gate.clone());
    let mut bench = bench_with(ConsoleOutput::log(log.clone()), Options { limiter, ..options() });
    // 64 MiB, and it could be 4 GiB.
    bench.rig.send(&mut bench.tx, &[Buffer::readable(Rig::DATA, 1 << 20); 64]);
    gate.let_through(3);
    wait_until("three pieces were admitted", || gate.admissions() == 3);
    bench.rig.settle();
    assert_eq!((log.contents().len(), gate.admissions()), (3 * 8192, 3));
    assert_eq!(gate.costs(), [Cost::write(8192); 3]);
    assert_eq!((bench.tx.take_used(), bench.count(RequestKind::Transmit)), (None, (0, 0)));
}

#[test]
fn a_pause_does_not_charge_output_again() {
    let (gate, log) = (Gate::new(), ConsoleLog::new(1 << 20));
    let limiter = LimiterSeed::gated(gate.clone());
    let mut bench = bench_with(ConsoleOutput::log(log.clone()), Options { limiter, ..options() });
    bench.print(&[b'x'; 20_000], 20_000);
    gate.let_through(1);
    wait_until("a piece was admitted", || gate.admissions() == 1);
    bench.rig.suspend().unwrap();
    bench.rig.resume().unwrap();
    gate.open();
    bench.printed();
    assert_eq!(gate.costs(), [Cost::write(8192), Cost::write(8192), Cost::write(20_000 - 2 * 8192)]);
    assert_eq!(log.contents().len(), 20_000);
}
