//! The keeper of a device's worker: a task that takes the lifecycle's orders to it, and tells when it cannot go on.
//!
//! Owns the worker's handle. An order is sent at once and carried out in its turn, whether somebody waits for it or not.

use std::cell::RefCell;
use std::task::{Context, Poll};

use ringlet_devices::virtio::{HostEvent, WorkerError, WorkerHandle, WorkerSeed as VirtioSeed};
use ringlet_io::{Owner, ShardContext};
use tokio::sync::{mpsc, oneshot};

use super::{Fault, Pending, Worker, WorkerSeed};

/// The lifecycle's end of a keeper.
struct Keeper {
    id: String,
    orders: mpsc::UnboundedSender<Order>,
    faults: RefCell<mpsc::UnboundedReceiver<Fault>>,
}

enum Order {
    Suspend(oneshot::Sender<Result<(), Fault>>),
    Resume,
    Stop(oneshot::Sender<Result<(), Fault>>),
    Notice(HostEvent),
}

/// What starts the device `id` and its keeper.
pub(crate) fn seed(id: String, device: VirtioSeed) -> WorkerSeed {
    Box::new(move |cx: &ShardContext, owner: &Owner| {
        let (orders, received) = mpsc::unbounded_channel();
        let (faults, told) = mpsc::unbounded_channel();
        cx.spawn(owner, keep(device.run(cx, owner), received, faults)).detach();
        Box::new(Keeper { id, orders, faults: RefCell::new(told) })
    })
}

impl Keeper {
    /// Gives an order; what comes of it.
    fn order(&self, order: impl FnOnce(oneshot::Sender<Result<(), Fault>>) -> Order) -> Pending {
        let (reply, answer) = oneshot::channel();
        let _ = self.orders.send(order(reply));
        let gone = Fault { error: format!("{}: nobody looks after it any more", self.id) };
        Box::pin(async move { answer.await.unwrap_or(Err(gone)) })
    }
}

impl Worker for Keeper {
    fn id(&self) -> &str {
        &self.id
    }

    fn notice(&self, event: HostEvent) {
        let _ = self.orders.send(Order::Notice(event));
    }

    fn suspend(&self) -> Pending {
        self.order(Order::Suspend)
    }

    fn resume(&self) {
        let _ = self.orders.send(Order::Resume);
    }

    fn stop(&self) -> Pending {
        self.order(Order::Stop)
    }

    fn poll_fault(&self, cx: &mut Context<'_>) -> Poll<Fault> {
        match self.faults.borrow_mut().poll_recv(cx) {
            Poll::Ready(Some(fault)) => Poll::Ready(fault),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

/// Carries out orders until the worker is stopped or lost, or nobody gives orders any more.
async fn keep(
    mut worker: WorkerHandle,
    mut orders: mpsc::UnboundedReceiver<Order>,
    faults: mpsc::UnboundedSender<Fault>,
) {
    let fault = loop {
        let order = tokio::select! {
            biased;
            ended = worker.ended() => break fault(ended),
            order = orders.recv() => order,
        };
        let (done, reply) = match order {
            None => return,
            Some(Order::Notice(event)) => {
                worker.notice(event);
                continue;
            }
            Some(Order::Stop(reply)) => {
                let _ = reply.send(worker.stop().await.map_err(|error| fault(Some(error))));
                return;
            }
            Some(Order::Resume) => (worker.resume().await, None),
            Some(Order::Suspend(reply)) => (worker.suspend().await, Some(reply)),
        };
        let result = match done {
            Ok(()) => Ok(()),
            // It has ended, and can say why.
            Err(_) => Err(fault(worker.ended().await)),
        };
        if let Some(reply) = reply {
            let _ = reply.send(result.clone());
        }
        if let Err(fault) = result {
            break fault;
        }
    };
    let _ = faults.send(fault.clone());
    // The worker is lost, and so is the VM; whoever still waits hears why.
    while let Some(order) = orders.recv().await {
        if let Order::Suspend(reply) | Order::Stop(reply) = order {
            let _ = reply.send(Err(fault.clone()));
        }
    }
}

/// Why a worker ended, if it did not say that it was asked to.
fn fault(ended: Option<WorkerError>) -> Fault {
    match ended {
        Some(error) => Fault { error: error.to_string() },
        None => Fault { error: "a device has stopped unasked".into() },
    }
}

#[cfg(test)]
#[path = "keeper_test.rs"]
mod tests;
