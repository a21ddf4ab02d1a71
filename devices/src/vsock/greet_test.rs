use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use ringlet_io::{DescriptorShare, Descriptors, OWN_DESCRIPTORS, ShardContext};

use super::*;
use crate::vsock::test_util::*;

fn greeting(
    cx: &ShardContext,
    stream: UnixStream,
    limit: Duration,
) -> (impl Future<Output = Greeting>, oneshot::Sender<Infallible>) {
    let (patience, over) = oneshot::channel();
    let descriptor = DescriptorShare::unlimited().try_take().unwrap();
    let stream = Stream::new(stream.into()).unwrap();
    (greet(cx.timer().clone(), Placed { stream, descriptor }, (limit, over)), patience)
}

#[test]
fn a_line_that_has_come_is_not_lost_when_its_time_is_over() {
    let bench = Bench::new();
    let ports = bench.rig.on_shard(|cx| async move {
        let mut ports = Vec::new();
        for says in ["CONNECT 7\n", "CONNECT 7", ""] {
            let (stream, mut client) = UnixStream::pair().unwrap();
            client.write_all(says.as_bytes()).unwrap();
            let (greeting, patience) = greeting(&cx, stream, GREETING_TIME);
            // Before the loop has had a chance to say that there is something.
            drop(patience);
            ports.push(greeting.await.ok().map(|greeted| greeted.port));
        }
        ports
    });
    assert_eq!(ports, [Some(7), None, None]);
}

#[test]
fn sec_02_those_that_do_not_say_where_to_are_bounded_in_time() {
    let bench = Bench::new();
    let (stream, _client) = UnixStream::pair().unwrap();
    let greeted = bench.rig.on_shard(|cx| async move {
        let (greeting, _patience) = greeting(&cx, stream, Duration::from_millis(1));
        assert!(
            (size_of_val(&greeting) * GREETINGS) as u64 <= GREETINGS_BYTES / 4 * 3,
            "with its place in a set: {}",
            size_of_val(&greeting)
        );
        greeting.await.is_ok()
    });
    assert!(!greeted);
}

/// Somebody who is waited for, and has not said anything: the other end.
fn silent(cx: &ShardContext, greetings: &mut Greetings, descriptor: Descriptor) -> UnixStream {
    let (stream, client) = UnixStream::pair().unwrap();
    client.set_nonblocking(true).unwrap();
    let stream = Stream::new(stream.into()).unwrap();
    greetings.add(cx.timer().clone(), Placed { stream, descriptor });
    client
}

#[test]
fn sec_02_the_place_of_one_that_has_to_go_is_free_for_nobody_else() {
    let bench = Bench::new();
    bench.rig.on_shard(|cx| async move {
        let pool = Descriptors::new(Some(1));
        let (share, other) = (pool.share(), pool.share());
        let _own: Vec<_> = (0..OWN_DESCRIPTORS).map(|_| share.try_take().zip(other.try_take())).collect();
        let mut greetings = Greetings::default();
        let mut client = silent(&cx, &mut greetings, share.try_take().unwrap());
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
        greetings.evict();
        let place = greetings.next().await.unwrap().unwrap_err();
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "it is closed before its place is anybody's");
        assert_eq!((greetings.len(), pool.used(), other.try_take().is_none()), (0, 1, true));
        drop(place);
        assert_eq!(pool.used(), 0);
        // A whole set that is dropped gives all back.
        let _client = silent(&cx, &mut greetings, share.try_take().unwrap());
        drop(greetings);
        assert_eq!(pool.used(), 0);
    });
}

/// Also without a turn of the loop, which would tell that there is something.
#[test]
fn who_has_spoken_already_does_not_wait() {
    let bench = Bench::new();
    let greeted = bench.rig.on_shard(|cx| async move {
        let (stream, mut client) = UnixStream::pair().unwrap();
        client.write_all(b"CONNECT 7\n").unwrap();
        let (greeting, _patience) = greeting(&cx, stream, GREETING_TIME);
        futures_util::FutureExt::now_or_never(greeting)
            .map(|greeted| greeted.map(|greeted| greeted.port).ok())
    });
    assert_eq!(greeted, Some(Some(7)));
}
