//! The real binary, as its users and their scripts meet it. What it does to a terminal is in `terminal.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::guest::Code;
use common::process::{Running, ringlet, run};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Writes a hand-made guest to a file.
fn image_file(folder: &tempfile::TempDir, code: &Code) -> String {
    let path = folder.path().join("guest.elf");
    std::fs::write(&path, code.elf(false)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The lines of JSON in `text`.
fn outcomes(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

#[test]
fn the_exit_status_is_the_guests_code_or_255_for_larger_ones() {
    for (code, status) in [("0", 0), ("1", 1), ("42", 42), ("255", 255), ("256", 255), ("4294967295", 255)] {
        let finished = run(&["run", "exit", "--", code]).expect(status);
        assert_eq!(finished.stderr, "", "an exit is nothing to talk about");
    }
}

#[test]
fn the_exit_status_is_0_after_a_reset() {
    run(&["run", "fault", "--", "reset"]).expect(0);
}

#[test]
fn the_exit_status_is_124_after_a_time_limit_and_the_report_says_where_the_guest_was() {
    let finished = run(&["run", "idle", "--timeout", "300ms"]).expect(124);
    assert_eq!(finished.stdout, "idle\n");
    assert!(finished.stderr.contains("timed out"), "{}", finished.stderr);
    assert!(finished.stderr.contains("vCPU 0: RIP=0x"), "{}", finished.stderr);
    assert!(
        finished.stderr.contains("write to port 0x3f8/1 ×5, write to port 0xf5/1"),
        "{}",
        finished.stderr
    );
}

#[test]
fn the_exit_status_is_134_after_a_crash_and_the_report_says_what_and_where() {
    let finished = run(&["run", "fault", "--", "triple"]).expect(134);
    assert!(finished.stderr.contains("the guest crashed: triple fault at RIP 0x"), "{}", finished.stderr);
    // On SVM, where the vCPU was is lost.
    let known = finished.stderr.contains("instruction bytes");
    assert!(known || finished.stderr.contains("shutdown, which reset the registers"), "{}", finished.stderr);
}

#[test]
fn the_exit_status_is_130_after_sigint_and_143_after_sigterm_or_sighup() {
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 143)] {
        for count in ["1", "3"] {
            let mut running = Running::start(&mut ringlet(&["run", "idle", "--count", count]));
            running.until_printed("idle\n");
            running.signal(signal);
            running.finish().expect(status);
        }
    }
}

#[test]
fn the_exit_status_is_125_if_ringlet_fails_and_the_message_says_why() {
    for (args, what) in [
        (&["run", "nonesuch"] as &[_], "nonesuch"),
        (&["run", "helo"], "did you mean `hello`?"),
        (&["run", "./nonesuch"], "image: ./nonesuch: cannot be found"),
        (&["run", "/etc/passwd"], "/etc/passwd"),
        (&["run", "/"], "/: "),
        (&["run", "hello", "--name", "a b"], "name"),
        (&["run", "hello", "--initrd", "/nonesuch"], "--initrd: /nonesuch: cannot be found"),
        (&["run", "--config-file", "/nonesuch"], "/nonesuch"),
        (&["run", "--config-file", "README.md"], "README.md: is not JSON: expected value at line 1 column 1"),
        (&["run", "hello", "--outcome", "/nonesuch/file"], "--outcome /nonesuch/file"),
        (&["run", "hello", "--count", "2", "--initrd", "/nonesuch"], "--initrd: /nonesuch: cannot be found"),
        (&["run", "hello", "--metrics", "unix:/nonesuch/socket"], "its folder is not there"),
        (&["run", "hello", "--vsock", "uds=/nonesuch/socket"], "its folder is not there"),
        (&["run", "hello", "--cmdline", "a -- b"], "--"),
    ] {
        let finished = run(args).expect(125);
        assert_eq!(finished.stdout, "", "{args:?}");
        assert!(
            finished.stderr.starts_with("ringlet: ") && finished.stderr.contains(what),
            "{}",
            finished.stderr
        );
        assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    }
}

#[test]
fn a_command_line_that_is_wrong_says_what_would_be_right_and_runs_nothing() {
    for (args, what) in [
        (&["run"] as &[_], "<IMAGE>"),
        (&["run", "hello", "--memory", "128"], "Say 128M"),
        (&["run", "hello", "--timeout", "5"], "500ms, 10s or 2m"),
        (&["run", "hello", "--count", "0"], "must be at least 1"),
        (&["run", "hello", "--io-engine", "kqueue"], "auto, uring, epoll"),
        (&["run", "hello", "--metrics", "9090"], "127.0.0.1:9090"),
        (&["run", "hello", "--count", "many"], "must be at least 1"),
        (&["run", "hello", "--shards", "0"], "1 to 256"),
        (&["run", "hello", "--shards", "257"], "1 to 256"),
        (&["run", "hello", "--busy-poll", "101us"], "0s to 100us"),
        (&["run", "hello", "--disk", "nul"], "null[:SIZE]"),
        (&["run", "hello", "extra"], "come after `--`"),
        (&["run", "hello", "--vcpus", "many"], "--vcpus"),
        (&["run", "hello", "--vcpus", "33"], "1..=32"),
        (&["run", "hello", "--memory", "1M"], "4M to 1T"),
        (&["start"], "start"),
        (&["hello"], "`ringlet run hello`"),
    ] {
        let finished = run(args).expect(125);
        assert_eq!(finished.stdout, "", "{args:?}");
        assert!(finished.stderr.contains(what), "{args:?}: {}", finished.stderr);
    }
}

#[test]
fn help_and_version_are_printed_on_request() {
    let help = run(&["--help"]).expect(0).stdout;
    assert!(help.contains("ringlet run hello") && help.contains("check"), "{help}");
    let help = run(&["run", "--help"]).expect(0).stdout;
    for text in ["--timeout", "Exit status:", "124", "Ctrl-A x"] {
        assert!(help.contains(text), "{help}");
    }
    assert!(run(&["--version"]).expect(0).stdout.contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn with_count_each_line_has_its_vms_name_and_every_vm_speaks() {
    let finished = run(&["run", "hello", "--count", "20", "--name", "web"]).expect(0);
    for number in 1..=20 {
        let prefix = format!("[web-{number}] ");
        let lines: Vec<_> = finished.stdout.lines().filter_map(|line| line.strip_prefix(&prefix)).collect();
        assert_eq!(lines[0], "hello from a unikernel");
        assert_eq!(lines[lines.len() - 1], "primes below 10000: 1229");
    }
    assert!(finished.stdout.lines().all(|line| line.starts_with("[web-")), "{}", finished.stdout);
}

#[test]
fn with_count_the_exit_status_is_the_first_that_is_not_0() {
    run(&["run", "exit", "--count", "5"]).expect(0);
    run(&["run", "exit", "--count", "5", "--", "9"]).expect(9);
    let finished = run(&["run", "fault", "--count", "2", "--", "triple"]).expect(134);
    assert!(finished.stderr.contains("[vm-1] ringlet: the guest crashed"), "{}", finished.stderr);
    assert!(finished.stderr.contains("[vm-2] ringlet: the guest crashed"), "{}", finished.stderr);
}

#[test]
fn the_outcome_is_a_line_of_json_for_each_vm() {
    let finished = run(&["run", "exit", "--outcome", "json", "--name", "a", "--", "300"]).expect(255);
    let expected = json!({"vm": "vm-1", "name": "a", "outcome": "exited", "code": 300, "exit_status": 255, "ready_seconds": null});
    assert_eq!(outcomes(&finished.stdout), [expected]);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("outcomes");
    let path = file.to_str().unwrap();
    run(&["run", "fault", "--count", "3", "--outcome", path, "--", "triple"]).expect(134);
    let lines = outcomes(&std::fs::read_to_string(&file).unwrap());
    assert_eq!(lines.len(), 3);
    for line in &lines {
        assert_eq!((&line["outcome"], &line["cause"]), (&json!("crashed"), &json!("triple_fault")));
        let last = line["vcpu"]["last_exits"].as_array().unwrap().last();
        if last.is_some_and(|exit| exit == "shutdown, which reset the registers") {
            // SVM: where the vCPU was is lost.
            assert_eq!(line["instruction"], "", "{line}");
        } else {
            assert!(line["vcpu"]["registers"]["rip"].as_u64().unwrap() > 0x10_0000, "{line}");
            assert!(line["instruction"].as_str().unwrap().starts_with("0f 0b"), "{line}");
        }
    }
    let timed_out = run(&["run", "idle", "--timeout", "300ms", "--outcome", path]).expect(124);
    assert_eq!(timed_out.stdout, "idle\n");
    let line = &outcomes(&std::fs::read_to_string(&file).unwrap())[0];
    assert_eq!((&line["outcome"], &line["exit_status"]), (&json!("timed_out"), &json!(124)));
    assert!(line["ready_seconds"].as_f64().unwrap() > 0.0, "{line}");
    assert_eq!(line["vcpus"][0]["last_exits"].as_array().unwrap().len(), 2);
}

#[test]
fn the_outcome_of_a_vm_that_cannot_be_started_is_its_error() {
    let disk = &["--disk", "path=/nonesuch"] as &[_];
    for (options, id, name) in [
        (disk, "vm-1", "vm-1"),
        (&["--disk", "path=/nonesuch,readonly", "--count", "2", "--name", "web"], "vm-1", "web-1"),
        (&["--initrd", "/nonesuch", "--name", "web"], "vm-1", "web"),
    ] {
        let finished = run(&[&["run", "hello", "--outcome", "json"], options].concat()).expect(125);
        let [line] = &outcomes(&finished.stdout)[..] else { panic!("{finished:?}") };
        let error = line["error"].as_str().unwrap();
        assert!(error.contains("/nonesuch") && finished.stderr.contains(error), "{finished:?}");
        let expected = json!({"vm": id, "name": name, "outcome": "failed", "error": error, "exit_status": 125, "ready_seconds": null});
        assert_eq!(*line, expected);
    }
}

#[test]
fn the_outcome_is_on_a_line_of_its_own_after_an_unfinished_one() {
    let folder = tempfile::tempdir().unwrap();
    let image = image_file(&folder, &Code::new().print("unfinished").exit(0));
    let finished = run(&["run", &image, "--outcome", "json"]).expect(0);
    let (printed, line) = finished.stdout.split_once('\n').unwrap();
    assert_eq!(printed, "unfinished");
    assert_eq!(outcomes(line)[0]["code"], 0);
}

#[test]
fn output_that_is_lost_makes_the_exit_status_125() {
    for args in [
        &["run", "hello"] as &[_],
        &["run", "hello", "--count", "2"],
        &["run", "exit", "--outcome", "json"],
        &["images"],
        &["check", "--json"],
    ] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let child = ringlet(args).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
        let finished = Running::of(child).finish().expect(125);
        assert!(finished.stderr.contains("No space left on device"), "{finished:?}");
    }
}

#[test]
fn running_out_of_open_files_names_the_limit_and_the_remedy() {
    for (limit, what) in [
        (40, "hello --count 200"),
        (39, "vsock-echo --vsock uds=./never.sock"),
        (23, "hello"),
        (12, "hello"),
        (5, "hello"),
    ] {
        let mut command = Command::new("sh");
        let script = format!("ulimit -n {limit}; exec \"$0\" run {what}");
        let child = command.args(["-c", &script, env!("CARGO_BIN_EXE_ringlet")]).stdin(Stdio::null());
        let child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let finished = Running::of(child).finish().expect(125);
        let said = format!("The limit on open files is {limit}: raise it (`ulimit -n`)");
        assert!(finished.stderr.contains(&said), "{finished:?}");
        assert!(finished.stderr.contains("a VM takes at least 24, and 40 with --vsock"), "{finished:?}");
    }
}

#[test]
fn a_guest_goes_on_when_the_reader_of_standard_output_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let image = image_file(&folder, &Code::new().print_pattern(20_000).exit(5));
    for count in ["1", "2"] {
        let mut running =
            Running::start(&mut ringlet(&["run", &image, "--count", count, "--outcome", "json"]));
        drop(running.child().stdout.take());
        let finished = running.finish().expect(5);
        assert_eq!(finished.stderr, "");
    }
}

#[test]
fn a_list_whose_reader_is_gone_is_no_failure() {
    for args in [
        &["images"] as &[_],
        &["images", "--json"],
        &["man"],
        &["completions", "bash"],
        &["check"],
        &["check", "--json"],
    ] {
        let mut command = ringlet(args);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let finished = Running::of(child).finish().expect(0);
        assert_eq!(finished.stderr, "", "{args:?}");
    }
}

#[test]
fn a_configuration_file_is_firecrackers_and_options_win_over_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vm.json");
    let config = json!({
        "boot-source": {"kernel_image_path": "hello", "boot_args": "from=file"},
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 32},
        "ringlet": {"name": "configured", "args": ["one"]},
    });
    std::fs::write(&file, config.to_string()).unwrap();
    let path = file.to_str().unwrap();
    let finished = run(&["run", "--config-file", path]).expect(0);
    assert!(finished.stdout.contains("cmdline: from=file -- \"one\""), "{}", finished.stdout);
    assert!(finished.stdout.contains("31 MiB usable, 1 vCPU"), "{}", finished.stdout);
    let finished =
        run(&["run", "--config-file", path, "--memory", "64M", "--cmdline", "x", "--", "two"]).expect(0);
    assert!(finished.stdout.contains("cmdline: x -- \"two\""), "{}", finished.stdout);
    assert!(finished.stdout.contains("63 MiB usable"), "{}", finished.stdout);

    std::fs::write(&file, r#"{"boot-source": {"kernel_image_path": "hello", "bot_args": ""}}"#).unwrap();
    let finished = run(&["run", "--config-file", path]).expect(125);
    assert!(
        finished.stderr.contains("bot_args") && finished.stderr.contains("line 1"),
        "{}",
        finished.stderr
    );
}

#[test]
fn arguments_reach_the_guest_whatever_is_in_them() {
    let odd = ["a b", "\"quoted\\\"", "tab\tnewline\nü\u{1b}[31m", "--"];
    let finished = run(&[&["run", "hello", "--"] as &[_], &odd].concat()).expect(0);
    let printed: Vec<_> =
        finished.stdout.lines().filter_map(|line| line.strip_prefix("argument: ")).collect();
    // The guest prints them escaped.
    let expected: Vec<_> =
        odd.iter().map(|argument| argument.as_bytes().escape_ascii().to_string()).collect();
    assert_eq!(printed, expected);
}

#[test]
fn an_empty_image_and_a_missing_device_say_what_they_lack() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    let finished = run(&["run", empty.to_str().unwrap()]).expect(125);
    assert!(finished.stderr.ends_with("empty: the file is empty\n"), "{}", finished.stderr);
    for (image, option) in [("blkbench", "--disk"), ("rng", "--rng"), ("echo", "--console")] {
        let finished = run(&["run", image]);
        let said = format!("start with {option}");
        assert!(finished.code() != 0 && finished.stdout.contains(&said), "{finished:?}");
    }
}

#[test]
fn the_log_names_engine_and_image_when_asked() {
    let info = run(&["run", "hello", "--log-level", "info", "--io-engine", "epoll"]).expect(0).stderr;
    assert!(info.contains("engine=\"epoll\" shards=1") && !info.contains("hello"), "{info}");
    let debug = run(&["run", "hello", "--log-level", "debug"]).expect(0).stderr;
    assert!(debug.contains("vm=\"vm-1\" image=\"hello\" protocol=\"pvh\""), "{debug}");
}

#[test]
fn a_refused_write_of_a_configuration_is_told_with_value_and_offset() {
    let folder = tempfile::tempdir().unwrap();
    let image = image_file(&folder, &Code::new().write32(0xD000_0100, 7).exit(0));
    let said = run(&["run", &image, "--console"]).expect(0).stderr;
    let what = "console0: write of 0x7 (4 bytes) at offset 0x100: the register at offset 0x100 is read-only";
    assert!(said.contains(what) && !said.contains("suppressed"), "{said}");
}

#[test]
fn hello_prints_its_command_line_whole() {
    let cmdline = "x".repeat(300);
    let finished = run(&["run", "hello", "--cmdline", &cmdline]).expect(0);
    let printed = finished.stdout.lines().find_map(|line| line.strip_prefix("cmdline: ")).unwrap();
    assert!(printed.starts_with(&cmdline), "{printed}");
}

#[test]
fn standard_input_reaches_the_guest_on_either_engine() {
    let folder = tempfile::tempdir().unwrap();
    let image = image_file(&folder, &Code::new().print("?").echo_until_q().exit(4));
    for engine in ["uring", "epoll"] {
        let mut command = ringlet(&["run", &image, "--io-engine", engine]);
        let mut running = Running::start(command.stdin(Stdio::piped()));
        running.until_printed("?");
        running.type_in("hello ");
        assert_eq!(running.until_printed("hello "), "hello ");
        // Many times what the serial port's FIFO holds.
        let long = "0123456789".repeat(50);
        running.type_in(&long);
        assert_eq!(running.until_printed(&long), long);
        running.type_in("q");
        assert_eq!(running.finish().expect(4).stdout, "q");
    }
}

#[test]
fn the_end_of_standard_input_is_not_the_end_of_the_vm() {
    let folder = tempfile::tempdir().unwrap();
    let image = image_file(&folder, &Code::new().times(2_000, Code::new().inb(0x64)).print("on").exit(6));
    assert_eq!(run(&["run", &image]).expect(6).stdout, "on");
}

#[test]
fn output_of_more_than_any_buffer_arrives_whole() {
    let folder = tempfile::tempdir().unwrap();
    let image = image_file(&folder, &Code::new().print_pattern(100_000).exit(0));
    let mut running = Running::start(&mut ringlet(&["run", &image]));
    let mut stdout = running.child().stdout.take().unwrap();
    let mut read = Vec::new();
    stdout.read_to_end(&mut read).unwrap();
    assert!(read == common::guest::pattern(100_000), "{} bytes", read.len());
    running.finish().expect(0);
}

#[test]
fn bundled_images_are_listed_and_run_from_files_too() {
    let names: Vec<_> = ringlet::images::IMAGES.iter().map(|image| image.name).collect();
    let list = run(&["images"]).expect(0).stdout;
    assert_eq!(list.lines().filter_map(|line| line.split_whitespace().next()).collect::<Vec<_>>(), names);
    let list: Value = serde_json::from_str(&run(&["images", "--json"]).expect(0).stdout).unwrap();
    assert_eq!(
        list.as_array().unwrap().iter().map(|image| image["name"].as_str().unwrap()).collect::<Vec<_>>(),
        names
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("exit.elf");
    std::fs::write(&file, ringlet::images::find("exit").unwrap().bytes).unwrap();
    run(&["run", file.to_str().unwrap(), "--", "8"]).expect(8);
    for protocol in ["pvh", "linux64"] {
        run(&["run", "exit", "--boot-protocol", protocol, "--", "8"]).expect(8);
    }
}

#[test]
fn check_says_that_this_host_can_run_vms() {
    let finished = run(&["check"]).expect(0);
    assert!(finished.stdout.contains("/dev/kvm") && !finished.stdout.contains('\x1b'), "{}", finished.stdout);
    let report: Value = serde_json::from_str(&run(&["check", "--json"]).expect(0).stdout).unwrap();
    assert!(report.is_object() || report.is_array(), "{report}");
}

#[test]
fn completions_and_manual_page_describe_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]).expect(0).stdout;
        assert!(script.contains("io-engine") && script.contains("ringlet"), "{shell}");
    }
    let page = run(&["man"]).expect(0).stdout;
    assert!(page.contains(".TH") && page.contains("io\\-engine"), "{page}");
}

/// A running guest whose metrics are served at `endpoint`; returns it when it answers.
fn serve_metrics(endpoint: &str) -> (Running, String) {
    let mut running = Running::start(&mut ringlet(&["run", "idle", "--metrics", endpoint]));
    let served_at = if endpoint.ends_with(":0") {
        let said = running.until_said("/metrics\n");
        let (_, url) = said.trim_end().split_once("serving metrics at http://").unwrap();
        url.strip_suffix("/metrics").unwrap().to_owned()
    } else {
        endpoint.to_owned()
    };
    running.until_printed("idle\n");
    (running, served_at)
}

/// Gets `/metrics`: head and body.
fn get(mut stream: impl Read + Write) -> (String, String) {
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: ringlet\r\nConnection: close\r\n\r\n").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

fn assert_metrics_of_a_running_vm((head, body): (String, String)) -> String {
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.to_ascii_lowercase().contains("content-type: text/plain; version=0.0.4"), "{head}");
    for line in [
        "ringlet_vms{state=\"running\"} 1",
        "ringlet_vms_created_total 1",
        "ringlet_vcpu_exits_total{vm=\"vm-1\",kind=\"pio_write\"} 6",
        "ringlet_serial_sent_bytes_total{vm=\"vm-1\"} 5",
        "ringlet_boot_phase_seconds_count{phase=\"ready\"} 1",
    ] {
        assert!(body.contains(line), "{line} is not in\n{body}");
    }
    body
}

#[test]
fn metrics_are_served_on_a_tcp_port_while_a_vm_runs() {
    let (running, address) = serve_metrics("127.0.0.1:0");
    for _ in 0..2 {
        assert_metrics_of_a_running_vm(get(TcpStream::connect(&address).unwrap()));
    }
    running.signal(Signal::TERM);
    running.finish().expect(143);
    assert!(TcpStream::connect(&address).is_err());
}

#[test]
fn metrics_are_served_on_a_unix_socket_while_a_vm_runs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.sock");
    let endpoint = format!("unix:{}", path.display());
    let (running, _) = serve_metrics(&endpoint);
    assert_metrics_of_a_running_vm(get(UnixStream::connect(&path).unwrap()));
    // Where somebody serves already, nobody else does.
    let finished = run(&["run", "hello", "--metrics", &endpoint]).expect(125);
    assert!(finished.stderr.contains("in use"), "{}", finished.stderr);
    running.signal(Signal::INT);
    running.finish().expect(130);
}

/// `promtool` is the judge of what Prometheus takes.
#[test]
fn promtool_finds_nothing_to_say_about_the_metrics() {
    let (_running, address) = serve_metrics("127.0.0.1:0");
    let metrics = assert_metrics_of_a_running_vm(get(TcpStream::connect(&address).unwrap()));
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = promtool.spawn().unwrap_or_else(|error| {
        panic!("promtool: {error}. It is in the Debian package prometheus; tests/setup installs it")
    });
    let mut promtool = Running::of(child);
    promtool.type_in(&metrics);
    drop(promtool.child().stdin.take());
    let finished = promtool.finish().expect(0);
    assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("", ""));
}

#[test]
fn the_engine_that_is_asked_for_is_the_engine_that_runs() {
    for engine in ["uring", "epoll"] {
        let mut command =
            ringlet(&["run", "idle", "--io-engine", engine, "--shards", "2", "--log-level", "info"]);
        let folder = tempfile::tempdir().unwrap();
        let path: PathBuf = folder.path().join("metrics.sock");
        command.args(["--metrics", &format!("unix:{}", path.display())]);
        let mut running = Running::start(&mut command);
        running.until_printed("idle\n");
        let (_, body) = get(UnixStream::connect(Path::new(&path)).unwrap());
        for shard in 0..2 {
            let line = format!("ringlet_io_engine_info{{shard=\"{shard}\",engine=\"{engine}\"}} 1");
            assert!(body.contains(&line), "{line} is not in\n{body}");
        }
        running.signal(Signal::TERM);
        running.finish().expect(143);
    }
}
