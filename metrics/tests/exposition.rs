//! The metrics server against real clients: well-behaved, wrong, and hostile ones.

#[cfg(test)]
mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{PATIENCE, Server, read_response};
use ringlet_metrics::exposition::{CONTENT_TYPE_TEXT, Limits};
use ringlet_metrics::{Endpoint, ExitKind, Registry, VmInfo, VmMetrics};

#[cfg(test)]
fn registry() -> Registry {
    Registry::new()
}

fn both(test: impl Fn(&mut Server)) {
    let registry = registry();
    test(&mut Server::tcp(&registry, Limits::default()));
    test(&mut Server::unix(&registry, Limits::default()));
}

/// Whether the server has closed the connection, by end of file or reset.
fn closed(result: std::io::Result<usize>) -> bool {
    match result {
        Ok(n) => n == 0,
        Err(error) => matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
    }
}

#[test]
fn metrics_are_served_over_tcp_and_unix() {
    both(|server| {
        let response = server.request("GET", "/metrics");
        assert_eq!(response.status, 200);
        assert_eq!(response.header("content-type"), Some(CONTENT_TYPE_TEXT));
        assert_eq!(response.header("content-length"), Some(response.body.len().to_string().as_str()));
        assert!(response.body.starts_with("# HELP ringlet_"), "{}", response.body);
        assert!(response.body.ends_with('\n'));
    });
}

#[test]
fn each_scrape_is_of_its_moment() {
    let registry = registry();
    let server = Server::unix(&registry, Limits::default());
    let vm = registry.register_vm(VmInfo { id: "v".into(), ..VmInfo::default() });
    for n in 1..4 {
        vm.exits.inc(ExitKind::PioWrite);
        let line = format!("ringlet_vcpu_exits_total{{vm=\"v\",kind=\"pio_write\"}} {n}\n");
        assert!(server.request("GET", "/metrics").body.contains(&line), "{n}");
    }
}

#[test]
fn head_has_the_head_and_no_body() {
    both(|server| {
        let response = server.request("HEAD", "/metrics");
        assert_eq!(response.status, 200);
        assert_eq!(response.header("content-type"), Some(CONTENT_TYPE_TEXT));
        assert!(response.header("content-length").is_some_and(|length| length != "0"), "{response:?}");
        assert_eq!(response.body, "");
    });
}

#[test]
fn another_method_is_405_and_another_path_404() {
    both(|server| {
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
            let response = server.request(method, "/metrics");
            assert_eq!(response.status, 405, "{method}");
            assert!(response.header("allow").is_some_and(|allow| allow.contains("GET")), "{response:?}");
        }
        for path in ["/", "/metricsx", "/metrics/", "/Metrics", "/../metrics", "/%2e%2e/etc/passwd", "//"] {
            let response = server.request("GET", path);
            assert_eq!(response.status, 404, "{path}");
            assert!(response.body.contains(" at /metrics\n"), "{path}: {response:?}");
        }
        assert_eq!(server.request("GET", "/metrics?name[]=x").status, 200, "a query is no other path");
    });
}

#[test]
fn nonsense_is_answered_or_closed_and_the_server_lives() {
    both(|server| {
        let nonsense: [&[u8]; 6] = [
            b"\r\n\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS client",
            b"GET /metrics HTTP/9.9\r\n\r\n",
            b"GET /metrics\0 HTTP/1.1\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        ];
        for bytes in nonsense {
            let mut stream = server.connect();
            stream.write_all(bytes).unwrap();
            // Some of it is only the beginning of something: the end of the connection is ours to say.
            drop(stream);
        }
        server.assert_well();
    });
}

#[test]
fn sec_02_an_oversized_request_is_refused() {
    both(|server| {
        let line = |len| format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(len));
        let header = |len| format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(len));
        let headers = |n| format!("GET /metrics HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(n));
        // Just above our limits, and far above.
        let requests =
            [line(16 << 10), line(1 << 20), header(16 << 10), header(1 << 20), headers(80), headers(1000)];
        for request in requests {
            let mut stream = server.connect();
            // The server may answer and close while we still write.
            let _ = stream.write_all(request.as_bytes());
            // A reset may overtake the answer; what may not come is a 200.
            if let Ok(response) = read_response(&mut stream) {
                assert!([400, 414, 431].contains(&response.status), "{response:?}");
            }
        }
        server.assert_well();
    });
}

#[test]
fn sec_02_a_body_is_not_waited_for() {
    both(|server| {
        let mut stream = server.connect();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\nabc").unwrap();
        assert_eq!(read_response(&mut stream).unwrap().status, 200);
    });
}

#[test]
fn one_request_a_connection() {
    both(|server| {
        let mut stream = server.connect();
        let one = "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n";
        stream.write_all(one.repeat(2).as_bytes()).unwrap();
        let mut text = Vec::new();
        // The second request is unread when the server closes, which may reset the connection.
        let _ = stream.read_to_end(&mut text);
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text.matches("HTTP/1.1 200").count(), 1);
        assert!(text.to_ascii_lowercase().contains("connection: close"), "{text}");
    });
}

#[test]
fn sec_02_a_silent_client_is_closed_after_the_header_time() {
    let limits = Limits { header_time: Duration::from_millis(100), ..Limits::default() };
    let server = Server::tcp(&registry(), limits);
    for begun in ["", "GET /met"] {
        let mut stream = server.connect();
        stream.write_all(begun.as_bytes()).unwrap();
        let begin = Instant::now();
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest);
        assert!(closed(ended.map(|_| 0)), "not closed after {:?}", begin.elapsed());
        assert!(begin.elapsed() >= Duration::from_millis(90), "closed too early");
        assert!(!rest.starts_with(b"HTTP/1.1 200"));
    }
    server.assert_well();
}

#[test]
fn sec_02_a_slow_loris_gains_no_time_with_each_byte() {
    let limits = Limits { header_time: Duration::from_millis(200), ..Limits::default() };
    let server = Server::tcp(&registry(), limits);
    let mut stream = server.connect();
    let begin = Instant::now();
    stream.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
    // A header that never ends, a byte at a time, until the server has had enough.
    while stream.write_all(b"X").is_ok() {
        assert!(begin.elapsed() < PATIENCE, "the server is still listening");
        std::thread::sleep(Duration::from_millis(5));
    }
    server.assert_well();
}

#[test]
fn sec_02_connections_are_bounded_and_the_next_waits_its_turn() {
    let limits = Limits { connections: 4, ..Limits::default() };
    let server = Server::unix(&registry(), limits);
    let mut idle: Vec<_> = (0..4).map(|_| server.connect()).collect();
    let Endpoint::Unix(path) = &server.endpoint else { panic!("not a Unix socket") };
    let mut fifth = UnixStream::connect(path).unwrap();
    fifth.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    fifth.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let refused = fifth.read(&mut [0; 1]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::WouldBlock, "the fifth of four connections was served");
    drop(idle.pop());
    fifth.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(read_response(&mut fifth).unwrap().status, 200);
}

#[test]
fn sec_02_a_crowd_of_idle_clients_does_not_lock_others_out() {
    let limits = Limits { header_time: Duration::from_millis(100), ..Limits::default() };
    let server = Server::tcp(&registry(), limits);
    let Endpoint::Tcp(address) = server.endpoint else { panic!("not TCP") };
    let crowd: Vec<_> = (0..120).map(|_| TcpStream::connect(address).unwrap()).collect();
    server.assert_well();
    drop(crowd);
}

/// A registry whose response fits in no socket buffer, with the handles that keep it so.
#[cfg(test)]
fn large_registry() -> (Registry, Vec<Arc<VmMetrics>>) {
    let registry = registry();
    let vm = |n| registry.register_vm(VmInfo { id: format!("vm-{n}"), ..VmInfo::default() });
    let vms = (0..400).map(vm).collect();
    (registry, vms)
}

/// A client that asks, reads the first bytes of its response (so that it exists), and no more.
#[cfg(test)]
fn lazy_client(server: &Server) -> Box<dyn common::Stream> {
    let mut lazy = server.connect();
    lazy.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    lazy.read_exact(&mut [0; 15]).unwrap();
    lazy
}

#[test]
fn sec_02_a_client_that_does_not_read_is_closed_and_its_response_freed() {
    let (registry, _vms) = large_registry();
    let limits = Limits { responses: 1, connection_time: Duration::from_secs(2), ..Limits::default() };
    let server = Server::unix(&registry, limits);
    let begin = Instant::now();
    let mut lazy = lazy_client(&server);
    // Waits for the end without reading: writing what nobody wants fails once the server has closed.
    while lazy.write_all(b"x").is_ok() {
        assert!(begin.elapsed() < PATIENCE, "the connection has no end");
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut rest = Vec::new();
    let _ = lazy.read_to_end(&mut rest);
    assert!(rest.len() < registry.encode().len(), "the whole response came, so it was not stuck");
    server.assert_well();
}

#[test]
fn sec_02_responses_in_memory_are_bounded_and_the_next_is_told_so() {
    let (registry, _vms) = large_registry();
    let limits = Limits { responses: 2, wait_time: Duration::from_millis(100), ..Limits::default() };
    let server = Server::unix(&registry, Limits { connection_time: Duration::from_secs(600), ..limits });
    let lazy = [lazy_client(&server), lazy_client(&server)];
    let refused = server.request("GET", "/metrics");
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")));
    drop(lazy);
    let begin = Instant::now();
    // The server learns of the end at its own time.
    while server.request("GET", "/metrics").status != 200 {
        assert!(begin.elapsed() < PATIENCE, "what the lazy clients held is never given back");
    }
}

#[test]
fn stopping_closes_idle_connections_and_removes_the_file() {
    let mut server = Server::unix(&registry(), Limits::default());
    let Endpoint::Unix(path) = server.endpoint.clone() else { panic!("not a Unix socket") };
    server.assert_well();
    let mut idle = server.connect();
    assert!(path.exists());
    let begin = Instant::now();
    server.stop();
    assert!(begin.elapsed() < Duration::from_secs(5), "an idle client holds up the end");
    assert!(!path.exists());
    assert!(closed(idle.read(&mut [0; 1])));
}

#[test]
fn many_scrape_at_once() {
    let registry = registry();
    let _vm = registry.register_vm(VmInfo { id: "v".into(), ..VmInfo::default() });
    let server = Server::tcp(&registry, Limits::default());
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| (0..10).for_each(|_| server.assert_well()));
        }
    });
}
