//! How VMs ended: sentences on standard error, lines of JSON where `--outcome` says.
//!
//! A thread of its own writes, so that a reader who does not read stops nothing: neither VMs nor signals.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc::{self, Receiver};

use ringlet::{Outcome, Vm};
use ringlet_metrics::Escaped;
use rustix::fs::OFlags;
use serde::Serialize;
use tokio::sync::oneshot;

use super::CliResult;

/// Where the outcomes are written, a line of JSON each.
pub(super) struct OutcomeLog(Box<dyn Write + Send>);

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
    /// Standard output for `json`, else a file.
    pub(super) fn open(target: &Path) -> CliResult<Self> {
        if target == Path::new("json") {
            return Ok(Self(Box::new(io::stdout())));
        }
        let error = |e: io::Error| format!("--outcome {}: {e}", target.display());
        // Non-blocking, so that a FIFO without a reader is an error and not a wait.
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let mut options = File::options();
        let file = options.write(true).create(true).truncate(true).custom_flags(flags).open(target);
        let file = file.map_err(error)?;
        rustix::fs::fcntl_setfl(&file, OFlags::empty()).map_err(|e| error(e.into()))?;
        Ok(Self(Box::new(file)))
    }

    fn write(&mut self, line: &str) {
        match self.0.write_all(line.as_bytes()).and_then(|()| self.0.flush()) {
            Ok(()) => {}
            // Nobody reads any more: no reason to end with another status than the VMs'.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => {
                let _ = writeln!(io::stderr(), "ringlet: an outcome could not be written: {error}");
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
    written: Option<oneshot::Receiver<()>>,
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
            let exit_status = outcome.exit_status();
            let line = OutcomeLine { vm: vm.id(), name: vm.name(), outcome, exit_status, ready_seconds };
            self.say(Message::Outcome(serde_json::to_string(&line)? + "\n"))?;
        }
        // An end as guests end, or as they were told to, needs no words.
        if !matches!(outcome, Outcome::Exited { .. } | Outcome::Reset | Outcome::Stopped) {
            self.say_lines(prefix, &outcome.to_string())?;
        }
        Ok(())
    }

    /// Says `text` on standard error, with `prefix` before each line.
    pub(super) fn say_lines(&mut self, prefix: &str, text: &str) -> io::Result<()> {
        let lines = text.lines().map(|line| format!("{prefix}ringlet: {}\n", Escaped(line)));
        self.say(Message::Error(lines.collect()))
    }

    /// Returns when all is written.
    pub(super) async fn finish(self) {
        drop(self.messages);
        if let Some(written) = self.written {
            let _ = written.await;
        }
    }

    fn say(&mut self, message: Message) -> io::Result<()> {
        if let Some((queue, mut outcomes)) = self.idle.take() {
            let (done, written) = oneshot::channel();
            self.written = Some(written);
            std::thread::Builder::new().name("report".into()).spawn(move || {
                for message in queue {
                    match (message, &mut outcomes) {
                        (Message::Outcome(line), Some(log)) => log.write(&line),
                        (Message::Outcome(_), None) => {}
                        (Message::Error(text), _) => drop(io::stderr().write_all(text.as_bytes())),
                    }
                }
                drop(done);
            })?;
        }
        // The thread receives until this end is dropped.
        let _ = self.messages.send(message);
        Ok(())
    }
}
