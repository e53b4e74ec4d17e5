//! Runs packetdrill's scripts in virtual time.
//!
//! As in packetdrill, segments of one moment are joined until they are as long as the script says, and PSH and FIN are those of the
//! last. What differs: a call takes no time; a segment that is longer than the script says is cut, and noted
//! ([`Outcome::Passed`]); of Python only `assert` with comparisons is known, and a
//! comparison with a field of TCP_INFO that the engine does not have is not made, and noted; of sysctls those that the engine has
//! an option for. A script about something else is out of [scope](Outcome::Skipped), with the reason.

mod calls;
mod code;
mod shell;

use crate::face::Face;
use crate::port::Sent;
use crate::script::{self, Action, Call, Event, Refusal, Script, Segment, When};
use libc::c_int;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use zstack::time::Time;
use zstack_sim::packet::{self, Opt, Tcp, flag};

/// What came of a script.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// All went as it says; with what was not looked at, or taken for the same.
    Passed(Vec<String>),
    /// It is about something that the engine does not have.
    Skipped(String),
    /// Something else happened: where and what, and what had happened before.
    Failed(String),
}

/// Why a run ends early.
enum Stop {
    Scope(String),
    Differs(String),
}

impl From<String> for Stop {
    fn from(text: String) -> Stop {
        Stop::Differs(text)
    }
}

/// The connection under test.
struct Conn {
    local: SocketAddr,
    remote: SocketAddr,
    /// The engine's and the peer's number that 0 means in the script.
    engine: u32,
    peer: u32,
    /// The engine's timestamps by the script's, and what the first was ahead.
    stamps: HashMap<u32, u32>,
    ahead: u32,
}

/// A call that waits.
struct Waiting {
    call: Call,
    line: usize,
    /// When it is to come back.
    end: u64,
    progress: i64,
}

struct Runner {
    face: Face,
    now: u64,
    /// When it began.
    start: u64,
    sent: VecDeque<(u64, Vec<u8>)>,
    last: Vec<u8>,
    /// Segments with payload, for ICMP to be about.
    history: Vec<Vec<u8>>,
    conn: Option<Conn>,
    listening: bool,
    /// The connection is one that connect(2) began.
    active: bool,
    fds: HashMap<i64, c_int>,
    waiting: Option<Waiting>,
    ours: IpAddr,
    theirs: IpAddr,
    tolerance: u64,
    /// The same in hundredths of the time since the script began, where that is more.
    percent: u64,
    /// The port that bind(2) is given for `...`.
    port: u16,
    /// Segments are cut before they are seen.
    cut: bool,
    notes: Vec<String>,
    log: Vec<String>,
}

/// The peer's first number.
const PEERS: u32 = 0u32.wrapping_sub(3_000);
/// The port that connect(2), and bind(2) unless an option says another, are given for `...`.
const PORT: u16 = 8080;

/// Runs a script.
pub fn run(text: &str) -> Outcome {
    let script = match script::parse(text) {
        Ok(script) => script,
        Err(Refusal::Scope(what)) => return Outcome::Skipped(what),
        Err(Refusal::Syntax(what)) => return Outcome::Failed(what),
    };
    let mut runner = match Runner::new(&script) {
        Ok(runner) => runner,
        Err(Stop::Scope(what)) => return Outcome::Skipped(what),
        Err(Stop::Differs(what)) => return Outcome::Failed(what),
    };
    let mut at = 0;
    for event in &script.events {
        match runner.event(event, &mut at) {
            Ok(()) => {}
            Err(Stop::Scope(what)) => return Outcome::Skipped(what),
            Err(Stop::Differs(what)) => return Outcome::Failed(runner.failure(event.line, &what)),
        }
    }
    if let Err(Stop::Differs(what) | Stop::Scope(what)) = runner.finish_waiting() {
        return Outcome::Failed(runner.failure(0, &what));
    }
    runner.notes.sort();
    runner.notes.dedup();
    Outcome::Passed(runner.notes)
}

impl Runner {
    fn new(script: &Script) -> Result<Runner, Stop> {
        let mut wanted = shell::Wanted::default();
        let (mut tolerance, mut percent, mut port, mut mtu, mut v6) = (4_000, 0, PORT, None, false);
        for (name, value) in &script.options {
            let number = || value.parse::<u32>().map_err(|_| format!("{name}={value}"));
            match name.as_str() {
                "tolerance_usecs" => tolerance = u64::from(number()?),
                "tolerance_percent" => percent = u64::from(number()?),
                "bind_port" => port = number()? as u16,
                "mtu" => mtu = Some(number()? as u16),
                "ip_version" => match value.as_str() {
                    "ipv4" => {}
                    "ipv6" => v6 = true,
                    other => return Err(Stop::Scope(format!("ip_version {other}"))),
                },
                "mss" | "send_omit_free" | "tcp_ts_tick_usecs" | "local_ip" | "remote_ip" | "gateway_ip"
                | "netmask_ip" => {}
                other => return Err(Stop::Scope(format!("option {other}"))),
            }
        }
        for event in &script.events {
            if let Action::Shell(commands) = &event.action {
                shell::apply(commands, &mut wanted).map_err(Stop::Scope)?;
            }
        }
        if windows_matter(script, wanted.room) {
            return Err(Stop::Scope("the window that Linux computes from the sizes of its buffers".to_owned()));
        }
        let mut setup = wanted.setup;
        if let Some(size) = receive_buffer(script).filter(|size| *size >= 1 << 16) {
            // Half of a buffer is for payload (socket(7)); the window scale follows from it.
            setup.room = 1 << size.ilog2();
        }
        // Linux's scripts run over IPv6 with as much room for payload as over IPv4.
        setup.mtu = mtu.unwrap_or(if v6 { 1520 } else { 1500 });
        let largest = u32::from(setup.mtu) - if v6 { 60 } else { 40 };
        setup.tso = if wanted.segments > 1 { wanted.segments.saturating_mul(mss(script).min(largest)) } else { 0 };
        let (ours, theirs): (IpAddr, IpAddr) = if v6 {
            (setup.local.1, "fd3d:fa7b:d17d::1".parse().expect("an address"))
        } else {
            (setup.local.0, "192.0.2.1".parse().expect("an address"))
        };
        let start = 1_000_000;
        let face = Face::new(setup, Time(start))?;
        Ok(Runner {
            face,
            now: start,
            start,
            sent: VecDeque::new(),
            last: Vec::new(),
            history: Vec::new(),
            conn: None,
            listening: false,
            active: false,
            fds: HashMap::new(),
            waiting: None,
            ours,
            theirs,
            tolerance,
            percent,
            port,
            cut: wanted.cut,
            notes: Vec::new(),
            log: Vec::new(),
        })
    }

    fn failure(&self, line: usize, what: &str) -> String {
        let place = if line == 0 { "behind the last line".to_owned() } else { format!("line {line}") };
        format!("{place}: {what}\n    {}", self.log.join("\n    "))
    }

    fn say(&mut self, way: char, text: &str) {
        self.log.push(format!("{:.6} {way} {text}", (self.now - self.start) as f64 / 1e6));
    }

    /// The engine works until it has nothing to do now; a call that waits is tried again. Returns the deadline.
    fn turn(&mut self) -> Result<Option<u64>, Stop> {
        loop {
            let deadline = self.face.turn(Time(self.now));
            while let Some(sent) = self.face.port().sniff() {
                self.note_sent(sent);
            }
            if !self.try_waiting()? {
                return Ok(deadline.map(|t| t.0));
            }
        }
    }

    /// A packet, or the segments that a device would make of it.
    fn note_sent(&mut self, sent: Sent) {
        let (frame, cut) = (sent.packet, usize::from(sent.cut));
        let Some((ip, (tcp, payload))) = parts(&frame) else { return };
        let data = &frame[payload..ip.end];
        if !self.cut || cut == 0 || data.len() <= cut {
            return self.note(frame);
        }
        for (i, piece) in data.chunks(cut).enumerate() {
            let last = (i + 1) * cut >= data.len();
            let flags = if last { tcp.flags } else { tcp.flags & !(flag::PSH | flag::FIN) };
            let tcp = Tcp { seq: tcp.seq.wrapping_add((i * cut) as u32), flags, ..tcp.clone() };
            self.note(packet::segment(ip.source, ip.destination, &tcp, piece));
        }
    }

    fn note(&mut self, frame: Vec<u8>) {
        let Some((ip, (tcp, payload))) = parts(&frame) else { return };
        let remote = SocketAddr::new(ip.destination, tcp.destination);
        let conn = self.conn.get_or_insert_with(|| Conn::new(SocketAddr::new(ip.source, tcp.source), remote));
        if tcp.flags & flag::SYN != 0 {
            (conn.engine, conn.local) = (tcp.seq, SocketAddr::new(ip.source, tcp.source));
        }
        let text = packet::describe(&tcp, ip.end - payload, (conn.engine, conn.peer));
        self.say('>', &text);
        self.last.clone_from(&frame);
        self.history.push(frame.clone());
        self.sent.push_back((self.now, frame));
    }

    /// Time passes to `until`, or to where something is sent if `stop`.
    fn advance(&mut self, until: u64, stop: bool) -> Result<(), Stop> {
        let mut idle = 0;
        loop {
            let deadline = self.turn()?;
            if stop && !self.sent.is_empty() {
                return Ok(());
            }
            match deadline {
                Some(d) if d <= until => {
                    idle = if d > self.now { 0 } else { idle + 1 };
                    if idle > 1000 {
                        return Err(format!("a timer that is due at {d} never fires").into());
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

    fn event(&mut self, event: &Event, at: &mut u64) -> Result<(), Stop> {
        let base = if event.relative { *at } else { 0 };
        let (from, to) = match event.when {
            When::At(t) => (base + t, base + t),
            When::Within(a, b) => (base + a, base + b),
            When::Any => (*at, *at + 3_600_000_000),
        };
        if let Action::Out(segment) = &event.action {
            if self.sent.is_empty() {
                self.advance(self.start + to + self.slack(to), true)?;
            }
            let Some((when, frame)) = self.sent.pop_front() else { return Err("it was not sent".to_owned().into()) };
            let when = when - self.start;
            let frame = self.fit(segment, frame, when);
            if when + self.slack(from) < from || when > to + self.slack(to) {
                let text = format!("sent at {:.6}, not at {:.6}", when as f64 / 1e6, from as f64 / 1e6);
                return Err(text.into());
            }
            *at = if let When::At(_) = event.when { from } else { when };
            return self.compare(segment, &frame).map_err(Stop::Differs);
        }
        if let Action::Shell(_) = event.action {
            return Ok(());
        }
        self.advance(self.start + from, false)?;
        *at = from;
        match &event.action {
            Action::In(segment) => self.arrive(segment)?,
            Action::Icmp(about, kind, code, mtu) => self.icmp(*about, kind, code, *mtu)?,
            Action::Call(call) => self.begin(call, event, base)?,
            Action::Code(code) => self.code(code)?,
            Action::Out(_) | Action::Shell(_) => {}
        }
        self.turn()?;
        Ok(())
    }

    /// How much earlier or later than at a moment something may come.
    fn slack(&self, at: u64) -> u64 {
        self.tolerance.max(at * self.percent / 100)
    }

    /// What was sent, with what followed at the same moment joined to it or cut off from it, so that it is as long as `want`.
    fn fit(&mut self, want: &Segment, frame: Vec<u8>, when: u64) -> Vec<u8> {
        let Some((ip, (mut tcp, payload))) = parts(&frame) else { return frame };
        let mut data = frame[payload..ip.end].to_vec();
        let wanted = want.len as usize;
        if data.is_empty() || wanted == 0 || data.len() == wanted {
            return frame;
        }
        let whole = |tcp: &Tcp, data: &[u8]| packet::segment(ip.source, ip.destination, tcp, data);
        if data.len() > wanted {
            let rest = data.split_off(wanted);
            let second = Tcp { seq: tcp.seq.wrapping_add(wanted as u32), ..tcp.clone() };
            tcp.flags &= !(flag::PSH | flag::FIN);
            self.sent.push_front((when + self.start, whole(&second, &rest)));
            self.notes.push("segments are cut in other places".to_owned());
        } else {
            while data.len() < wanted
                && let Some((at, next)) = self.sent.front()
                && *at == when + self.start
                && let Some((ip, (more, payload))) = parts(next)
                && more.seq == tcp.seq.wrapping_add(data.len() as u32)
                && ip.end > payload
                && data.len() + ip.end - payload <= wanted
            {
                data.extend(&next[payload..ip.end]);
                tcp.flags = tcp.flags & !(flag::PSH | flag::FIN) | more.flags & (flag::PSH | flag::FIN);
                self.sent.pop_front();
            }
        }
        whole(&tcp, &data)
    }

    fn conn(&mut self) -> &mut Conn {
        let (ours, theirs, port) = (self.ours, self.theirs, self.port);
        self.conn.get_or_insert_with(|| Conn::new(SocketAddr::new(ours, port), SocketAddr::new(theirs, 40_000)))
    }

    fn arrive(&mut self, s: &Segment) -> Result<(), Stop> {
        if s.flags & (flag::SYN | flag::ACK) == flag::SYN && self.listening {
            // packetdrill's peer opens one connection to a listener.
            let port = self.conn.as_ref().map_or(40_000, |c| c.remote.port().max(40_000) + 1);
            self.conn = Some(Conn::new(SocketAddr::new(self.ours, self.port), SocketAddr::new(self.theirs, port)));
            self.listening = false;
            // What is sent for a connection before is looked at no more.
            self.sent.clear();
        }
        let conn = self.conn();
        let options = s.options.clone().unwrap_or_default().into_iter().map(|o| match o {
            Opt::Sack(blocks) => Opt::Sack(
                blocks.iter().map(|(l, r)| (l.wrapping_add(conn.engine), r.wrapping_add(conn.engine))).collect(),
            ),
            Opt::Ts(value, echo) if s.flags & flag::ACK != 0 => {
                Opt::Ts(value, conn.stamps.get(&echo).copied().unwrap_or(echo.wrapping_add(conn.ahead)))
            }
            other => other,
        });
        let tcp = Tcp {
            source: conn.remote.port(),
            destination: conn.local.port(),
            seq: s.seq.wrapping_add(conn.peer),
            ack: s.ack.map_or(0, |a| a.wrapping_add(conn.engine)),
            flags: s.flags,
            window: s.win.unwrap_or(0),
            urgent: s.urgent,
            options: options.collect(),
        };
        let shown = packet::describe(&tcp, s.len as usize, (conn.peer, conn.engine));
        let (from, to) = (conn.remote.ip(), conn.local.ip());
        self.say('<', &shown);
        self.face.port().inject(packet::segment(from, to, &tcp, &vec![0; s.len as usize]));
        Ok(())
    }

    fn icmp(&mut self, about: Option<(u32, u32)>, kind: &str, code: &str, mtu: u32) -> Result<(), Stop> {
        let (v4, router, theirs) = (self.ours.is_ipv4(), self.theirs, self.conn().engine);
        let offending = match about {
            None => self.last.clone(),
            Some((seq, _)) => {
                let mut frame = self.last.clone();
                let ip = packet::ip(&frame, 0).ok_or("nothing was sent that ICMP could be about".to_owned())?;
                frame[ip.transport + 4..ip.transport + 8].copy_from_slice(&seq.wrapping_add(theirs).to_be_bytes());
                frame
            }
        };
        let (v4_code, v6_numbers) = match code {
            "net_unreachable" => (0, (1, 0)),
            "host_unreachable" => (1, (1, 3)),
            "protocol_unreachable" => (2, (4, 1)),
            "port_unreachable" => (3, (1, 4)),
            "frag_needed" | "packet_too_big" | "" => (4, (2, 0)),
            "source_route_failed" => (5, (1, 5)),
            "net_unreachable_unknown" => (6, (1, 0)),
            "net_prohibited" => (9, (1, 1)),
            "host_prohibited" => (10, (1, 1)),
            "pkt_filtered" => (13, (1, 1)),
            other => return Err(Stop::Scope(format!("ICMP {kind} {other}"))),
        };
        if kind != "unreachable" && kind != "packet_too_big" {
            return Err(Stop::Scope(format!("ICMP {kind}")));
        }
        let (kind, code) = if v4 { (3, v4_code) } else { v6_numbers };
        let message = packet::icmp(router, &offending, kind, code, mtu);
        self.say('<', &format!("icmp {kind} {code} mtu {mtu}"));
        self.face.port().inject(message.ok_or("nothing was sent that ICMP could be about".to_owned())?);
        Ok(())
    }

    fn compare(&mut self, want: &Segment, frame: &[u8]) -> Result<(), String> {
        let Some((ip, (tcp, payload))) = parts(frame) else { return Err("what was sent is no TCP segment".into()) };
        let len = (ip.end - payload) as u32;
        let conn = self.conn();
        let shown = packet::describe(&tcp, len as usize, (conn.engine, conn.peer));
        let differs = |what: &str| Err(format!("sent was {shown}: {what} differs"));
        if tcp.destination != conn.remote.port() {
            return differs("the peer's port");
        }
        if (tcp.seq.wrapping_sub(conn.engine), len) != (want.seq, want.len) {
            return differs("sequence numbers");
        }
        if tcp.flags != want.flags {
            return differs("control bits");
        }
        if want.ack.is_some_and(|a| tcp.ack.wrapping_sub(conn.peer) != a) {
            return differs("acknowledgement");
        }
        if want.win.is_some_and(|w| tcp.window != w) {
            return differs("window");
        }
        if tcp.urgent != want.urgent {
            return differs("urgent pointer");
        }
        if !packet::checksum_right(frame, &ip) {
            return differs("checksum");
        }
        let Some(options) = &want.options else { return Ok(()) };
        let same = options.len() == tcp.options.len()
            && options.iter().zip(&tcp.options).all(|(want, got)| match (want, got) {
                (Opt::Ts(value, echo), Opt::Ts(live, echoed)) => {
                    if conn.stamps.is_empty() {
                        conn.ahead = live.wrapping_sub(*value);
                    }
                    conn.stamps.insert(*value, *live);
                    echo == echoed
                }
                (Opt::Sack(a), Opt::Sack(b)) => {
                    let peer = conn.peer;
                    a.iter().map(|(l, r)| (l.wrapping_add(peer), r.wrapping_add(peer))).eq(b.iter().copied())
                }
                (want, got) => want == got,
            });
        if same { Ok(()) } else { differs("list of options") }
    }
}

impl Conn {
    fn new(local: SocketAddr, remote: SocketAddr) -> Conn {
        Conn { local, remote, engine: 0, peer: PEERS, stamps: HashMap::new(), ahead: 0 }
    }
}

/// Whether the script looks at windows of a receive buffer whose size it sets.
fn windows_matter(script: &Script, sized: bool) -> bool {
    let looks = |e: &Event| match &e.action {
        // The largest that a SYN can name says nothing of the size.
        Action::Out(segment) => segment.win.is_some_and(|win| segment.flags & flag::SYN == 0 || win != u16::MAX),
        _ => false,
    };
    (sized || receive_buffer(script).is_some()) && script.events.iter().any(looks)
}

/// What the script sets SO_RCVBUF to, of which Linux makes twice as much.
fn receive_buffer(script: &Script) -> Option<u32> {
    script.events.iter().find_map(|e| match &e.action {
        Action::Call(call) if call.name == "setsockopt" && call.arguments.get(2).is_some_and(|a| a == "SO_RCVBUF") => {
            call.arguments.get(3)?.trim_matches(['[', ']']).parse().ok()
        }
        _ => None,
    })
}

/// The payload of a full segment, as far as the peer's first SYN says.
fn mss(script: &Script) -> u32 {
    let syn = script.events.iter().find_map(|e| match &e.action {
        Action::In(segment) if segment.flags & flag::SYN != 0 => segment.options.as_ref(),
        _ => None,
    });
    let options = syn.map_or(&[][..], Vec::as_slice);
    let named = options.iter().find_map(|o| if let Opt::Mss(mss) = o { Some(u32::from(*mss)) } else { None });
    named.unwrap_or(1460) - if options.iter().any(|o| matches!(o, Opt::Ts(..))) { 12 } else { 0 }
}

fn parts(frame: &[u8]) -> Option<(packet::Ip, (Tcp, usize))> {
    let ip = packet::ip(frame, 0)?;
    Some((ip, packet::tcp(frame, &ip)?))
}
