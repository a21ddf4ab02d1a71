//! VMs when the host is short of something.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::process::Command;
use std::time::{Duration, Instant};

/// A kick is a signal; it must arrive when the user's signal queue has no room for one.
#[test]
fn a_vcpu_is_kicked_although_the_signal_queue_is_full() {
    let output = Command::new("prlimit")
        .args(["--sigpending=0", env!("CARGO_BIN_EXE_ringlet"), "run", "spin", "--timeout", "300ms"])
        .output()
        .expect("prlimit is part of util-linux");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(124), "{errors}");
    assert!(errors.contains("timed out"), "{errors}");
}

/// Nobody reads standard error, and there is more to say than its pipe holds.
#[test]
fn reports_that_nobody_reads_do_not_hold_up_a_signal() {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_ringlet"))
        .args(["run", "spin", "--count", "20", "--memory", "8M", "--timeout", "200ms"])
        .stdout(std::process::Stdio::null())
        .stderr(writer)
        .spawn()
        .unwrap();
    // The twenty reports are several times what the pipe holds.
    let full = || rustix::io::ioctl_fionread(&reader).unwrap() > 1024;
    let deadline = Instant::now() + Duration::from_secs(60);
    while !full() {
        assert!(Instant::now() < deadline, "nothing is reported");
        std::thread::yield_now();
    }
    assert!(child.try_wait().unwrap().is_none(), "it ended without having said everything");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "SIGTERM does not end it");
        std::thread::yield_now();
    }
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

/// Runs `ringlet run` without the right to lower niceness, which root has.
fn run_unprivileged(limit: &str) -> std::process::Output {
    let run = [env!("CARGO_BIN_EXE_ringlet"), "run", "hello", "--limit", limit, "--", "--brief"];
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new("prlimit");
        command.args(["--nice=0:0", "setpriv", "--bounding-set=-sys_nice", "--inh-caps=-sys_nice"]);
        command
    } else {
        let mut command = Command::new("prlimit");
        command.arg("--nice=0:0");
        command
    };
    command.args(run).output().expect("prlimit and setpriv are part of util-linux")
}

/// Less than the usual share can always be had; more takes a privilege, and is not silently left out.
#[test]
fn a_larger_weight_than_usual_takes_a_privilege_and_a_smaller_none() {
    let less = run_unprivileged("cpu.weight=50");
    assert_eq!(less.status.code(), Some(0), "{}", String::from_utf8_lossy(&less.stderr));
    let more = run_unprivileged("cpu.weight=200");
    let errors = String::from_utf8_lossy(&more.stderr);
    assert_eq!(more.status.code(), Some(125), "{errors}");
    assert!(errors.contains("cpu.weight: 200 is nice value") && errors.contains("CAP_SYS_NICE"), "{errors}");
}

/// Timers take a place in the user's signal queue: without one the VM ends, and says why.
#[test]
fn a_cpu_limit_without_room_for_its_timers_is_an_error() {
    let output = Command::new("prlimit")
        .args(["--sigpending=0", env!("CARGO_BIN_EXE_ringlet"), "run", "spin", "--limit", "cpu.max=50ms"])
        .output()
        .expect("prlimit is part of util-linux");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{errors}");
    assert!(errors.contains("RLIMIT_SIGPENDING"), "{errors}");
}
