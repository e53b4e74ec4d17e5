//! Runs a script.

use super::script::{ANY, Action, Call, Icmp, Line, Script, Segment, parse};
use crate::card::{Card, CardPlan};
use crate::clock;
use crate::host::{Conn, OURS, PEERS, Programs, words};
use crate::packet::{self, Opt, Tcp, flag};
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use zstack::net::Address;
use zstack::stack::{Config, ConnId, Connect, Listen, ListenerId, Stack};
use zstack::tcp::Options;
use zstack::tcp::recovery::Algorithm;
use zstack::time::Time;

/// Where the engine listens.
const SERVICE: u16 = 80;

/// The peer's port, if the script names no other.
const PEER: u16 = 40_000;

/// The engine's secret.
const KEY: [u8; 16] = [7; 16];

/// Numbers of one connection: what 0 means in the script.
#[derive(Clone, Copy, Default)]
struct Base {
    engine: u32,
    peer: u32,
    /// The engine's timestamp less the script's.
    stamp: Option<u32>,
    /// The engine's port.
    local: u16,
}

struct Runner {
    stack: Stack,
    card: Card,
    programs: Programs,
    now: u64,
    /// When the script begins.
    origin: u64,
    sent: VecDeque<(u64, Vec<u8>)>,
    last: Vec<u8>,
    bases: HashMap<u16, Base>,
    ports: HashMap<ConnId, u16>,
    selected: Option<ConnId>,
    listener: Option<ListenerId>,
    ours: IpAddr,
    theirs: IpAddr,
    isn: u32,
    tolerance: u64,
    ignored: HashSet<u16>,
    log: Vec<String>,
}

/// Runs a script. `verbose`: the log of a run that went well is wanted, too.
///
/// # Errors
/// The line that did not go as it says, what happened instead, and what had happened before.
pub fn run(text: &str) -> Result<Vec<String>, String> {
    let script = parse(text)?;
    let mut runner = Runner::new(&script)?;
    let mut at = 0;
    for line in &script.lines {
        runner.line(line, &mut at).map_err(|e| {
            format!("line {}: {}\n  {e}\nbefore:\n  {}", line.number, line.text, runner.log.join("\n  "))
        })?;
    }
    runner.nothing().map_err(|e| format!("behind the last line: {e}\nbefore:\n  {}", runner.log.join("\n  ")))?;
    Ok(runner.log)
}

impl Runner {
    fn new(script: &Script) -> Result<Runner, String> {
        let mut plan = CardPlan::plain(1500);
        let (mut v6, mut late, mut isn, mut tolerance) = (false, false, 0u32.wrapping_sub(2_000), 5_000);
        let mut number = None;
        let mut limits = zstack::stack::Limits { connections: 4_096, ..Default::default() };
        for (name, value) in &script.options {
            let value_of = || value.parse::<u32>().map_err(|_| format!("option {name}: {value:?} is no number"));
            match name.as_str() {
                "mtu" => plan.mtu = value_of()? as u16,
                "tso" => (plan.tso, plan.checksum) = (value_of()?, true),
                "checksum" => plan.checksum = true,
                "late" => late = true,
                "queue" => plan.queue = value_of()?,
                "v6" => v6 = true,
                "number" => number = Some(value_of()?),
                "isn" => isn = value_of()?,
                "tolerance" => tolerance = u64::from(value_of()?) * 1_000,
                "half_open" => limits.half_open = value_of()?,
                "time_wait" => limits.time_wait = value_of()?,
                "resets" => limits.resets = value_of()?,
                other => return Err(format!("no option {other:?}")),
            }
        }
        let mut card = Card::new(plan, 1);
        card.by_hand = late;
        let (ours, theirs): (IpAddr, IpAddr) = if v6 {
            ("fd00::1".parse().expect("an address"), "fd00::2".parse().expect("an address"))
        } else {
            ("10.0.0.1".parse().expect("an address"), "10.0.0.2".parse().expect("an address"))
        };
        let mut config = Config::new(Address { ip: ours, prefix: if v6 { 64 } else { 24 } }, KEY);
        config.limits = limits;
        let sockets = || (SocketAddr::new(ours, SERVICE), SocketAddr::new(theirs, PEER));
        let origin = number.map_or(1_000_000, |n| clock::when(KEY, sockets(), n));
        let stack = Stack::new(config, zstack::port::Port::capabilities(&card), Time(origin))
            .map_err(|e| format!("no stack: {e:?}"))?;
        Ok(Runner {
            stack,
            card,
            programs: Programs::default(),
            now: origin,
            origin,
            sent: VecDeque::new(),
            last: Vec::new(),
            bases: HashMap::new(),
            ports: HashMap::new(),
            selected: None,
            listener: None,
            ours,
            theirs,
            isn,
            tolerance,
            ignored: HashSet::new(),
            log: Vec::new(),
        })
    }

    fn base(&mut self, port: u16) -> &mut Base {
        let isn = self.isn;
        self.bases.entry(port).or_insert(Base { engine: 0, peer: isn, stamp: None, local: SERVICE })
    }

    /// The engine works until it has nothing to do now. Returns its deadline.
    fn turn(&mut self) -> Result<Option<u64>, String> {
        for _ in 0..10_000 {
            let turn = self.stack.turn(Time(self.now), &mut self.card, &mut self.programs);
            for frame in std::mem::take(&mut self.card.out) {
                self.note_sent(frame);
            }
            if let Some(fault) = self.card.faults.pop().or_else(|| self.programs.faults.pop()) {
                return Err(fault);
            }
            if let Some(id) = self.programs.last.take() {
                self.selected = Some(id);
                if let Some(info) = self.stack.info(id) {
                    self.ports.insert(id, info.remote.port());
                }
            }
            if !turn.more {
                return Ok(turn.deadline.map(|t| t.0));
            }
        }
        Err("the engine is never done".to_owned())
    }

    fn note_sent(&mut self, frame: Vec<u8>) {
        let Some(ip) = packet::ip(&frame, 0) else { return };
        let Some((tcp, payload)) = packet::tcp(&frame, &ip) else {
            let line = format!("{}", packet::Line { frame: &frame, at: Some(0), base: (0, 0) });
            self.say('>', &line);
            self.sent.push_back((self.now, frame));
            return;
        };
        if self.ignored.contains(&tcp.destination) {
            return;
        }
        let base = self.base(tcp.destination);
        if tcp.flags & flag::SYN != 0 {
            (base.engine, base.local) = (tcp.seq, tcp.source);
        }
        let (engine, peer) = (base.engine, base.peer);
        let text = packet::describe(&tcp, ip.end - payload, (engine, peer));
        self.say('>', &text);
        self.last.clone_from(&frame);
        self.sent.push_back((self.now, frame));
    }

    fn say(&mut self, way: char, text: &str) {
        self.log.push(format!("{:.6} {way} {text}", (self.now - self.origin) as f64 / 1e6));
    }

    /// Time passes to `until`, or to where something is sent if `stop`.
    fn advance(&mut self, until: u64, stop: bool) -> Result<(), String> {
        let mut idle = 0;
        loop {
            let deadline = self.turn()?;
            if stop && !self.sent.is_empty() {
                return Ok(());
            }
            match deadline {
                Some(d) if d <= until => {
                    idle = if d > self.now { 0 } else { idle + 1 };
                    if idle > 1_000 {
                        return Err(format!("a timer that is due at {d} never fires"));
                    }
                    self.now = self.now.max(d);
                }
                _ => break,
            }
        }
        self.now = self.now.max(until);
        self.turn()?;
        Ok(())
    }

    fn nothing(&self) -> Result<(), String> {
        match self.sent.front() {
            None => Ok(()),
            Some((at, _)) => {
                Err(format!("something was sent that is not expected, at {:.6}", (*at - self.origin) as f64 / 1e6))
            }
        }
    }

    fn line(&mut self, line: &Line, at: &mut u64) -> Result<(), String> {
        let due = *at + line.after.unwrap_or(0);
        if let Action::Out(segment) = &line.action {
            let latest = match line.after {
                Some(_) => due + self.tolerance,
                None => due + 1_000_000_000,
            };
            if self.sent.is_empty() {
                self.advance(self.origin + latest, true)?;
            }
            let (when, frame) = self.sent.pop_front().ok_or("it was not sent")?;
            let when = when - self.origin;
            if when + self.tolerance < due || when > latest {
                return Err(format!("sent at {:.6}, not at {:.6}", when as f64 / 1e6, due as f64 / 1e6));
            }
            *at = if line.after.is_some() { due } else { when };
            return self.compare(segment, &frame);
        }
        self.advance(self.origin + due, false)?;
        self.nothing()?;
        *at = due;
        self.say(' ', &line.text.clone());
        match &line.action {
            Action::In(segment) => self.arrive(segment)?,
            Action::Icmp(kind, seq) => self.icmp(*kind, *seq)?,
            Action::Call(call) => self.call(call)?,
            Action::Out(_) => {}
        }
        self.turn()?;
        Ok(())
    }

    fn arrive(&mut self, s: &Segment) -> Result<(), String> {
        let (ours, theirs) = (self.ours, self.theirs);
        let base = *self.base(s.port);
        let options = s.options.clone().unwrap_or_default().into_iter().map(|o| match o {
            Opt::Sack(blocks) => Opt::Sack(
                blocks.iter().map(|(l, r)| (l.wrapping_add(base.engine), r.wrapping_add(base.engine))).collect(),
            ),
            Opt::Ts(value, echo) => {
                Opt::Ts(value, if s.flags & flag::ACK == 0 { echo } else { echo.wrapping_add(base.stamp.unwrap_or(0)) })
            }
            other => other,
        });
        let tcp = Tcp {
            source: s.port,
            destination: if s.nolisten { 9 } else { base.local },
            seq: s.seq.wrapping_add(base.peer),
            ack: s.ack.map_or(0, |a| a.wrapping_add(base.engine)),
            flags: s.flags,
            window: s.win.unwrap_or(0),
            urgent: s.urgent.unwrap_or(0),
            options: options.collect(),
        };
        let mut payload = vec![0; s.len as usize];
        // Numbers behind the SYN's are positions in the stream.
        PEERS.fill(u64::from(s.seq).wrapping_sub(u64::from(s.flags & flag::SYN == 0)), &mut payload);
        let mut frame = packet::segment(theirs, ours, &tcp, &payload);
        if s.badsum {
            let end = frame.len();
            frame[end - 1] ^= 0x55;
        }
        self.card.arrive(frame);
        Ok(())
    }

    fn icmp(&mut self, kind: Icmp, seq: Option<u32>) -> Result<(), String> {
        let mut about = self.last.clone();
        let ip = packet::ip(&about, 0).ok_or("nothing was sent that an ICMP error could be about")?;
        if let Some(seq) = seq {
            let (tcp, _) = packet::tcp(&about, &ip).ok_or("the last packet is not TCP")?;
            let seq = seq.wrapping_add(self.base(tcp.destination).engine);
            about[ip.transport + 4..ip.transport + 8].copy_from_slice(&seq.to_be_bytes());
        }
        let v4 = self.ours.is_ipv4();
        let router: IpAddr = if v4 { "10.0.0.254" } else { "fd00::fe" }.parse().expect("an address");
        let error = match kind {
            Icmp::TooBig(mtu) => packet::too_big(router, &about, mtu),
            Icmp::Net => packet::icmp(router, &about, if v4 { 3 } else { 1 }, 0, 0),
            Icmp::Host => packet::icmp(router, &about, if v4 { 3 } else { 1 }, if v4 { 1 } else { 3 }, 0),
            Icmp::Port => packet::icmp(router, &about, if v4 { 3 } else { 1 }, if v4 { 3 } else { 4 }, 0),
            Icmp::Protocol => packet::icmp(router, &about, if v4 { 3 } else { 4 }, if v4 { 2 } else { 1 }, 0),
        };
        self.card.arrive(error.ok_or("the last packet is malformed")?);
        Ok(())
    }

    fn compare(&mut self, want: &Segment, frame: &[u8]) -> Result<(), String> {
        let ip = packet::ip(frame, 0).ok_or("what was sent is no IP packet")?;
        let (tcp, payload) = packet::tcp(frame, &ip).ok_or("what was sent is no TCP segment")?;
        let base = *self.base(tcp.destination);
        let len = (ip.end - payload) as u32;
        let shown = packet::describe(&tcp, len as usize, (base.engine, base.peer));
        let differs = |what: &str| Err(format!("sent was {shown}: {what} differs"));
        if tcp.destination != want.port {
            return differs(&format!("port {}", tcp.destination));
        }
        if tcp.flags != want.flags {
            return differs("control bits");
        }
        if (tcp.seq.wrapping_sub(base.engine), len) != (want.seq, want.len) {
            return differs("sequence numbers");
        }
        if want.ack.is_some_and(|a| tcp.ack.wrapping_sub(base.peer) != a) {
            return differs("acknowledgement");
        }
        if want.win.is_some_and(|w| tcp.window != w) {
            return differs("window");
        }
        if want.urgent.is_some_and(|u| tcp.urgent != u) {
            return differs("urgent pointer");
        }
        if let Some(options) = &want.options {
            self.options(options, &tcp, &base).or_else(|what| differs(&what))?;
        }
        let position = u64::from(tcp.seq.wrapping_sub(base.engine)).wrapping_sub(1);
        if len > 0 && tcp.flags & flag::SYN == 0 && OURS.differs(position, &frame[payload..ip.end]).is_some() {
            // One byte of a keep-alive or of a probe lies before the stream's, or is any.
            let probe = len == 1 && self.programs.conns.values().any(|c| c.released > position);
            if !probe {
                return differs("payload");
            }
        }
        Ok(())
    }

    fn options(&mut self, want: &[Opt], tcp: &Tcp, base: &Base) -> Result<(), String> {
        let plain = |o: &&Opt| !matches!(o, Opt::Nop | Opt::End);
        let (sent, want): (Vec<&Opt>, Vec<&Opt>) =
            (tcp.options.iter().filter(plain).collect(), want.iter().filter(plain).collect());
        if sent.len() != want.len() {
            return Err("the list of options".to_owned());
        }
        for (s, w) in sent.iter().zip(want) {
            match (s, w) {
                (Opt::Ts(value, echo), Opt::Ts(v, e)) => {
                    if *e != ANY && echo != e {
                        return Err(format!("the timestamp's echo, {echo},"));
                    }
                    let stamp = &mut self.base(tcp.destination).stamp;
                    if *v != ANY {
                        let offset = *stamp.get_or_insert(value.wrapping_sub(*v));
                        let off = value.wrapping_sub(offset).wrapping_sub(*v) as i32;
                        if off.abs() > 6 {
                            return Err(format!("the timestamp, {},", value.wrapping_sub(offset)));
                        }
                    }
                }
                (Opt::Sack(blocks), Opt::Sack(expected)) => {
                    let blocks: Vec<(u32, u32)> =
                        blocks.iter().map(|(l, r)| (l.wrapping_sub(base.peer), r.wrapping_sub(base.peer))).collect();
                    if blocks != *expected {
                        return Err("SACK".to_owned());
                    }
                }
                _ if *s == w => {}
                _ => return Err(format!("{s:?} for {w:?}")),
            }
        }
        Ok(())
    }

    fn conn(&self) -> Result<ConnId, String> {
        self.selected.ok_or_else(|| "there is no connection".to_owned())
    }

    fn data(&mut self) -> Result<&mut Conn, String> {
        let id = self.conn()?;
        Ok(self.programs.conns.entry(id).or_default())
    }

    fn call(&mut self, call: &Call) -> Result<(), String> {
        match call {
            Call::Listen(words) => {
                let (options, room, _) = settings(words, Options::default())?;
                self.programs.room = room;
                let listen = Listen {
                    address: None,
                    port: Some(SERVICE),
                    backlog: 1_000,
                    deferred: words.iter().any(|w| w == "deferred"),
                    deferred_cookies: false,
                    options: Some(options),
                    room,
                };
                self.listener = Some(self.stack.listen(listen).map_err(|e| format!("{e:?}"))?);
            }
            Call::Unlisten => self.stack.unlisten(self.listener.take().ok_or("nobody listens")?),
            Call::Connect(words) => {
                let (options, room, port) = settings(words, Options::default())?;
                let connect = Connect {
                    local: None,
                    local_port: port,
                    remote: SocketAddr::new(self.theirs, PEER),
                    options: Some(options),
                    room,
                };
                let id = self.stack.connect(Time(self.now), connect).map_err(|e| format!("{e:?}"))?;
                self.programs.conns.insert(id, Conn::new(room));
                self.ports.insert(id, PEER);
                self.selected = Some(id);
                if let Some(info) = self.stack.info(id) {
                    self.base(PEER).local = info.local.port();
                }
            }
            Call::Accept => {
                let id = self.conn()?;
                self.stack.accept(id);
            }
            Call::Refuse => {
                let id = self.conn()?;
                self.stack.refuse(id);
            }
            Call::Write(len, more) => {
                let id = self.conn()?;
                let end = self.programs.write(id, *len)?;
                self.stack.commit(id, end, !more);
            }
            Call::Read(len) => {
                let id = self.conn()?;
                let conn = self.data()?;
                conn.edge += len;
                let edge = conn.edge;
                self.stack.room(id, edge);
            }
            Call::Shutdown => {
                let id = self.conn()?;
                self.stack.shutdown(id);
            }
            Call::Close => {
                let id = self.conn()?;
                self.stack.close(id, false);
            }
            Call::Abort => {
                let id = self.conn()?;
                self.stack.abort(id);
            }
            Call::Set(words) => {
                let id = self.conn()?;
                let (options, ..) = settings(words, Options::default())?;
                self.stack.set_options(id, options);
            }
            Call::Select(port) => {
                let found = self.ports.iter().filter(|(_, p)| **p == *port).map(|(id, _)| *id);
                self.selected = Some(found.max_by_key(|id| (id.generation, id.index)).ok_or("no such connection")?);
            }
            Call::Complete(n) => {
                for _ in 0..*n {
                    self.card.complete();
                }
            }
            Call::Flood(n) => {
                for i in 0..*n {
                    let port = 50_000 + i as u16;
                    self.ignored.insert(port);
                    let tcp = Tcp {
                        source: port,
                        destination: SERVICE,
                        seq: 77 * i,
                        flags: flag::SYN,
                        window: 1000,
                        ..Tcp::default()
                    };
                    let frame = packet::segment(self.theirs, self.ours, &tcp, &[]);
                    self.card.arrive(frame);
                }
            }
            Call::Event(name) => {
                let events = &mut self.data()?.events;
                let at =
                    events.iter().position(|e| e == name).ok_or_else(|| format!("not told; told were {events:?}"))?;
                events.remove(at);
            }
            Call::NoEvent(name) => {
                let events = &self.data()?.events;
                if events.contains(name) {
                    return Err(format!("it was told: {events:?}"));
                }
            }
            Call::Published(n) => {
                let published = self.data()?.published;
                if published != *n {
                    return Err(format!("{published} bytes are published"));
                }
            }
            Call::Released(n) => {
                let released = self.data()?.released;
                if released != *n {
                    return Err(format!("{released} bytes are released"));
                }
            }
            Call::State(name) => {
                let id = self.conn()?;
                let state = self.stack.info(id).map_or("none".to_owned(), |i| words(&format!("{:?}", i.tcp.phase)));
                if state != *name {
                    return Err(format!("the state is {state}"));
                }
            }
            Call::Count(name, n) => {
                let counters = self.stack.counters();
                let value = counters.iter().find(|(c, _)| c.name() == name).ok_or("no such counter")?.1;
                if value != *n {
                    return Err(format!("it is {value}"));
                }
            }
            Call::Info(name, low, high) => {
                let id = self.conn()?;
                let tcp = self.stack.info(id).ok_or("the connection is gone")?.tcp;
                let value = match name.as_str() {
                    "cwnd" => u64::from(tcp.cwnd),
                    "ssthresh" => u64::from(tcp.ssthresh),
                    "mss" => u64::from(tcp.mss),
                    "rto" => u64::from(tcp.rto.0),
                    "srtt" => u64::from(tcp.srtt.0),
                    "window" => u64::from(tcp.window),
                    "sacked" => u64::from(tcp.sacked),
                    "retransmits" => u64::from(tcp.retransmits),
                    other => return Err(format!("no value {other:?}")),
                };
                if !(*low..=*high).contains(&value) {
                    return Err(format!("it is {value}"));
                }
            }
            Call::Pause => {}
        }
        Ok(())
    }
}

/// Settings of a call: options, room, port.
fn settings(words: &[String], mut o: Options) -> Result<(Options, u64, Option<u16>), String> {
    let (mut room, mut port) = (65_535, None);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value =
            || words.next().and_then(|w| w.parse::<u32>().ok()).ok_or_else(|| format!("{word} without a number"));
        match word.as_str() {
            "deferred" => {}
            "room" => room = u64::from(value()?),
            "port" => port = Some(value()? as u16),
            "nodelay" => o.nodelay = true,
            "cork" => o.cork = true,
            "uncork" => o.cork = false,
            "keepalive" => {
                (o.keepalive, o.keepalive_idle, o.keepalive_interval, o.keepalive_count) =
                    (true, value()?, value()?, value()? as u8)
            }
            "user_timeout" => o.user_timeout = value()?,
            "linger" => o.linger = value()?,
            "fin_wait" => o.fin_wait = value()?,
            "notimestamps" => o.timestamps = false,
            "nosack" => o.sack = false,
            "noscaling" => o.scaling = false,
            "mss" => o.mss = value()? as u16,
            "reno" => o.congestion = Algorithm::Reno,
            "cubic" => o.congestion = Algorithm::Cubic,
            other => return Err(format!("no setting {other:?}")),
        }
    }
    Ok((o, room, port))
}
