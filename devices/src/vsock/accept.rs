//! The host's ways in: a listening socket, at which each connection says where it wants to go, and this process; and
//! the guest's way out, to sockets by their paths.
//!
//! Owns whoever is accepted, until it is among those that are [waited for](Greetings) or connected. Those are bounded in
//! number: whoever is silent makes room for whoever comes.

use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt;
use ringlet_io::unix::{Acceptor, Connector, Stream};
use ringlet_io::{Budget, Descriptor};
use ringlet_metrics::ConnectionResult;
use tokio::sync::mpsc;

use super::greet::{GREETINGS, Greetings};
use super::host::{Connect, ConnectError};
use super::peer::{Caller, Placed};
use super::switch::Switch;

/// How long nobody is accepted if the host has no descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections, and connects each to where it wants to go. Not while the VM may begin nothing: whoever connects uses its
/// time, and waits in the kernel's queue until it has some.
pub(super) async fn accept(switch: Rc<Switch>, acceptor: Acceptor) {
    let budget = switch.budget();
    let mut greetings = Greetings::default();
    loop {
        budget.begin().await;
        tokio::select! {
            biased;
            Some(greeted) = greetings.next() => {
                if let Ok(greeted) = greeted {
                    greeted.connect(&switch);
                }
            }
            accepted = acceptor.accept() => match accepted.and_then(Stream::new) {
                Ok(stream) => {
                    if let Some(descriptor) = make_room(&switch, &budget, &mut greetings).await {
                        greetings.add(switch.cx.timer().clone(), Placed { stream, descriptor });
                    }
                }
                Err(error) => {
                    switch.fail("connections to a guest cannot be accepted", &error);
                    switch.cx.timer().sleep(PAUSE).await;
                }
            },
        }
    }
}

/// Makes room for one more that has not said where to, and gives the place of its descriptor: those that have waited longest
/// go, unless they have said so in the end, and none if another makes room. `None`: there is none, and nobody to go.
async fn make_room(switch: &Rc<Switch>, budget: &Budget, greetings: &mut Greetings) -> Option<Descriptor> {
    loop {
        if greetings.len() < GREETINGS
            && let Some(descriptor) = switch.descriptors.try_take_for_greeting()
        {
            return Some(descriptor);
        }
        let grace = greetings.grace();
        let over = match greetings.next().now_or_never() {
            Some(over) => over,
            None if grace.is_zero() => {
                greetings.evict();
                greetings.next().await
            }
            None => tokio::select! {
                biased;
                over = greetings.next() => over,
                () = switch.cx.timer().sleep(grace) => continue,
            },
        };
        match over {
            Some(Ok(greeted)) => {
                budget.begin().await;
                greeted.connect(switch);
            }
            // Its place, which nobody else has had meanwhile.
            Some(Err(descriptor)) => return Some(descriptor),
            None => {
                switch.refuse_without_descriptor(Caller::Socket);
                return None;
            }
        }
    }
}

/// Connects what this process hands in.
pub(super) async fn take_over(switch: Rc<Switch>, mut commands: mpsc::Receiver<Connect>) {
    let budget = switch.budget();
    while let Some(Connect { port, stream, answer }) = commands.recv().await {
        budget.spend().await;
        let caller = Caller::Process(answer);
        let Some(descriptor) = switch.descriptors.try_take() else {
            switch.refuse_without_descriptor(caller);
            continue;
        };
        match Stream::new(stream) {
            Ok(stream) => switch.connect(port, Placed { stream, descriptor }, caller),
            Err(error) => {
                switch.result(ConnectionResult::Failed);
                switch.fail("a connection cannot be watched", &error);
                caller.refuse(ConnectError::NoResources);
            }
        }
    }
}

/// Connects to the sockets that the guest asks for, one after the other, so that one guest's are not in another's way.
pub(super) async fn connect_out(switch: Rc<Switch>) {
    let (budget, connector) = (switch.budget(), Connector::default());
    loop {
        budget.begin().await;
        match switch.next_wanted() {
            Some((id, path)) => {
                let socket = connector.connect(path).await;
                switch.connected(id, socket);
            }
            None => switch.wanted.notified().await,
        }
    }
}

#[cfg(test)]
#[path = "accept_test.rs"]
mod tests;
