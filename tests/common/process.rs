//! The real binary as a child process, and what this process itself uses.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};

use super::deadline;

/// The `ringlet` command with arguments; its standard input is empty.
pub(crate) fn ringlet(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringlet"));
    command.args(args).stdin(Stdio::null()).env("NO_COLOR", "1");
    command
}

/// What a finished command left behind.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    #[track_caller]
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("ended by a signal: {self:?}"))
    }

    /// Asserts the exit status, and shows everything if it is another.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code(), code, "{self:?}");
        self
    }
}

/// A child that does not outlive its test, and what was read of its standard output and error but not asked for yet.
pub(crate) struct Running(Child, [Vec<u8>; 2]);

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self::of(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    pub(crate) fn of(child: Child) -> Self {
        Self(child, [Vec::new(), Vec::new()])
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Reads standard output until it holds `text`; returns it up to the end of that, and what follows is for the next
    /// call. Panics after [`deadline`].
    #[track_caller]
    pub(crate) fn until_printed(&mut self, text: &str) -> String {
        read_until(self.0.stdout.as_mut().unwrap(), &mut self.1[0], text)
    }

    /// As [`until_printed`](Self::until_printed), of standard error.
    #[track_caller]
    pub(crate) fn until_said(&mut self, text: &str) -> String {
        read_until(self.0.stderr.as_mut().unwrap(), &mut self.1[1], text)
    }

    pub(crate) fn type_in(&mut self, text: &str) {
        self.0.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Waits for its end without reading anything; kills it and panics after [`deadline`].
    pub(crate) fn status(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < deadline(), "the command hangs");
            // Between two looks: a wait with a deadline is not to be had.
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    /// Waits for its end and for all of its output that was not asked for yet.
    pub(crate) fn finish(mut self) -> Finished {
        let [printed, said] = std::mem::take(&mut self.1);
        let stdout = self.0.stdout.take().map(|stream| collect(printed, stream));
        let stderr = self.0.stderr.take().map(|stream| collect(said, stream));
        let status = self.status();
        let text = |thread: Option<std::thread::JoinHandle<String>>| {
            thread.map_or_else(String::new, |t| t.join().unwrap())
        };
        Finished { status, stdout: text(stdout), stderr: text(stderr) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

#[track_caller]
fn read_until(stream: &mut (impl Read + AsFd), kept: &mut Vec<u8>, text: &str) -> String {
    let begun = Instant::now();
    let mut buffer = [0; 1024];
    loop {
        if let Some(at) = kept.windows(text.len()).position(|window| window == text.as_bytes()) {
            return String::from_utf8_lossy(&kept.drain(..at + text.len()).collect::<Vec<_>>()).into_owned();
        }
        let so_far = || String::from_utf8_lossy(kept).into_owned();
        let left = deadline().saturating_sub(begun.elapsed()).try_into().unwrap();
        match poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&left)) {
            Ok(0) => panic!("it hangs without {text:?}: {:?}", so_far()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => panic!("{error}"),
        }
        match stream.read(&mut buffer).unwrap() {
            0 => panic!("it ended without {text:?}: {:?}", so_far()),
            count => kept.extend(&buffer[..count]),
        }
    }
}

/// Reads a stream to its end on a thread of its own, and puts that behind `bytes`.
fn collect(mut bytes: Vec<u8>, mut stream: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let _ = stream.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Runs `ringlet` with arguments to its end.
#[track_caller]
pub(crate) fn run(args: &[&str]) -> Finished {
    Running::start(&mut ringlet(args)).finish()
}

/// Open file descriptors of this process.
pub(crate) fn descriptors() -> usize {
    entries("/proc/self/fd")
}

/// Threads of this process whose name begins so.
pub(crate) fn threads_named(start: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    // A thread may end between the two looks.
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with(start)).count()
}

fn entries(folder: &str) -> usize {
    std::fs::read_dir(Path::new(folder)).unwrap().count()
}

/// Memory of this process that is in RAM, in KiB: anonymous, and shared (guest RAM).
pub(crate) fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}
