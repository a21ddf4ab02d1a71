//! `GET /metrics` over HTTP/1.1, for Prometheus and for `curl`.
//!
//! Owns: the route and its bounds. A client may be anyone who can reach the socket, so everything that it can
//! hold is limited: connections, time to send a request, time in all, bytes of a request, and rendered
//! responses in memory ([`Limits`]). One request a connection: at a scrape every few seconds, keeping
//! connections open would save nothing and leave idle ones to be bounded too.
//! Never: changes a number, blocks the runtime's thread (rendering runs on its blocking pool), or logs what a
//! client sent.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::endpoint::{Listener, Socket, SocketFile};
use crate::registry::Registry;
use crate::throttle::{Gcra, Rate, Verdict};

/// The content type of Prometheus text format 0.0.4.
pub const CONTENT_TYPE_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a browser shows that was given the address without the path.
const ELSEWHERE: &str = "nothing is here; the metrics are at /metrics\n";

/// Largest request head, in bytes (hyper's smallest buffer).
const MAX_REQUEST_BYTES: usize = 8192;
/// Most header lines of a request.
const MAX_HEADERS: usize = 64;
/// Pause after a failed accept (out of descriptors), so that it cannot spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What is left to responses under way when the server is told to stop.
const STOP_GRACE: Duration = Duration::from_millis(250);

/// What clients may hold, all of them together or each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once, at least 1. Further ones wait in the kernel's backlog. Default 64.
    pub connections: usize,
    /// Responses rendered or held in memory at once, at least 1: a response may be some MiB, and a client that
    /// does not read keeps it. Default 8.
    pub responses: usize,
    /// Time for a client to send its request's head. Default 5 s.
    pub header_time: Duration,
    /// Time that a request may wait for one of the `responses`; then it is answered with 503, which a client can
    /// tell from a dead server. Default 5 s.
    pub wait_time: Duration,
    /// Time for a whole connection, to be more than the other two together. Default 20 s (Prometheus gives up
    /// after 10).
    pub connection_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            responses: 8,
            header_time: Duration::from_secs(5),
            wait_time: Duration::from_secs(5),
            connection_time: Duration::from_secs(20),
        }
    }
}

/// Serves `registry` on `listener` with the default [`Limits`] until `shutdown` completes; see [`serve_with`].
///
/// # Errors
/// If the socket cannot be handed to the runtime. Failures of single connections are not errors.
pub async fn serve(
    listener: Listener,
    registry: Registry,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    serve_with(Limits::default(), listener, registry, shutdown).await
}

/// Serves `registry` on `listener` until `shutdown` completes; then responses under way get 250 ms, and the
/// socket's file is removed. Must run on a tokio runtime with I/O and time enabled.
///
/// # Errors
/// If the socket cannot be handed to the runtime. Failures of single connections are not errors.
pub async fn serve_with(
    limits: Limits,
    listener: Listener,
    registry: Registry,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let mut acceptor = Acceptor::new(listener, limits)?;
    let routes = router(registry, limits).fallback((StatusCode::NOT_FOUND, ELSEWHERE));
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            (stream, slot) = acceptor.accept() => {
                let connection = connection(limits, stream, routes.clone());
                connections.spawn(async move {
                    connection.await;
                    drop(slot);
                });
            }
        }
        while connections.try_join_next().is_some() {}
    }
    drop(acceptor);
    // What is not done by then is aborted when the set is dropped.
    let drain = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(STOP_GRACE, drain).await;
    Ok(())
}

/// The route `/metrics` by itself, to be merged into a larger API. Of the limits, `responses` and `wait_time` are
/// kept here; those of connections are the server's business.
pub fn router(registry: Registry, limits: Limits) -> Router {
    let responses = Arc::new(Semaphore::new(limits.responses.max(1)));
    let scrape = Scrape { registry, responses, wait_time: limits.wait_time };
    Router::new().route("/metrics", get(metrics)).with_state(scrape)
}

#[derive(Clone)]
struct Scrape {
    registry: Registry,
    responses: Arc<Semaphore>,
    wait_time: Duration,
}

/// A response body that counts against [`Limits::responses`] until its last byte is sent or dropped.
struct Rendered {
    text: String,
    _slot: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Rendered {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

async fn metrics(State(scrape): State<Scrape>) -> Response {
    let slot = tokio::time::timeout(scrape.wait_time, scrape.responses.acquire_owned()).await;
    let Ok(Ok(slot)) = slot else {
        let retry = [(RETRY_AFTER, "5")];
        return (StatusCode::SERVICE_UNAVAILABLE, retry, "too many scrapes at once\n").into_response();
    };
    let registry = scrape.registry;
    let render = move || registry.try_encode().map(|text| Rendered { text, _slot: slot });
    match tokio::task::spawn_blocking(render).await {
        Ok(Ok(rendered)) => {
            ([(CONTENT_TYPE, CONTENT_TYPE_TEXT)], Body::from(Bytes::from_owner(rendered))).into_response()
        }
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "the renderer failed\n").into_response(),
    }
}

/// Serves one connection to its end, at most [`Limits::connection_time`].
async fn connection(limits: Limits, stream: Stream, routes: Router) {
    let served = tokio::time::timeout(limits.connection_time, async {
        match stream {
            Stream::Tcp(stream) => http(limits, stream, routes).await,
            Stream::Unix(stream) => http(limits, stream, routes).await,
        }
    });
    match served.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::trace!(%error, "metrics connection failed"),
        Err(_) => tracing::trace!("metrics connection took too long"),
    }
}

async fn http(
    limits: Limits,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    routes: Router,
) -> hyper::Result<()> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_time)
        .max_buf_size(MAX_REQUEST_BYTES)
        .max_headers(MAX_HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes))
        .await
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

enum AsyncSocket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl AsyncSocket {
    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(socket) => socket.accept().await.map(|(stream, _)| Stream::Tcp(stream)),
            Self::Unix(socket) => socket.accept().await.map(|(stream, _)| Stream::Unix(stream)),
        }
    }
}

/// Accepts as many connections as there are slots.
struct Acceptor {
    socket: AsyncSocket,
    slots: Arc<Semaphore>,
    complaints: Gcra,
    started: Instant,
    _file: Option<SocketFile>,
}

impl Acceptor {
    fn new(listener: Listener, limits: Limits) -> io::Result<Self> {
        let socket = match listener.socket {
            Socket::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                AsyncSocket::Tcp(TcpListener::from_std(socket)?)
            }
            Socket::Unix(socket) => {
                socket.set_nonblocking(true)?;
                AsyncSocket::Unix(UnixListener::from_std(socket)?)
            }
        };
        Ok(Self {
            socket,
            slots: Arc::new(Semaphore::new(limits.connections.max(1))),
            complaints: Gcra::new(),
            started: Instant::now(),
            _file: listener.file,
        })
    }

    /// Waits for a slot, then for a connection. Safe to cancel.
    async fn accept(&mut self) -> (Stream, OwnedSemaphorePermit) {
        loop {
            let error = match self.slots.clone().acquire_owned().await {
                Ok(slot) => match self.socket.accept().await {
                    Ok(stream) => return (stream, slot),
                    Err(error) => error,
                },
                Err(closed) => io::Error::other(closed),
            };
            self.complain(&error);
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }

    fn complain(&mut self, error: &io::Error) {
        let now = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        if let Verdict::Pass { suppressed } = self.complaints.admit(now, Rate::LOG_LINES) {
            tracing::warn!(%error, suppressed, "cannot accept a metrics connection");
        }
    }
}
