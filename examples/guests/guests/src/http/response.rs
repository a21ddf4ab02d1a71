//! Heads of responses. There is no `Date`: a server without a clock sends none (RFC 9110, 6.6.1).

use alloc::format;
use alloc::vec::Vec;
use core::fmt;

/// Status lines of all responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Code(
    pub(crate) u16,
    /// The phrase.
    pub(crate) &'static str,
);

pub(crate) const OK: Code = Code(200, "OK");
pub(crate) const NOT_FOUND: Code = Code(404, "Not Found");
pub(crate) const NOT_ALLOWED: Code = Code(405, "Method Not Allowed");

/// What a client is told that waits before it sends a body.
pub(crate) const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Why a connection is closed after a last response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Malformed,
    /// The head was not complete in time.
    Slow,
    Chunked,
    /// An expectation other than that of 100.
    Expectation,
    /// The head has too many bytes or fields.
    TooLarge,
    /// A transfer coding other than `chunked`.
    Encoding,
    Version,
}

impl Refusal {
    pub(crate) fn code(self) -> Code {
        match self {
            Self::Malformed => Code(400, "Bad Request"),
            Self::Slow => Code(408, "Request Timeout"),
            Self::Chunked => Code(411, "Length Required"),
            Self::Expectation => Code(417, "Expectation Failed"),
            Self::TooLarge => Code(431, "Request Header Fields Too Large"),
            Self::Encoding => Code(501, "Not Implemented"),
            Self::Version => Code(505, "HTTP Version Not Supported"),
        }
    }

    /// A line that says it.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Malformed => "This is no request of HTTP/1.1.\n",
            Self::Slow => "The request did not come in time.\n",
            Self::Chunked => "A chunked body is not supported: send Content-Length.\n",
            Self::Expectation => "No expectation but 100-continue is supported.\n",
            Self::TooLarge => "A head has at most 8192 bytes and 64 fields.\n",
            Self::Encoding => "No transfer coding is supported.\n",
            Self::Version => "This server speaks HTTP/1.0 and HTTP/1.1.\n",
        }
    }
}

/// What a response says of itself, but for its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) code: Code,
    pub(crate) kind: &'static str,
    /// Bytes of the body.
    pub(crate) length: u64,
    /// What the resource answers to, where it was asked for something else.
    pub(crate) allow: Option<&'static str>,
    pub(crate) connection: Connection,
}

/// What becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connection {
    /// It stays, as clients of HTTP/1.1 expect.
    Stays,
    /// It stays, which a client of HTTP/1.0 has to be told.
    StaysOld,
    Closes,
}

impl Head {
    /// Appends the head to `output`.
    pub(crate) fn write(&self, output: &mut Vec<u8>) {
        output.extend_from_slice(format!("{self}").as_bytes());
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Code(number, phrase) = self.code;
        write!(f, "HTTP/1.1 {number} {phrase}\r\nServer: ringlet-http\r\n")?;
        write!(f, "Content-Type: {}\r\nContent-Length: {}\r\n", self.kind, self.length)?;
        if let Some(allow) = self.allow {
            write!(f, "Allow: {allow}\r\n")?;
        }
        f.write_str(match self.connection {
            Connection::Stays => "\r\n",
            Connection::StaysOld => "Connection: keep-alive\r\n\r\n",
            Connection::Closes => "Connection: close\r\n\r\n",
        })
    }
}
