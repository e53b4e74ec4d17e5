//! `http`: the files of a directory (RFC 9110, RFC 9112).

mod date;
mod files;
mod request;
#[cfg(test)]
mod tests;

use crate::run::{App, Meter, summary};
use crate::table::Table;
use crate::transport::{Conn, Event, Transport};
use files::{Files, Missing, PIECE, Served};
use request::{Asked, Condition, Parsed, Request};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

/// Responses that wait to be sent before no more requests of a connection are looked at.
const PIPELINED: usize = 32;
/// Bytes that a connection sends before the others have their turn.
const TURN: u64 = PIECE;

/// Without a byte in either direction for so long, a connection is closed; and if a request takes longer to come.
const IDLE: Duration = Duration::from_secs(60);
/// For so long a connection is read after its last response, so that a reset does not destroy it on its way.
const LINGER: Duration = Duration::from_secs(2);

/// What is to be sent.
enum Out {
    /// A head, or a short body; and how much of it was sent.
    Bytes(Vec<u8>, usize),
    /// A part of a file.
    File(Rc<Served>, u64, u64),
}

/// A client.
struct Client {
    /// The beginning of a request.
    input: Vec<u8>,
    /// Bytes of a request's body that are to be dropped.
    skip: u64,
    out: VecDeque<Out>,
    /// After what is in `out`, the connection ends.
    last: bool,
    /// Our end was sent; the peer's is waited for until then.
    lingers: Option<Instant>,
    seen: Instant,
    /// Since when a request is under way that has not come whole.
    begun: Option<Instant>,
}

impl Client {
    /// Whether it was silent for too long, or only drips.
    fn over(&self, now: Instant, idle: Duration) -> bool {
        match self.lingers {
            Some(until) => now > until,
            None => now > self.seen + idle || self.out.is_empty() && self.begun.is_some_and(|begun| now > begun + idle),
        }
    }
}

/// The server.
pub struct Http {
    at: SocketAddr,
    files: Files,
    clients: Table<Client>,
    date: (u64, String),
    next_look: Instant,
    /// [`IDLE`], but in tests.
    idle: Duration,
    meter: Meter,
    served: u64,
    sent: u64,
}

enum Next {
    Waits,
    More,
    Close,
    Abort,
}

impl Http {
    /// Serves `root` at `at`, and keeps at most `cache` bytes of files in memory.
    ///
    /// # Errors
    /// A line for the user.
    pub fn new(at: SocketAddr, root: &Path, cache: u64) -> Result<Http, String> {
        let files = Files::new(root, cache)?;
        Ok(Http {
            at,
            files,
            clients: Table::default(),
            date: (0, String::new()),
            next_look: Instant::now() + Duration::from_secs(1),
            idle: IDLE,
            meter: Meter::start(),
            served: 0,
            sent: 0,
        })
    }

    fn serve(&mut self, transport: &mut dyn Transport, conn: Conn) {
        let Some(client) = self.clients.get_mut(conn) else { return };
        client.seen = Instant::now();
        let next = loop {
            match send(transport, conn, client, &mut self.files, &mut self.sent) {
                Ok(Next::Close) if client.lingers.is_none() => {
                    transport.shutdown(conn);
                    client.lingers = Some(client.seen + LINGER);
                }
                Ok(Next::Waits) if client.out.len() >= PIPELINED => break Next::Waits,
                Ok(Next::More) => break Next::More,
                Ok(_) => {}
                Err(_) => break Next::Abort,
            }
            if client.lingers.is_some() || client.last {
                match discard(transport, conn) {
                    Ok(true) if client.lingers.is_some() || client.out.is_empty() => break Next::Close,
                    Ok(_) => break Next::Waits,
                    Err(_) => break Next::Abort,
                }
            }
            let waiting = client.out.len();
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
            if self.date.0 != now {
                self.date = (now, date::show(now));
            }
            let read = read(transport, conn, client, &mut |client, request| {
                self.served += 1;
                client.begun = None;
                answer(client, request, &mut self.files, &self.date.1);
            });
            match read {
                Ok(Next::Waits) if client.out.is_empty() => break Next::Waits,
                // Nothing new to be sent, and what there is waits for room.
                Ok(Next::Waits) if client.out.len() == waiting && waiting > 0 => break Next::Waits,
                Ok(Next::Close) if client.out.is_empty() => break Next::Close,
                // The client has ended, and may wait for answers still.
                Ok(Next::Close) => client.last = true,
                Ok(_) => {}
                Err(_) => break Next::Abort,
            }
        };
        let partial = !client.input.is_empty() || client.skip > 0;
        client.begun = if partial { client.begun.or(Some(client.seen)) } else { None };
        match next {
            Next::Waits => {}
            Next::More => transport.again(conn),
            Next::Close => {
                self.clients.remove(conn);
                transport.close(conn);
            }
            Next::Abort => {
                self.clients.remove(conn);
                transport.abort(conn);
            }
        }
    }
}

/// Reads what there is, and hands every whole request on, as long as not too many answers wait.
fn read(
    transport: &mut dyn Transport,
    conn: Conn,
    client: &mut Client,
    with: &mut dyn FnMut(&mut Client, Parsed),
) -> io::Result<Next> {
    loop {
        // First what was read before and not answered because too much waited.
        let mut start = 0;
        while client.skip == 0 && start < client.input.len() && client.out.len() < PIPELINED && !client.last {
            let parsed = request::parse(&client.input[start..]);
            match &parsed {
                Parsed::Partial => break,
                Parsed::Request(request, head) => {
                    start += head;
                    let here = (client.input.len() - start) as u64;
                    let body = request.body.min(here);
                    start += body as usize;
                    client.skip = request.body - body;
                }
                Parsed::Refused { keep: Some(head), .. } => start += head,
                Parsed::Bad(_) | Parsed::Refused { .. } => start = client.input.len(),
            }
            with(client, parsed);
        }
        client.input.drain(..start);
        if client.last || client.out.len() >= PIPELINED {
            return Ok(Next::More);
        }
        let (input, skip) = (&mut client.input, &mut client.skip);
        let take = transport.take(conn, request::HEAD, &mut |bytes| {
            let dropped = bytes.len().min(usize::try_from(*skip).unwrap_or(usize::MAX));
            *skip -= dropped as u64;
            input.extend_from_slice(&bytes[dropped..]);
        });
        match take {
            Ok(0) => return Ok(Next::Close),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Next::Waits),
            Err(e) => return Err(e),
        }
    }
}

/// Drops what comes; true: the peer has ended.
fn discard(transport: &mut dyn Transport, conn: Conn) -> io::Result<bool> {
    loop {
        match transport.take(conn, 64 << 10, &mut |_| ()) {
            Ok(0) => return Ok(true),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(e) => return Err(e),
        }
    }
}

/// Sends what there is. `Close`: all was sent, and it was the last.
fn send(
    transport: &mut dyn Transport,
    conn: Conn,
    client: &mut Client,
    files: &mut Files,
    sent: &mut u64,
) -> io::Result<Next> {
    let mut left = TURN;
    loop {
        let more = client.out.len() > 1;
        let Some(out) = client.out.front_mut() else {
            return Ok(if client.last && client.lingers.is_none() { Next::Close } else { Next::Waits });
        };
        let (result, done) = match out {
            Out::Bytes(bytes, from) => {
                let result = transport.write(conn, &bytes[*from..], more);
                *from += *result.as_ref().unwrap_or(&0);
                (result, *from == bytes.len())
            }
            Out::File(file, from, to) => {
                if left == 0 {
                    return Ok(Next::More);
                }
                let piece = files.piece(file, *from, *to)?;
                let result = transport.send(conn, &piece, more || *from + (piece.len() as u64) < *to);
                let n = *result.as_ref().unwrap_or(&0) as u64;
                *from += n;
                left = left.saturating_sub(n);
                (result, *from == *to)
            }
        };
        match result {
            Ok(n) => *sent += n as u64,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Next::Waits),
            Err(e) => return Err(e),
        }
        if done {
            client.out.pop_front();
        }
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        301 => "Moved Permanently",
        304 => "Not Modified",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        411 => "Length Required",
        413 => "Content Too Large",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        505 => "HTTP Version Not Supported",
        _ => "Internal Server Error",
    }
}

/// Queues the answer.
fn answer(client: &mut Client, parsed: Parsed, files: &mut Files, date: &str) {
    match parsed {
        Parsed::Partial => {}
        Parsed::Bad(status) => short(client, status, "", date, false, false, false),
        Parsed::Refused { status, keep, head_only } => {
            let allow = if status == 405 { "Allow: GET, HEAD\r\n" } else { "" };
            short(client, status, allow, date, keep.is_some(), false, head_only);
        }
        Parsed::Request(request, _) => {
            if request.expects_continue && request.body > 0 && client.skip > 0 {
                client.out.push_back(Out::Bytes(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec(), 0));
            }
            file(client, &request, files, date);
        }
    }
}

/// A response without a file: its body says the status.
fn short(client: &mut Client, status: u16, fields: &str, date: &str, keep: bool, old: bool, head_only: bool) {
    let body = if status == 304 { String::new() } else { format!("{status} {}\n", reason(status)) };
    let mut bytes = head(status, date, keep, old);
    let _ = write!(bytes, "{fields}");
    if status != 304 {
        let _ = write!(bytes, "Content-Type: text/plain\r\nContent-Length: {}\r\n", body.len());
    }
    let _ = write!(bytes, "\r\n{}", if head_only { "" } else { &body });
    client.out.push_back(Out::Bytes(bytes, 0));
    client.last |= !keep;
}

fn head(status: u16, date: &str, keep: bool, old: bool) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(320);
    let _ = write!(bytes, "HTTP/1.1 {status} {}\r\nServer: zstack\r\nDate: {date}\r\n", reason(status));
    match (keep, old) {
        (false, _) => bytes.extend_from_slice(b"Connection: close\r\n"),
        (true, true) => bytes.extend_from_slice(b"Connection: keep-alive\r\n"),
        (true, false) => {}
    }
    bytes
}

fn file(client: &mut Client, request: &Request, files: &mut Files, date: &str) {
    let (keep, old, head_only) = (request.keep_alive, request.old, request.head_only);
    let served = match files.open(&request.path, request.directory) {
        Ok(served) => served,
        Err(Missing::Directory) => {
            // One slash in front: two would name another host.
            let place = format!("Location: /{}/\r\n", request.target.trim_matches('/'));
            return short(client, 301, &place, date, keep, old, head_only);
        }
        Err(missing) => {
            let status = match missing {
                Missing::NotFound => 404,
                Missing::Forbidden => 403,
                _ => 500,
            };
            return short(client, status, "", date, keep, old, head_only);
        }
    };
    let about = format!("ETag: {}\r\nLast-Modified: {}\r\n", served.tag, date::show(served.modified));
    // RFC 9110, section 13.2.2.
    let unchanged = match &request.if_none_match {
        Some(tags) => {
            let tag = |t: &str| t.trim().trim_start_matches("W/") == served.tag;
            tags.trim() == "*" || tags.split(',').any(tag)
        }
        None => request.if_modified_since.is_some_and(|since| served.modified <= since),
    };
    if unchanged {
        return short(client, 304, &about, date, keep, old, head_only);
    }
    let ranged = match &request.if_range {
        None => true,
        Some(Condition::Tag(tag)) => *tag == served.tag,
        Some(Condition::Date(date)) => *date == served.modified,
        Some(Condition::Unreadable) => false,
    };
    // Range is for GET alone (RFC 9110, section 14.2).
    let asked = if ranged && !head_only { request.range } else { Asked::Whole };
    let Ok(range) = asked.of(served.len) else {
        let fields = format!("Content-Range: bytes */{}\r\n", served.len);
        return short(client, 416, &fields, date, keep, old, head_only);
    };
    let status = if asked == Asked::Whole { 200 } else { 206 };
    let mut bytes = head(status, date, keep, old);
    let length = range.end - range.start;
    let _ =
        write!(bytes, "{about}Content-Type: {}\r\nContent-Length: {length}\r\nAccept-Ranges: bytes\r\n", served.kind);
    if status == 206 {
        let _ = write!(bytes, "Content-Range: bytes {}-{}/{}\r\n", range.start, range.end - 1, served.len);
    }
    bytes.extend_from_slice(b"\r\n");
    client.out.push_back(Out::Bytes(bytes, 0));
    if !head_only && length > 0 {
        client.out.push_back(Out::File(served, range.start, range.end));
    }
    client.last |= !keep;
}

impl App for Http {
    fn start(&mut self, transport: &mut dyn Transport) -> Result<(), String> {
        transport.listen(self.at)
    }

    fn event(&mut self, transport: &mut dyn Transport, event: Event) {
        match event {
            Event::Accepted(conn) => {
                let client = Client {
                    input: Vec::new(),
                    skip: 0,
                    out: VecDeque::new(),
                    last: false,
                    lingers: None,
                    seen: Instant::now(),
                    begun: None,
                };
                self.clients.insert(conn, client);
                self.serve(transport, conn);
            }
            Event::Ready(conn) => self.serve(transport, conn),
            Event::Connected(_) | Event::Failed(..) | Event::Watched(_) => {}
        }
    }

    fn deadline(&self) -> Option<Instant> {
        if self.clients.len() > 0 { Some(self.next_look) } else { None }
    }

    /// Once a second: who was silent for too long?
    fn tick(&mut self, transport: &mut dyn Transport) {
        let now = Instant::now();
        self.next_look = now + Duration::from_secs(1);
        let over: Vec<Conn> =
            self.clients.iter().filter(|(_, c)| c.over(now, self.idle)).map(|(conn, _)| conn).collect();
        for conn in over {
            let waits = self.clients.remove(conn).is_some_and(|c| !c.out.is_empty());
            if waits { transport.abort(conn) } else { transport.close(conn) }
        }
    }

    fn finished(&self) -> bool {
        false
    }

    fn end(&mut self, transport: &mut dyn Transport, _interrupted: bool) -> Result<(), String> {
        let open: Vec<Conn> = self.clients.iter().map(|(conn, _)| conn).collect();
        for conn in &open {
            transport.abort(*conn);
        }
        let what = format!("http: {} requests, {} connections open", self.served, open.len());
        crate::out::line(format_args!("{}", summary(&what, self.sent, self.meter.read(), transport.copied())));
        Ok(())
    }
}
