use std::os::unix::net::UnixStream;

use super::super::testing::Namespace;
use super::*;
use crate::engine::EngineKind;
use crate::testing::*;

on_both_engines!(
    a_tap_that_is_going_is_not_waited_for_again,
    what_is_known_not_to_be_ready_is_not_tried,
    room_is_tried_before_it_is_waited_for,
);

/// A deletion is told before reads fail by it: until then, they find nothing.
fn a_tap_that_is_going_is_not_waited_for_again(engine: EngineKind) {
    let namespace = Namespace::new();
    let tap = namespace.link(1);
    on_shard(engine, move |_| async move {
        let fd = Arc::new(tap.queues.into_iter().next().unwrap());
        let link = Link::new(fd).unwrap();
        let nothing = |_: BorrowedFd<'_>| Err::<(), _>(Errno::AGAIN);
        link.readable().await.unwrap();
        assert_eq!(link.read(nothing).unwrap(), None);
        namespace.ip("link delete dev tap0");
        for _ in 0..3 {
            link.readable().await.unwrap();
            link.writable().await.unwrap();
        }
        assert_eq!(Errno::from_io_error(&link.read(nothing).unwrap_err()), Some(Errno::NODEV));
        assert_eq!(Errno::from_io_error(&link.write(nothing).unwrap_err()), Some(Errno::NODEV));
        assert_eq!(link.read(|_| Ok(7)).unwrap(), Some(7), "what is there comes first");
    });
}

fn what_is_known_not_to_be_ready_is_not_tried(engine: EngineKind) {
    let (ours, peer) = UnixStream::pair().unwrap();
    on_shard(engine, move |_| async move {
        let link = Link::new(Arc::new(ours.into())).unwrap();
        assert_eq!(link.read(|_| panic!("nothing is known yet") as rustix::io::Result<()>).unwrap(), None);
        rustix::io::write(&peer, b"x").unwrap();
        link.readable().await.unwrap();
        assert_eq!(link.read(|_| Ok(1)).unwrap(), Some(1));
        assert_eq!(link.read(|_| Err::<(), _>(Errno::AGAIN)).unwrap(), None);
        assert_eq!(link.read(|_| panic!("it was empty") as rustix::io::Result<()>).unwrap(), None);
    });
}

fn room_is_tried_before_it_is_waited_for(engine: EngineKind) {
    let (ours, _peer) = UnixStream::pair().unwrap();
    on_shard(engine, move |_| async move {
        let link = Link::new(Arc::new(ours.into())).unwrap();
        assert_eq!(link.write(|_| Ok(1)).unwrap(), Some(1), "before anything is known");
        link.writable().await.unwrap();
        assert_eq!(link.write(|_| Err::<(), _>(Errno::AGAIN)).unwrap(), None);
        assert_eq!(link.write(|_| Ok(2)).unwrap(), Some(2));
    });
}
