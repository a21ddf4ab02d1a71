//! What Ringlet does to the terminal of its operator, on a real pseudo-terminal.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::{Arc, Mutex};

use common::eventually;
use common::guest::Code;
use common::process::{Running, ringlet};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

/// What puts a screen in order, whatever a guest did to it.
const RESET: &str = "\x1b[0m\x1b[?25h\x1b[?1047l\x1b[?1000;1002;1003;1006l\x1b[?2004l\x1b(B\x0f";

/// A pseudo-terminal: a screen that remembers everything, and a keyboard.
struct Terminal {
    keyboard: File,
    terminal: OwnedFd,
    screen: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn new() -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let terminal =
            rustix::pty::ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        let keyboard = File::from(master);
        let screen = Arc::new(Mutex::new(Vec::new()));
        let (mut output, shown) = (keyboard.try_clone().unwrap(), Arc::clone(&screen));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                shown.lock().unwrap().extend(&buffer[..count]);
            }
        });
        Self { keyboard, terminal, screen }
    }

    /// Runs a command in a session of its own, in the foreground of this terminal.
    fn run(&self, command: &Command) -> Running {
        let mut session = Command::new("setsid");
        session.arg("-c").arg(command.get_program()).args(command.get_args());
        let stream = || self.terminal.try_clone().unwrap();
        Running::of(session.stdin(stream()).stdout(stream()).stderr(stream()).spawn().unwrap())
    }

    /// Everything that can be set, as text.
    fn settings(&self) -> String {
        format!("{:?}", tcgetattr(&self.terminal).unwrap())
    }

    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.terminal).unwrap().local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned()
    }

    fn until_shown(&self, text: &str) {
        eventually(text, || self.shown().contains(text));
    }

    fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }
}

/// Files of one test.
struct Images(tempfile::TempDir);

impl Images {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, code: &Code) -> String {
        let path = self.0.path().join("guest.elf");
        std::fs::write(&path, code.elf(false)).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// Runs a guest that echoes what is typed until that is a `q`, and then does `last`. While it runs the terminal is raw;
/// `act` makes it end. Afterwards the terminal is as it was. Returns the status and the terminal.
fn attended(
    last: impl Fn(Code) -> Code,
    more: &[&str],
    act: impl Fn(&mut Terminal, &Running),
) -> (i32, Terminal) {
    let images = Images::new();
    let image = images.file(&last(Code::new().print("?").echo_until_q()));
    let mut terminal = Terminal::new();
    let before = terminal.settings();
    let mut running = terminal.run(&ringlet(&[&["run", &image] as &[_], more].concat()));
    terminal.until_shown("?");
    assert!(terminal.is_raw(), "{}", terminal.settings());
    act(&mut terminal, &running);
    let status = running.status().code().unwrap();
    assert_eq!(terminal.settings(), before);
    // What the guest did to the screen is undone, as the last thing that is printed there but the report.
    terminal.until_shown(RESET);
    (status, terminal)
}

fn press_q(terminal: &mut Terminal, _: &Running) {
    terminal.press(b"q");
}

#[test]
fn sec_13_the_terminal_is_restored_after_an_exit_and_a_crash() {
    assert_eq!(attended(|code| code.exit(4), &[], press_q).0, 4);
    assert_eq!(attended(Code::reset, &[], press_q).0, 0);
    let (status, terminal) = attended(Code::triple_fault, &[], press_q);
    assert_eq!(status, 134);
    terminal.until_shown("the guest crashed: triple fault");
}

#[test]
fn sec_13_the_terminal_is_restored_after_every_signal_that_can_be_caught() {
    for (signal, status) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 143), (Signal::QUIT, 131)]
    {
        assert_eq!(attended(|code| code.exit(0), &[], |_, running| running.signal(signal)).0, status);
    }
}

#[test]
fn sec_13_the_terminal_is_restored_after_a_time_limit() {
    let limit = ["--timeout", "2s"];
    assert_eq!(attended(|code| code.exit(0), &limit, |_, _| {}).0, 124);
}

#[test]
fn sec_13_the_terminal_is_restored_after_the_escape_key() {
    assert_eq!(attended(|code| code.exit(0), &[], |terminal, _| terminal.press(b"\x01x")).0, 130);
}

#[test]
fn sec_13_the_terminal_is_untouched_when_the_vm_cannot_be_made() {
    let terminal = Terminal::new();
    let before = terminal.settings();
    for args in [&["run", "nonesuch"] as &[_], &["run", "hello", "--cmdline", "a -- b"]] {
        assert_eq!(terminal.run(&ringlet(args)).status().code(), Some(125));
        assert_eq!(terminal.settings(), before);
    }
}

#[test]
fn keys_reach_the_guest_except_those_after_ctrl_a() {
    let (status, terminal) = attended(
        |code| code.exit(4),
        &[],
        |terminal, _| {
            // Ctrl-C, Ctrl-Z, Ctrl-D, Ctrl-\, carriage return: what a terminal would keep for itself.
            terminal.press(b"a\x03\x1a\x04\x1c\rb");
            terminal.until_shown("a\x03\x1a\x04\x1c\rb");
            terminal.press(b"\x01h");
            terminal.until_shown("Ctrl-A x  stop the VM");
            terminal.press(b"\x01\x01");
            terminal.until_shown("\x01");
            terminal.press(b"q");
        },
    );
    assert_eq!(status, 4, "{}", terminal.shown());
}

/// A guest that would paint the screen and rename the window.
fn painter() -> Code {
    Code::new().print("\x1b[31mred\x1b]0;title\x07\u{9b}2J\n").exit(0)
}

#[test]
fn sec_13_the_one_vm_in_the_foreground_has_the_terminal_to_itself() {
    let images = Images::new();
    let terminal = Terminal::new();
    let mut running = terminal.run(&ringlet(&["run", &images.file(&painter())]));
    assert_eq!(running.status().code(), Some(0));
    terminal.until_shown("\x1b[31mred\x1b]0;title\x07\u{9b}2J");
    terminal.until_shown(RESET);
}

#[test]
fn sec_13_several_vms_share_the_terminal_and_none_controls_it() {
    let images = Images::new();
    let terminal = Terminal::new();
    let before = terminal.settings();
    let mut running = terminal.run(&ringlet(&["run", &images.file(&painter()), "--count", "2"]));
    assert_eq!(running.status().code(), Some(0));
    for name in ["vm-1", "vm-2"] {
        terminal.until_shown(&format!("[{name}] \\u{{1b}}[31mred\\u{{1b}}]0;title\\u{{7}}\\u{{9b}}2J"));
    }
    assert!(!terminal.shown().contains(['\x1b', '\x07', '\u{9b}']), "{:?}", terminal.shown());
    assert_eq!(terminal.settings(), before);
}

#[test]
fn sec_13_a_vm_in_the_background_does_not_control_the_terminal() {
    let images = Images::new();
    let terminal = Terminal::new();
    let before = terminal.settings();
    let image = images.file(&painter());
    // With job control (-m), each background job is a process group of its own.
    let mut shell = Command::new("sh");
    shell.args(["-mc", "\"$0\" run \"$1\" & wait; echo done", env!("CARGO_BIN_EXE_ringlet"), &image]);
    let mut running = terminal.run(&shell);
    assert_eq!(running.status().code(), Some(0));
    terminal.until_shown("done");
    assert!(terminal.shown().contains("\\u{1b}[31mred"), "{:?}", terminal.shown());
    assert!(!terminal.shown().contains(['\x1b', '\x07', '\u{9b}']), "{:?}", terminal.shown());
    assert_eq!(terminal.settings(), before);
}

#[test]
fn sec_13_file_names_and_arguments_in_messages_do_not_control_the_terminal() {
    let evil = "/nonesuch/\x1b[31m\x07\u{9b}evil";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("\x1b[31mevil");
    std::fs::write(&file, "no image").unwrap();
    let file = file.to_str().unwrap();
    for args in [
        &["run", evil] as &[_],
        &["run", file],
        &["run", "hello", evil],
        &["run", "hello", "--memory", evil],
        &["run", "hello", "--initrd", evil],
        &["run", "hello", "--outcome", evil],
        &["run", "--config-file", evil],
        &["run", "--config-file", file],
        &["run", "hello", "--metrics", evil],
        &["run", "hello", "--name", evil],
    ] {
        let terminal = Terminal::new();
        assert_eq!(terminal.run(&ringlet(args)).status().code(), Some(125), "{args:?}");
        terminal.until_shown("evil");
        // Whoever had a raw terminal gives it back in order.
        let shown = terminal.shown().replace(RESET, "");
        assert!(!shown.contains(['\x1b', '\x07', '\u{9b}']), "{args:?}: {shown:?}");
    }
}

#[test]
fn a_virtio_console_has_the_keyboard_and_the_size_of_the_terminal() {
    let mut terminal = Terminal::new();
    let resize = |terminal: &Terminal, columns, rows| {
        let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&terminal.terminal, size).unwrap();
    };
    resize(&terminal, 100, 40);
    let mut running = terminal.run(&ringlet(&["run", "echo", "--console"]));
    // The size may come before the guest looks for the first time, or after.
    terminal.until_shown("100x40");
    resize(&terminal, 120, 50);
    terminal.until_shown("resized to 120x50");
    terminal.press(b"hello\nquit\n");
    terminal.until_shown("hello");
    assert_eq!(running.status().code(), Some(0));
    terminal.until_shown(RESET);
}
