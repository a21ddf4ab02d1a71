use super::*;
use crate::args;
use proptest::prelude::*;

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

#[test]
fn options_stay_as_they_are_and_arguments_follow() {
    assert_eq!(build("", &[]).unwrap(), "");
    assert_eq!(build(" a=\"b  c\" ", &[]).unwrap(), " a=\"b  c\" ");
    assert_eq!(build("a", &strings(&["x y", ""])).unwrap(), r#"a -- "x y" """#);
    assert_eq!(build("", &strings(&["--"])).unwrap(), r#"-- "--""#);
}

#[test]
fn sec_07_options_are_printable_ascii() {
    for (options, message) in [
        ("a\0b", "command line: byte 1 is '\\0'; only printable ASCII is allowed"),
        ("a\nb", "command line: byte 1 is '\\n'; only printable ASCII is allowed"),
        ("\u{1b}[2J", "command line: byte 0 is '\\u{1b}'; only printable ASCII is allowed"),
        ("caf\u{e9}", "command line: byte 3 is 'é'; only printable ASCII is allowed"),
        ("\u{7f}", "command line: byte 0 is '\\u{7f}'; only printable ASCII is allowed"),
    ] {
        assert_eq!(build(options, &[]).unwrap_err().to_string(), message);
    }
}

#[test]
fn sec_07_options_cannot_begin_arguments() {
    for (options, offset) in [("--", 0), ("a -- \"b\"", 2), ("a  --", 3), ("x=\" -- \"", 4)] {
        let error = build(options, &[]).unwrap_err();
        assert_eq!(error, CmdlineError::Separator { offset }, "{options:?}");
        assert_eq!(
            error.to_string(),
            format!(
                "command line: byte {offset} begins the word `--`; pass arguments separately, they are encoded after it"
            )
        );
    }
    build("--a b-- --- a--b", &[]).unwrap();
}

#[test]
fn sec_07_options_cannot_quote_the_separator() {
    let error = build("a=\"b", &strings(&["x"])).unwrap_err();
    assert_eq!(error.to_string(), "command line: it has 1 quote characters; their number must be even");
}

#[test]
fn sec_06_the_length_is_bounded_before_and_after_encoding() {
    assert_eq!(build(&"a".repeat(CMDLINE_MAX), &[]).unwrap().len(), CMDLINE_MAX);
    assert_eq!(
        build(&"a".repeat(CMDLINE_MAX + 1), &[]).unwrap_err().to_string(),
        "command line: with its encoded arguments it has 4096 characters or more; at most 4095 fit"
    );
    // Two quotes, two dashes and a space around 4 characters for each byte.
    let fits = (CMDLINE_MAX - 5) / 4;
    build("", &["\n".repeat(fits)]).unwrap();
    assert!(matches!(build("", &["\n".repeat(fits + 1)]), Err(CmdlineError::TooLong { .. })));
    assert!(matches!(build("", &["x".repeat(64 << 20)]), Err(CmdlineError::TooLong { .. })));
}

proptest! {
    /// Whatever the options are, if they are accepted then they and the arguments come back unchanged.
    #[test]
    fn sec_07_options_and_arguments_stay_apart(
        options in "([-\" a=]|--| -- ){0,12}|[ -~]{0,24}",
        args in prop::collection::vec("[-\" \\\\a\n]{0,8}|.{0,8}", 0..5),
    ) {
        let Ok(line) = build(&options, &args) else {
            return Ok(());
        };
        let (left, right) = args::split(line.as_bytes());
        prop_assert_eq!(left.trim_ascii_end(), options.trim_end_matches(' ').as_bytes());
        let back: Vec<_> =
            args::decode(right).map(|a| String::from_utf8(a.unwrap().bytes().collect()).unwrap()).collect();
        prop_assert_eq!(back, args);
    }
}
