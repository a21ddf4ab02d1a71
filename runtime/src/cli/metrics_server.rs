//! `--metrics`: the exposition of metrics for as long as `ringlet run` lasts.

use std::thread::JoinHandle;

use ringlet_metrics::{Endpoint, Registry, exposition};
use tokio::sync::oneshot;

use super::CliResult;

/// Serves `/metrics` from a thread of its own; dropping it ends that and removes the socket.
pub(super) struct MetricsServer {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread runs. Waits for nothing when it is dropped, which a caller that is itself polled does if there is no
/// thread.
struct Executor(Option<tokio::runtime::Runtime>);

impl Drop for Executor {
    fn drop(&mut self) {
        if let Some(executor) = self.0.take() {
            executor.shutdown_background();
        }
    }
}

impl MetricsServer {
    pub(super) fn start(endpoint: &Endpoint, registry: Registry) -> CliResult<Self> {
        let listener = endpoint.bind()?;
        let bound = listener.endpoint()?;
        tracing::info!(endpoint = %bound, "serving metrics");
        if matches!(endpoint, Endpoint::Tcp(address) if address.port() == 0) {
            // Nobody else knows.
            eprintln!("ringlet: serving metrics at http://{bound}/metrics");
        }
        let executor = Executor(Some(tokio::runtime::Builder::new_current_thread().enable_all().build()?));
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("metrics".into()).spawn(move || {
            let until = async { drop(stopped.await) };
            let served =
                executor.0.as_ref().map(|it| it.block_on(exposition::serve(listener, registry, until)));
            if let Some(Err(error)) = served {
                tracing::error!(%error, "metrics are no longer served");
            }
        });
        let thread = thread.map_err(|source| ringlet::Error::Thread { what: "the metrics", source })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
