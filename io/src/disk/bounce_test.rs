use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::*;

const BLOCKS: Alignment = Alignment { memory: 512, offset: 4096 };

fn ready<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

#[test]
fn spans_are_whole_blocks_around_what_is_wanted() {
    let span = |offset, len| {
        let span = Span::new(offset, len, BLOCKS);
        (span.start, span.len, span.head, span.wanted, span.is_whole())
    };
    assert_eq!(span(0, 4096), (0, 4096, 0, 4096, true));
    assert_eq!(span(512, 512), (0, 4096, 512, 512, false));
    assert_eq!(span(4096 - 512, 1024), (0, 8192, 3584, 1024, false));
    assert_eq!(span(8192, 512), (8192, 4096, 0, 512, false));
    assert_eq!(span(4096, 1 << 32), (4096, 128 << 10, 0, 128 << 10, true));
    assert_eq!(span(512, u64::MAX / 4), (0, (128 << 10) + 4096, 512, 128 << 10, false));
    let end = i64::MAX as u64 - 511;
    assert_eq!(Span::new(end - 512, 512, BLOCKS).wanted, 512);
}

#[test]
fn without_alignment_a_span_is_what_is_wanted() {
    let span = Span::new(1537, 11, Alignment { memory: 1, offset: 1 });
    assert_eq!((span.start, span.len, span.head, span.is_whole()), (1537, 11, 0, true));
}

#[test]
fn buffers_are_aligned_and_zeroed() {
    let bounces = Bounces::new(&Buffers::unlimited());
    for memory in [1, 4, 512, 4096, 65_536] {
        let mut bounce = ready(bounces.buffer(8192, Alignment { memory, offset: 512 })).unwrap().unwrap();
        assert!((bounce.bytes.as_ptr() as usize + bounce.start).is_multiple_of(memory as usize));
        assert_eq!(bounce.bytes.len() - bounce.start, 8192);
        assert!(bounce.bytes.iter().all(|byte| *byte == 0));
        let span = Span { start: 0, len: 8192, head: 512, wanted: 1024 };
        bounce.wanted(&span).fill(7);
        let rest = &bounce.bytes[bounce.start..];
        assert!(rest[..512].iter().chain(&rest[1536..]).all(|byte| *byte == 0));
        assert!(rest[512..1536].iter().all(|byte| *byte == 7));
    }
}

#[test]
fn sec_02_requests_cannot_make_a_disk_take_more_buffers_than_its_own() {
    let bounces = Bounces::new(&Buffers::unlimited());
    let mut held: Vec<_> = (0..BUFFERS).map(|_| ready(bounces.buffer(4096, BLOCKS)).unwrap()).collect();
    let mut late = pin!(bounces.buffer(4096, BLOCKS));
    assert!(late.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    held.pop();
    assert!(late.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());
}

#[test]
fn sec_02_a_disk_has_the_buffer_that_was_reserved_and_as_many_more_as_fit() {
    let buffers = Buffers::new(8192 + 2 * 512);
    let bounces = Bounces::new(&buffers);
    let buffer = || bounces.buffer(4096, Alignment { memory: 512, offset: 512 });
    let mut held: Vec<_> = (0..3).map(|_| ready(buffer()).unwrap()).collect();
    assert_eq!(buffers.reading().used, 2 * (4096 + 512));
    let mut fourth = pin!(buffer());
    assert!(fourth.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert_eq!(buffers.reading().held_back, 1);
    held.pop();
    assert!(fourth.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());
    drop(held);
    assert_eq!(buffers.reading().used, 0);
}

#[test]
fn no_span_is_longer_than_the_longest_buffer() {
    for block in [1, 512, 4096] {
        let alignment = Alignment { memory: 4096, offset: block };
        let spans = [(0, 1 << 30), (u64::from(block) - 1, 1 << 30), (7 * 512, PIECE), (1, 1)];
        for (offset, len) in spans {
            assert!(Span::new(offset, len, alignment).len as u64 + 4096 <= longest(alignment));
        }
    }
}
