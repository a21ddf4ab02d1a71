use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::*;

fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

fn enter(window: &Window, bytes: u64) -> Place {
    match poll(pin!(window.enter(bytes))) {
        Poll::Ready(place) => place,
        Poll::Pending => panic!("there is room for {bytes}"),
    }
}

#[test]
fn sec_02_no_more_than_the_window_is_in_flight() {
    let window = Window::new();
    let half = enter(&window, WINDOW_BYTES / 2);
    let _other = enter(&window, WINDOW_BYTES / 2);
    let mut more = pin!(window.enter(1));
    assert!(poll(more.as_mut()).is_pending());
    drop(half);
    assert!(poll(more).is_ready());
}

#[test]
fn what_is_larger_than_the_window_has_it_for_itself() {
    let window = Window::new();
    let all = enter(&window, u64::MAX);
    assert!(poll(pin!(window.enter(1))).is_pending());
    drop(all);
    let _small = enter(&window, 1);
    assert!(poll(pin!(window.enter(u64::MAX))).is_pending());
}

#[test]
fn requests_without_bytes_need_no_place() {
    let window = Window::new();
    let _all = enter(&window, WINDOW_BYTES);
    let _none = enter(&window, 0);
}

#[test]
fn a_waiter_that_goes_leaves_its_place_to_the_next() {
    let window = Window::new();
    let all = enter(&window, WINDOW_BYTES);
    let mut next = {
        let mut gone = Box::pin(window.enter(WINDOW_BYTES));
        assert!(poll(gone.as_mut()).is_pending());
        Box::pin(window.enter(UNIT))
    };
    assert!(poll(next.as_mut()).is_pending());
    drop(all);
    assert!(poll(next.as_mut()).is_ready());
}
