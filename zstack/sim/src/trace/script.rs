//! The language of traces: what packetdrill(1) writes, without its sockets.
//!
//! A line is a time, relative to the line before (`+.05`, in seconds; `+*`: whenever it comes), and one of
//! - `< SEGMENT`: arrives; `> SEGMENT`: must be sent at that time. `< [PORT] ...` is another peer's port than 40000.
//!   `SEGMENT` is `S. 0:0(0) ack 1 win 65535 urg 7 <mss 1460,sackOK,TS val 1 ecr 0,nop,wscale 7>`. Numbers are relative to the
//!   first of their sender's. In what must be sent, window and options count only where they are named, `nop` never, and a
//!   timestamp may be `.`: anything. `badsum` and `nolisten` (to a port at which nobody listens) end what arrives.
//! - `< icmp too_big MTU [seq N]`, `< icmp host|net|port|protocol [seq N]`: about the last segment sent.
//! - a call or a question: see [`Call`].
//!
//! What is sent and not expected is a failure. `option` lines come before all others, without a time; `#` begins a comment.

use crate::notation;
pub use crate::notation::ANY;
use crate::packet::Opt;

/// A segment of a script; numbers as they are written.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// The peer's port.
    pub port: u16,
    /// Control bits.
    pub flags: u8,
    /// The first number.
    pub seq: u32,
    /// Bytes of payload.
    pub len: u32,
    /// Acknowledgement.
    pub ack: Option<u32>,
    /// Window, not scaled.
    pub win: Option<u16>,
    /// Urgent pointer.
    pub urgent: Option<u16>,
    /// Options; a timestamp of [`ANY`] is anything.
    pub options: Option<Vec<Opt>>,
    /// The checksum is wrong.
    pub badsum: bool,
    /// To a port at which nobody listens.
    pub nolisten: bool,
}

/// An ICMP error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Icmp {
    /// Packet too big.
    TooBig(u16),
    /// Host unreachable.
    Host,
    /// Network unreachable.
    Net,
    /// Port unreachable.
    Port,
    /// Protocol unreachable.
    Protocol,
}

/// What a program does, or what must be so.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// `listen [deferred] [room N] [SETTING...]`
    Listen(Vec<String>),
    /// `unlisten`
    Unlisten,
    /// `connect [room N] [port N] [SETTING...]`
    Connect(Vec<String>),
    /// `accept`: of a deferred SYN.
    Accept,
    /// `refuse`: of a deferred SYN.
    Refuse,
    /// `write N [more]`: so many more bytes; `more`: they may wait for others (MSG_MORE).
    Write(u64, bool),
    /// `read N`: so many more bytes may come.
    Read(u64),
    /// `shutdown`
    Shutdown,
    /// `close`
    Close,
    /// `abort`
    Abort,
    /// `set SETTING...`
    Set(Vec<String>),
    /// `select PORT`: calls are for the connection with this peer.
    Select(u16),
    /// `complete N`: a late card reads so many frames.
    Complete(u32),
    /// `flood N`: so many SYNs from as many ports of the peer's; what is sent there is looked at by nobody.
    Flood(u32),
    /// `event NAME`: has come.
    Event(String),
    /// `noevent NAME`: has not come.
    NoEvent(String),
    /// `published N`: so many bytes can be read.
    Published(u64),
    /// `released N`: so many bytes of memory were given back.
    Released(u64),
    /// `state NAME`: of the connection, as in `Phase`, or `none`.
    State(String),
    /// `count NAME N`: a counter's value.
    Count(String, u64),
    /// `info NAME LOW HIGH`: `cwnd`, `ssthresh`, `mss`, `rto`, `srtt`, `window`, `sacked`, `retransmits`.
    Info(String, u64, u64),
    /// `pause`: nothing.
    Pause,
}

/// A line.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// A segment arrives.
    In(Segment),
    /// A segment is sent.
    Out(Segment),
    /// An ICMP error arrives; about the number, or the last segment.
    Icmp(Icmp, Option<u32>),
    /// Anything else.
    Call(Call),
}

/// A line and when it happens.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Its number in the file.
    pub number: usize,
    /// Microseconds after the line before; `None`: whenever it comes.
    pub after: Option<u64>,
    /// What happens.
    pub action: Action,
    /// As it was written.
    pub text: String,
}

/// A script.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Script {
    /// `option NAME [VALUE]` lines.
    pub options: Vec<(String, String)>,
    /// The others.
    pub lines: Vec<Line>,
}

/// Reads a script.
///
/// # Errors
/// The line and what is wrong with it.
pub fn parse(text: &str) -> Result<Script, String> {
    let mut script = Script::default();
    for (i, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or("").trim();
        if line.is_empty() {
            continue;
        }
        let at = |e: String| format!("line {}: {e}: {line}", i + 1);
        if let Some(option) = line.strip_prefix("option ") {
            let (name, value) = option.trim().split_once(' ').unwrap_or((option.trim(), ""));
            script.options.push((name.to_owned(), value.trim().to_owned()));
            continue;
        }
        let (time, rest) = line.split_once(char::is_whitespace).ok_or_else(|| at("no action".into()))?;
        let after = match time {
            "+*" => None,
            _ => {
                let micros = time.strip_prefix('+').and_then(notation::micros);
                Some(micros.ok_or_else(|| at(format!("{time:?} is no time such as +.05")))?)
            }
        };
        let action = action(rest.trim()).map_err(at)?;
        script.lines.push(Line { number: i + 1, after, action, text: rest.trim().to_owned() });
    }
    Ok(script)
}

fn action(text: &str) -> Result<Action, String> {
    if let Some(icmp) = text.strip_prefix("< icmp ") {
        let words: Vec<&str> = icmp.split_whitespace().collect();
        let seq = match words.iter().position(|w| *w == "seq") {
            Some(i) => Some(number(words.get(i + 1).copied().unwrap_or(""))? as u32),
            None => None,
        };
        let kind = match words[0] {
            "too_big" => Icmp::TooBig(number(words.get(1).copied().unwrap_or(""))? as u16),
            "host" => Icmp::Host,
            "net" => Icmp::Net,
            "port" => Icmp::Port,
            "protocol" => Icmp::Protocol,
            other => return Err(format!("no ICMP error {other:?}")),
        };
        return Ok(Action::Icmp(kind, seq));
    }
    if let Some(s) = text.strip_prefix('<') {
        return segment(s).map(Action::In);
    }
    if let Some(s) = text.strip_prefix('>') {
        return segment(s).map(Action::Out);
    }
    call(text).map(Action::Call)
}

fn number(text: &str) -> Result<u64, String> {
    text.trim_end_matches(',').parse().map_err(|_| format!("{text:?} is no number"))
}

fn segment(text: &str) -> Result<Segment, String> {
    let (body, list) = notation::parts(text)?;
    let options = list.map(|list| notation::options(list, unknown)).transpose()?;
    let mut words = body.split_whitespace().peekable();
    let mut port = 40_000;
    if let Some(p) = words.peek().and_then(|w| w.strip_prefix('[')).and_then(|w| w.strip_suffix(']')) {
        port = number(p)? as u16;
        words.next();
    }
    let flags = notation::bits(words.next().ok_or("no control bits")?)?;
    let (seq, len) = notation::range(words.next().ok_or("no sequence numbers")?)?;
    let mut s =
        Segment { port, flags, seq, len, ack: None, win: None, urgent: None, options, badsum: false, nolisten: false };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} without a number")).and_then(number);
        match word {
            "ack" => s.ack = Some(value()? as u32),
            "win" => s.win = Some(value()? as u16),
            "urg" => s.urgent = Some(value()? as u16),
            "badsum" => s.badsum = true,
            "nolisten" => s.nolisten = true,
            other => return Err(format!("what is {other:?}?")),
        }
    }
    Ok(s)
}

/// `unknown KIND LEN`: an option that nobody knows.
fn unknown(words: &[&str]) -> Option<Opt> {
    match words {
        ["unknown", kind, len] => Some(Opt::Other(kind.parse().ok()?, vec![0; len.parse().ok()?])),
        _ => None,
    }
}

fn call(text: &str) -> Result<Call, String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let rest = || words[1..].iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    Ok(match words.as_slice() {
        ["listen", ..] => Call::Listen(rest()),
        ["unlisten"] => Call::Unlisten,
        ["connect", ..] => Call::Connect(rest()),
        ["accept"] => Call::Accept,
        ["refuse"] => Call::Refuse,
        ["write", n] => Call::Write(number(n)?, false),
        ["write", n, "more"] => Call::Write(number(n)?, true),
        ["read", n] => Call::Read(number(n)?),
        ["shutdown"] => Call::Shutdown,
        ["close"] => Call::Close,
        ["abort"] => Call::Abort,
        ["set", ..] => Call::Set(rest()),
        ["select", port] => Call::Select(number(port)? as u16),
        ["complete", n] => Call::Complete(number(n)? as u32),
        ["flood", n] => Call::Flood(number(n)? as u32),
        ["event", ..] => Call::Event(rest().join(" ")),
        ["noevent", ..] => Call::NoEvent(rest().join(" ")),
        ["published", n] => Call::Published(number(n)?),
        ["released", n] => Call::Released(number(n)?),
        ["state", name] => Call::State((*name).to_owned()),
        ["count", name, n] => Call::Count((*name).to_owned(), number(n)?),
        ["info", name, low, high] => Call::Info((*name).to_owned(), number(low)?, number(high)?),
        ["pause"] => Call::Pause,
        _ => return Err("no such action".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_read() {
        let text = "# about\noption mtu 1400\n+0 listen room 5\n+.05 < [7] SU. 1:3(2) ack 9 win 5 urg 4 <mss 1460,nop,TS val . ecr 2,sack 1:2 3:4> badsum\n+* > R 0:0(0)\n";
        let script = parse(text).unwrap();
        assert_eq!(script.options, [("mtu".to_owned(), "1400".to_owned())]);
        assert_eq!(script.lines[0].action, Action::Call(Call::Listen(vec!["room".into(), "5".into()])));
        assert_eq!((script.lines[1].after, script.lines[1].number), (Some(50_000), 4));
        let Action::In(s) = &script.lines[1].action else { panic!("{:?}", script.lines[1]) };
        assert_eq!((s.port, s.flags, s.seq, s.len, s.ack, s.win, s.urgent), (7, 0x32, 1, 2, Some(9), Some(5), Some(4)));
        assert_eq!(
            s.options.as_deref().unwrap(),
            [Opt::Mss(1460), Opt::Nop, Opt::Ts(ANY, 2), Opt::Sack(vec![(1, 2), (3, 4)])]
        );
        assert!(s.badsum && script.lines[2].after.is_none());
        for bad in ["+0 > X 0:0(0)", "+0 > . 0:5(4)", "0 > . 0:0(0)", "+0 fly", "+0 < . 0:0(0) win"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
