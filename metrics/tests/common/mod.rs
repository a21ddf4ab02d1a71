//! A metrics server on a thread of its own, and the plainest possible HTTP client.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;

use ringlet_metrics::exposition::{Limits, serve_with};
use ringlet_metrics::{Endpoint, Listener, Registry};
use tempfile::TempDir;
use tokio::sync::oneshot;

/// Longest time that any answer may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A running server; stopped and joined when dropped.
pub(crate) struct Server {
    pub(crate) endpoint: Endpoint,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<io::Result<()>>>,
    _directory: Option<TempDir>,
}

impl Server {
    pub(crate) fn tcp(registry: &Registry, limits: Limits) -> Self {
        let endpoint: Endpoint = "127.0.0.1:0".parse().unwrap();
        Self::start(endpoint.bind().unwrap(), registry, limits, None)
    }

    pub(crate) fn unix(registry: &Registry, limits: Limits) -> Self {
        let directory = TempDir::new().unwrap();
        let endpoint = Endpoint::Unix(directory.path().join("m.sock"));
        Self::start(endpoint.bind().unwrap(), registry, limits, Some(directory))
    }

    fn start(listener: Listener, registry: &Registry, limits: Limits, directory: Option<TempDir>) -> Self {
        let endpoint = listener.endpoint().unwrap();
        let (stop, stopped) = oneshot::channel();
        let registry = registry.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(serve_with(limits, listener, registry, async {
                let _ = stopped.await;
            }))
        });
        Self { endpoint, stop: Some(stop), thread: Some(thread), _directory: directory }
    }

    pub(crate) fn connect(&self) -> Box<dyn Stream> {
        match &self.endpoint {
            Endpoint::Tcp(address) => {
                let stream = TcpStream::connect(address).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.set_write_timeout(Some(PATIENCE)).unwrap();
                Box::new(stream)
            }
            Endpoint::Unix(path) => {
                let stream = UnixStream::connect(path).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.set_write_timeout(Some(PATIENCE)).unwrap();
                Box::new(stream)
            }
        }
    }

    /// Sends `method path` and returns the whole response.
    pub(crate) fn request(&self, method: &str, path: &str) -> Response {
        let mut stream = self.connect();
        stream.write_all(format!("{method} {path} HTTP/1.1\r\nHost: ringlet\r\n\r\n").as_bytes()).unwrap();
        read_response(&mut stream).unwrap()
    }

    /// Asserts that the server still answers a well-behaved client.
    pub(crate) fn assert_well(&self) {
        let response = self.request("GET", "/metrics");
        assert_eq!(response.status, 200, "{response:?}");
        assert!(response.body.contains("ringlet_build_info"), "{response:?}");
    }

    /// Stops the server and waits for its end.
    pub(crate) fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            stop.send(()).expect("the server ended by itself");
        }
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server panicked").expect("the server failed");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
        }
    }
}

pub(crate) trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Response {
    /// The value of header `name` (lower case).
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// Reads to the end of the connection: the server answers one request, then closes.
pub(crate) fn read_response(stream: &mut dyn Stream) -> io::Result<Response> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8(bytes).unwrap();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("no response: {text:?}")));
    };
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Ok(Response { status, head: head.to_owned(), body: body.to_owned() })
}
