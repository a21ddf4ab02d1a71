//! The operator's terminal: raw while a guest has it, restored on every way out.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{InputModes, LocalModes, OptionalActions, QueueSelector, SpecialCodeIndex, Termios};

/// The key that starts a command to Ringlet: Ctrl-A.
const ESCAPE: u8 = 0x01;

/// What Ctrl-A h prints.
pub(super) const HELP: &str = "\n\
    Ctrl-A x  stop the VM\n\
    Ctrl-A h  this list\n\
    Ctrl-A Ctrl-A  send Ctrl-A to the guest\n";

/// Standard input in raw mode; dropping this restores it.
#[derive(Debug)]
pub(super) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Puts standard input into raw mode if it is a terminal and this process is in its foreground; `None` if it
    /// is not.
    pub(super) fn new() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() || !in_foreground(&stdin) {
            return Ok(None);
        }
        let before = rustix::termios::tcgetattr(&stdin)?;
        let mut raw = before.clone();
        // Bytes as they are typed, none interpreted. Output processing stays on: guests and logs end lines with \n.
        raw.input_modes -= InputModes::BRKINT
            | InputModes::ICRNL
            | InputModes::IGNCR
            | InputModes::INLCR
            | InputModes::INPCK
            | InputModes::ISTRIP
            | InputModes::IXON
            | InputModes::PARMRK;
        raw.local_modes -= LocalModes::ECHO
            | LocalModes::ECHONL
            | LocalModes::ICANON
            | LocalModes::IEXTEN
            | LocalModes::ISIG;
        raw.special_codes[SpecialCodeIndex::VMIN] = 1;
        raw.special_codes[SpecialCodeIndex::VTIME] = 0;
        rustix::termios::tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Self { before }))
    }
}

/// Undoes what a guest may have done to the screen: attributes, cursor, alternate screen, mouse reports, bracketed
/// paste, line-drawing characters.
const RESET: &[u8] = b"\x1b[0m\x1b[?25h\x1b[?1047l\x1b[?1000;1002;1003;1006l\x1b[?2004l\x1b(B\x0f";

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let stdin = io::stdin();
        // Replies of the terminal to what the guest sent must not be typed into the shell.
        let _ = rustix::termios::tcflush(&stdin, QueueSelector::IFlush);
        let _ = rustix::termios::tcsetattr(&stdin, OptionalActions::Now, &self.before);
        if io::stdout().is_terminal() {
            write_if_ready(io::stdout(), RESET);
        }
    }
}

/// Writes a few bytes to what may be a terminal, unless nobody takes them.
pub(super) fn write_if_ready(stream: impl AsFd, bytes: &[u8]) {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut fds = [PollFd::new(&stream, PollFlags::OUT)];
    if poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0) {
        let _ = rustix::io::write(&stream, bytes);
    }
}

/// True if this process is in the terminal's foreground. A background process that changed its terminal would be
/// stopped by the kernel, and must not control it by what it prints either.
pub(super) fn in_foreground(terminal: impl AsFd) -> bool {
    rustix::termios::tcgetpgrp(terminal).is_ok_and(|foreground| foreground == rustix::process::getpgrp())
}

/// What a typed byte means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// A byte for the guest.
    Guest(u8),
    /// The first half of a command.
    Pending,
    /// Stop the VM.
    Stop,
    /// List the commands.
    Help,
    /// No such command.
    Unknown,
}

/// Tells commands to Ringlet from input for the guest.
#[derive(Debug, Default)]
pub(super) struct EscapeKeys {
    escaped: bool,
}

impl EscapeKeys {
    pub(super) fn feed(&mut self, byte: u8) -> Key {
        match (std::mem::take(&mut self.escaped), byte) {
            (false, ESCAPE) => {
                self.escaped = true;
                Key::Pending
            }
            (false, byte) => Key::Guest(byte),
            (true, ESCAPE) => Key::Guest(ESCAPE),
            (true, b'x' | b'X') => Key::Stop,
            (true, b'h' | b'H' | b'?') => Key::Help,
            (true, _) => Key::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(bytes: &[u8]) -> Vec<Key> {
        let mut keys = EscapeKeys::default();
        bytes.iter().map(|&byte| keys.feed(byte)).collect()
    }

    #[test]
    fn ctrl_a_leads_commands_and_doubled_reaches_the_guest() {
        assert_eq!(keys(b"a\x01x"), [Key::Guest(b'a'), Key::Pending, Key::Stop]);
        assert_eq!(keys(b"\x01\x01x"), [Key::Pending, Key::Guest(1), Key::Guest(b'x')]);
        assert_eq!(keys(b"\x01h\x03"), [Key::Pending, Key::Help, Key::Guest(3)]);
        assert_eq!(keys(b"\x01qx"), [Key::Pending, Key::Unknown, Key::Guest(b'x')]);
    }
}
