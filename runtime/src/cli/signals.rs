//! The signals that end `ringlet run` in an orderly way.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// All signals that would end the process without leaving it a chance to put the terminal back, each with its exit
/// status.
pub(super) struct Signals {
    all: Vec<(Signal, u8)>,
    /// The exit status that the first one asks for.
    status: Option<u8>,
}

impl Signals {
    /// SIGHUP is one of them unless something else `takes_hangup`.
    pub(super) fn new(takes_hangup: bool) -> io::Result<Self> {
        let kinds = [
            (SignalKind::interrupt(), 130),
            (SignalKind::quit(), 131),
            (SignalKind::terminate(), 143),
            (SignalKind::hangup(), 143),
            (SignalKind::alarm(), 143),
            (SignalKind::user_defined1(), 143),
            (SignalKind::user_defined2(), 143),
        ];
        let ends = kinds.into_iter().filter(|(kind, _)| !takes_hangup || *kind != SignalKind::hangup());
        let all = ends.map(|(kind, status)| Ok((signal(kind)?, status)));
        Ok(Self { all: all.collect::<io::Result<_>>()?, status: None })
    }

    /// Waits for the next of them. True if it is the first.
    pub(super) async fn next(&mut self) -> bool {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// True if one has arrived already.
    pub(super) async fn arrived(&mut self) -> bool {
        // Gives the loop a chance to take notice of one.
        #[expect(clippy::disallowed_methods, reason = "this loop is not a shard's")]
        tokio::task::yield_now().await;
        poll_fn(|cx| Poll::Ready(self.poll_next(cx).is_ready())).await
    }

    /// The exit status that the first signal asks for; `None` before there was one.
    pub(super) fn status(&self) -> Option<u8> {
        self.status
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut come = self
            .all
            .iter_mut()
            .filter_map(|(signal, status)| signal.poll_recv(cx).is_ready().then_some(*status));
        match come.next() {
            Some(status) => Poll::Ready(self.status.replace(self.status.unwrap_or(status)).is_none()),
            None => Poll::Pending,
        }
    }
}
