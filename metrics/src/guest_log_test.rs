use std::cell::RefCell;
use std::io;
use std::sync::Once;
use std::time::Duration;

use super::*;
use crate::VmInfo;
use crate::registry::Registry;

thread_local! {
    static PRINTED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

struct ToThread;

impl io::Write for ToThread {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        PRINTED.with_borrow_mut(|printed| printed.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs `f` with a real subscriber, and returns what it printed on this thread.
fn printed(f: impl FnOnce()) -> String {
    static SUBSCRIBER: Once = Once::new();
    SUBSCRIBER.call_once(|| {
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(|| ToThread).finish();
        tracing::subscriber::set_global_default(subscriber).unwrap();
    });
    PRINTED.take();
    f();
    String::from_utf8(PRINTED.take()).unwrap()
}

fn log(vm: &str) -> GuestLog {
    let metrics = Registry::new().register_vm(VmInfo { id: vm.into(), ..VmInfo::default() });
    GuestLog::new(vm, metrics)
}

/// One call site, whoever calls it.
fn unknown_port(log: &GuestLog, port: u32) {
    guest_error!(log, GuestErrorKind::UnknownPort, "read of port {port:#x}, width {}", 4);
}

#[test]
fn sec_09_a_guest_error_is_counted_and_names_everything() {
    let log = log("vm-7");
    let text =
        printed(|| guest_error!(log, GuestErrorKind::BadWidth, "serial: read of offset {:#x}, width 8", 3));
    assert_eq!(log.metrics().guest_errors.get(GuestErrorKind::BadWidth), 1);
    for part in
        ["WARN", TARGET, "vm=vm-7", "kind=\"bad_width\"", "serial: read of offset 0x3, width 8", file!()]
    {
        assert!(text.contains(part), "no {part} in {text}");
    }
    assert!(!text.contains("suppressed"), "nothing was: {text}");
}

#[test]
fn sec_02_a_million_errors_of_one_call_site_print_a_bounded_number_of_lines() {
    const REPORTS: u64 = 1_000_000;
    let log = log("storm");
    let begin = Instant::now();
    let text = printed(|| (0..REPORTS).for_each(|n| unknown_port(&log, n as u32)));
    let seconds = begin.elapsed().as_secs() as usize;
    let lines = text.lines().count();
    assert!((10..=10 + seconds + 1).contains(&lines), "{lines} lines in {seconds} s");
    assert_eq!(log.metrics().guest_errors.get(GuestErrorKind::UnknownPort), REPORTS, "all are counted");
    assert_eq!(lock(&log.sites).len(), 1, "memory is by call site, not by report");
}

#[test]
fn sec_09_the_next_line_tells_how_many_were_suppressed() {
    static SITE: Site = Site::new("test", 0);
    let log = log("vm");
    let second = 1_000_000_000;
    for _ in 0..10 {
        assert_eq!(log.judge(&SITE, 0), Verdict::Pass { suppressed: 0 });
    }
    for _ in 0..41 {
        assert_eq!(log.judge(&SITE, second - 1), Verdict::Suppress);
    }
    let Verdict::Pass { suppressed } = log.judge(&SITE, second) else { panic!("nothing earned in a second") };
    assert_eq!(suppressed, 41);
    let text = printed(|| log.print(&SITE, GuestErrorKind::BadValue, suppressed, format_args!("x")));
    assert!(text.contains("suppressed=41"), "{text}");
}

#[test]
fn sec_09_two_vms_do_not_suppress_each_other() {
    let (noisy, quiet) = (log("noisy"), log("quiet"));
    let text = printed(|| {
        (0..1000).for_each(|n| unknown_port(&noisy, n));
        unknown_port(&quiet, 0x42);
    });
    assert!(text.lines().any(|line| line.contains("vm=quiet") && line.contains("port 0x42")), "{text}");
}

#[test]
fn sec_09_two_call_sites_do_not_suppress_each_other() {
    let log = log("vm");
    let text = printed(|| {
        (0..1000).for_each(|n| unknown_port(&log, n));
        guest_error!(log, GuestErrorKind::UnknownPort, "another place");
        for _ in 0..1000 {
            guest_error!(log, GuestErrorKind::BadValue, "left");
            guest_error!(log, GuestErrorKind::BadValue, "right");
        }
    });
    for part in ["another place", "left", "right"] {
        assert!(text.contains(part), "no {part}");
    }
    assert_eq!(lock(&log.sites).len(), 4);
}

#[test]
fn sec_13_what_a_guest_wrote_cannot_steer_the_terminal_or_forge_a_line() {
    let log = log("evil\u{1b}]0;title\u{7}\nWARN vm=other");
    let payload = "\u{1b}[2J\r\nWARN ringlet::guest: vm=other forged\u{9b}1m\u{8}\u{202e}";
    let text = printed(|| guest_error!(log, GuestErrorKind::BadValue, "value {payload}"));
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.trim_end_matches('\n').chars().all(|c| !c.is_control() && c != '\u{202e}'), "{text:?}");
    assert!(text.contains(r"value \u{1b}[2J\r\nWARN"), "{text}");
}

#[test]
fn sec_02_a_long_message_is_cut() {
    let log = log(&"n".repeat(100_000));
    let text = printed(|| guest_error!(log, GuestErrorKind::BadValue, "{}", "x".repeat(1 << 20)));
    assert!(text.len() < MAX_MESSAGE_BYTES + MAX_LABEL_BYTES + 256, "{} bytes", text.len());
    assert!(text.contains('…'));
}

#[test]
fn a_suppressed_message_is_not_formatted() {
    struct Counts<'a>(&'a std::cell::Cell<u32>);
    impl fmt::Display for Counts<'_> {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.set(self.0.get() + 1);
            Ok(())
        }
    }
    let log = log("vm");
    let formatted = std::cell::Cell::new(0);
    let begin = Instant::now();
    drop(printed(|| {
        (0..1000).for_each(|_| guest_error!(log, GuestErrorKind::BadValue, "{}", Counts(&formatted)));
    }));
    let earned = begin.elapsed().as_secs() as u32 + 1;
    assert!((10..=10 + earned).contains(&formatted.get()), "{}", formatted.get());
}

#[test]
fn threads_share_one_budget() {
    static SITE: Site = Site::new("test", 1);
    let log = Arc::new(log("vm"));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let log = log.clone();
            std::thread::spawn(move || (0..1000).filter(|_| log.judge(&SITE, 5) != Verdict::Suppress).count())
        })
        .collect();
    let passed: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert_eq!(passed, 10);
    let later = Duration::from_secs(1).as_nanos() as u64 + 5;
    assert_eq!(log.judge(&SITE, later), Verdict::Pass { suppressed: 3990 });
}
