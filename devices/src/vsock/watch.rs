//! The task of one connection: sees to its socket, and to the time that the guest has to answer its beginning and its end.

use std::future::poll_fn;
use std::rc::Rc;

use super::switch::Switch;
use super::table::Id;

/// Sees to a connection until it is over.
pub(super) async fn watch(switch: Rc<Switch>, id: Id) {
    if !switch.is_answered(id) {
        let late = switch.cx.timer().sleep(switch.options.connect_timeout);
        let answered = poll_fn(|cx| switch.poll_answer(id, cx));
        tokio::select! {
            biased;
            () = answered => {}
            () = late => return switch.expire(id),
        }
    }
    poll_fn(|cx| switch.poll_connection(id, cx)).await;
    loop {
        // A guest that takes no packets has not heard of the end.
        switch.cx.timer().sleep(switch.options.connect_timeout).await;
        if switch.forget(id) {
            return;
        }
    }
}
