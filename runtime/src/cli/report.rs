//! How VMs ended: sentences on standard error, lines of JSON where `--outcome` says.
//!
//! A thread of its own writes, so that a reader who does not read stops nothing: neither VMs nor signals.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc::{self, Receiver};

use ringlet::{Console, Outcome, Vm};
use ringlet_metrics::Escaped;
use rustix::fs::OFlags;
use serde::Serialize;
use tokio::sync::oneshot;

use super::CliResult;

/// Where the outcomes are written, a line of JSON each.
pub(super) struct OutcomeLog {
    out: Box<dyn Write + Send>,
    /// What else writes there.
    beside: Option<Console>,
}

/// One line of it.
#[derive(Serialize)]
struct OutcomeLine<'a> {
    vm: &'a str,
    name: &'a str,
    #[serde(flatten)]
    outcome: &'a Outcome,
    exit_status: u8,
    /// From start to "ready", if the guest said so.
    ready_seconds: Option<f64>,
}

impl OutcomeLog {
    /// Standard output for `json`, to which `console` writes too, else a file.
    pub(super) fn open(target: &Path, console: &Console) -> CliResult<Self> {
        if target == Path::new("json") {
            return Ok(Self { out: Box::new(io::stdout()), beside: Some(console.clone()) });
        }
        let error = |e: io::Error| format!("--outcome {}: {e}", target.display());
        // Non-blocking, so that a FIFO without a reader is an error and not a wait.
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let mut options = File::options();
        let file = options.write(true).create(true).truncate(true).custom_flags(flags).open(target);
        let file = file.map_err(error)?;
        rustix::fs::fcntl_setfl(&file, OFlags::empty()).map_err(|e| error(e.into()))?;
        Ok(Self { out: Box::new(file), beside: None })
    }

    /// Writes a line of its own; `false` if that could not be done.
    fn write(&mut self, line: &str) -> bool {
        let fresh = if self.beside.take().is_some_and(|console| console.is_in_line()) { "\n" } else { "" };
        let text = format!("{fresh}{line}");
        match self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()) {
            Ok(()) => true,
            // Nobody reads any more: no reason to end with another status than the VMs'.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => true,
            Err(error) => {
                let _ = writeln!(io::stderr(), "ringlet: an outcome could not be written: {error}");
                false
            }
        }
    }
}

/// Something to write.
enum Message {
    Outcome(String),
    Error(String),
}

/// Says how VMs ended.
pub(super) struct Reporter {
    outcomes: bool,
    messages: mpsc::Sender<Message>,
    /// What the thread starts with, before there was anything to say.
    idle: Option<(Receiver<Message>, Option<OutcomeLog>)>,
    written: Option<oneshot::Receiver<bool>>,
}

impl Reporter {
    pub(super) fn new(outcomes: Option<OutcomeLog>) -> Self {
        let (messages, queue) = mpsc::channel();
        Self { outcomes: outcomes.is_some(), messages, idle: Some((queue, outcomes)), written: None }
    }

    /// Reports the end of `vm`. `prefix` is written before each line on standard error.
    pub(super) fn ended(&mut self, vm: &Vm, outcome: &Outcome, prefix: &str) -> io::Result<()> {
        if self.outcomes {
            let ready_seconds = vm.time_to_ready().map(|time| time.as_secs_f64());
            self.outcome(vm.id(), vm.name(), outcome, ready_seconds)?;
        }
        // An end as guests end, or as they were told to, needs no words.
        if !matches!(outcome, Outcome::Exited { .. } | Outcome::Reset | Outcome::Stopped) {
            self.say_lines(prefix, &outcome.to_string())?;
        }
        Ok(())
    }

    /// Writes the outcome of a VM that could not be started: `number` counts from 1, as the VMs do. The error is said by
    /// whoever returns it.
    pub(super) fn not_started(&mut self, number: u32, name: Option<&str>, error: &str) -> io::Result<()> {
        if !self.outcomes {
            return Ok(());
        }
        let id = format!("vm-{number}");
        self.outcome(&id, name.unwrap_or(&id), &Outcome::Failed { error: error.to_owned() }, None)
    }

    fn outcome(&mut self, vm: &str, name: &str, outcome: &Outcome, ready: Option<f64>) -> io::Result<()> {
        let exit_status = outcome.exit_status();
        let line = OutcomeLine { vm, name, outcome, exit_status, ready_seconds: ready };
        self.say(Message::Outcome(serde_json::to_string(&line)? + "\n"))
    }

    /// Says `text` on standard error, with `prefix` before each line.
    pub(super) fn say_lines(&mut self, prefix: &str, text: &str) -> io::Result<()> {
        let lines = text.lines().map(|line| format!("{prefix}ringlet: {}\n", Escaped(line)));
        self.say(Message::Error(lines.collect()))
    }

    /// Returns when all is written; `false` if an outcome could not be.
    pub(super) async fn finish(self) -> bool {
        drop(self.messages);
        match self.written {
            Some(written) => written.await.unwrap_or(false),
            None => true,
        }
    }

    fn say(&mut self, message: Message) -> io::Result<()> {
        if let Some((queue, mut outcomes)) = self.idle.take() {
            let (done, written) = oneshot::channel();
            self.written = Some(written);
            std::thread::Builder::new().name("report".into()).spawn(move || {
                let mut all = true;
                for message in queue {
                    match (message, &mut outcomes) {
                        (Message::Outcome(line), Some(log)) => all &= log.write(&line),
                        (Message::Outcome(_), None) => {}
                        (Message::Error(text), _) => drop(io::stderr().write_all(text.as_bytes())),
                    }
                }
                let _ = done.send(all);
            })?;
        }
        // The thread receives until this end is dropped.
        let _ = self.messages.send(message);
        Ok(())
    }
}
