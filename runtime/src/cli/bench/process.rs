//! Times a command from outside: start, first byte of its output, end, CPU time.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::usage::cpu_time_of_children;

/// A command that writes nothing for this long is killed.
const PATIENCE: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

/// One run of a command.
#[derive(Debug)]
pub(super) struct Run {
    /// From before it was spawned until the first byte of its standard output was read.
    pub(super) first_byte: Duration,
    /// … until it had exited and was waited for.
    pub(super) exit: Duration,
    /// CPU time of all its threads. Wrong if this process waited for other children meanwhile.
    pub(super) cpu: Duration,
    pub(super) status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: String,
}

impl Run {
    /// What it said last on standard error, or how it ended.
    pub(super) fn complaint(&self) -> String {
        let last = self.stderr.lines().rev().find(|line| !line.trim().is_empty());
        match last {
            Some(line) => format!("{line} ({})", self.status),
            None => self.status.to_string(),
        }
    }
}

/// Runs `command` to its end, without input, its output on pipes. The standard library spawns it with
/// `posix_spawn`, so the size of this process does not matter.
pub(super) fn time(command: &mut Command) -> io::Result<Run> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let cpu_before = cpu_time_of_children()?;
    let begun = Instant::now();
    let mut child = command.spawn()?;
    let (stdout, first_byte) = match drain(&mut child, begun) {
        Ok(read) => read,
        Err(error) => {
            child.kill()?;
            child.wait()?;
            return Err(error);
        }
    };
    let status = child.wait()?;
    let exit = begun.elapsed();
    let cpu = cpu_time_of_children()?.saturating_sub(cpu_before);
    let mut stderr = Vec::new();
    if let Some(pipe) = &mut child.stderr {
        pipe.read_to_end(&mut stderr)?;
    }
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    Ok(Run { first_byte: first_byte.unwrap_or(exit), exit, cpu, status, stdout, stderr })
}

/// Reads standard output to its end; also when its first byte came.
fn drain(child: &mut Child, begun: Instant) -> io::Result<(Vec<u8>, Option<Duration>)> {
    let pipe = child.stdout.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
    let (mut output, mut first) = (Vec::new(), None);
    let mut block = [0; 4096];
    loop {
        let ready = poll(&mut [PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)], Some(&PATIENCE))?;
        if ready == 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it neither writes nor ends"));
        }
        let count = pipe.read(&mut block)?;
        if count == 0 {
            return Ok((output, first));
        }
        first.get_or_insert_with(|| begun.elapsed());
        output.extend_from_slice(block.get(..count).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_timed_and_its_output_kept() {
        let script = "printf a; printf 'why\\n' >&2; read nothing; printf b; exit 3";
        let run = time(Command::new("sh").args(["-c", script])).unwrap();
        assert_eq!(run.stdout, b"ab");
        assert_eq!(run.status.code(), Some(3));
        assert!(run.first_byte <= run.exit);
        assert_eq!(run.complaint(), "why (exit status: 3)");
    }

    #[test]
    fn a_command_without_output_has_its_end_for_a_first_byte() {
        let run = time(&mut Command::new("true")).unwrap();
        assert_eq!(run.first_byte, run.exit);
        assert_eq!(run.complaint(), "exit status: 0");
    }
}
