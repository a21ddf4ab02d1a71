//! Flushes on a host that ends them when the test says so.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tokio::sync::oneshot;

use super::*;

/// A disk whose flushes wait for the test.
#[derive(Default)]
struct Host {
    begun: Cell<usize>,
    running: RefCell<VecDeque<oneshot::Sender<io::Result<()>>>>,
}

impl Host {
    fn flush(&self) -> impl Future<Output = io::Result<()>> + use<> {
        let (sender, receiver) = oneshot::channel();
        self.begun.set(self.begun.get() + 1);
        self.running.borrow_mut().push_back(sender);
        async { receiver.await.expect("the test ends every flush") }
    }

    /// Ends the flush that runs, of which there is one.
    fn end(&self, result: io::Result<()>) {
        let mut running = self.running.borrow_mut();
        running.retain(|flush| !flush.is_closed());
        assert_eq!(running.len(), 1, "one flush at a time");
        running.pop_front().unwrap().send(result).unwrap();
    }

    fn fail(&self) {
        self.end(Err(io::Error::other("bad sector")));
    }
}

/// A request that waits for a flush.
struct Waiter(Pin<Box<dyn Future<Output = Result<(), BlockError>>>>);

impl Waiter {
    fn flush(cache: &Rc<Durability>, host: &Rc<Host>) -> Self {
        let (cache, host) = (Rc::clone(cache), Rc::clone(host));
        let mut waiter = Self(Box::pin(async move { cache.flush(|| host.flush()).await }));
        assert!(waiter.result().is_none(), "no flush ends by itself");
        waiter
    }

    /// Polls it once.
    fn result(&mut self) -> Option<Result<(), BlockError>> {
        match self.0.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        }
    }

    fn is_done(&mut self) -> bool {
        self.result().is_some_and(|result| result.is_ok())
    }
}

fn new(cache: Cache) -> (Rc<Durability>, Rc<Host>) {
    (Rc::new(Durability::new(cache)), Rc::default())
}

#[test]
fn a_flush_that_is_alone_is_one_flush_of_the_disk() {
    let (cache, host) = new(Cache::Writeback);
    for count in 1..4 {
        let mut waiter = Waiter::flush(&cache, &host);
        assert_eq!(host.begun.get(), count);
        host.end(Ok(()));
        assert!(waiter.is_done());
    }
}

#[test]
fn a_flush_never_counts_for_who_came_after_its_start() {
    let (cache, host) = new(Cache::Writeback);
    let mut first = Waiter::flush(&cache, &host);
    let mut late = Waiter::flush(&cache, &host);
    assert_eq!(host.begun.get(), 1);
    host.end(Ok(()));
    assert!(first.is_done());
    assert!(late.result().is_none(), "what it wrote may have missed the first flush");
    assert_eq!(host.begun.get(), 2);
    host.end(Ok(()));
    assert!(late.is_done());
}

#[test]
fn everybody_who_waits_shares_the_next_flush() {
    let (cache, host) = new(Cache::Writeback);
    let mut first = Waiter::flush(&cache, &host);
    let mut others: Vec<_> = (0..100).map(|_| Waiter::flush(&cache, &host)).collect();
    host.end(Ok(()));
    assert!(first.is_done());
    assert!(others.iter_mut().all(|waiter| waiter.result().is_none()));
    host.end(Ok(()));
    assert!(others.iter_mut().all(Waiter::is_done));
    assert_eq!(host.begun.get(), 2);
}

#[test]
fn a_flush_that_is_dropped_is_begun_anew_by_who_waits() {
    let (cache, host) = new(Cache::Writeback);
    let first = Waiter::flush(&cache, &host);
    let mut others = [Waiter::flush(&cache, &host), Waiter::flush(&cache, &host)];
    drop(first);
    assert!(others.iter_mut().all(|waiter| waiter.result().is_none()));
    assert_eq!(host.begun.get(), 2);
    host.end(Ok(()));
    assert!(others.iter_mut().all(Waiter::is_done));
    assert_eq!(host.begun.get(), 2);
}

#[test]
fn a_flush_that_failed_is_never_forgotten() {
    let (cache, host) = new(Cache::Writeback);
    let mut first = Waiter::flush(&cache, &host);
    let mut other = Waiter::flush(&cache, &host);
    host.fail();
    assert!(matches!(first.result(), Some(Err(BlockError::Disk(_)))));
    assert!(matches!(other.result(), Some(Err(BlockError::FlushLost))));
    assert!(cache.is_lost());
    let mut later = Box::pin(cache.flush(|| host.flush()));
    let poll = later.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(poll, Poll::Ready(Err(BlockError::FlushLost))));
    assert_eq!(host.begun.get(), 1, "nothing is tried that would prove nothing");
}

#[test]
fn a_write_waits_for_a_flush_only_in_writethrough_mode() {
    let (cache, host) = new(Cache::Writeback);
    assert!(!cache.is_writeback(), "until the driver says that it flushes");
    let poll = |future: Pin<&mut dyn Future<Output = Result<(), BlockError>>>| {
        future.poll(&mut Context::from_waker(Waker::noop()))
    };
    let mut write = Box::pin(cache.settle(|| host.flush()));
    assert!(poll(write.as_mut()).is_pending());
    host.end(Ok(()));
    assert!(matches!(poll(write.as_mut()), Poll::Ready(Ok(()))));
    cache.set_writeback(true);
    let mut write = Box::pin(cache.settle(|| host.flush()));
    assert!(matches!(poll(write.as_mut()), Poll::Ready(Ok(()))));
    assert_eq!(host.begun.get(), 1);
}

#[test]
fn an_unsafe_cache_never_flushes() {
    let (cache, host) = new(Cache::Unsafe);
    let poll = Box::pin(cache.flush(|| host.flush())).as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(poll, Poll::Ready(Ok(()))));
    let poll = Box::pin(cache.settle(|| host.flush())).as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(poll, Poll::Ready(Ok(()))));
    assert_eq!(host.begun.get(), 0);
}
