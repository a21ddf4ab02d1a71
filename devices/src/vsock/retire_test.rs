use std::io::Read;
use std::os::unix::net::UnixStream;

use ringlet_io::unix::Stream;
use ringlet_io::{EngineKind, Owner, REQUESTS_PER_TURN, ShardContext};

use crate::testing::{Options, Rig};
use crate::virtio::VirtioDevice;
use crate::vsock::test_util::*;
use crate::vsock::{VsockDevice, VsockOptions, VsockSource};

/// More than two turns can close.
const MANY: usize = 3 * REQUESTS_PER_TURN as usize;

fn device(cx: &ShardContext) -> (VsockDevice, Vec<UnixStream>) {
    let options = VsockOptions { max_connections: MANY as u32, ..options() };
    let (source, _) = VsockSource::new(None, None);
    let device =
        VsockDevice::new(cx, &Owner::shard(), &options, options.config(), source, metrics()).unwrap();
    let open = || {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        device.switch.open_for_test(Stream::new(ours.into()).unwrap());
        theirs
    };
    let peers = (0..MANY).map(|_| open()).collect();
    (device, peers)
}

/// How many are closed.
fn closed(peers: &mut [UnixStream]) -> usize {
    peers.iter_mut().filter_map(|peer| peer.read(&mut [0]).ok()).filter(|count| *count == 0).count()
}

/// Waits until all are closed, and sees that no turn closes more than a VM may have requests.
async fn assert_closed_by_and_by(cx: &ShardContext, mut peers: Vec<UnixStream>) {
    let mut before = closed(&mut peers);
    assert_eq!(before, 0, "not where the end comes from");
    while before < MANY {
        cx.next_turn().await;
        let now = closed(&mut peers);
        // The task may have had two turns between two of ours.
        assert!(now - before <= 2 * REQUESTS_PER_TURN as usize, "{before}, then {now}");
        before = now;
    }
}

#[test]
fn sec_02_a_reset_closes_many_connections_by_and_by() {
    Rig::new(subject(options(), VsockSource::new(None, None).0, &metrics()), Options::new(EngineKind::Epoll))
        .on_shard(|cx| async move {
            let (mut device, peers) = device(&cx);
            let other = |device: &VsockDevice| {
                let (ours, theirs) = UnixStream::pair().unwrap();
                device.switch.open_for_test(Stream::new(ours.into()).unwrap());
                (device.switch.metrics.connections.get(), theirs)
            };
            assert_eq!(other(&device).0, MANY as i64, "there may be no more");
            device.reset();
            assert_eq!(other(&device).0, 0, "they have their places until they are closed");
            assert_closed_by_and_by(&cx, peers).await;
            assert_eq!(other(&device).0, 1);
        });
}

#[test]
fn sec_02_the_end_of_a_vm_closes_many_connections_by_and_by() {
    Rig::new(subject(options(), VsockSource::new(None, None).0, &metrics()), Options::new(EngineKind::Epoll))
        .on_shard(|cx| async move {
            let (device, peers) = device(&cx);
            drop(device);
            assert_closed_by_and_by(&cx, peers).await;
        });
}
