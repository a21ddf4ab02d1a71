//! A real tap, in a network of the test's own: this machine's ping and curl against the guest `http`. A user name space
//! lends the privilege that a tap takes, so the test needs none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::fs;
use std::process::{Command, Stdio};

/// Runs in a network of its own, in an empty folder. $1 is ringlet, $2 the engine, $3 more options of `--net`, $4 a word
/// of the guest's, $5 of the tap's. Whatever fails ends it.
const SCRIPT: &str = r#"
set -eu
ip link set lo up
ip tuntap add dev tap0 mode tap $5
ip address add 192.0.2.1/24 dev tap0
ip address add fd00::1/64 dev tap0 nodad
ip link set tap0 up
"$1" run http --io-engine "$2" --net "tap=tap0,mac=02:00:00:00:00:02$3" -- ip=192.0.2.2/24 ip=fd00::2/64 $4 >printed 2>&1 &
vm=$!
trap 'kill $vm 2>/dev/null || true' EXIT
until grep -q 'ready on port 80' printed; do
    kill -0 $vm || { cat printed; exit 1; }
    sleep 0.05
done
busybox ping -c 2 -W 60 -s 1200 192.0.2.2 >pinged
ip neighbour show 192.0.2.2 >neighbour
curl() { command curl --silent --show-error --max-time 120 --noproxy '*' "$@"; }
curl --output bytes http://192.0.2.2/bytes/3000000
curl --output bytes6 'http://[fd00::2]/bytes/300000'
curl --output echoed --data-binary @bytes --header 'Expect: 100-continue' http://192.0.2.2/echo
curl --output stats http://192.0.2.2/stats
kill $vm
wait $vm || true
"#;

/// A stop for the whole, in seconds.
const DEADLINE: &str = "300";

fn serves(engine: &str, options: &str, word: &str) {
    serves_on("", engine, options, word);
}

/// As [`serves`], on a tap that is made with this word.
fn serves_on(tap: &str, engine: &str, options: &str, word: &str) {
    let folder = tempfile::tempdir().unwrap();
    let what = format!("{engine}{options} {word}");
    let output = Command::new("timeout")
        .args([DEADLINE, "unshare", "--user", "--map-root-user", "--net", "sh", "-c", SCRIPT, "sh"])
        .args([env!("CARGO_BIN_EXE_ringlet"), engine, options, word, tap])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()
        .expect("unshare and timeout are there");
    let read = |name: &str| fs::read(folder.path().join(name)).unwrap_or_default();
    let text = |name: &str| String::from_utf8_lossy(&read(name)).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {errors}{}", text("printed"));
    assert!(text("pinged").contains("2 packets received"), "{what}: {}", text("pinged"));
    assert!(text("neighbour").contains("02:00:00:00:00:02"), "{what}: {}", text("neighbour"));
    let expected: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
    assert!(read("bytes") == expected, "{what}: other bytes came");
    assert!(read("bytes6") == expected[..300_000], "{what}: other bytes came by IPv6");
    assert!(read("echoed") == expected, "{what}: other bytes came back");
    let stats: serde_json::Value = serde_json::from_slice(&read("stats")).unwrap();
    assert_eq!(stats["requests"], serde_json::json!({"good": 3, "bad": 0}), "{what}: {stats}");
    assert_eq!(stats["device"]["rx_dropped"], 0, "{what}: {stats}");
    assert_eq!(stats["connections"]["aborted"], 0, "{what}: {stats}");
}

#[test]
fn a_guest_serves_the_network_of_a_tap() {
    for engine in ["uring", "epoll"] {
        serves(engine, "", "");
    }
}

#[test]
fn a_guest_serves_without_offloads_and_with_small_packets() {
    for engine in ["uring", "epoll"] {
        serves(engine, "", "offloads=off");
        serves(engine, ",mtu=1280", "");
    }
}

/// The guest uses one pair, as it does unless it is told: the kernel gives it what comes, and the other pairs nothing.
#[test]
fn a_guest_serves_on_a_tap_with_several_queues() {
    for engine in ["uring", "epoll"] {
        serves_on("multi_queue", engine, ",queues=4", "");
    }
    serves_on("multi_queue", "epoll", "", "");
}

#[test]
fn a_guest_whose_addresses_are_pinned_serves_from_them() {
    serves("epoll", ",anti_spoof,ipv4=192.0.2.2,ipv6=fd00::2", "");
}
