use super::*;

#[test]
fn a_buffer_keeps_the_last_bytes() {
    let buffer = ConsoleBuffer::new(4);
    buffer.append(b"ab");
    buffer.append(b"cde");
    assert_eq!(buffer.contents(), b"bcde");
    buffer.append(b"0123456789");
    assert_eq!(buffer.contents(), b"6789");
}

#[test]
fn sec_02_a_buffer_takes_no_more_memory_than_its_capacity() {
    let buffer = ConsoleBuffer::new(10_000);
    for length in [1, 700, 5_000, 9_999, 20_000] {
        buffer.append(&vec![b'x'; length]);
        assert!(buffer.lock().bytes.capacity() <= 10_000, "{}", buffer.lock().bytes.capacity());
    }
    assert_eq!(Console::Buffer(buffer.clone()).memory(), 10_000);
    assert!(Console::Buffer(buffer.clone()).shares_memory(&Console::Buffer(buffer.clone())));
    assert!(!Console::Buffer(buffer).shares_memory(&Console::Buffer(ConsoleBuffer::new(10_000))));
}
