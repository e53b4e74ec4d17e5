//! The side that measures.

use super::histogram::Histogram;
use super::{Mode, STAMP, TELL, letter, load, request};
use crate::run::{App, Meter, Spent};
use crate::sys;
use crate::table::Table;
use crate::transport::{Conn, Event, Transport};
use serde::Deserialize;
use serde_json::json;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use zstack::sockets::Still;

/// Bytes that a connection moves before the others have their turn.
const TURN: u64 = 512 << 10;
/// For so long an answer of the server is waited for at either end.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Plan {
    pub to: SocketAddr,
    pub mode: Mode,
    pub time: Duration,
    pub size: u32,
    pub connections: u32,
    /// Before each message (wake).
    pub pause: Duration,
    pub copy: bool,
    pub json: bool,
    /// `engine` or `kernel`, for the report.
    pub transport: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// The server is asked what it has spent so far.
    Before,
    /// Load.
    Running,
    /// What was sent is on its way.
    Draining,
    /// The server is asked again.
    After,
    Finished,
}

struct Work {
    request: usize,
    sent: u64,
    received: u64,
    began: Instant,
    shut: bool,
    /// The question to the server, and its answer.
    answer: Option<Vec<u8>>,
    /// When the next message goes, and, when it goes, what it begins with.
    next: Option<Instant>,
    stamp: [u8; STAMP as usize],
}

/// `perf --connect`.
pub struct Client {
    plan: Plan,
    request: Vec<u8>,
    load: Still,
    phase: Phase,
    work: Table<Work>,
    open: u32,
    deadline: Instant,
    meter: Meter,
    spent: Spent,
    server: [Option<Spent>; 2],
    /// How long messages took to the server, as it says.
    wakes: serde_json::Value,
    bytes: u64,
    latencies: Histogram,
    failed: Option<String>,
}

impl Client {
    pub fn new(plan: Plan) -> Client {
        Client {
            request: request(letter(plan.mode), plan.size),
            load: load(),
            phase: Phase::Before,
            work: Table::default(),
            open: 0,
            deadline: Instant::now() + PATIENCE,
            meter: Meter::start(),
            spent: Spent::default(),
            server: [None, None],
            wakes: serde_json::Value::Null,
            bytes: 0,
            latencies: Histogram::default(),
            failed: None,
            plan,
        }
    }

    fn connect(&mut self, transport: &mut dyn Transport) {
        let began = Instant::now();
        match transport.connect(self.plan.to) {
            Ok(conn) => {
                let answer = matches!(self.phase, Phase::Before | Phase::After).then(Vec::new);
                self.open += 1;
                let next = (self.plan.mode == Mode::Wake && answer.is_none()).then(|| began + self.plan.pause);
                let stamp = [0; STAMP as usize];
                let work = Work { request: 0, sent: 0, received: 0, began, shut: false, answer, next, stamp };
                self.work.insert(conn, work);
            }
            Err(e) => self.fail(format!("connect to {}: {e}", self.plan.to)),
        }
    }

    fn fail(&mut self, text: String) {
        self.failed.get_or_insert(text);
        self.phase = Phase::Finished;
    }

    fn gone(&mut self, transport: &mut dyn Transport, conn: Conn, abort: bool) {
        if self.work.remove(conn).is_some() {
            self.open -= 1;
        }
        if abort { transport.abort(conn) } else { transport.close(conn) }
    }

    fn serve(&mut self, transport: &mut dyn Transport, conn: Conn) {
        let Some(work) = self.work.get_mut(conn) else { return };
        if work.answer.is_some() {
            return self.ask(transport, conn);
        }
        let result = match self.plan.mode {
            Mode::Upload | Mode::Download => self.stream(transport, conn),
            Mode::Exchange | Mode::Connect | Mode::Wake => self.exchange(transport, conn),
        };
        match result {
            Ok(false) => {}
            Ok(true) => {
                self.gone(transport, conn, matches!(self.plan.mode, Mode::Exchange | Mode::Wake));
                match self.phase {
                    Phase::Running if self.plan.mode == Mode::Connect => self.connect(transport),
                    Phase::Running => self.fail("the server ended a connection".into()),
                    _ => {}
                }
                if self.phase == Phase::Draining && self.open == 0 {
                    self.after(transport);
                }
            }
            Err(e) => {
                self.gone(transport, conn, true);
                self.fail(e.to_string());
            }
        }
    }

    /// When the next message goes that waits for its moment.
    fn next(&self) -> Option<Instant> {
        // Else there is none, and there may be many connections.
        let wake = self.plan.mode == Mode::Wake;
        wake.then(|| self.work.iter().filter_map(|(_, work)| work.next).min()).flatten()
    }

    /// Sends the request; false: not all of it yet.
    fn greet(&mut self, transport: &mut dyn Transport, conn: Conn) -> io::Result<bool> {
        let Some(work) = self.work.get_mut(conn) else { return Ok(false) };
        let asked = if work.answer.is_some() { request(TELL, 0) } else { Vec::new() };
        let bytes = if asked.is_empty() { &self.request } else { &asked };
        while work.request < bytes.len() {
            match transport.write(conn, &bytes[work.request..], work.answer.is_none()) {
                Ok(n) => work.request += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// Whether the connection is done.
    fn stream(&mut self, transport: &mut dyn Transport, conn: Conn) -> io::Result<bool> {
        if !self.greet(transport, conn)? {
            return Ok(false);
        }
        let Some(work) = self.work.get_mut(conn) else { return Ok(false) };
        let mut moved = 0;
        while moved < TURN {
            if self.plan.mode == Mode::Upload && self.phase == Phase::Running {
                let from = work.sent as usize % self.load.len();
                let piece = self.load.slice(from..self.load.len());
                let result = match piece.bytes() {
                    Some(bytes) if self.plan.copy => transport.write(conn, bytes, false),
                    _ => transport.send(conn, &piece, false),
                };
                match result {
                    Ok(n) => {
                        work.sent += n as u64;
                        self.bytes += n as u64;
                        moved += n as u64;
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                    Err(e) => return Err(e),
                }
                continue;
            }
            match transport.take(conn, TURN as usize, &mut |_| ()) {
                Ok(0) => return Ok(true),
                Ok(n) => {
                    work.received += n as u64;
                    self.bytes += n as u64;
                    moved += n as u64;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        transport.again(conn);
        Ok(false)
    }

    fn exchange(&mut self, transport: &mut dyn Transport, conn: Conn) -> io::Result<bool> {
        if !self.greet(transport, conn)? {
            return Ok(false);
        }
        let size = u64::from(self.plan.size);
        let Some(work) = self.work.get_mut(conn) else { return Ok(false) };
        loop {
            if let Some(next) = work.next {
                if Instant::now() < next {
                    return Ok(false);
                }
                work.next = None;
                work.began = Instant::now();
                work.stamp = (sys::now().as_nanos() as u64).to_le_bytes();
            }
            if self.plan.mode == Mode::Wake {
                while let Some(rest) = work.stamp.get(work.sent as usize..).filter(|rest| !rest.is_empty()) {
                    match transport.write(conn, rest, size > u64::from(STAMP)) {
                        Ok(n) => work.sent += n as u64,
                        Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                        Err(e) => return Err(e),
                    }
                }
            }
            while work.sent < size {
                let from = work.sent as usize % self.load.len();
                let to = self.load.len().min(from + (size - work.sent) as usize);
                let piece = self.load.slice(from..to);
                let result = match piece.bytes() {
                    Some(bytes) if self.plan.copy || bytes.len() <= 256 => transport.write(conn, bytes, false),
                    _ => transport.send(conn, &piece, false),
                };
                match result {
                    Ok(n) => work.sent += n as u64,
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    Err(e) => return Err(e),
                }
            }
            if work.received < size || self.plan.mode == Mode::Connect {
                match transport.take(conn, TURN as usize, &mut |_| ()) {
                    Ok(0) if work.received == size => return Ok(true),
                    Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                    Ok(n) => {
                        work.received += n as u64;
                        if work.received == size {
                            self.latencies.add(work.began.elapsed());
                            self.bytes += size;
                        }
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                    Err(e) => return Err(e),
                }
            }
            if work.received == size && self.plan.mode != Mode::Connect {
                if self.phase != Phase::Running {
                    return Ok(true);
                }
                (work.sent, work.received, work.began) = (0, 0, Instant::now());
                work.next = (self.plan.mode == Mode::Wake).then(|| work.began + self.plan.pause);
            }
        }
    }

    /// Asks the server what it has spent.
    fn ask(&mut self, transport: &mut dyn Transport, conn: Conn) {
        let result = self.greet(transport, conn).and_then(|greeted| {
            let Some(answer) = self.work.get_mut(conn).and_then(|w| w.answer.as_mut()).filter(|_| greeted) else {
                return Ok(false);
            };
            loop {
                match transport.take(conn, 4096, &mut |bytes| answer.extend_from_slice(bytes)) {
                    Ok(0) => return Ok(true),
                    Ok(_) => {}
                    Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                    Err(e) => return Err(e),
                }
            }
        });
        match result {
            Ok(false) => {}
            Ok(true) => {
                let answer = self.work.get_mut(conn).and_then(|w| w.answer.take()).unwrap_or_default();
                self.gone(transport, conn, false);
                let told = serde_json::from_slice::<serde_json::Value>(&answer).ok();
                let Some((spent, told)) = told.and_then(|told| Some((Spent::deserialize(&told).ok()?, told))) else {
                    return self.fail(format!("{} answers, but is no zstack perf server", self.plan.to));
                };
                self.wakes = told["wake_us"].clone();
                if self.phase == Phase::Before {
                    self.server[0] = Some(spent);
                    self.begin(transport);
                } else {
                    self.server[1] = Some(spent);
                    self.phase = Phase::Finished;
                }
            }
            Err(e) => {
                self.gone(transport, conn, true);
                self.fail(format!("{}: {e}", self.plan.to));
            }
        }
    }

    fn begin(&mut self, transport: &mut dyn Transport) {
        self.phase = Phase::Running;
        self.meter = Meter::start();
        self.deadline = Instant::now() + self.plan.time;
        for _ in 0..self.plan.connections {
            self.connect(transport);
        }
    }

    /// The time is over.
    fn drain(&mut self, transport: &mut dyn Transport) {
        self.phase = Phase::Draining;
        let open: Vec<Conn> = self.work.iter().map(|(conn, _)| conn).collect();
        match self.plan.mode {
            // Counted is what has arrived: the server's end says so.
            Mode::Upload => {
                self.deadline = Instant::now() + PATIENCE;
                for conn in open {
                    if let Some(work) = self.work.get_mut(conn)
                        && !work.shut
                    {
                        work.shut = true;
                        transport.shutdown(conn);
                        transport.again(conn);
                    }
                }
            }
            _ => {
                for conn in open {
                    self.gone(transport, conn, true);
                }
                self.after(transport);
            }
        }
    }

    fn after(&mut self, transport: &mut dyn Transport) {
        self.spent = self.meter.read();
        self.phase = Phase::After;
        self.deadline = Instant::now() + PATIENCE;
        self.connect(transport);
    }

    fn report(&self, copied: Option<u64>) -> serde_json::Value {
        let plan = &self.plan;
        let wall = self.spent.wall_s.max(1e-9);
        let mib = self.bytes as f64 / f64::from(1 << 20);
        let server = match self.server {
            [Some(before), Some(after)] => Some(Spent {
                wall_s: after.wall_s - before.wall_s,
                user_s: after.user_s - before.user_s,
                system_s: after.system_s - before.system_s,
                softirq_s: after.softirq_s - before.softirq_s,
            }),
            _ => None,
        };
        let mut report = json!({
            "tool": "zstack perf", "version": env!("CARGO_PKG_VERSION"), "transport": plan.transport, "mode": plan.mode,
            "connections": plan.connections, "size_bytes": plan.size, "wall_s": wall, "bytes": self.bytes,
            "client_cpu_s": {"user": self.spent.user_s, "system": self.spent.system_s, "total": self.spent.cpu_s()},
            "server_cpu_s": server.map(|s| json!({"user": s.user_s, "system": s.system_s, "total": s.cpu_s()})),
            "client_machine_softirq_s": self.spent.softirq_s, "server_machine_softirq_s": server.map(|s| s.softirq_s),
            "client_copied_bytes": copied,
        });
        match plan.mode {
            Mode::Upload | Mode::Download => {
                report["mib_per_s"] = json!(mib / wall);
                report["client_cpu_ms_per_mib"] = json!(self.spent.cpu_s() * 1e3 / mib.max(1e-9));
                report["server_cpu_ms_per_mib"] = json!(server.map(|s| s.cpu_s() * 1e3 / mib.max(1e-9)));
            }
            Mode::Exchange | Mode::Connect | Mode::Wake => {
                let n = self.latencies.count();
                report["exchanges"] = json!(n);
                report["per_s"] = json!(n as f64 / wall);
                report["latency_us"] = self.latencies.told();
                if plan.mode == Mode::Wake {
                    report["wake_us"] = self.wakes.clone();
                }
                report["client_cpu_us_per_exchange"] = json!(self.spent.cpu_s() * 1e6 / n.max(1) as f64);
                report["server_cpu_us_per_exchange"] = json!(server.map(|s| s.cpu_s() * 1e6 / n.max(1) as f64));
            }
        }
        report
    }
}

fn show(report: &serde_json::Value) -> String {
    let number = |value: &serde_json::Value, digits: usize| {
        value.as_f64().map_or_else(|| "?".to_owned(), |n| format!("{n:.digits$}"))
    };
    let mode = report["mode"].as_str().unwrap_or("");
    let head =
        format!("{mode}, {} connections, {}: ", report["connections"], report["transport"].as_str().unwrap_or(""));
    let wall = number(&report["wall_s"], 2);
    match mode {
        "wake" => format!(
            "{head}{} messages of {} bytes after a pause; until the server has one: p50 {} us, p99 {} us; there and back: p50 {} us",
            report["exchanges"],
            report["size_bytes"],
            number(&report["wake_us"]["p50"], 1),
            number(&report["wake_us"]["p99"], 1),
            number(&report["latency_us"]["p50"], 1)
        ),
        "upload" | "download" => format!(
            "{head}{} MiB/s ({} bytes in {wall} s); CPU per MiB: client {} ms, server {} ms",
            number(&report["mib_per_s"], 1),
            report["bytes"],
            number(&report["client_cpu_ms_per_mib"], 3),
            number(&report["server_cpu_ms_per_mib"], 3)
        ),
        _ => format!(
            "{head}{}/s of {} bytes in {wall} s; latency p50 {} us, p99 {} us; CPU per exchange: client {} us, server {} us",
            number(&report["per_s"], 0),
            report["size_bytes"],
            number(&report["latency_us"]["p50"], 1),
            number(&report["latency_us"]["p99"], 1),
            number(&report["client_cpu_us_per_exchange"], 1),
            number(&report["server_cpu_us_per_exchange"], 1)
        ),
    }
}

impl App for Client {
    fn start(&mut self, transport: &mut dyn Transport) -> Result<(), String> {
        self.connect(transport);
        Ok(())
    }

    fn event(&mut self, transport: &mut dyn Transport, event: Event) {
        match event {
            Event::Connected(conn) | Event::Ready(conn) => self.serve(transport, conn),
            Event::Failed(conn, errno) => {
                self.gone(transport, conn, false);
                self.fail(format!("connect to {}: {}", self.plan.to, io::Error::from_raw_os_error(errno)));
            }
            Event::Accepted(_) | Event::Watched(_) => {}
        }
    }

    fn deadline(&self) -> Option<Instant> {
        Some(self.next().map_or(self.deadline, |next| next.min(self.deadline)))
    }

    fn tick(&mut self, transport: &mut dyn Transport) {
        let now = Instant::now();
        if self.next().is_some_and(|next| next <= now) {
            let due = self.work.iter().filter(|(_, work)| work.next.is_some_and(|next| next <= now));
            let due: Vec<Conn> = due.map(|(conn, _)| conn).collect();
            due.into_iter().for_each(|conn| self.serve(transport, conn));
        }
        if now < self.deadline {
            return;
        }
        match self.phase {
            Phase::Running => self.drain(transport),
            Phase::Before | Phase::Draining | Phase::After => {
                self.fail(format!("{} does not answer", self.plan.to));
            }
            Phase::Finished => {}
        }
    }

    fn finished(&self) -> bool {
        self.phase == Phase::Finished
    }

    fn end(&mut self, transport: &mut dyn Transport, interrupted: bool) -> Result<(), String> {
        let open: Vec<Conn> = self.work.iter().map(|(conn, _)| conn).collect();
        for conn in open {
            self.gone(transport, conn, true);
        }
        if self.phase == Phase::Running {
            self.spent = self.meter.read();
        }
        let report = self.report(transport.copied());
        if self.plan.json {
            crate::out::line(format_args!("{report:#}"));
        } else {
            crate::out::line(format_args!("{}", show(&report)));
        }
        match &self.failed {
            Some(text) => Err(text.clone()),
            None if interrupted => Err("interrupted before the end".into()),
            None => Ok(()),
        }
    }
}
