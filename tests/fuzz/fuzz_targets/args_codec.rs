//! The command line, from both sides: a guest's decoder on any bytes, and the builder on any options and
//! arguments (the input's lines), which must come back unchanged.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringlet_boot::{args, cmdline};

fuzz_target!(|bytes: &[u8]| {
    decode(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        round_trip(text);
    }
});

fn decode(line: &[u8]) {
    let (options, list) = args::split(line);
    assert!(options.len() + list.len() <= line.len());
    let mut buffer = [0; 64];
    let mut total = 0;
    for argument in args::decode(list) {
        let Ok(argument) = argument else { break };
        let len = argument.bytes().count();
        assert_eq!(argument.copy_to(&mut buffer).is_some(), len <= buffer.len());
        total += len;
    }
    assert!(total <= line.len(), "decoding never grows");
}

fn round_trip(text: &str) {
    let mut lines = text.split('\n').map(str::to_owned);
    let options = lines.next().unwrap_or_default();
    let arguments: Vec<String> = lines.collect();
    let Ok(line) = cmdline::build(&options, &arguments) else { return };
    assert!(line.len() <= cmdline::CMDLINE_MAX && line.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
    let (left, right) = args::split(line.as_bytes());
    assert_eq!(left.trim_ascii_end(), options.as_bytes().trim_ascii_end());
    let back: Vec<Vec<u8>> = args::decode(right).map(|a| a.expect("valid").bytes().collect()).collect();
    assert!(back.iter().map(Vec::as_slice).eq(arguments.iter().map(String::as_bytes)));
}
