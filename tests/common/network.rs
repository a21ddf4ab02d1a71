//! Networks of a test's own: the test runs once more, in name spaces that lend it the privilege which taps take, so the
//! test needs none. What is there is this machine's: `ip`, `curl` and the like. Needs user name spaces (`ringlet check`
//! tells how to allow them), /dev/net/tun that every user may open, and IPv6.

use std::io::Write;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use ringlet::{MacAddress, NetworkInterface, VmConfig};

use super::{Guest, Host};

/// Says that the test is in its network already.
const INSIDE: &str = "RINGLET_TEST_INSIDE";
/// A stop for a test, in seconds.
const STOP: &str = "500";

pub(crate) const GUEST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 2];
pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// Makes each `async fn name(host: Host)` a test on io_uring and a test on epoll, each in a network of its own.
macro_rules! in_networks_of_their_own {
    ($($(#[$meta:meta])* async fn $name:ident($host:ident: Host) $body:block)*) => {
        $($(#[$meta])* async fn $name($host: Host) $body)*

        mod uring {
            $(#[test] fn $name() {
                let name = concat!(module_path!(), "::", stringify!($name));
                crate::common::network::enter(name, ringlet::EngineChoice::Uring, super::$name);
            })*
        }

        mod epoll {
            $(#[test] fn $name() {
                let name = concat!(module_path!(), "::", stringify!($name));
                crate::common::network::enter(name, ringlet::EngineChoice::Epoll, super::$name);
            })*
        }
    };
}
pub(crate) use in_networks_of_their_own;

/// Runs `test`, whose full name is `name`, in a network with nothing in it but a loopback.
pub(crate) fn enter(name: &str, engine: ringlet::EngineChoice, test: impl AsyncFnOnce(Host)) {
    if std::env::var_os(INSIDE).is_some() {
        run("ip link set lo up");
        return super::on(engine, test);
    }
    let (_, name) = name.split_once("::").unwrap();
    let output = Command::new("timeout")
        .args(["--kill-after=10", STOP, "unshare", "--user", "--map-root-user", "--net"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .output()
        .expect("unshare and timeout are there");
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let remedy = if errors.contains("unshare: ") { "; see `ringlet check`" } else { "" };
    let passed = output.status.success() && said.contains("1 passed");
    assert!(passed, "{}{remedy}\n{said}\n{errors}", output.status);
}

/// Runs a program, its arguments between spaces, to its good end; what it printed.
#[track_caller]
pub(crate) fn run(line: &str) -> String {
    String::from_utf8(bytes(line)).unwrap()
}

/// As [`run`], of what is no text.
#[track_caller]
pub(crate) fn bytes(line: &str) -> Vec<u8> {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    let output =
        command.args(words).stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{line}: {error}"));
    let said = || String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{line}: {}: {}", output.status, said());
    output.stdout
}

/// Gives lines to one `ip`: for many of them.
pub(crate) fn ip_batch(lines: &str) {
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    ip.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(ip.wait().unwrap().success(), "{lines}");
}

/// A tap that is up: the host is 192.0.2.1 and fd00::1 there.
pub(crate) fn tap(mtu: u32) {
    run("ip tuntap add dev tap0 mode tap");
    address_tap(mtu);
}

/// Takes a tap up that is there.
pub(crate) fn address_tap(mtu: u32) {
    run(&format!("ip link set tap0 mtu {mtu} up"));
    run("ip address add 192.0.2.1/24 dev tap0");
    if mtu >= 1280 {
        run("ip address add fd00::1/64 dev tap0 nodad");
    }
}

/// A guest of ours on that tap, with its arguments.
pub(crate) fn configured(name: &str, args: &[&str]) -> VmConfig {
    let interface = NetworkInterface::tap("net0", "tap0").mac(MacAddress(GUEST_MAC));
    VmConfig::new(name).memory_mib(64).network_interface(interface).args(args.iter().copied())
}

/// The guest `http` on that tap, ready: it is 192.0.2.2 and fd00::2.
pub(crate) fn http(host: &Host, args: &[&str]) -> Guest {
    let guest =
        host.bundled_with(configured("http", &[&["ip=192.0.2.2/24", "ip=fd00::2/64"], args].concat()));
    guest.until_printed("ready on port 80");
    guest
}

/// What the guest `http` answers to a request, by curl.
#[track_caller]
pub(crate) fn curl(what: &str) -> Vec<u8> {
    bytes(&format!("curl --silent --show-error --fail --max-time 200 --noproxy * {what}"))
}

/// `/bytes/N` of that guest.
pub(crate) fn pattern(len: u32) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

/// Has the guest send and receive `len` bytes; they come back as they should.
#[track_caller]
pub(crate) fn exchange(address: &str, len: u32, folder: &Path) {
    let (expected, file) = (pattern(len), folder.join("sent"));
    assert!(curl(&format!("http://{address}/bytes/{len}")) == expected, "other bytes came");
    std::fs::write(&file, &expected).unwrap();
    let echo = format!("--header Expect: --data-binary @{} http://{address}/echo", file.display());
    assert!(curl(&echo) == expected, "other bytes came back");
}

/// A sample of the metrics: the sum of those whose line has all of `parts`.
pub(crate) fn metric(host: &Host, parts: &[&str]) -> f64 {
    let text = host.runtime.registry().encode();
    let lines =
        text.lines().filter(|line| !line.starts_with('#') && parts.iter().all(|part| line.contains(part)));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

/// Counters of an interface, as `ip` tells them: `way` is rx or tx.
pub(crate) fn counter(interface: &str, way: &str, what: &str) -> u64 {
    let text = run(&format!("ip -json -statistics link show {interface}"));
    let links: serde_json::Value = serde_json::from_str(&text).unwrap();
    links[0]["stats64"][way][what].as_u64().expect(&text)
}
