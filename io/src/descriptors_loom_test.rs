//! The real counts under every interleaving that loom finds. Run with
//! `RUSTFLAGS="--cfg ringlet_loom" cargo test --release --lib -p ringlet-io loom`.

use loom::thread;

use super::*;

fn check(test: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(test);
}

/// A VM with all of its own but `left`, and all that is taken of them.
fn share(pool: &Descriptors, left: u64) -> (DescriptorShare, Vec<Descriptor>) {
    let share = pool.share();
    let own = (left..OWN_DESCRIPTORS).map(|_| share.try_take().unwrap()).collect();
    (share, own)
}

/// One is taken, and gives back its place of the pool, while another of the same VM's goes.
#[test]
fn what_is_taken_and_given_back_at_once_is_counted_once() {
    check(|| {
        let pool = Descriptors::new(Some(4));
        let (share, mut own) = share(&pool, 1);
        let taking = thread::spawn({
            let share = share.clone();
            move || [share.try_take(), share.try_take()]
        });
        drop(own.pop());
        let taken = taking.join().unwrap();
        assert!(taken.iter().all(Option::is_some), "there is one of its own, and the pool");
        assert_eq!((share.used(), pool.used()), (OWN_DESCRIPTORS, 0));
        drop((taken, own));
        assert_eq!((share.used(), pool.used()), (0, 0));
    });
}

/// Two VMs want the last one of the pool.
#[test]
fn the_last_one_is_taken_once() {
    check(|| {
        let pool = Descriptors::new(Some(1));
        let [(first, _first), (second, _second)] = [share(&pool, 0), share(&pool, 0)];
        let other = thread::spawn(move || second.try_take());
        let here = first.try_take();
        let there = other.join().unwrap();
        assert_eq!((here.is_some() ^ there.is_some(), pool.used()), (true, 1));
        drop((here, there));
        assert_eq!(pool.used(), 0);
    });
}

/// A greeting becomes a connection while a connection takes, or leaves, one of the VM's own.
#[test]
fn a_greeting_that_becomes_a_connection_is_counted_once() {
    check(|| {
        let pool = Descriptors::new(Some(8));
        let (share, mut own) = share(&pool, 0);
        let mut greetings: Vec<_> =
            (0..=OWN_DESCRIPTORS).filter_map(|_| share.try_take_for_greeting()).collect();
        assert_eq!(pool.used(), 1);
        let leaving = own.pop();
        let ends = thread::spawn(move || drop(leaving));
        let connection = greetings.pop().unwrap().into_connection().unwrap();
        ends.join().unwrap();
        assert_eq!((share.used(), pool.used()), (2 * OWN_DESCRIPTORS, 0));
        drop((connection, greetings, own));
        assert_eq!((share.used(), pool.used()), (0, 0));
    });
}
