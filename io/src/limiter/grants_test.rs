//! How much work a request makes under the lock that all shards share.

use std::sync::Arc;
use std::task::{Wake, Waker};
use std::time::Duration;

use super::*;
use crate::limiter::tree::Answer;
use crate::limiter::{Limits, PerUnit, TokenBucket};

const HOUR: Duration = Duration::from_secs(3600);
const WAITING: usize = 200;

fn at(nanos: u64) -> MonoTime {
    MonoTime::from_nanos(nanos)
}

fn one_read_an_hour() -> Limits {
    let operations = Some(TokenBucket::new(1, HOUR));
    Limits { read: PerUnit { operations, bytes: None }, ..Limits::default() }
}

/// A waker of its own, as every task has one.
struct Bell;

impl Wake for Bell {
    fn wake(self: Arc<Self>) {}
}

fn bell() -> Waker {
    Waker::from(Arc::new(Bell))
}

/// As many VMs as there are nodes, each of which waits to read at its node, whose token is taken.
fn with_readers(tree: &mut Tree, nodes: &[usize]) -> Vec<(usize, Waker)> {
    let wait = |node: &usize| {
        let (member, waker) = (tree.join(*node, 100), bell());
        let _ = tree.try_admit(member, Cost::read(1), at(0), at(0));
        tree.enter(member, Cost::read(1), at(0));
        assert!(matches!(tree.poll(member, Lane::Read, at(0), &waker), Answer::Wait(_)));
        (member, waker)
    };
    nodes.iter().map(wait).collect()
}

/// Flows that are looked at meanwhile.
fn looked_at(tree: &mut Tree, work: impl FnOnce(&mut Tree)) -> usize {
    let before = tree.looks;
    work(tree);
    tree.looks - before
}

#[test]
fn sec_02_a_request_of_one_lane_passes_a_crowd_that_waits_in_the_other() {
    let mut tree = Tree::new(&one_read_an_hour(), at(0)).unwrap();
    with_readers(&mut tree, &[ROOT; WAITING]);
    let writer = tree.join(ROOT, 100);
    let looks = looked_at(&mut tree, |tree| {
        assert_eq!(tree.try_admit(writer, Cost::write(1), at(1), at(1)), Some(at(1)));
    });
    assert!(looks <= 4, "{looks} looks at {WAITING} that wait");
}

#[test]
fn sec_02_one_more_that_has_to_wait_does_not_look_at_all_that_do() {
    let mut tree = Tree::new(&one_read_an_hour(), at(0)).unwrap();
    with_readers(&mut tree, &[ROOT; WAITING]);
    // Somebody who waits to write, too, so that neither lane is empty.
    tree.change(ROOT, &Limits { write: one_read_an_hour().read, ..Limits::default() }, at(0)).unwrap();
    let (writer, waker) = (tree.join(ROOT, 100), bell());
    assert!(tree.try_admit(writer, Cost::write(1), at(0), at(0)).is_some());
    tree.enter(writer, Cost::write(1), at(0));
    assert!(matches!(tree.poll(writer, Lane::Write, at(0), &waker), Answer::Wait(Some(_))));
    let reader = tree.join(ROOT, 100);
    let looks = looked_at(&mut tree, |tree| {
        assert_eq!(tree.try_admit(reader, Cost::read(1), at(1), at(1)), None);
        tree.enter(reader, Cost::read(1), at(1));
        assert_eq!(tree.poll(reader, Lane::Read, at(1), &waker), Answer::Wait(None));
        tree.withdraw(reader, Lane::Read, at(1));
    });
    assert!(looks <= 12, "{looks} looks at {WAITING} that wait");
}

#[test]
fn sec_02_asking_again_is_answered_without_a_look_until_something_has_changed() {
    let mut tree = Tree::new(&one_read_an_hour(), at(0)).unwrap();
    let readers = with_readers(&mut tree, &[ROOT; WAITING]);
    // The one that had the token stands behind all others.
    let (first, last) = (&readers[1], &readers[WAITING - 1]);
    // As a doorbell that rings does, again and again.
    let looks = looked_at(&mut tree, |tree| {
        for _ in 0..100 {
            assert!(matches!(tree.poll(first.0, Lane::Read, at(1), &first.1), Answer::Wait(Some(_))));
            assert_eq!(tree.poll(last.0, Lane::Read, at(1), &last.1), Answer::Wait(None));
        }
    });
    assert_eq!(looks, 0);
    let hour = at(u64::try_from(HOUR.as_nanos()).unwrap());
    assert_eq!(tree.poll(first.0, Lane::Read, hour, &first.1), Answer::Granted(hour));
}

#[test]
fn sec_02_a_request_does_not_look_at_the_tenants_that_wait_for_their_own_limits() {
    let mut tree = Tree::new(&Limits::default(), at(0)).unwrap();
    let nodes: Vec<_> =
        (0..WAITING).map(|_| tree.add(ROOT, 100, &one_read_an_hour(), at(0)).unwrap()).collect();
    with_readers(&mut tree, &nodes);
    let free = tree.add(ROOT, 100, &Limits::default(), at(0)).unwrap();
    let member = tree.join(free, 100);
    for cost in [Cost::write(1), Cost::read(1)] {
        let looks = looked_at(&mut tree, |tree| {
            assert_eq!(tree.try_admit(member, cost, at(1), at(1)), Some(at(1)));
        });
        assert!(looks <= 6, "{looks} looks at {WAITING} tenants that wait");
    }
}
