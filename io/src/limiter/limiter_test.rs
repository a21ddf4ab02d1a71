use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::*;

fn poll(future: &mut (impl Future<Output = ()> + Unpin)) -> Poll<()> {
    std::pin::Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn unlimited_admits_at_once() {
    let limiter = Limiter::unlimited();
    assert_eq!(poll(&mut pin!(limiter.admit(Cost::read(u64::MAX)))), Poll::Ready(()));
}

#[test]
fn a_gate_admits_in_order_and_as_many_as_it_is_told() {
    let gate = Gate::new();
    let limiter = Limiter::gated(gate.clone());
    let mut first = pin!(limiter.admit(Cost::read(512)));
    let mut second = pin!(limiter.admit(Cost::write(1024)));
    assert!(poll(&mut first).is_pending() && poll(&mut second).is_pending());
    gate.let_through(1);
    assert!(poll(&mut second).is_pending(), "the second went before the first");
    assert!(poll(&mut first).is_ready());
    assert_eq!(gate.costs(), [Cost::read(512)]);
    gate.open();
    assert!(poll(&mut second).is_ready());
    assert!(poll(&mut pin!(limiter.admit(Cost::other()))).is_ready());
    assert_eq!(gate.admissions(), 3);
}

#[test]
fn whoever_stops_waiting_has_taken_nothing() {
    let gate = Gate::new();
    let limiter = Limiter::gated(gate.clone());
    {
        let mut asked = pin!(limiter.admit(Cost::read(1)));
        assert!(poll(&mut asked).is_pending());
        gate.let_through(1);
        // It has its place by now, and goes away without having seen it.
    }
    assert_eq!(gate.admissions(), 0);
    assert!(poll(&mut pin!(limiter.admit(Cost::write(2)))).is_ready(), "its place was lost");
    assert_eq!(gate.costs(), [Cost::write(2)]);
}

#[test]
fn who_does_not_wait_is_admitted_at_once_or_takes_nothing() {
    assert!(Limiter::unlimited().try_admit(Cost::write(u64::MAX)));
    let gate = Gate::new();
    let limiter = Limiter::gated(gate.clone());
    assert!(!limiter.try_admit(Cost::write(1)));
    gate.let_through(1);
    assert!(limiter.try_admit(Cost::write(2)) && !limiter.try_admit(Cost::write(3)));
    {
        let mut asked = pin!(limiter.admit(Cost::read(4)));
        assert!(poll(&mut asked).is_pending());
        gate.let_through(1);
        assert!(!limiter.try_admit(Cost::write(5)), "it went before one that waits");
        assert!(poll(&mut asked).is_ready());
    }
    gate.open();
    assert!(limiter.try_admit(Cost::write(6)));
    assert_eq!(gate.costs(), [Cost::write(2), Cost::read(4), Cost::write(6)]);
}
