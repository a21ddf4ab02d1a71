//! Requests: what a head says, or why it is refused (RFC 9110, RFC 9112).

use httparse::{EMPTY_HEADER, Error, Header, Status};

use super::response::Refusal;

/// Most bytes of a head.
pub(crate) const HEAD_MAX: usize = 8192;
/// Most fields of a head.
const FIELDS_MAX: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Head,
    Post,
    Other,
}

/// A head that makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request<'a> {
    pub(crate) method: Method,
    /// The path, without a query.
    pub(crate) path: &'a str,
    /// Bytes of the head.
    pub(crate) len: usize,
    /// Bytes of the body, which follows.
    pub(crate) body: u64,
    /// Whether the client may send another request on this connection.
    pub(crate) keep_alive: bool,
    /// Whether the client of HTTP/1.0 has to be told that it may.
    pub(crate) is_old: bool,
    /// Whether the client waits to be told to send the body.
    pub(crate) expects_continue: bool,
}

/// Looks for a head at the start of `bytes`; `None` if more of it is to come.
///
/// # Errors
/// It makes no sense, or asks for what there is not. Where a next request would begin is not known then.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Request<'_>>, Refusal> {
    let mut fields = [EMPTY_HEADER; FIELDS_MAX];
    let mut head = httparse::Request::new(&mut fields);
    let len = match head.parse(bytes) {
        Ok(Status::Complete(len)) if len <= HEAD_MAX => len,
        Ok(Status::Partial) if bytes.len() < HEAD_MAX => return Ok(None),
        Ok(_) | Err(Error::TooManyHeaders) => return Err(Refusal::TooLarge),
        Err(Error::Version) => return Err(Refusal::Version),
        Err(_) => return Err(Refusal::Malformed),
    };
    let (Some(method), Some(target), Some(minor)) = (head.method, head.path, head.version) else {
        return Err(Refusal::Malformed);
    };
    let fields = Fields::of(head.headers)?;
    let is_old = minor == 0;
    if !is_old && !fields.host || is_old && fields.chunked {
        return Err(Refusal::Malformed);
    }
    if fields.chunked {
        return Err(Refusal::Chunked);
    }
    let keep_alive = if is_old { fields.keep_alive && !fields.close } else { !fields.close };
    let expects_continue = fields.expects_continue && !is_old;
    let body = fields.length.unwrap_or(0);
    Ok(Some(Request {
        method: method_of(method),
        path: path(target)?,
        len,
        body,
        keep_alive,
        is_old,
        expects_continue,
    }))
}

fn method_of(name: &str) -> Method {
    match name {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        _ => Method::Other,
    }
}

/// The path of a target, which may be a whole URL (RFC 9112, 3.2.2), without its query.
fn path(target: &str) -> Result<&str, Refusal> {
    let scheme_len = "http://".len();
    let is_url = target.get(..scheme_len).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://"));
    let path = match target.get(scheme_len..) {
        Some(rest) if is_url => rest.find(['/', '?']).and_then(|at| rest.get(at..)).unwrap_or("/"),
        _ => target,
    };
    match path.split(['?', '#']).next() {
        Some("") if is_url => Ok("/"),
        Some("*") => Ok("*"),
        Some(path) if path.starts_with('/') => Ok(path),
        _ => Err(Refusal::Malformed),
    }
}

/// What is of interest in a head's fields.
#[derive(Debug, Default)]
struct Fields {
    host: bool,
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
}

impl Fields {
    fn of(headers: &[Header<'_>]) -> Result<Self, Refusal> {
        let mut fields = Self::default();
        for header in headers {
            fields.add(header)?;
        }
        // Two lengths of one body are how requests are smuggled (RFC 9112, 6.1).
        if fields.chunked && fields.length.is_some() { Err(Refusal::Malformed) } else { Ok(fields) }
    }

    fn add(&mut self, header: &Header<'_>) -> Result<(), Refusal> {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("host") {
            // Exactly one (RFC 9112, 3.2).
            if core::mem::replace(&mut self.host, true) {
                return Err(Refusal::Malformed);
            }
        } else if is("content-length") {
            let length = length(header.value).ok_or(Refusal::Malformed)?;
            if self.length.replace(length).is_some() {
                return Err(Refusal::Malformed);
            }
        } else if is("transfer-encoding") {
            if !header.value.eq_ignore_ascii_case(b"chunked") {
                return Err(Refusal::Encoding);
            }
            self.chunked = true;
        } else if is("connection") {
            for option in header.value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
                self.close |= option.eq_ignore_ascii_case(b"close");
                self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            }
        } else if is("expect") {
            if !header.value.eq_ignore_ascii_case(b"100-continue") {
                return Err(Refusal::Expectation);
            }
            self.expects_continue = true;
        }
        Ok(())
    }
}

/// Digits only: no sign, no space, no list.
fn length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(value).ok()?.parse().ok()
}
