//! VMs when the host is short of something.

use std::process::Command;

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
