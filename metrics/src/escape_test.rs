use proptest::prelude::*;

use super::*;

#[test]
fn controls_are_spelled_and_text_is_left_alone() {
    assert_eq!(Escaped("a\nb\r\t\u{1b}[2J\u{7f}\u{9b}1m").to_string(), r"a\nb\r\t\u{1b}[2J\u{7f}\u{9b}1m");
    assert_eq!(Escaped("plain, ünïcödé, 日本, \"q\"").to_string(), "plain, ünïcödé, 日本, \"q\"");
    assert_eq!(Escaped("x\u{202e}y\u{2028}").to_string(), r"x\u{202e}y\u{2028}");
}

#[test]
fn a_message_that_fits_exactly_is_whole() {
    assert_eq!(escape_bounded(format_args!("{}", "abcd"), 4), "abcd");
    assert_eq!(escape_bounded(format_args!("{}{}", "abcd", "e"), 4), "a…");
    assert_eq!(escape_bounded(format_args!("{}", "éééé"), 7), "éé…");
}

#[test]
fn sec_02_an_endless_message_costs_its_limit() {
    struct Endless;
    impl fmt::Display for Endless {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            loop {
                f.write_str("and on ")?;
            }
        }
    }
    let text = escape_bounded(format_args!("{Endless}"), 100);
    assert!(text.len() <= 100 && text.ends_with('…'), "{text}");
}

#[test]
fn long_labels_that_begin_alike_stay_apart() {
    let (one, two) = ("x".repeat(500) + "1", "x".repeat(500) + "2");
    let (one, two) = (label_value(&one, 128), label_value(&two, 128));
    assert_ne!(one, two);
    assert_eq!((one.len(), two.len()), (128, 128));
    assert_eq!(label_value(&"x".repeat(128), 128).len(), 128);
    assert!(!label_value(&"x".repeat(128), 128).contains('~'));
}

proptest! {
    #[test]
    fn sec_13_nothing_escaped_steers_a_terminal(text in any::<String>(), limit in 20usize..200) {
        let controls = |s: &str| s.chars().any(|c| c.is_control() || ('\u{2028}'..='\u{202e}').contains(&c));
        prop_assert!(!controls(&Escaped(&text).to_string()));
        let bounded = escape_bounded(format_args!("{text}"), limit);
        prop_assert!(!controls(&bounded) && bounded.len() <= limit);
        let label = label_value(&text, limit);
        prop_assert!(!controls(&label) && label.len() <= limit);
    }
}
