//! One connection: reads heads, writes responses, and knows when the client is too slow. It holds a head and no body:
//! what a body has is passed on as it comes, and nothing is taken from the client that there is no room for.

use alloc::vec::Vec;

use super::request::{self, HEAD_MAX, Method, Request};
use super::response::{CONTINUE, Connection as Fate, Head, OK, Refusal};
use super::site::{Answer, Body, Stats};

/// Most bytes of a body that nobody asked for; a connection with a longer one is closed.
const SKIP_MAX: u64 = 64 << 10;
/// Nanoseconds that each byte adds to the time that a client has: one that takes less than 1000 bytes a second is too
/// slow in the long run.
const PER_BYTE: u64 = 1_000_000;

/// The period of `/bytes/N`.
const PERIOD: usize = 251;
/// Several periods, so that few pieces are needed.
static PATTERN: [u8; PERIOD * 32] = {
    let mut pattern = [0; PERIOD * 32];
    let mut at = 0;
    while at < pattern.len() {
        pattern[at] = (at % PERIOD) as u8;
        at += 1;
    }
    pattern
};

/// What a connection needs of TCP. Nothing waits.
pub(crate) trait Stream {
    /// Takes bytes that came in; how many.
    fn read(&mut self, into: &mut [u8]) -> usize;
    /// Gives bytes to send; how many were taken.
    fn write(&mut self, bytes: &[u8]) -> usize;
    /// Whether the client has sent its last byte, and it was read.
    fn has_ended(&self) -> bool;
    /// Bytes given that the client has not acknowledged.
    fn queued(&self) -> usize;
    /// Says that nothing more will be sent.
    fn close(&mut self);
    /// Whether the connection is over on both sides.
    fn is_gone(&self) -> bool;
}

/// How long a client may take, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Patience {
    /// For a head; and for the rest, unless it takes or sends something.
    pub(crate) work: u64,
    /// Between requests.
    pub(crate) idle: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// A head is to come; whether some of it has.
    Head { begun: bool },
    /// A response is written: what is in `output`, then so many bytes of the pattern from an offset.
    Pattern { at: usize, left: u64 },
    /// As above; then the request's body, of which nothing is sent before something of it is there.
    Echo { head: Option<Head> },
    /// The rest of a body is not wanted.
    Skip,
    /// All was said; what the client still says is of no interest.
    Lingering,
}

/// What a step has led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Moved,
    /// There is nothing to read, or no room to write.
    Blocked,
    /// The client has ended a request in its middle.
    Broken,
}

/// Whether a connection is still of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Open,
    /// Both sides have ended it.
    Gone,
    /// It is to be torn down.
    Abort,
}

#[derive(Debug)]
pub(crate) struct Connection {
    phase: Phase,
    /// What was read, and from where on it is of interest.
    input: Vec<u8>,
    start: usize,
    /// What is to be written, and from where on.
    output: Vec<u8>,
    written: usize,
    /// Bytes of the request's body that were not looked at.
    body: u64,
    keep_alive: bool,
    /// Bytes that the client had not acknowledged when the connection was last looked at.
    queued: usize,
    patience: Patience,
    deadline: u64,
}

impl Connection {
    pub(crate) fn new(patience: Patience, now: u64) -> Self {
        Self {
            phase: Phase::Head { begun: false },
            input: Vec::new(),
            start: 0,
            output: Vec::new(),
            written: 0,
            body: 0,
            keep_alive: true,
            queued: 0,
            patience,
            deadline: now.saturating_add(patience.work),
        }
    }

    /// When the connection is to be looked at though nothing has come.
    pub(crate) fn deadline(&self) -> u64 {
        self.deadline
    }

    /// Does what can be done now.
    pub(crate) fn advance(&mut self, stream: &mut impl Stream, stats: &mut Stats, now: u64) -> Outcome {
        loop {
            if stream.is_gone() {
                return Outcome::Gone;
            }
            match self.step(stream, stats, now) {
                Step::Moved => {}
                Step::Blocked if now < self.deadline => return Outcome::Open,
                Step::Blocked if self.is_patient_no_more(stream, stats, now) => return Outcome::Abort,
                Step::Blocked => {}
                Step::Broken => return Outcome::Abort,
            }
        }
    }

    fn step(&mut self, stream: &mut impl Stream, stats: &mut Stats, now: u64) -> Step {
        if self.written < self.output.len() {
            let written = stream.write(&self.output[self.written..]);
            self.written += written;
            return self.moved(written, now);
        }
        self.output.clear();
        self.written = 0;
        match self.phase {
            Phase::Head { begun } => self.head(begun, stream, stats, now),
            Phase::Pattern { left: 0, .. } => self.answered(stream, now),
            Phase::Pattern { at, left } => {
                let len = left.min((PATTERN.len() - at) as u64) as usize;
                let written = stream.write(&PATTERN[at..at + len]);
                self.phase = Phase::Pattern { at: (at + written) % PERIOD, left: left - written as u64 };
                stats.bytes_out += written as u64;
                self.moved(written, now)
            }
            Phase::Echo { head } => self.echo(head, stream, stats, now),
            Phase::Skip => self.skip(stream, stats, now),
            Phase::Lingering => self.linger(stream, now),
        }
    }

    /// Waits for a whole head, and answers it.
    fn head(&mut self, begun: bool, stream: &mut impl Stream, stats: &mut Stats, now: u64) -> Step {
        let read = self.fill(stream);
        let bytes = &self.input[self.start..];
        if bytes.is_empty() {
            if !stream.has_ended() {
                return Step::Blocked;
            }
            return self.close(stream, now);
        }
        match request::parse(bytes) {
            Ok(Some(request)) => {
                let (answer, len) = (stats.answer(&request), request.len);
                self.begin(&answer, &Asked::of(&request), stats, now);
                self.start += len;
            }
            Ok(None) if stream.has_ended() => self.refuse(Refusal::Malformed, stats, now),
            Ok(None) => {
                if !begun {
                    // Further bytes don't buy time.
                    self.phase = Phase::Head { begun: true };
                    self.deadline = now.saturating_add(self.patience.work);
                }
                return if read > 0 { Step::Moved } else { Step::Blocked };
            }
            Err(refusal) => self.refuse(refusal, stats, now),
        }
        Step::Moved
    }

    /// Begins a response.
    fn begin(&mut self, answer: &Answer, asked: &Asked, stats: &mut Stats, now: u64) {
        let is_echo = answer.body == Body::Echo;
        // One who waits for 100 and gets another answer may send the body or not: there is no telling.
        let is_skipped = asked.body <= SKIP_MAX && !(asked.expects_continue && asked.body > 0);
        self.body = asked.body;
        self.keep_alive = asked.keep_alive && (is_echo || is_skipped);
        self.deadline = now.saturating_add(self.patience.work);
        *if answer.code == OK { &mut stats.good } else { &mut stats.bad } += 1;
        let connection = match (self.keep_alive, asked.is_old) {
            (true, false) => Fate::Stays,
            (true, true) => Fate::StaysOld,
            (false, _) => Fate::Closes,
        };
        let length = match &answer.body {
            Body::Text(text) => text.len() as u64,
            Body::Pattern(length) => *length,
            Body::Echo => asked.body,
        };
        let Answer { code, kind, allow, .. } = *answer;
        let head = Head { code, kind, length, allow, connection };
        if is_echo && asked.expects_continue && asked.body > 0 {
            self.output.extend_from_slice(CONTINUE);
        }
        if is_echo && asked.body > 0 {
            self.phase = Phase::Echo { head: Some(head) };
            return;
        }
        head.write(&mut self.output);
        self.phase = Phase::Pattern { at: 0, left: 0 };
        match &answer.body {
            Body::Text(text) if !asked.is_head => self.output.extend_from_slice(text.as_bytes()),
            Body::Pattern(left) if !asked.is_head => self.phase = Phase::Pattern { at: 0, left: *left },
            _ => {}
        }
    }

    /// Says why the connection ends.
    fn refuse(&mut self, refusal: Refusal, stats: &mut Stats, now: u64) {
        let asked =
            Asked { body: 0, keep_alive: false, is_old: false, is_head: false, expects_continue: false };
        self.start = self.input.len();
        self.begin(&Answer::text(refusal.code(), refusal.text()), &asked, stats, now);
    }

    fn echo(&mut self, head: Option<Head>, stream: &mut impl Stream, stats: &mut Stats, now: u64) -> Step {
        if self.body == 0 {
            return self.answered(stream, now);
        }
        self.fill(stream);
        let bytes = &self.input[self.start..];
        if bytes.is_empty() {
            return if stream.has_ended() { Step::Broken } else { Step::Blocked };
        }
        if let Some(head) = head {
            head.write(&mut self.output);
            self.phase = Phase::Echo { head: None };
            return Step::Moved;
        }
        let len = self.body.min(bytes.len() as u64) as usize;
        let written = stream.write(&bytes[..len]);
        self.consume(written);
        stats.bytes_in += written as u64;
        stats.bytes_out += written as u64;
        self.moved(written, now)
    }

    /// Goes on after a response.
    fn answered(&mut self, stream: &mut impl Stream, now: u64) -> Step {
        if !self.keep_alive {
            return self.close(stream, now);
        }
        if self.body > 0 {
            self.phase = Phase::Skip;
            return Step::Moved;
        }
        self.phase = Phase::Head { begun: false };
        self.deadline = now.saturating_add(self.patience.idle);
        Step::Moved
    }

    fn skip(&mut self, stream: &mut impl Stream, stats: &mut Stats, now: u64) -> Step {
        if self.body == 0 {
            return self.answered(stream, now);
        }
        self.fill(stream);
        let len = self.body.min((self.input.len() - self.start) as u64) as usize;
        if len == 0 && stream.has_ended() {
            return Step::Broken;
        }
        self.consume(len);
        stats.bytes_in += len as u64;
        self.moved(len, now)
    }

    /// Ends this side. The other one has time to read what was sent: a connection that is torn down while the client
    /// still sends loses the response (RFC 9112, 9.6).
    fn close(&mut self, stream: &mut impl Stream, now: u64) -> Step {
        stream.close();
        self.phase = Phase::Lingering;
        self.queued = stream.queued();
        self.deadline = now.saturating_add(self.patience.work);
        Step::Moved
    }

    fn linger(&mut self, stream: &mut impl Stream, now: u64) -> Step {
        self.start = self.input.len();
        self.fill(stream);
        let queued = stream.queued();
        let taken = self.queued.saturating_sub(queued);
        self.queued = queued;
        self.credit(taken, now);
        if self.start < self.input.len() { Step::Moved } else { Step::Blocked }
    }

    /// Deals with a client that was too slow; whether it is to be torn down.
    fn is_patient_no_more(&mut self, stream: &mut impl Stream, stats: &mut Stats, now: u64) -> bool {
        match self.phase {
            Phase::Head { begun: true } => self.refuse(Refusal::Slow, stats, now),
            Phase::Head { begun: false } => {
                self.close(stream, now);
            }
            _ => return true,
        }
        false
    }

    /// Reads as much as there is room for; how much that was.
    fn fill(&mut self, stream: &mut impl Stream) -> usize {
        if self.start > 0 && self.input.len() > HEAD_MAX / 2 || self.start == self.input.len() {
            self.input.drain(..self.start);
            self.start = 0;
        }
        let filled = self.input.len();
        self.input.resize(HEAD_MAX, 0);
        let read = stream.read(&mut self.input[filled..]);
        self.input.truncate(filled + read);
        read
    }

    fn consume(&mut self, len: usize) {
        self.start += len;
        self.body -= len as u64;
    }

    fn moved(&mut self, len: usize, now: u64) -> Step {
        self.credit(len, now);
        if len > 0 { Step::Moved } else { Step::Blocked }
    }

    /// Gives the client time for what it took or sent.
    fn credit(&mut self, len: usize, now: u64) {
        let earned = self.deadline.saturating_add(PER_BYTE.saturating_mul(len as u64));
        if len > 0 {
            self.deadline = earned.min(now.saturating_add(self.patience.work)).max(self.deadline);
        }
    }
}

/// What of a request outlives its head.
#[derive(Clone, Copy, Debug)]
struct Asked {
    body: u64,
    keep_alive: bool,
    is_old: bool,
    is_head: bool,
    expects_continue: bool,
}

impl Asked {
    fn of(request: &Request<'_>) -> Self {
        let Request { body, keep_alive, is_old, expects_continue, method, .. } = *request;
        Self { body, keep_alive, is_old, is_head: method == Method::Head, expects_continue }
    }
}
