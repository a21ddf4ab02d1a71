//! Takes all memory that the heap will give, writes a pattern to every word, verifies it, and prints how much it was.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::alloc::{Layout, alloc};
use core::slice;

use ringlet_guest::{Context, println};

ringlet_guest::entry!(main);

/// Sizes that are tried, in words: large blocks first, then what is left between them.
const BLOCKS: [usize; 3] = [1 << 17, 1 << 13, 1 << 9];
const WORDS_PER_MIB: usize = 1 << 17;

fn main(context: &Context) -> u32 {
    let mut list: Option<&'static mut Node> = None;
    let mut total = 0;
    for words in BLOCKS {
        while let Some(block) = take(words) {
            total += block.len();
            let Some(node) = Node::of(block, list.take()) else { return 1 };
            list = Some(node);
        }
    }
    let mut wrong = 0;
    while let Some(node) = list {
        wrong += node.words.iter().filter(|&word| *word != pattern(word)).count();
        list = node.next.take();
    }
    println!("{} MiB touched of {}", total / WORDS_PER_MIB, context.memory().usable() >> 20);
    if wrong > 0 {
        println!("{wrong} words did not hold what was written");
    }
    u32::from(wrong > 0)
}

/// A block whose first words hold this list node.
struct Node {
    next: Option<&'static mut Node>,
    words: &'static mut [u64],
}

impl Node {
    /// Puts a list node into the front of `block`.
    fn of(block: &'static mut [u64], next: Option<&'static mut Node>) -> Option<&'static mut Node> {
        let (front, words) = block.split_at_mut_checked(size_of::<Node>() / 8)?;
        let node = front.as_mut_ptr().cast::<Node>();
        // SAFETY: aligned memory of the right size that nobody else refers to any more.
        unsafe {
            node.write(Node { next, words });
            Some(&mut *node)
        }
    }
}

/// Takes a block from the heap and fills it; `None` when there is none of this size.
fn take(words: usize) -> Option<&'static mut [u64]> {
    let layout = Layout::array::<u64>(words).ok()?;
    // SAFETY: the layout is not empty; a null pointer is not used.
    let start = unsafe { alloc(layout) }.cast::<u64>();
    if start.is_null() {
        return None;
    }
    // SAFETY: every word is written before the slice is formed, and the block is never freed.
    unsafe {
        for index in 0..words {
            start.add(index).write(pattern(start.add(index)));
        }
        Some(slice::from_raw_parts_mut(start, words))
    }
}

/// What the word at this address is to hold.
fn pattern(word: *const u64) -> u64 {
    (word.addr() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
