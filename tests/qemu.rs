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
    finish(image, &mut command)
}

/// As [`run`], of a machine that is ready to start.
fn finish(image: &str, command: &mut Command) -> (String, i32) {
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

/// Our driver's side of virtio against devices that are not ours.
#[test]
fn blkbench_verifies_a_disk_on_qemu() {
    // Where this machine has its eight places for devices when it has no ACPI, and their pins.
    let places: String = (0..8)
        .map(|index| format!("virtio_mmio.device=512@{:#x}:{} ", 0xfeb0_0000_u64 + 512 * index, 5 + index))
        .collect();
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(16 << 20).unwrap();
    let drive = format!("file={},if=none,id=disk,format=raw,discard=unmap", disk.path().display());
    for driver in ["ring", "crate"] {
        let options = format!(r#""--verify" "--mode" "randrw" "--total" "4M" "--driver" "{driver}""#);
        let (_file, mut command) = qemu("blkbench", &format!("{places}-- {options}"));
        command
            .args([
                "-machine",
                "acpi=off,auto-kernel-cmdline=off",
                "-global",
                "virtio-mmio.force-legacy=false",
            ])
            .args(["-drive", &drive, "-device", "virtio-blk-device,drive=disk"]);
        let (printed, status) = finish("blkbench", &mut command);
        assert_eq!(status, 0, "{driver}: {printed}");
        let result = printed.lines().find_map(|line| line.strip_prefix("blkbench-result ")).expect(&printed);
        let result: serde_json::Value = serde_json::from_str(result).unwrap();
        assert_eq!(result["ok"], true, "{printed}");
        let bytes = (result["reads"].as_u64().unwrap() + result["writes"].as_u64().unwrap()) * 4096;
        assert_eq!(bytes, 4 << 20, "{printed}");
        assert!(result["verified"].as_u64().unwrap() > 100, "{printed}");
        assert!(result["interrupts"].as_u64().unwrap() > 0, "{printed}");
    }
    let written = std::fs::read(disk.path()).unwrap();
    assert!(written.chunks(512).any(|sector| sector.starts_with(b"blkbench")));
}
