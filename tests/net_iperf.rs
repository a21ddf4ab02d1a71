//! This machine's iperf3 against the guest `netbench iperf3` on real KVM, on both engines, each test in a network of its own.
//! Needs `ip`, `iperf3`, and user name spaces.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};

use common::network::{GUEST, configured, in_networks_of_their_own, tap};
use common::{Guest, Host, deadline, eventually, within};

/// Bytes that a test has to move, and as iperf3 is told.
const LEN: u64 = 4 << 20;
const AMOUNT: &str = "4M";

fn iperf3(options: &str) -> Command {
    let mut command = Command::new("timeout");
    let address = GUEST.to_string();
    command.args(["--kill-after=10", "300", "iperf3", "--json", "--client", &address]);
    command.args(options.split_whitespace()).stdin(Stdio::null());
    command
}

/// What it reports of a test, or why there was none: with `--json` its status does not tell.
#[track_caller]
fn attempt(options: &str) -> Result<serde_json::Value, String> {
    let Output { stdout, stderr, .. } = iperf3(options).output().expect("timeout and iperf3 are there");
    let said = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
    let report: serde_json::Value = serde_json::from_slice(&stdout).expect(&said);
    report["error"].as_str().map_or(Ok(()), |error| Err(error.to_owned()))?;
    Ok(report)
}

/// What it reports of a test that it has run to its end.
#[track_caller]
fn report(options: &str) -> serde_json::Value {
    attempt(options).unwrap_or_else(|error| panic!("{options}: {error}"))
}

/// A number of the report's end.
#[track_caller]
fn of_end(report: &serde_json::Value, sum: &str, what: &str) -> u64 {
    report["end"][sum][what].as_u64().unwrap_or_else(|| panic!("no {what} of {sum}: {}", report["end"]))
}

fn guest(host: &Host) -> Guest {
    tap(1500);
    let guest = host.bundled_with(configured("netbench", &["iperf3", "ip=192.0.2.2/24", "ip=fd00::2/64"]));
    guest.until_printed("ready on port 5201, for iperf3");
    guest
}

/// A test that goes on until it is ended here.
struct Endless(Child);

impl Endless {
    fn start() -> Self {
        let mut command = Command::new("iperf3");
        command.args(["--client", &GUEST.to_string(), "--time", "3600", "--reverse", "--forceflush"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        // It says so when it is connected, and then every second what came.
        let mut said = String::new();
        let mut out = child.stdout.take().unwrap();
        while !said.contains("Bytes") {
            let mut piece = [0; 1024];
            let len = out.read(&mut piece).unwrap();
            assert!(len > 0, "{said}");
            said += &String::from_utf8_lossy(&piece[..len]);
        }
        Self(child)
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

in_networks_of_their_own! {
    async fn iperf3_streams_to_a_guest_and_from_it(host: Host) {
        let guest = guest(&host);
        for options in ["", "--parallel 4", "--reverse", "--reverse --parallel 4", "--length 1000", "--client fd00::2"] {
            let report = report(&format!("--bytes {AMOUNT} {options}"));
            let (sent, received) = (of_end(&report, "sum_sent", "bytes"), of_end(&report, "sum_received", "bytes"));
            // What was on its way when it ended counts for the sender only.
            assert!(sent >= received && received > 0 && sent.max(received) >= LEN / 2, "{options}: {sent} {received}");
        }
        within(guest.vm.stop()).await;
    }

    async fn iperf3_streams_both_ways_at_once(host: Host) {
        let guest = guest(&host);
        let report = report(&format!("--bytes {AMOUNT} --bidir --parallel 2"));
        for sum in ["sum_sent", "sum_received", "sum_sent_bidir_reverse", "sum_received_bidir_reverse"] {
            assert!(of_end(&report, sum, "bytes") > 0, "{sum}");
        }
        within(guest.vm.stop()).await;
    }

    async fn iperf3_sends_datagrams_to_a_guest_and_gets_some_from_it(host: Host) {
        let guest = guest(&host);
        for options in ["", "--parallel 2", "--reverse", "--reverse --parallel 2", "--udp-counters-64bit", "--length 64", "--client fd00::2"] {
            let report = report(&format!("--udp --bitrate 20M --bytes 1M {options}"));
            let (packets, lost) = (of_end(&report, "sum", "packets"), of_end(&report, "sum", "lost_packets"));
            // A slow machine may lose some, but never all.
            assert!(packets > 0 && lost < packets, "{options}: {lost} of {packets}");
            assert!(of_end(&report, "sum", "bytes") > 0, "{options}");
        }
        within(guest.vm.stop()).await;
    }

    async fn sec_02_a_guest_outlives_clients_of_iperf3_that_go_or_talk_nonsense(host: Host) {
        let guest = guest(&host);
        let endless = Endless::start();
        assert!(attempt("--bytes 1K").unwrap_err().contains("busy"));
        drop(endless);
        // Once it is over that the client is gone.
        eventually("a test is served again", || attempt("--bytes 1K").is_ok());
        // A head of 4 GiB, and JSON that is none.
        for message in [&[255; 4][..], b"\0\0\0\x04nope", b"\0\0\0\x02{}"] {
            let mut stream = TcpStream::connect((GUEST, 5201)).unwrap();
            stream.set_read_timeout(Some(deadline())).unwrap();
            stream.write_all(&[b'a'; 37]).unwrap();
            stream.write_all(message).unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            // PARAM_EXCHANGE, then SERVER_ERROR and why.
            assert_eq!((answer.len(), &answer[..2]), (10, &[9, 254][..]), "{answer:?}");
        }
        let refused = attempt("--parallel 17 --bytes 1K").unwrap_err();
        assert!(refused.contains("parallel streams"), "{refused}");
        report("--bytes 1M");
        within(guest.vm.stop()).await;
    }
}
