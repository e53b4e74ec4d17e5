//! Requests: what was asked for, or the status that says what is wrong.

use super::date;
use std::path::{Component, Path, PathBuf};

/// Bytes of a request's head, at most: more is 431.
pub const HEAD: usize = 16 << 10;
/// Header fields of a request, at most: more is 431.
const FIELDS: usize = 100;
/// Bytes of a request's body that are read and dropped; more is 413.
pub const BODY: u64 = 64 << 10;

/// Part of a file (RFC 9110, section 14.1.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// All of it.
    Whole,
    /// From the first byte to the last; `None`: to the end.
    From(u64, Option<u64>),
    /// So many bytes at the end.
    Last(u64),
}

/// What `If-Range` names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Condition {
    Tag(String),
    Date(u64),
    /// It cannot be read: it is met by nothing.
    Unreadable,
}

/// A request for a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// HEAD, not GET.
    pub head_only: bool,
    /// Relative to the directory that is served; no component leads up.
    pub path: PathBuf,
    /// As it was asked for, without a query: to be written into a redirection.
    pub target: String,
    /// The target ended with a slash.
    pub directory: bool,
    pub range: Asked,
    pub if_range: Option<Condition>,
    /// The value of `If-None-Match`.
    pub if_none_match: Option<String>,
    /// Not looked at if there is an `If-None-Match`.
    pub if_modified_since: Option<u64>,
    pub keep_alive: bool,
    /// The client waits for `100 Continue` before it sends its body.
    pub expects_continue: bool,
    /// Bytes that follow, of no interest.
    pub body: u64,
    /// HTTP/1.0: the answer says if the connection is kept.
    pub old: bool,
}

/// What the bytes received so far are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Parsed {
    /// Not a whole head yet.
    Partial,
    /// A request, and how many bytes its head has.
    Request(Box<Request>, usize),
    /// Not to be served: the status. The connection ends with it, since nobody knows where the next request begins.
    Bad(u16),
    /// A method that is not served, in an otherwise good request; `keep` with the length of the head: the connection may go on.
    Refused { status: u16, keep: Option<usize>, head_only: bool },
}

/// Parses the first request in `bytes`.
pub fn parse(bytes: &[u8]) -> Parsed {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut parsed = httparse::Request::new(&mut fields);
    let head = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(n)) if n > HEAD => return Parsed::Bad(431),
        Ok(httparse::Status::Complete(n)) => n,
        Ok(httparse::Status::Partial) if bytes.len() >= HEAD => return Parsed::Bad(431),
        Ok(httparse::Status::Partial) => return Parsed::Partial,
        Err(httparse::Error::TooManyHeaders) => return Parsed::Bad(431),
        Err(httparse::Error::Version) => return Parsed::Bad(505),
        Err(_) => return Parsed::Bad(400),
    };
    let old = parsed.version == Some(0);
    let mut request = Request {
        head_only: parsed.method == Some("HEAD"),
        path: PathBuf::new(),
        target: String::new(),
        directory: false,
        range: Asked::Whole,
        if_range: None,
        if_none_match: None,
        if_modified_since: None,
        keep_alive: !old,
        expects_continue: false,
        body: 0,
        old,
    };
    let mut hosts = 0;
    let mut length: Option<u64> = None;
    let mut chunked = false;
    for field in parsed.headers.iter() {
        let value = field.value.trim_ascii();
        let text = || std::str::from_utf8(value).ok();
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        if is("host") {
            hosts += 1;
        } else if is("content-length") {
            // Two lengths that differ, or something else than digits: smuggling, or an error (RFC 9112, section 6.3).
            match text().filter(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit())).and_then(|t| t.parse().ok())
            {
                Some(n) if length.is_none_or(|l| l == n) => length = Some(n),
                _ => return Parsed::Bad(400),
            }
        } else if is("transfer-encoding") {
            chunked = true;
        } else if is("connection") {
            for word in text().unwrap_or("").split(',').map(str::trim) {
                if word.eq_ignore_ascii_case("close") {
                    request.keep_alive = false;
                } else if word.eq_ignore_ascii_case("keep-alive") && old {
                    request.keep_alive = true;
                }
            }
        } else if is("expect") {
            match text() {
                Some(t) if t.eq_ignore_ascii_case("100-continue") => request.expects_continue = true,
                _ => return Parsed::Bad(417),
            }
        } else if is("range") {
            request.range = text().and_then(range).unwrap_or(Asked::Whole);
        } else if is("if-range") {
            let condition = match text() {
                Some(t) if t.starts_with('"') => Condition::Tag(t.to_owned()),
                Some(t) => date::parse(t).map_or(Condition::Unreadable, Condition::Date),
                None => Condition::Unreadable,
            };
            request.if_range = Some(condition);
        } else if is("if-none-match") {
            request.if_none_match = text().map(str::to_owned);
        } else if is("if-modified-since") {
            request.if_modified_since = text().and_then(date::parse);
        }
    }
    if hosts > 1 || (hosts == 0 && !old) {
        // RFC 9112, section 3.2.
        return Parsed::Bad(400);
    }
    if chunked {
        // A body whose length is not told beforehand is not read: nothing that is served here needs one.
        return Parsed::Bad(if length.is_some() { 400 } else { 411 });
    }
    request.body = length.unwrap_or(0);
    if request.body > BODY {
        return Parsed::Bad(413);
    }
    if !matches!(parsed.method, Some("GET" | "HEAD")) {
        let keep = (request.keep_alive && request.body == 0).then_some(head);
        return Parsed::Refused { status: 405, keep, head_only: false };
    }
    match target(parsed.path.unwrap_or("")) {
        Ok((path, shown, directory)) => {
            (request.path, request.target, request.directory) = (path, shown, directory);
            Parsed::Request(Box::new(request), head)
        }
        Err(status) => {
            let keep = (request.keep_alive && request.body == 0).then_some(head);
            Parsed::Refused { status, keep, head_only: request.head_only }
        }
    }
}

/// The file that a target names, the target without its query, and whether a directory was asked for.
fn target(text: &str) -> Result<(PathBuf, String, bool), u16> {
    // The absolute form is to be understood too (RFC 9112, section 3.2.2).
    let text = match text.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => text,
    };
    let text = text.split(['?', '#']).next().unwrap_or("");
    if !text.starts_with('/') {
        return Err(400);
    }
    let decoded = decode(text).ok_or(400u16)?;
    if decoded.contains(&0) {
        return Err(400);
    }
    use std::os::unix::ffi::OsStrExt;
    let mut path = PathBuf::new();
    for component in Path::new(std::ffi::OsStr::from_bytes(&decoded)).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::RootDir | Component::CurDir => {}
            // Nobody who means well sends it: clients resolve dots themselves (RFC 3986, section 5.2.4).
            Component::ParentDir | Component::Prefix(_) => return Err(403),
        }
    }
    Ok((path, text.to_owned(), decoded.ends_with(b"/")))
}

/// Undoes percent-encoding; `None`: a percent sign without two hexadecimal digits.
fn decode(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
            decoded.push(high << 4 | low);
        } else {
            decoded.push(b);
        }
    }
    Some(decoded)
}

/// `None`: it is malformed, of another unit, or names several ranges; such a field is ignored, and the whole file sent, as RFC 9110,
/// section 14.2, allows.
fn range(text: &str) -> Option<Asked> {
    let (unit, set) = text.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") || set.contains(',') {
        return None;
    }
    let (first, last) = set.trim().split_once('-')?;
    let number = |t: &str| {
        if t.is_empty() || !t.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        // A number that is too large is larger than any file.
        Some(t.parse::<u64>().unwrap_or(u64::MAX))
    };
    match (first.trim(), last.trim()) {
        ("", last) => number(last).map(Asked::Last),
        (first, "") => number(first).map(|first| Asked::From(first, None)),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(Asked::From(first, Some(last)))
        }
    }
}

impl Asked {
    /// The bytes of a file of `len`, from the first up to behind the last. `Err`: there are none of those (416).
    pub fn of(self, len: u64) -> Result<std::ops::Range<u64>, ()> {
        match self {
            Asked::Whole => Ok(0..len),
            Asked::From(first, last) if first < len => {
                Ok(first..last.map_or(len, |last| len.min(last.saturating_add(1))))
            }
            Asked::Last(n) if n > 0 && len > 0 => Ok(len.saturating_sub(n)..len),
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good(text: &str) -> Request {
        match parse(text.as_bytes()) {
            Parsed::Request(request, n) => {
                assert_eq!(n, text.len());
                *request
            }
            other => panic!("{text:?}: {other:?}"),
        }
    }

    fn get(fields: &str) -> Request {
        good(&format!("GET /a HTTP/1.1\r\nHost: x\r\n{fields}\r\n"))
    }

    #[test]
    fn a_plain_request() {
        let request = get("");
        assert_eq!((request.path.to_str(), request.keep_alive, request.range), (Some("a"), true, Asked::Whole));
        let request = good("HEAD /dir/%41%20b/?q=1 HTTP/1.0\r\n\r\n");
        assert!(request.head_only && !request.keep_alive && request.directory);
        assert_eq!((request.path.to_str(), request.target.as_str()), (Some("dir/A b"), "/dir/%41%20b/"));
        assert!(good("GET http://h/x HTTP/1.1\r\nHost: h\r\n\r\n").path.ends_with("x"));
        assert!(!get("Connection: foo, CLOSE\r\n").keep_alive);
        assert!(good("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").keep_alive);
    }

    #[test]
    fn ranges() {
        let of = |text: &str| get(&format!("Range: {text}\r\n")).range;
        assert_eq!(of("bytes=0-0").of(10), Ok(0..1));
        assert_eq!(of("bytes=5-").of(10), Ok(5..10));
        assert_eq!(of("bytes=5-99").of(10), Ok(5..10));
        assert_eq!(of("bytes=-3").of(10), Ok(7..10));
        assert_eq!(of("bytes=-30").of(10), Ok(0..10));
        assert_eq!(of("BYTES = 1-2"), Asked::From(1, Some(2)));
        assert_eq!(of("bytes=10-").of(10), Err(()));
        assert_eq!(of("bytes=-0").of(10), Err(()));
        assert_eq!(of("bytes=0-").of(0), Err(()));
        assert_eq!(of("bytes=99999999999999999999999-").of(10), Err(()));
        assert_eq!(of("bytes=0-18446744073709551615").of(10), Ok(0..10));
        for ignored in
            ["bytes=3-2", "bytes=0-1,3-4", "lines=0-1", "bytes=a-b", "bytes=", "bytes=-", "0-1", "bytes=+1-2"]
        {
            assert_eq!(of(ignored), Asked::Whole, "{ignored}");
        }
    }

    #[test]
    fn what_is_refused() {
        let status = |text: &str| match parse(text.as_bytes()) {
            Parsed::Bad(status) | Parsed::Refused { status, .. } => status,
            other => panic!("{text:?}: {other:?}"),
        };
        assert_eq!(status("GET /a HTTP/1.1\r\n\r\n"), 400);
        assert_eq!(status("GET /a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"), 400);
        assert_eq!(status("GET a HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
        assert_eq!(status("GET /%4 HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
        assert_eq!(status("GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
        assert_eq!(status("GET /../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n"), 403);
        assert_eq!(status("GET /a/%2e%2E/%2e%2e/etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n"), 403);
        assert_eq!(status("GET /..%2fetc HTTP/1.1\r\nHost: a\r\n\r\n"), 403);
        assert_eq!(status("POST /a HTTP/1.1\r\nHost: a\r\n\r\n"), 405);
        assert_eq!(status("PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\n\r\n"), 413);
        assert_eq!(status("PUT /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"), 411);
        assert_eq!(status("PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"), 400);
        assert_eq!(status("PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n"), 400);
        assert_eq!(status("GET /a HTTP/1.1\r\nHost : a\r\n\r\n"), 400);
        assert_eq!(status("GET /a HTTP/2.0\r\nHost: a\r\n\r\n"), 505);
        assert_eq!(status("\u{1}\r\n\r\n"), 400);
        let many: String = (0..101).map(|i| format!("X{i}: y\r\n")).collect();
        assert_eq!(status(&format!("GET /a HTTP/1.1\r\n{many}\r\n")), 431);
        assert_eq!(status(&format!("GET /{} HTTP/1.1\r\n", "a".repeat(HEAD))), 431);
    }

    #[test]
    fn a_beginning_is_partial_wherever_it_ends() {
        let text = "GET /a HTTP/1.1\r\nHost: x\r\nRange: bytes=0-1\r\n\r\n";
        for end in 0..text.len() {
            assert_eq!(parse(&text.as_bytes()[..end]), Parsed::Partial, "{end}");
        }
    }
}
