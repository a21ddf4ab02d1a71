use super::super::{HEADER, NetSource, Received};
use super::*;
use crate::engine::EngineKind;
use crate::lease::{GuestRange, LeaseUse};
use crate::ram::{Backing, GuestRam};
use crate::testing::{on_both_engines, on_shard, wait_until};

on_both_engines!(a_real_passt_answers_a_guest_and_ends_with_its_port);

/// A program in the place of passt: a script of the shell, whose socket is its descriptor 3.
fn script(text: &str) -> Result<Socket, PasstError> {
    start("sh", &["-c".to_owned(), text.to_owned()])?.served()
}

fn real(options: &PasstOptions) -> Result<Socket, PasstError> {
    match Socket::passt(options) {
        Err(PasstError::NotInstalled) => panic!("this test needs passt: run tests/setup"),
        result => result,
    }
}

fn process(socket: &Socket) -> u32 {
    socket.passt.as_ref().and_then(|passt| passt.child.as_ref()).expect("a process of our own").id()
}

fn wait_until_gone(process: u32) {
    let path = format!("/proc/{process}");
    wait_until("the end of the process", || !std::fs::exists(&path).unwrap());
}

#[test]
fn what_is_not_installed_is_named_with_the_remedy() {
    let error = start("/nonexistent/passt", &[]).err().unwrap();
    assert!(matches!(error, PasstError::NotInstalled));
    assert!(error.to_string().contains("apt install passt"), "{error}");
}

#[test]
fn a_program_that_ends_is_quoted() {
    let text = "echo 'Failed to send 5 bytes to syslog' >&2; echo \"Couldn't listen on port 80\" >&2; exit 7";
    let error = script(text).unwrap_err().to_string();
    assert!(
        error.contains("exit status: 7") && error.contains("Couldn't listen on port 80; is the port"),
        "{error}"
    );
    assert!(!error.contains("syslog"), "{error}");
    assert!(script("exit 0").unwrap_err().to_string().contains("does not say why"));
    // One that closes the socket, and one that answers nonsense, are ended.
    for text in ["exec 3>&-; sleep 1000", r"printf '\377\377\377\377' >&3; exec sleep 1000"] {
        assert!(matches!(script(text), Err(PasstError::Ended { .. })), "{text}");
    }
}

#[test]
fn it_is_told_of_ipv6_and_of_a_resolver_where_the_host_has_them() {
    let options = PasstOptions { mac: [2, 0, 0, 0, 0, 7], ..PasstOptions::default() };
    let words = |options: &PasstOptions, host: &Host| options.arguments(host).unwrap().join(" ");
    let neither = words(&options, &Host::default());
    assert!(
        neither.contains("--ipv4-only --interface lo") && !neither.contains("--dns-forward"),
        "{neither}"
    );
    let host = Host { resolver_is_local: true, ipv6: Some("eth0".to_owned()) };
    let both = words(&options, &host);
    assert!(both.contains("--interface eth0 --address fd00:10:0:2:0:ff:fe00:7 --gateway fe80::2"), "{both}");
    assert!(both.contains("--dns-forward 10.0.2.3") && !both.contains("--ipv4-only"), "{both}");
    // A packet of IPv6 has to fit.
    for (mtu, is_without) in [(1279, true), (1280, false)] {
        let words = words(&PasstOptions { mtu: Some(mtu), ..options.clone() }, &host);
        assert_eq!(words.contains("--ipv4-only"), is_without, "{words}");
    }
}

#[test]
fn a_port_on_an_address_of_ipv6_takes_ipv6() {
    let publish = vec!["127.0.0.1:1:1".parse().unwrap(), "[::1]:8080:80".parse().unwrap()];
    let options = PasstOptions { publish, ..PasstOptions::default() };
    let refused = options.arguments(&Host::default()).unwrap_err().to_string();
    assert!(refused.contains("publish=[::1]:8080:80") && refused.contains("ip -6 route"), "{refused}");
    let host = Host { ipv6: Some("eth0".to_owned()), ..Host::default() };
    assert!(options.arguments(&host).unwrap().contains(&"::1/8080:80".to_owned()));
}

#[test]
fn sec_02_what_a_program_says_is_bounded() {
    let error = script("while echo $((n += 1)) >&2 && [ $n -lt 100000 ]; do :; done").unwrap_err();
    let PasstError::Ended { said, .. } = error else { panic!("{error}") };
    assert!(said.starts_with("1; 2; 3; ") && said.len() < 2 * SAID as usize, "{} bytes", said.len());
}

#[test]
fn a_real_passt_tells_that_a_port_is_taken() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let publish = vec![format!("127.0.0.1:{port}:80").parse().unwrap()];
    let error = real(&PasstOptions { publish, ..PasstOptions::default() }).unwrap_err().to_string();
    assert!(error.contains(&port.to_string()) && error.contains("is the port in use"), "{error}");
}

#[test]
fn a_socket_that_is_dropped_ends_its_real_passt() {
    let socket = real(&PasstOptions::default()).unwrap();
    let process = process(&socket);
    assert!(std::fs::exists(format!("/proc/{process}")).unwrap());
    drop(socket);
    wait_until_gone(process);
}

/// The answer to the question of a guest comes in guest memory.
fn a_real_passt_answers_a_guest_and_ends_with_its_port(kind: EngineKind) {
    let mut options = PasstOptions { mtu: Some(1400), ..PasstOptions::default() };
    let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    options.publish.push(format!("127.0.0.1:{port}:53/udp").parse().unwrap());
    let socket = real(&options).unwrap();
    let process = process(&socket);
    assert!(std::net::UdpSocket::bind(("127.0.0.1", port)).is_err(), "it has the port");
    on_shard(kind, |cx| async move {
        let ports = NetSource::Socket(socket).attach(&cx).unwrap();
        let ram = GuestRam::new(&[(0, 64 << 10)], Backing::Pages4K).unwrap();
        let lease = |len, use_| ram.lease(&[GuestRange { gpa: 0, len }], use_).unwrap();
        let frame = question();
        lease(64, LeaseUse::Target).copy_in(&frame, 0).unwrap();
        let sent = ports[0].send(&[0; HEADER], &lease(frame.len() as u32, LeaseUse::Source)).unwrap();
        assert_eq!(sent, super::super::Sent::Taken);
        let room = lease(2048, LeaseUse::Target);
        loop {
            let Some(Received::Packet(length)) = ports[0].receive(&room).unwrap() else {
                ports[0].readable().await.unwrap();
                continue;
            };
            let mut packet = vec![0; length];
            lease(length as u32, LeaseUse::Source).copy_out(&mut packet, 0).unwrap();
            let frame = &packet[HEADER..];
            if frame[12..14] == [8, 6] && frame[28..32] == GATEWAY.octets() {
                break;
            }
        }
    });
    wait_until_gone(process);
}
