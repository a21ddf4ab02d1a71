use std::sync::mpsc::channel;

use super::super::testing::Namespace;
use super::super::{Tap, TapError};
use super::*;
use crate::testing::wait_until;

/// The last wish counts, also if it comes while the kernel is told of the one before and takes it back.
#[test]
fn a_wish_that_comes_while_another_is_settled_is_settled_after_it() {
    let tap = Namespace::new().open("tap0", 1);
    let queues = tap.queues.into_iter().map(Arc::new).collect();
    let control = Control::new(queues).unwrap();
    // The first job is not the helper's, but this test's, and the helper waits for its end.
    let (end, ended) = channel::<()>();
    control.helper.run(move || ended.recv().unwrap_or(()));
    control.lock().queued = true;
    let open = Offloads { checksum: true, ..Offloads::NONE };
    assert_eq!(control.ask(|settings| settings.offloads = Offloads::NONE), None, "it is so already");
    assert_eq!(control.ask(|settings| settings.offloads = open), Some(1));
    let (wish, wanted, mut applied) = control.begin();
    assert_eq!((wish, wanted.offloads), (1, open));
    assert_eq!(control.ask(|settings| settings.offloads = Offloads::NONE), Some(2));
    let result = control.apply(wanted, &mut applied);
    control.finish(wish, applied, result);
    assert_eq!((control.result_of(1), control.result_of(2)), (Some(Ok(())), None));
    drop(end);
    wait_until("the second wish", || control.result_of(2) == Some(Ok(())));
    assert_eq!(control.lock().applied.offloads, Offloads::NONE);
}

/// Whoever ends a VM may start the next one on its tap.
#[test]
fn a_tap_that_is_about_to_be_closed_is_waited_for() {
    let namespace = Namespace::new();
    let queues = namespace.open("tap0", 1).queues.into_iter().map(Arc::new).collect();
    let control = Control::new(queues).unwrap();
    let (end, ended) = channel::<()>();
    control.helper.run(move || ended.recv().unwrap_or(()));
    drop(control);
    let at_once = namespace.enter(|| Tap::try_open("tap0", 1));
    assert!(matches!(at_once, Err(TapError::InUse { .. })), "{at_once:?}");
    std::thread::scope(|scope| {
        let opened = scope.spawn(|| namespace.enter(|| Tap::open("tap0", 1)));
        drop(end);
        assert!(opened.join().unwrap().is_ok());
    });
}

/// What the kernel refused is not taken to be so, and may be wished again.
#[test]
fn a_refused_wish_is_told_and_changes_nothing() {
    let queue = Arc::new(rustix::pipe::pipe().unwrap().0);
    let control = Control::new(vec![queue]).unwrap();
    for wish in [1, 2] {
        let open = Offloads { checksum: true, ..Offloads::NONE };
        assert_eq!(control.ask(|settings| settings.offloads = open), Some(wish));
        wait_until("an answer", || control.result_of(wish).is_some());
        assert_eq!(control.result_of(wish), Some(Err(Errno::NOTTY)));
    }
    assert_eq!(control.lock().applied.offloads, Offloads::NONE);
}
