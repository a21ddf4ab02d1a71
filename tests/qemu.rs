//! The bundled images on another VMM: QEMU's `microvm` machine under software emulation, so that it runs anywhere.
//!
//! `hostile` is left out: it is made to break VMMs, and some of its seeds end in assertions of QEMU.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use ringlet::images;

/// A QEMU that boots `image`; `append` is its whole command line.
fn qemu(image: &str, append: &str) -> (tempfile::NamedTempFile, Command) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), images::find(image).unwrap().bytes).unwrap();
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args([
            "-M",
            "microvm",
            "-accel",
            "tcg,thread=single",
            "-smp",
            "2",
            "-m",
            "64",
            "-nodefaults",
            "-no-reboot",
        ])
        .args(["-display", "none", "-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
        .arg("-kernel")
        .arg(file.path())
        .args(["-append", append])
        .stdin(Stdio::null());
    (file, command)
}

/// What the guest printed and its exit code, of which QEMU's debug port keeps 7 bits.
fn run(image: &str, append: &str) -> (String, i32) {
    let (_file, mut command) = qemu(image, append);
    let output = command.output().expect("qemu-system-x86_64 is needed: apt-get install qemu-system-x86");
    let errors = String::from_utf8_lossy(&output.stderr);
    let status = output.status.code().unwrap_or_else(|| panic!("{image}: {errors}"));
    assert_eq!(status & 1, 1, "{image} did not write to the exit port: {errors}");
    (String::from_utf8_lossy(&output.stdout).into_owned(), status >> 1)
}

#[test]
fn every_image_that_ends_runs_on_qemu() {
    for ring in ["", "ring0 "] {
        for (image, append, text, code) in [
            ("hello", "-- \"an argument\"", "argument: an argument", 0),
            ("hello", "", "primes below 10000: 1229", 0),
            ("exit", "-- \"5\"", "", 5),
            ("alloc", "", "MiB touched", 0),
            ("smp", "ringlet.vcpus=2", "on 2 cpus", 0),
            ("spin", "-- \"1\"", "", 0),
            ("fault", "-- \"ud\"", "#UD", 134 & 0x7f),
        ] {
            let append = format!("{ring}{append}");
            let (printed, status) = run(image, &append);
            assert!(printed.contains(text), "{image} {append}: {printed}");
            assert_eq!(status, code, "{image} {append}: {printed}");
        }
    }
}

#[test]
fn the_image_that_sleeps_comes_up_on_qemu() {
    let (_file, mut command) = qemu("idle", "");
    let mut child = command.stdout(Stdio::piped()).spawn().expect("apt-get install qemu-system-x86");
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(line.trim_end(), "idle");
}
