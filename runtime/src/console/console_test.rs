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
