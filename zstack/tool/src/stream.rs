//! `echo`, `sink` and `source`.

use crate::pattern::{Checker, Pattern};
use crate::run::{App, Meter, summary};
use crate::table::Table;
use crate::transport::{Conn, Event, Transport};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Bytes that one connection moves before the others have their turn.
const TURN: usize = 512 << 10;

/// Who begins.
#[derive(Clone, Copy, Debug)]
pub enum Role {
    Listen(SocketAddr),
    Connect(SocketAddr),
}

/// What is done with a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Sends back what comes.
    Echo,
    /// Reads to the end.
    Sink,
    /// Sends, ends, and waits for the peer's end.
    Source,
}

/// A tool that is one of them.
pub struct Streams {
    pub role: Role,
    pub work: Work,
    /// Connections to make; or connections after which a listening tool has finished (0: never).
    pub connections: u32,
    /// Bytes of each connection: to be sent, or to be expected.
    pub bytes: Option<u64>,
    /// The pattern to send, or to check.
    pub pattern: Option<Pattern>,
    /// Copies what is sent, instead of sending it by reference.
    pub copy: bool,
    table: Table<Stream>,
    meter: Meter,
    moved: u64,
    done: u32,
    failed: u32,
    first_failure: Option<String>,
    /// When a listening tool has told of a failure, and how many came since.
    told: Option<Instant>,
    untold: u64,
    phase: u64,
}

struct Stream {
    received: u64,
    sent: u64,
    phase: u64,
    checker: Option<Checker>,
    /// Echo: what was read and could not be written yet.
    pending: Vec<u8>,
    peer_ended: bool,
    shut: bool,
}

impl Streams {
    pub fn new(role: Role, work: Work, connections: u32, bytes: Option<u64>, pattern: Option<Pattern>) -> Streams {
        Streams {
            role,
            work,
            connections,
            bytes,
            pattern,
            copy: false,
            table: Table::default(),
            meter: Meter::start(),
            moved: 0,
            done: 0,
            failed: 0,
            first_failure: None,
            told: None,
            untold: 0,
            phase: 0,
        }
    }

    fn fail(&mut self, text: String) {
        self.failed += 1;
        if let Role::Listen(_) = self.role
            && self.connections == 0
        {
            // There may be no end to say it at. Peers that fail on purpose fill no log.
            let now = Instant::now();
            if self.told.is_none_or(|told| now >= told + Duration::from_secs(1)) {
                let more = match std::mem::take(&mut self.untold) {
                    0 => String::new(),
                    n => format!(" (and {n} failures before that were not told)"),
                };
                crate::out::complain(&format!("{text}{more}"));
                self.told = Some(now);
            } else {
                self.untold += 1;
            }
        }
        self.first_failure.get_or_insert(text);
    }

    fn begin(&mut self, transport: &mut dyn Transport, conn: Conn) {
        if self.done == 0 && self.table.len() == 0 {
            self.meter = Meter::start();
        }
        self.phase = self.phase.wrapping_add(104_729);
        let checker = self.pattern.clone().filter(|_| self.work == Work::Sink).map(Checker::new);
        let stream = Stream {
            received: 0,
            sent: 0,
            phase: self.phase,
            checker,
            pending: Vec::new(),
            peer_ended: false,
            shut: false,
        };
        self.table.insert(conn, stream);
        self.serve(transport, conn);
    }

    fn serve(&mut self, transport: &mut dyn Transport, conn: Conn) {
        let Some(stream) = self.table.get_mut(conn) else { return };
        let before = stream.received + stream.sent;
        let result = match self.work {
            Work::Echo => echo(transport, conn, stream),
            Work::Sink => sink(transport, conn, stream),
            Work::Source => {
                source(transport, conn, stream, self.bytes.unwrap_or(u64::MAX), self.pattern.as_ref(), self.copy)
            }
        };
        let moved = stream.received + stream.sent - before;
        self.moved += if self.work == Work::Echo { moved / 2 } else { moved };
        let received = stream.received;
        match result {
            Ok(Progress::Waits) => {}
            Ok(Progress::More) => transport.again(conn),
            Ok(Progress::Done) => {
                self.table.remove(conn);
                transport.close(conn);
                self.done += 1;
                if let (Work::Sink, Some(bytes)) = (self.work, self.bytes)
                    && bytes != received
                {
                    self.fail(format!("a connection ended after {received} bytes: {bytes} were expected"));
                }
            }
            Err(text) => {
                self.table.remove(conn);
                transport.abort(conn);
                self.done += 1;
                self.fail(text);
            }
        }
    }
}

enum Progress {
    /// For readiness.
    Waits,
    /// The turn is over.
    More,
    Done,
}

fn blocked(result: io::Result<usize>, what: &str) -> Result<Option<usize>, String> {
    match result {
        Ok(n) => Ok(Some(n)),
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(e) => Err(format!("{what}: {e}")),
    }
}

fn echo(transport: &mut dyn Transport, conn: Conn, stream: &mut Stream) -> Result<Progress, String> {
    let end = stream.received + TURN as u64;
    loop {
        while !stream.pending.is_empty() {
            match blocked(transport.write(conn, &stream.pending, false), "write")? {
                Some(n) => {
                    stream.sent += n as u64;
                    stream.pending.drain(..n);
                }
                None => return Ok(Progress::Waits),
            }
        }
        if stream.peer_ended {
            return Ok(Progress::Done);
        }
        if stream.received >= end {
            return Ok(Progress::More);
        }
        if let Some(result) = transport.send_back(conn) {
            match blocked(result, "echo")? {
                Some(0) => stream.peer_ended = true,
                Some(n) => (stream.received, stream.sent) = (stream.received + n as u64, stream.sent + n as u64),
                None => return Ok(Progress::Waits),
            }
            continue;
        }
        let pending = &mut stream.pending;
        match blocked(transport.take(conn, 64 << 10, &mut |bytes| pending.extend_from_slice(bytes)), "read")? {
            Some(0) => stream.peer_ended = true,
            Some(n) => stream.received += n as u64,
            None => return Ok(Progress::Waits),
        }
    }
}

fn sink(transport: &mut dyn Transport, conn: Conn, stream: &mut Stream) -> Result<Progress, String> {
    let end = stream.received + TURN as u64;
    while stream.received < end {
        let checker = &mut stream.checker;
        let mut wrong = Ok(());
        let with = &mut |bytes: &[u8]| {
            if let Some(checker) = checker {
                wrong = checker.check(bytes);
            }
        };
        match blocked(transport.take(conn, TURN, with), "read")? {
            Some(0) => return Ok(Progress::Done),
            Some(n) => stream.received += n as u64,
            None => return Ok(Progress::Waits),
        }
        wrong.map_err(|at| format!("byte {at} of a connection is not what the seed says"))?;
    }
    Ok(Progress::More)
}

fn source(
    transport: &mut dyn Transport,
    conn: Conn,
    stream: &mut Stream,
    bytes: u64,
    pattern: Option<&Pattern>,
    copy: bool,
) -> Result<Progress, String> {
    let end = bytes.min(stream.sent.saturating_add(TURN as u64));
    while stream.sent < end {
        let piece = match pattern {
            Some(pattern) => pattern.piece(stream.phase, stream.sent, (bytes - stream.sent).min(256 << 10)),
            None => return Err("a source without a pattern".into()),
        };
        let result = match piece.bytes() {
            Some(bytes) if copy => transport.write(conn, bytes, false),
            _ => transport.send(conn, &piece, false),
        };
        match blocked(result, "write")? {
            Some(n) => stream.sent += n as u64,
            None => return Ok(Progress::Waits),
        }
    }
    if stream.sent < bytes {
        return Ok(Progress::More);
    }
    if !stream.shut {
        stream.shut = true;
        transport.shutdown(conn);
    }
    // The peer's end says that it has read all.
    loop {
        match blocked(transport.take(conn, TURN, &mut |_| ()), "waiting for the peer's end")? {
            Some(0) => return Ok(Progress::Done),
            Some(n) => stream.received += n as u64,
            None => return Ok(Progress::Waits),
        }
    }
}

impl App for Streams {
    fn start(&mut self, transport: &mut dyn Transport) -> Result<(), String> {
        match self.role {
            Role::Listen(at) => transport.listen(at),
            Role::Connect(to) => {
                for _ in 0..self.connections.max(1) {
                    transport.connect(to).map_err(|e| format!("connect to {to}: {e}"))?;
                }
                Ok(())
            }
        }
    }

    fn event(&mut self, transport: &mut dyn Transport, event: Event) {
        match event {
            Event::Accepted(conn) | Event::Connected(conn) => self.begin(transport, conn),
            Event::Ready(conn) => self.serve(transport, conn),
            Event::Failed(conn, errno) => {
                transport.close(conn);
                self.done += 1;
                self.fail(format!("connect: {}", io::Error::from_raw_os_error(errno)));
            }
            Event::Watched(_) => {}
        }
    }

    fn finished(&self) -> bool {
        let wanted = match self.role {
            Role::Connect(_) => self.connections.max(1),
            Role::Listen(_) => self.connections,
        };
        wanted > 0 && self.done >= wanted
    }

    fn end(&mut self, transport: &mut dyn Transport, interrupted: bool) -> Result<(), String> {
        let open: Vec<Conn> = self.table.iter().map(|(conn, _)| conn).collect();
        for conn in &open {
            transport.abort(*conn);
        }
        let name = match self.work {
            Work::Echo => "echo",
            Work::Sink => "sink",
            Work::Source => "source",
        };
        let what = format!("{name}: {} connections, {} failed, {} open", self.done, self.failed, open.len());
        crate::out::line(format_args!("{}", summary(&what, self.moved, self.meter.read(), transport.copied())));
        match (&self.first_failure, self.role) {
            (Some(_), Role::Listen(_)) if self.connections == 0 => Ok(()),
            (Some(text), _) => Err(format!("{} of {} connections failed: {text}", self.failed, self.done)),
            (None, Role::Connect(_)) if interrupted => Err("interrupted before the end".into()),
            _ => Ok(()),
        }
    }
}
