use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::kvm::sys::{ThreadClock, block_asynchronous_signals};

/// Whether the calling thread has been sent the signal, which it blocks.
fn is_signalled() -> bool {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let pending = status.lines().find_map(|line| line.strip_prefix("SigPnd:")).unwrap();
    u64::from_str_radix(pending.trim(), 16).unwrap() >> (SPARE_KICK_SIGNAL - 1) & 1 == 1
}

/// Computes until it has used `nanos` of CPU time.
fn spin(clock: &ThreadClock, nanos: u64) {
    let end = clock.nanos().unwrap() + nanos;
    while clock.nanos().unwrap() < end {
        black_box(0);
    }
}

/// On a thread of its own, which signals may be sent to; as a process that may not have such timers, the test would say so
/// and fail: the suite is run by root.
fn with_timer(test: impl FnOnce(TaskClock, ThreadClock) + Send) {
    thread::scope(|scope| {
        let ended = scope.spawn(|| {
            block_asynchronous_signals().unwrap();
            let clock = ThreadClock::of_this_thread().unwrap();
            test(TaskClock::new(rustix::thread::gettid()).expect("CAP_PERFMON"), clock);
        });
        ended.join().unwrap();
    });
}

#[test]
fn it_fires_when_so_much_was_used_and_not_before() {
    with_timer(|timer, clock| {
        spin(&clock, 20_000_000);
        assert!(!is_signalled(), "it was not set");
        timer.set(60_000_000_000);
        timer.set(0);
        spin(&clock, 20_000_000);
        assert!(!is_signalled(), "it was taken back");
        // By its CPU clock it may have used less: if this machine is a guest, and its CPU was taken away meanwhile.
        let before = Instant::now();
        timer.set(5_000_000);
        while !is_signalled() {
            assert!(before.elapsed() < Duration::from_secs(60), "it never fires");
        }
        let time = before.elapsed();
        assert!(time >= Duration::from_millis(5), "{time:?}");
    });
}

#[test]
fn it_stands_still_while_the_thread_sleeps() {
    with_timer(|timer, _| {
        timer.set(50_000_000);
        // It is about time that passes without being used.
        thread::sleep(Duration::from_millis(100));
        assert!(!is_signalled());
    });
}

#[test]
fn a_thread_that_has_ended_has_none() {
    let ended = thread::spawn(rustix::thread::gettid).join().unwrap();
    assert_eq!(TaskClock::new(ended).unwrap_err().raw_os_error(), Some(libc::ESRCH));
}
