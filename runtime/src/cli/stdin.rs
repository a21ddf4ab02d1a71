//! Standard input and the terminal's size, on their way to a VM in the foreground.

use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::sync::Arc;

use ringlet::{ConsoleInput, SerialInput, Vm};
use rustix::fs::{FileType, major, minor};
use tokio::signal::unix::{SignalKind, signal};

use super::CliResult;
use super::terminal::{EscapeKeys, HELP, Key, write_if_ready};

/// Tells the VM's console how large the terminal is, now and whenever it changes. Never returns.
pub(super) async fn follow_size(vms: &[Vm]) {
    let mut window = match signal(SignalKind::window_change()) {
        Ok(window) => Some(window),
        Err(error) => {
            tracing::warn!(%error, "the guest is not told of changes of the window's size");
            None
        }
    };
    loop {
        if let (Some(vm), Ok(size)) = (vms.first(), rustix::termios::tcgetwinsize(io::stdin())) {
            vm.resize_console(size.ws_col, size.ws_row);
        }
        match &mut window {
            Some(window) => _ = window.recv().await,
            None => std::future::pending().await,
        }
    }
}

/// Where what is typed goes: to the virtio console of a VM that has one, else to its serial port.
enum Input {
    Console(ConsoleInput),
    Serial(SerialInput),
}

impl Input {
    fn of(vm: &Vm) -> Self {
        vm.console_input().map_or_else(|| Self::Serial(vm.serial_input()), Self::Console)
    }

    /// Gives the guest as much as it has room for.
    fn offer(&self, bytes: Vec<u8>) {
        match self {
            Self::Console(input) => _ = input.try_send(&bytes),
            Self::Serial(input) => _ = input.try_send(bytes),
        }
    }

    /// Waits until the guest has taken it; `false` when the VM has ended.
    fn send(&self, bytes: &[u8]) -> bool {
        match self {
            Self::Console(input) => input.send_blocking(bytes),
            Self::Serial(input) => input.send_blocking(bytes.to_vec()),
        }
    }
}

/// Passes standard input on to the VM, from a thread that ends with the process.
pub(super) fn feed_stdin(vms: &Arc<Vec<Vm>>, escape_keys: bool) -> CliResult<()> {
    if !escape_keys && (io::stdin().is_terminal() || is_null(io::stdin())) {
        // A background job that reads its terminal would be stopped; and where nothing comes, nobody has to wait.
        return Ok(());
    }
    let vms = Arc::clone(vms);
    let thread = std::thread::Builder::new().name("stdin".into()).stack_size(64 << 10).spawn(move || {
        let Some(vm) = vms.first() else { return };
        let input = Input::of(vm);
        let mut keys = EscapeKeys::default();
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = io::stdin().read(&mut buffer) {
            let typed = buffer.get(..count).unwrap_or_default();
            if escape_keys {
                // A guest that does not read loses what is typed; the escape key goes on working.
                input.offer(obey(&mut keys, typed, vm));
            } else if !input.send(typed) {
                return;
            }
        }
    });
    thread.map_err(|source| ringlet::Error::Thread { what: "standard input", source })?;
    Ok(())
}

/// Whether a descriptor is `/dev/null`.
fn is_null(fd: impl AsFd) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && (major(stat.st_rdev), minor(stat.st_rdev)) == (1, 3)
    })
}

/// Carries out the commands among what was typed, and returns the rest.
fn obey(keys: &mut EscapeKeys, typed: &[u8], vm: &Vm) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(typed.len());
    for &byte in typed {
        match keys.feed(byte) {
            Key::Guest(byte) => bytes.push(byte),
            Key::Stop => vm.request_stop(),
            Key::Help => write_if_ready(io::stderr(), HELP.as_bytes()),
            Key::Pending | Key::Unknown => {}
        }
    }
    bytes
}
