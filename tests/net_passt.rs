//! User-mode networks of passt(1), and one of QEMU's, on real KVM: this machine's curl against the guest `http`,
//! without any privilege, as the README has it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::eventually;
use common::network::{curl, pattern};
use common::process::{Running, ringlet, run};
use rustix::process::Signal;

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The processes that a process has started.
fn children(of: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{of}/task")).unwrap();
    let lists =
        tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default());
    let text = lists.collect::<Vec<_>>().join(" ");
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn curl_reaches_a_guest_through_a_passt_of_its_own_that_ends_with_it() {
    for engine in ["uring", "epoll"] {
        let port = free_port();
        let net = format!("passt,publish=127.0.0.1:{port}:80");
        let mut vm = Running::start(&mut ringlet(&["run", "http", "--io-engine", engine, "--net", &net]));
        vm.until_printed("ready on port 80");
        let url = format!("http://127.0.0.1:{port}");
        assert!(curl(&format!("{url}/bytes/1000000")) == pattern(1_000_000), "{engine}: other bytes came");
        let stats: serde_json::Value = serde_json::from_slice(&curl(&format!("{url}/stats"))).unwrap();
        assert_eq!(stats["requests"]["bad"], 0, "{engine}: {stats}");
        let [passt] = children(vm.child().id())[..] else { panic!("{engine}: it has started one process") };
        vm.signal(Signal::TERM);
        assert_eq!(vm.status().code(), Some(143));
        eventually("passt ends, too", || !exists(passt));
    }
}

/// A user-mode network that somebody else has started.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn curl_reaches_a_guest_through_the_socket_of_a_passt() {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    // It may give up the rights of the one who starts it.
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let socket = folder.path().join("passt.socket");
    let port = free_port();
    let passt = Command::new("passt")
        .args(["--foreground", "--quiet", "--one-off", "--ipv4-only", "--interface", "lo"])
        .args(["--address", "10.0.2.15", "--netmask", "24", "--gateway", "10.0.2.2"])
        .args(["--mac-addr", "02:00:0a:00:02:02", "--tcp-ports", &format!("127.0.0.1/{port}:80")])
        .arg("--socket")
        .arg(&socket)
        .stdin(Stdio::null())
        .spawn()
        .expect("this test needs passt: run tests/setup");
    let _passt = Peer(passt);
    eventually("passt listens", || socket.exists());
    let net = format!("passt={}", socket.display());
    let mut vm = Running::start(&mut ringlet(&["run", "http", "--net", &net]));
    vm.until_printed("ready on port 80");
    let bytes = curl(&format!("http://127.0.0.1:{port}/bytes/300000"));
    assert!(bytes == pattern(300_000));
    vm.signal(Signal::TERM);
    assert_eq!(vm.status().code(), Some(143));
}

/// QEMU without a machine: its user-mode network on a hub with a stream (`-netdev stream`).
#[test]
fn curl_reaches_a_guest_through_the_stream_of_a_qemu() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("qemu.socket");
    let port = free_port();
    let qemu = Command::new("qemu-system-x86_64")
        .args(["-machine", "none", "-nodefaults", "-display", "none", "-serial", "none", "-monitor", "none"])
        .arg("-netdev")
        .arg(format!("stream,id=s,server=on,addr.type=unix,addr.path={}", socket.display()))
        .args(["-netdev", "hubport,id=one,hubid=0,netdev=s"])
        .args(["-netdev", &format!("user,id=u,hostfwd=tcp:127.0.0.1:{port}-:80")])
        .args(["-netdev", "hubport,id=other,hubid=0,netdev=u"])
        .stdin(Stdio::null())
        .spawn()
        .expect("this test needs QEMU: run tests/setup");
    let _qemu = Peer(qemu);
    eventually("QEMU listens", || socket.exists());
    for engine in ["uring", "epoll"] {
        // QEMU remembers where the guest's address is.
        let net = format!("socket={},mac=02:00:00:00:00:02", socket.display());
        let mut vm = Running::start(&mut ringlet(&["run", "http", "--io-engine", engine, "--net", &net]));
        vm.until_printed("ready on port 80");
        let bytes = curl(&format!("http://127.0.0.1:{port}/bytes/300000"));
        assert!(bytes == pattern(300_000), "{engine}");
        vm.signal(Signal::TERM);
        assert_eq!(vm.status().code(), Some(143));
    }
}

#[test]
fn many_vms_have_a_network_each() {
    let mut vms = Running::start(&mut ringlet(&["run", "http", "--count", "3", "--net", "passt"]));
    for _ in 0..3 {
        vms.until_printed("ready on port 80");
    }
    assert_eq!(children(vms.child().id()).len(), 3);
    vms.signal(Signal::TERM);
    assert_eq!(vms.status().code(), Some(143));
}

#[test]
fn what_does_not_start_is_told_with_the_remedy() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let net = format!("passt,publish=127.0.0.1:{}:80", taken.local_addr().unwrap().port());
    let finished = run(&["run", "http", "--net", &net]).expect(125);
    assert!(finished.stderr.contains("is the port in use"), "{}", finished.stderr);
    let mut without = ringlet(&["run", "http", "--net", "passt"]);
    let finished = Running::start(without.env("PATH", "/nonexistent")).finish().expect(125);
    assert!(finished.stderr.contains("sudo apt install passt"), "{}", finished.stderr);
}

/// What an unprivileged process of this machine reaches, a guest reaches; but not its loopback addresses, whatever the
/// user-mode network makes of them.
#[test]
fn sec_03_a_guest_does_not_reach_what_listens_on_loopback_addresses() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    for address in ["127.0.0.1", "0.0.0.1"] {
        let args = ["run", "netbench", "--net", "passt", "--", "tcp-send", "--to", address, "--port", &port];
        let mut vm = Running::start(&mut ringlet(&args));
        vm.until_said(&format!("IP to {address}, which is on no link"));
        assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
    // The gateway's address is not another name of the host's loopback, as it is by passt's defaults.
    let args = ["run", "netbench", "--net", "passt", "--", "tcp-send", "--to", "10.0.2.2", "--port", &port];
    let finished = run(&args);
    assert!(
        finished.stderr.contains("netbench: failed") || finished.stdout.contains("netbench: failed"),
        "{finished:?}"
    );
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

/// Runs in a network of its own, in an empty folder, where files can be put in the place of others. $1 is ringlet, $2 the
/// engine, $3 the address of the host's resolver; the rest are arguments of the guest. Ends as the guest does.
const LOOKUP: &str = r#"
ringlet=$1 engine=$2 resolver=$3
shift 3
ip link set lo up
ip address add 192.0.2.53/32 dev lo
echo "nameserver $resolver" >resolv.conf
mount --bind resolv.conf /etc/resolv.conf || exit 99
dnsmasq --no-daemon --conf-file=/dev/null --no-resolv --no-hosts --bind-interfaces --listen-address="$resolver" \
    --address=/server.test/192.0.2.53 --local=/test/ >resolver.log 2>&1 &
dnsmasq=$!
trap 'kill $dnsmasq' EXIT
until grep -q started resolver.log; do
    kill -0 $dnsmasq || { cat resolver.log; exit 99; }
    sleep 0.05
done
socat TCP-LISTEN:5001,bind=192.0.2.53,reuseaddr,fork PIPE &
socat=$!
trap 'kill $dnsmasq $socat' EXIT
until ss --listening --tcp --no-header | grep -q 5001; do
    sleep 0.05
done
"$ringlet" run netbench --io-engine "$engine" --net passt -- tcp-rr --duration 1 "$@"
"#;

/// What a script says, which is run in an empty folder and a network of its own, and its exit code.
fn in_a_network(script: &str, args: &[&str]) -> (String, Option<i32>) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("pattern"), pattern(300_000)).unwrap();
    let output = Command::new("timeout")
        .args(["300", "unshare", "--user", "--map-root-user", "--net", "--mount", "sh", "-c", script, "sh"])
        .arg(env!("CARGO_BIN_EXE_ringlet"))
        .args(args)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()
        .expect("unshare and timeout are there");
    let said = [&output.stdout[..], &output.stderr].concat();
    (String::from_utf8_lossy(&said).into_owned(), output.status.code())
}

/// What a guest says that looks a name up with the host's resolver at this address, and its exit code.
fn look_up(engine: &str, resolver: &str, args: &[&str]) -> (String, Option<i32>) {
    in_a_network(LOOKUP, &[&[engine, resolver], args].concat())
}

#[test]
fn a_guest_looks_names_up_as_the_host_does() {
    for engine in ["uring", "epoll"] {
        // DHCP tells of a resolver that the guest reaches.
        let (said, code) = look_up(engine, "192.0.2.53", &["--to", "server.test"]);
        assert!(said.contains("resolver 192.0.2.53") && said.contains("server.test is 192.0.2.53"), "{said}");
        assert_eq!(code, Some(0), "{said}");
        let (said, code) = look_up(engine, "192.0.2.53", &["--to", "nobody.test"]);
        assert_eq!(code, Some(9), "{said}");
    }
}

#[test]
fn a_guest_asks_a_resolver_that_is_on_a_loopback_address() {
    let (said, code) = look_up("uring", "127.0.0.53", &["--to", "server.test", "dns=10.0.2.3"]);
    assert!(said.contains("server.test is 192.0.2.53"), "{said}");
    assert_eq!(code, Some(0), "{said}");
}

/// Names, and nothing else: the resolver's address leads to no other port of the host's loopback addresses.
#[test]
fn sec_03_the_address_of_the_resolver_is_of_no_other_service() {
    let (said, code) = look_up("epoll", "127.0.0.53", &["--to", "10.0.2.3", "--port", "53"]);
    assert!(said.contains("netbench: failed") && code != Some(0), "{code:?} {said}");
}

/// A network with IPv6: the host is fd99::1 on an interface that leads everywhere. $1 is ringlet, $2 the engine.
const WITH_IPV6: &str = r#"
ringlet=$1 engine=$2
shift 2
ip link set lo up
ip link add lan0 type veth peer name lan1
ip link set lan1 up
ip link set lan0 up
ip address add fd99::1/64 dev lan0 nodad
ip route add default via fd99::2 dev lan0
until grep -q " 20 .. *lan0" /proc/net/if_inet6; do
    sleep 0.05
done
"#;

/// Asks the guest `http` at the addresses $3, which are between spaces; the rest are arguments of the guest.
const ASK: &str = r#"
addresses=$1
shift
"$ringlet" run http --io-engine "$engine" --net "passt,publish=8080:80,publish=[::1]:8081:80" -- "$@" >guest.log 2>&1 &
guest=$!
trap 'kill $guest' EXIT
until grep -q "ready on port 80" guest.log; do
    kill -0 $guest || { cat guest.log; exit 99; }
    sleep 0.05
done
cat guest.log
for address in $addresses; do
    curl --globoff --silent --show-error --fail --max-time 60 --noproxy '*' "http://$address/bytes/300000" |
        cmp - pattern && echo "$address answers"
done
"#;

/// Runs the guest `netbench` beside servers at fd99::1 and ::1. All arguments behind $2 are the guest's.
const ASKED: &str = r#"
socat TCP6-LISTEN:5001,bind=[fd99::1],reuseaddr,fork PIPE &
one=$!
socat TCP6-LISTEN:5001,bind=[::1],reuseaddr,fork EXEC:'touch reached' &
other=$!
trap 'kill $one $other' EXIT
until [ "$(ss --listening --tcp --no-header | grep -c 5001)" = 2 ]; do
    sleep 0.05
done
"$ringlet" run netbench --io-engine "$engine" --net passt -- tcp-rr --duration 1 "$@" ip=slaac
status=$?
[ ! -e reached ] || echo "the host's own loopback was reached"
exit $status
"#;

#[test]
fn curl_reaches_a_guest_by_ipv6() {
    let script = [WITH_IPV6, ASK].concat();
    for engine in ["uring", "epoll"] {
        let addresses = ["127.0.0.1:8080", "[::1]:8080", "[::1]:8081", "[fd99::1]:8080"];
        let (said, code) = in_a_network(&script, &[engine, &addresses.join(" "), "ip=slaac"]);
        assert!(said.contains(", fd00:10:0:2:") && said.contains("10.0.2.15/24"), "{said}");
        for address in addresses {
            assert!(said.contains(&format!("{address} answers")), "{code:?} {said}");
        }
    }
    // A guest that was told nothing.
    let (said, code) = in_a_network(&script, &["uring", "[::1]:8080"]);
    assert!(said.contains("[::1]:8080 answers"), "{code:?} {said}");
}

#[test]
fn a_guest_reaches_by_ipv6_what_the_host_reaches() {
    let (said, code) = in_a_network(&[WITH_IPV6, ASKED].concat(), &["uring", "--to", "fd99::1"]);
    assert!(said.contains("netbench-result {\"ok\":true") && code == Some(0), "{code:?} {said}");
}

/// Neither directly, which the guest's own stack refuses but for addresses of IPv4 in IPv6, nor by the address of the gateway.
#[test]
fn sec_03_a_guest_does_not_reach_what_listens_on_the_loopback_address_of_ipv6() {
    let dropped = "IP to ::ffff:127.0.0.1, which is on no link";
    for (address, because) in
        [("::ffff:127.0.0.1", dropped), ("::1", "netbench: failed"), ("fe80::2", "netbench: failed")]
    {
        let (said, code) = in_a_network(&[WITH_IPV6, ASKED].concat(), &["epoll", "--to", address]);
        assert!(said.contains(because) && code != Some(0), "{address}: {code:?} {said}");
        assert!(!said.contains("was reached") && !said.contains("\"ok\":true"), "{address}: {said}");
    }
}

#[test]
fn a_port_on_an_address_of_ipv6_is_refused_where_the_host_has_none() {
    let script = r#"ip link set lo up; exec "$1" run http --net "passt,publish=[::1]:8080:80""#;
    let (said, code) = in_a_network(script, &[]);
    assert!(
        said.contains("publish=[::1]:8080:80: the guest has no IPv6") && code == Some(125),
        "{code:?} {said}"
    );
}
