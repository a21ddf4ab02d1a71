use super::*;

fn lines(pending: &mut Vec<u8>, all: bool) -> String {
    String::from_utf8(take_lines(pending, "[a] ", all)).unwrap()
}

#[test]
fn whole_lines_get_their_prefix_and_a_rest_waits() {
    let mut pending = b"one\r\ntwo\nthr".to_vec();
    assert_eq!(lines(&mut pending, false), "[a] one\n[a] two\n");
    pending.extend(b"ee");
    assert_eq!(lines(&mut pending, false), "");
    assert_eq!(lines(&mut pending, true), "[a] three\n");
    assert_eq!(lines(&mut pending, true), "");
}

#[test]
fn sec_13_shared_consoles_escape_what_a_guest_prints() {
    let mut pending = b"\x1b]0;owned\x07\x9b\xff\xc2\x9bx\r[b] fake\n".to_vec();
    let text = lines(&mut pending, false);
    assert!(text.starts_with("[a] \\u{1b}]0;owned\\u{7}"), "{text:?}");
    assert!(!text.trim_end_matches('\n').chars().any(char::is_control), "{text:?}");
    assert_eq!(text.matches("[a] ").count(), 1);
}

#[test]
fn endless_lines_are_broken_and_bounded() {
    let mut pending = vec![b'x'; 3 * MAX_LINE + 7];
    let text = lines(&mut pending, false);
    assert_eq!(text.lines().count(), 3);
    assert!(text.lines().all(|line| line.len() == MAX_LINE + 4));
    assert_eq!(pending.len(), 7);
}

#[test]
fn sec_02_a_console_of_lines_takes_no_more_memory_than_is_counted_for_it() {
    let most = SerialOutput::DEFAULT_CAPACITY + MAX_LINE - 1;
    for what in [b"\x1b", b"\xff", b"\n", b"x"] {
        let mut pending = what.repeat(most);
        let mut longest = 0;
        while !pending.is_empty() {
            let lines = take_lines(&mut pending, &"p".repeat(MAX_PREFIX), true);
            longest = longest.max(lines.capacity());
        }
        assert!(longest + most <= LINES_BYTES, "{longest} bytes of {what:?}");
    }
}
