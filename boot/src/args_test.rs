use super::*;
use proptest::prelude::*;

fn encoded(argument: &str) -> String {
    let mut out = String::new();
    encode(argument, &mut out).unwrap();
    out
}

fn decoded(line: &[u8]) -> Result<Vec<Vec<u8>>, DecodeError> {
    decode(split(line).1).map(|argument| argument.map(|a| a.bytes().collect())).collect()
}

#[test]
fn the_encoding_is_what_the_documentation_says() {
    assert_eq!(encoded(""), r#""""#);
    assert_eq!(encoded("plain text, with --flags=1"), r#""plain text, with --flags=1""#);
    assert_eq!(encoded(r#"a"b\c"#), r#""a\x22b\x5cc""#);
    assert_eq!(encoded("\0\n\x1b\x7fé"), r#""\x00\x0a\x1b\x7f\xc3\xa9""#);
}

#[test]
fn a_line_is_split_at_the_first_separator_word() {
    for (line, options, arguments) in [
        ("", "", ""),
        ("a=b quiet", "a=b quiet", ""),
        ("a=b -- \"x\"", "a=b", " \"x\""),
        ("-- \"x\" \"--\"", "", " \"x\" \"--\""),
        ("a --b c-- --- x", "a --b c-- --- x", ""),
        ("a -- b -- c", "a", " b -- c"),
        ("a   --", "a", ""),
        ("--", "", ""),
    ] {
        let (left, right) = split(line.as_bytes());
        assert_eq!((left, right), (options.as_bytes(), arguments.as_bytes()), "{line:?}");
    }
}

#[test]
fn sec_07_malformed_arguments_end_the_iteration_with_an_error() {
    for (list, error) in [
        ("\"a\" b", DecodeError::NotQuoted),
        ("\"a\" \"b", DecodeError::Unterminated),
        ("\"a\" \"", DecodeError::Unterminated),
        ("\"a\" \"b\"c", DecodeError::NoSpace),
        ("\"a\" \"b\"\"c\"", DecodeError::NoSpace),
        ("\"a\" \"\u{7f}\"", DecodeError::Unprintable),
        ("\"a\" \"\t\"", DecodeError::Unprintable),
        ("\"a\" \"é\"", DecodeError::Unprintable),
        ("\"a\" \"\\\"", DecodeError::BadEscape),
        ("\"a\" \"\\n\"", DecodeError::BadEscape),
        ("\"a\" \"\\x4\"", DecodeError::BadEscape),
        ("\"a\" \"\\xAB\"", DecodeError::BadEscape),
    ] {
        let mut arguments = decode(list.as_bytes());
        assert_eq!(arguments.next().unwrap().unwrap().bytes().collect::<Vec<_>>(), b"a", "{list:?}");
        assert_eq!(arguments.next().unwrap().unwrap_err(), error, "{list:?}");
        assert!(arguments.next().is_none(), "{list:?}");
    }
}

#[test]
fn an_argument_is_copied_if_it_fits() {
    let argument = decode(b"\"h\\x00llo\"").next().unwrap().unwrap();
    let mut buffer = [9; 6];
    assert_eq!(argument.copy_to(&mut buffer), Some(5));
    assert_eq!(&buffer, b"h\0llo\x09");
    assert_eq!(argument.copy_to(&mut buffer[..4]), None);
}

/// How Linux cuts a command line into words: a quote switches quoting, and nothing escapes it.
fn linux_words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for character in line.chars() {
        quoted ^= character == '"';
        match words.last_mut() {
            Some(word) if character != ' ' || quoted => word.push(character),
            _ => words.push(String::new()),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

proptest! {
    #[test]
    fn sec_07_arguments_come_back_as_they_were(args in prop::collection::vec(".*|[-\" \\\\x0]*", 0..8)) {
        let list: Vec<_> = args.iter().map(|arg| encoded(arg)).collect();
        let line = format!("quiet -- {}", list.join(" "));
        prop_assert!(line.bytes().all(|b| (b' '..=b'~').contains(&b)));
        prop_assert_eq!(decoded(line.as_bytes()).unwrap(), args.iter().map(|a| a.clone().into_bytes()).collect::<Vec<_>>());
    }

    #[test]
    fn sec_07_an_encoded_argument_is_one_word_for_linux_too(args in prop::collection::vec("[-\" \\\\x0a\n]*", 0..8)) {
        let list: Vec<_> = args.iter().map(|arg| encoded(arg)).collect();
        prop_assert_eq!(linux_words(&list.join(" ")), list);
    }

    #[test]
    fn sec_06_any_bytes_can_be_decoded(line in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(b"\"\\x -0a".to_vec())], 0..64)) {
        if let Ok(arguments) = decoded(&line) {
            prop_assert!(arguments.len() <= line.len());
        }
    }
}
