//! The devices of `ringlet run`, as its users ask for them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::process::Stdio;

use common::guest::Code;
use common::process::{Running, ringlet, run};

/// Registers of the first device.
const DEVICE: u32 = 0xD000_0000;
/// emerg_wr of a console's configuration: prints a byte.
const EMERGENCY: u32 = 0x108;

/// A disk of 4 MiB.
fn disk(folder: &tempfile::TempDir) -> String {
    let path = folder.path().join("disk.img");
    std::fs::File::create(&path).unwrap().set_len(4 << 20).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn every_sort_of_disk_works_on_either_engine() {
    let folder = tempfile::tempdir().unwrap();
    let path = disk(&folder);
    for engine in ["uring", "epoll"] {
        for source in [
            format!("path={path}"),
            format!("path={path},id=data,cache=unsafe,queues=2,queue_size=64,serial=A1"),
            format!("path={path},readonly"),
            "memory:4M".to_owned(),
        ] {
            let args = ["run", "blkbench", "--io-engine", engine, "--disk", &source, "--", "--total", "2M"];
            let verify: &[&str] = if source.ends_with("readonly") { &[] } else { &["--verify"] };
            let finished = run(&[&args[..], verify].concat()).expect(0);
            assert!(finished.stdout.contains("disk of 4 MiB"), "{source}: {}", finished.stdout);
        }
    }
    let finished = run(&["run", "blkbench", "--disk", "null:8M", "--", "--total", "1M"]).expect(0);
    assert!(finished.stdout.contains("disk of 8 MiB"), "{}", finished.stdout);
}

#[test]
fn several_disks_come_in_the_order_in_which_they_are_given() {
    let args = ["run", "blkbench", "--disk", "memory:1M", "--disk", "memory:2M", "--rng", "--"];
    for (disk, size) in [("0", "disk of 1 MiB"), ("1", "disk of 2 MiB")] {
        let finished = run(&[&args[..], &["--disk", disk, "--total", "64K"]].concat()).expect(0);
        assert!(finished.stdout.contains(size), "{}", finished.stdout);
    }
}

#[test]
fn what_a_guest_writes_is_in_the_file_afterwards() {
    let folder = tempfile::tempdir().unwrap();
    let path = disk(&folder);
    let source = format!("path={path}");
    let args = ["run", "blkbench", "--disk", &source, "--", "--mode", "write", "--total", "4M", "--verify"];
    run(&args).expect(0);
    let contents = std::fs::read(&path).unwrap();
    assert_eq!(contents.len(), 4 << 20);
    assert!(contents.iter().any(|&byte| byte != 0));
}

#[test]
fn with_count_a_file_to_write_is_refused_and_others_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = disk(&folder);
    let many = |image: &str, source: &str| run(&["run", image, "--count", "3", "--disk", source]);
    // One that does not end by itself.
    let refused = many("idle", &format!("path={path}")).expect(125);
    assert!(refused.stderr.contains("3 VMs cannot write one file; add `,readonly`"), "{}", refused.stderr);
    for source in [format!("path={path},readonly"), "null".to_owned(), "memory:1M".to_owned()] {
        many("exit", &source).expect(0);
    }
}

#[test]
fn a_disk_that_makes_no_sense_is_refused_before_anything_runs() {
    for (source, what) in [
        ("/d.img", "say path=/d.img"),
        ("path=/d.img,ro", "did you mean \"readonly\"?"),
        ("path=/nonesuch/disk", "disk /nonesuch/disk: No such file"),
        ("path=/dev/null", "give a regular file or a block device"),
        ("null:1", "Say 1M"),
        ("null,uninitialized-reads", "there is no \"uninitialized-reads\""),
        ("null,queues=99", "queues: of drive \"disk0\": 99 is not in 1..=16"),
        ("null,direct", "direct: of drive \"disk0\": only for a file or block device"),
    ] {
        let refused = run(&["run", "hello", "--disk", source]).expect(125);
        assert!(refused.stderr.contains(what), "{source}: {}", refused.stderr);
        assert_eq!(refused.stdout, "", "{source}");
    }
}

#[test]
fn a_configuration_file_has_drives_and_entropy() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("vm.json");
    let text = serde_json::json!({
        "boot-source": {"kernel_image_path": "rng"},
        "drives": [{"drive_id": "a", "path_on_host": disk(&folder), "is_root_device": true,
                    "is_read_only": true, "cache_type": "Unsafe", "io_engine": "Async"}],
        "entropy": {},
    });
    std::fs::write(&config, text.to_string()).unwrap();
    let config = config.to_str().unwrap();
    let finished = run(&["run", "--config-file", config]).expect(0);
    assert!(finished.stdout.contains("rng: "), "{}", finished.stdout);
    let finished = run(&["run", "hello", "--config-file", config, "--disk", "null,id=a"]).expect(0);
    let told = "virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6";
    assert!(finished.stdout.contains(told), "{}", finished.stdout);
    assert!(!finished.stdout.contains("root="), "the drive of that name was replaced: {}", finished.stdout);
}

#[test]
fn with_a_console_both_outputs_are_shown() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.elf");
    let code = Code::new().print("serial\n").negotiate(DEVICE);
    let code = "virtio\n".bytes().fold(code, |code, byte| code.write32(DEVICE + EMERGENCY, byte.into()));
    std::fs::write(&path, code.exit(0).elf(false)).unwrap();
    let finished = run(&["run", path.to_str().unwrap(), "--console"]).expect(0);
    // Each in its own order.
    let sorted = |text: &str| {
        let mut bytes = text.as_bytes().to_vec();
        bytes.sort_unstable();
        bytes
    };
    assert_eq!(sorted(&finished.stdout), sorted("serial\nvirtio\n"), "{}", finished.stdout);
}

#[test]
fn standard_input_that_no_guest_reads_does_not_hold_up_the_end() {
    let mut command = ringlet(&["run", "spin", "--console", "--timeout", "300ms"]);
    let mut running = Running::start(command.stdin(Stdio::piped()));
    running.type_in(&"x".repeat(100));
    assert_eq!(running.status().code(), Some(124));
}

#[test]
fn standard_input_reaches_the_console_on_either_engine() {
    for engine in ["uring", "epoll"] {
        let mut command = ringlet(&["run", "echo", "--console", "--io-engine", engine]);
        let mut running = Running::start(command.stdin(Stdio::piped()));
        running.until_printed("echo: ready, 80x24\n");
        // More than any buffer on the way holds.
        let line = format!("{}\n", "0123456789".repeat(100));
        for _ in 0..200 {
            running.type_in(&line);
            assert_eq!(running.until_printed("\n"), line);
        }
        running.type_in("quit\n");
        let finished = running.finish().expect(0);
        assert!(finished.stdout.contains("200 lines"), "{}", finished.stdout);
    }
}
