//! What there is to be had, and what was.

use alloc::borrow::Cow;
use alloc::format;

use super::request::{Method, Request};
use super::response::{Code, NOT_ALLOWED, NOT_FOUND, OK};

const TEXT: &str = "text/plain; charset=utf-8";
const BINARY: &str = "application/octet-stream";
const JSON: &str = "application/json";

const ABOUT: &str = "This is a guest of Ringlet.

GET  /          this text
POST /echo      sends the body back
GET  /bytes/N   sends N bytes; that at offset i is i modulo 251
GET  /stats     what this server has done, as JSON
";

/// What a response's body is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    Text(Cow<'static, str>),
    /// So many bytes of the pattern.
    Pattern(u64),
    /// The request's.
    Echo,
}

/// What a request is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) code: Code,
    pub(crate) kind: &'static str,
    pub(crate) allow: Option<&'static str>,
    pub(crate) body: Body,
}

impl Answer {
    /// A line of text.
    pub(crate) fn text(code: Code, text: &'static str) -> Self {
        Self { code, kind: TEXT, allow: None, body: Body::Text(Cow::Borrowed(text)) }
    }
}

/// What the server has done, and what its device has.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stats {
    /// Nanoseconds since the start.
    pub(crate) uptime: u64,
    /// Connections that are open now.
    pub(crate) open: u64,
    /// Connections that ever were.
    pub(crate) accepted: u64,
    /// Connections that ended because the client was too slow, or went away in the middle.
    pub(crate) aborted: u64,
    /// Requests that were answered with 2xx.
    pub(crate) good: u64,
    /// Requests that were answered with anything else.
    pub(crate) bad: u64,
    /// Bytes of bodies that came in.
    pub(crate) bytes_in: u64,
    /// Bytes of bodies that went out.
    pub(crate) bytes_out: u64,
    pub(crate) device: Device,
}

/// What the device has done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Device {
    pub(crate) rx_packets: u64,
    pub(crate) rx_bytes: u64,
    pub(crate) rx_dropped: u64,
    pub(crate) tx_packets: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) tx_dropped: u64,
    pub(crate) interrupts: u64,
    pub(crate) notifications: u64,
}

impl Stats {
    /// Finds what a request asks for.
    pub(crate) fn answer(&self, request: &Request<'_>) -> Answer {
        let (allowed, kind, body) = match request.path {
            "/" => ("GET, HEAD", TEXT, Body::Text(Cow::Borrowed(ABOUT))),
            "/echo" => ("POST", BINARY, Body::Echo),
            "/stats" => ("GET, HEAD", JSON, Body::Text(Cow::Owned(self.json()))),
            path => match path.strip_prefix("/bytes/").and_then(count) {
                Some(count) => ("GET, HEAD", BINARY, Body::Pattern(count)),
                None => return Answer::text(NOT_FOUND, "There is /, /echo, /bytes/N and /stats.\n"),
            },
        };
        let is_allowed = match request.method {
            Method::Get | Method::Head => allowed != "POST",
            Method::Post => allowed == "POST",
            Method::Other => false,
        };
        if !is_allowed {
            let answer = Answer::text(NOT_ALLOWED, "That method is not for this resource.\n");
            return Answer { allow: Some(allowed), ..answer };
        }
        Answer { code: OK, kind, allow: None, body }
    }

    fn json(&self) -> alloc::string::String {
        let device = self.device;
        format!(
            "{{\"uptime_ns\":{},\"connections\":{{\"open\":{},\"accepted\":{},\"aborted\":{}}},\
             \"requests\":{{\"good\":{},\"bad\":{}}},\"body_bytes\":{{\"in\":{},\"out\":{}}},\
             \"device\":{{\"rx_packets\":{},\"rx_bytes\":{},\"rx_dropped\":{},\"tx_packets\":{},\"tx_bytes\":{},\
             \"tx_dropped\":{},\"interrupts\":{},\"notifications\":{}}}}}\n",
            self.uptime,
            self.open,
            self.accepted,
            self.aborted,
            self.good,
            self.bad,
            self.bytes_in,
            self.bytes_out,
            device.rx_packets,
            device.rx_bytes,
            device.rx_dropped,
            device.tx_packets,
            device.tx_bytes,
            device.tx_dropped,
            device.interrupts,
            device.notifications,
        )
    }
}

/// A decimal number without a sign.
fn count(digits: &str) -> Option<u64> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}
