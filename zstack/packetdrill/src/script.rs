//! The language of packetdrill's scripts, as far as TCP's need it.

use zstack_sim::notation;
use zstack_sim::packet::Opt;

/// When something happens, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum When {
    /// At a moment.
    At(u64),
    /// Between two.
    Within(u64, u64),
    /// Whenever it comes.
    Any,
}

/// A segment, with numbers as they are written.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// Control bits.
    pub flags: u8,
    /// Its first number.
    pub seq: u32,
    /// Bytes of payload.
    pub len: u32,
    /// Acknowledgement.
    pub ack: Option<u32>,
    /// Window.
    pub win: Option<u16>,
    /// Urgent pointer.
    pub urgent: u16,
    /// Options; `None`: any (`<...>`).
    pub options: Option<Vec<Opt>>,
}

/// A system call.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Its name.
    pub name: String,
    /// What stands between commas.
    pub arguments: Vec<String>,
    /// What it returns; `None`: anything.
    pub result: Option<i64>,
    /// The error's name, if it returns -1.
    pub error: Option<String>,
}

/// What happens.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// A segment arrives.
    In(Segment),
    /// A segment is sent.
    Out(Segment),
    /// ICMP arrives, about these numbers of a segment that was sent: type's name, code's name, MTU.
    Icmp(Option<(u32, u32)>, String, String, u32),
    /// A call.
    Call(Call),
    /// Statements in Python.
    Code(String),
    /// Commands for a shell.
    Shell(String),
}

/// Something that happens.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The line that it begins in.
    pub line: usize,
    /// When.
    pub when: When,
    /// Whether that is counted from the event before.
    pub relative: bool,
    /// When a call that waits comes back, counted like `when`.
    pub end: Option<u64>,
    /// What.
    pub action: Action,
}

/// A script.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Script {
    /// `--NAME=VALUE`.
    pub options: Vec<(String, String)>,
    /// What happens.
    pub events: Vec<Event>,
}

/// Why a script is not run.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// It is about something that the engine does not have.
    Scope(String),
    /// It is no script.
    Syntax(String),
}

fn scope<T>(what: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Scope(what.into()))
}

fn syntax<T>(what: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Syntax(what.into()))
}

/// The text without comments, of the same length and lines.
fn strip(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |at| at + 2)
        } else if c == '#' && out.trim_end_matches([' ', '\t']).ends_with('\n') {
            rest.find('\n').unwrap_or(rest.len())
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        };
        out.extend(rest[..skip].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &rest[skip..];
    }
    out
}

/// Reads a script.
///
/// # Errors
/// What is not understood, or not in the scope of the engine.
pub fn parse(text: &str) -> Result<Script, Refusal> {
    let text = strip(text);
    let mut script = Script::default();
    let mut at = 0;
    loop {
        at += text[at..].len() - text[at..].trim_start().len();
        let rest = &text[at..];
        if rest.is_empty() {
            return Ok(script);
        }
        let line = text[..at].matches('\n').count() + 1;
        let locate = |r: Refusal| match r {
            Refusal::Syntax(s) => Refusal::Syntax(format!("line {line}: {s}")),
            other => other,
        };
        if let Some(option) = rest.strip_prefix("--") {
            let word = option.split_whitespace().next().unwrap_or("");
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            script.options.push((name.to_owned(), value.to_owned()));
            at += 2 + word.len();
            continue;
        }
        let (mut when, mut relative, mut end) = (When::At(0), true, None);
        let mut begin = 0;
        if !rest.starts_with(['`', '%']) {
            let len = rest.find(|c: char| c.is_whitespace() || "`%<>".contains(c)).unwrap_or(rest.len());
            (when, relative, end) = time(&rest[..len]).map_err(locate)?;
            begin = len + rest[len..].len() - rest[len..].trim_start().len();
        }
        let body = &rest[begin..];
        let (action, len) = action(body).map_err(locate)?;
        script.events.push(Event { line, when, relative, end, action });
        at += begin + len;
    }
}

fn micros(text: &str) -> Result<u64, Refusal> {
    match notation::micros(text.trim_start_matches('+')) {
        Some(micros) => Ok(micros),
        None => syntax(format!("{text:?} is no time")),
    }
}

fn time(text: &str) -> Result<(When, bool, Option<u64>), Refusal> {
    let relative = text.starts_with('+');
    if text == "*" || text == "+*" {
        return Ok((When::Any, true, None));
    }
    if let Some((start, end)) = text.split_once("...") {
        return Ok((When::At(micros(start)?), relative, Some(micros(end)?)));
    }
    if let Some((start, end)) = text.split_once('~') {
        return Ok((When::Within(micros(start)?, micros(end)?), relative, None));
    }
    Ok((When::At(micros(text)?), relative, None))
}

/// The action, and how long it is.
fn action(body: &str) -> Result<(Action, usize), Refusal> {
    if let Some(shell) = body.strip_prefix('`') {
        let Some(len) = shell.find('`') else { return syntax("a command without an end") };
        return Ok((Action::Shell(shell[..len].to_owned()), len + 2));
    }
    if let Some(code) = body.strip_prefix("%{") {
        let Some(len) = code.find("}%") else { return syntax("statements without an end") };
        return Ok((Action::Code(code[..len].to_owned()), len + 4));
    }
    let line = body.lines().next().unwrap_or("");
    if body.starts_with(['<', '>']) {
        let (arrives, text) = (line.starts_with('<'), line[1..].trim());
        if text.contains("icmp") {
            return Ok((icmp(text)?, line.len()));
        }
        let segment = segment(text, arrives)?;
        return Ok((if arrives { Action::In(segment) } else { Action::Out(segment) }, line.len()));
    }
    let Some(open) = body.find('(') else { return syntax(format!("no action: {line}")) };
    let name = body[..open].trim();
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return syntax(format!("no action: {line}"));
    }
    let mut depth = 0;
    let close = body[open..].char_indices().find_map(|(i, c)| {
        depth += i32::from("([{".contains(c)) - i32::from(")]}".contains(c));
        (depth == 0).then_some(open + i)
    });
    let Some(close) = close else { return syntax("a call without an end") };
    let tail = body[close + 1..].lines().next().unwrap_or("");
    let Some(result) = tail.trim().strip_prefix('=') else { return syntax(format!("a call without a result: {line}")) };
    let mut words = result.split_whitespace();
    let value = words.next().unwrap_or("");
    let result = match value {
        "..." => None,
        v => match number(v) {
            Some(n) => Some(n),
            None => return syntax(format!("{v:?} is no result")),
        },
    };
    // `ECONNRESET (what it means)`, with or without the space.
    let error = words.next().and_then(|w| w.split('(').next()).filter(|w| w.starts_with('E')).map(str::to_owned);
    let call = Call { name: name.to_owned(), arguments: split(&body[open + 1..close]), result, error };
    Ok((Action::Call(call), close + 1 + tail.len()))
}

/// A number, decimal or hexadecimal.
pub fn number(text: &str) -> Option<i64> {
    let text = text.trim();
    match text.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// What stands between the commas that no bracket encloses.
pub fn split(text: &str) -> Vec<String> {
    let (mut parts, mut depth, mut part) = (Vec::new(), 0, String::new());
    for c in text.chars() {
        depth += i32::from("([{".contains(c)) - i32::from(")]}".contains(c));
        if c == ',' && depth == 0 {
            parts.push(part.trim().to_owned());
            part.clear();
        } else {
            part.push(c);
        }
    }
    if !part.trim().is_empty() {
        parts.push(part.trim().to_owned());
    }
    parts
}

/// `icmp TYPE CODE mtu N`, with `[FIRST:LAST(LEN)]` before or behind it.
fn icmp(text: &str) -> Result<Action, Refusal> {
    let (about, rest) = match text.split_once('[').and_then(|(before, t)| Some((before, t.split_once(']')?))) {
        Some((before, (numbers, behind))) => {
            (Some(notation::range(numbers.trim()).map_err(Refusal::Syntax)?), format!("{before} {behind}"))
        }
        None => (None, text.to_owned()),
    };
    let words: Vec<&str> = rest.split_whitespace().collect();
    let at = words.iter().position(|w| *w == "mtu");
    let mtu = at.and_then(|i| words.get(i + 1)).and_then(|m| m.parse().ok()).unwrap_or(0);
    match words.as_slice() {
        [_, kind, code, ..] if *code != "mtu" => Ok(Action::Icmp(about, (*kind).to_owned(), (*code).to_owned(), mtu)),
        [_, kind, ..] => Ok(Action::Icmp(about, (*kind).to_owned(), String::new(), mtu)),
        _ => syntax(format!("no ICMP message: {text}")),
    }
}

fn segment(text: &str, arrives: bool) -> Result<Segment, Refusal> {
    if text.contains("{ ") {
        return scope("packets that are changed on their way");
    }
    let (body, list) = notation::parts(text).map_err(Refusal::Syntax)?;
    let options = match list {
        Some("...") => None,
        Some(list) => Some(options(list, arrives)?),
        None => Some(Vec::new()),
    };
    let mut words = body.split_whitespace();
    let mut first = words.next().unwrap_or("");
    if first.starts_with('[') {
        match first {
            "[noecn]" => first = words.next().unwrap_or(""),
            _ => return scope("ECN"),
        }
    }
    if first.starts_with('(') {
        return scope("fields of the IP header");
    }
    if first == "udp" || first.starts_with("ipv") || first == "gre:" {
        return scope("not TCP alone");
    }
    if first.contains(|c: char| "EWA".contains(c) || c.is_ascii_digit()) {
        return scope("ECN");
    }
    let flags = notation::bits(first).map_err(|e| Refusal::Syntax(format!("{e}: {text}")))?;
    let (seq, len) = notation::range(words.next().unwrap_or("")).map_err(Refusal::Syntax)?;
    let mut s = Segment { flags, seq, len, ack: None, win: None, urgent: 0, options };
    while let Some(word) = words.next() {
        let value = words.next().and_then(|w| w.parse::<u32>().ok());
        match (word, value) {
            ("ack", Some(n)) => s.ack = Some(n),
            ("win", Some(n)) => s.win = Some(n as u16),
            ("urg", Some(n)) => s.urgent = n as u16,
            _ => return syntax(format!("what is {word:?}? {text}")),
        }
    }
    Ok(s)
}

/// Options. Those that the engine does not know may arrive, but it never sends them.
fn options(text: &str, arrives: bool) -> Result<Vec<Opt>, Refusal> {
    let mut unknown = None;
    let read = notation::options(text, |words| {
        let known = if arrives { foreign(words) } else { None };
        if known.is_none() {
            unknown = words.first().map(|w| (*w).to_owned());
        }
        known
    });
    match (read, unknown) {
        (Ok(all), _) => Ok(all),
        (Err(_), Some(name)) if name.starts_with("FO") => scope("TCP Fast Open"),
        (Err(_), Some(name)) if !matches!(name.as_str(), "mss" | "sack" | "TS" | "wscale") => {
            scope(format!("TCP option {name}"))
        }
        (Err(error), _) => syntax(error),
    }
}

/// Fast Open's option (RFC 7413), its experimental form (RFC 6994), and the MD5 signature's (RFC 2385).
fn foreign(words: &[&str]) -> Option<Opt> {
    let bytes = |hex: &str| {
        let digits = hex.len().is_multiple_of(2) && hex.is_ascii();
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).ok();
        if digits { (0..hex.len()).step_by(2).map(byte).collect::<Option<Vec<u8>>>() } else { None }
    };
    Some(match words {
        ["FO"] => Opt::Other(34, vec![]),
        ["FO", cookie] => Opt::Other(34, bytes(cookie)?),
        ["FOEXP"] => Opt::Other(254, vec![0xf9, 0x89]),
        ["FOEXP", cookie] => Opt::Other(254, [vec![0xf9, 0x89], bytes(cookie)?].concat()),
        ["md5", digest] => Opt::Other(19, bytes(digest)?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_read() {
        let text = "// a remark\n--tolerance_usecs=9000\n`sysctl -q a=1`\n 0 socket(..., SOCK_STREAM, 0) = 3\n\
            +.1...0.3 read(3, ..., 10) = -1 EAGAIN (note)\n+0~+.2 > P. 1:3(2) ack 9 <nop,nop,TS val 5 ecr 6>\n\
            * > . 3:3(0) ack 9 <...>\n+0 < icmp unreachable frag_needed mtu 900 [1:3(2)]\n\
            +0 %{\nassert tcpi_snd_cwnd == 10\n}%\n+0 poll([{fd=3, events=POLLIN,\n revents=POLLOUT}], 1, 0) = 1 // end\n";
        let script = parse(text).unwrap();
        assert_eq!(script.options, [("tolerance_usecs".to_owned(), "9000".to_owned())]);
        let e = &script.events;
        assert_eq!(e[0].action, Action::Shell("sysctl -q a=1".into()));
        assert_eq!((e[2].when, e[2].end, e[2].line), (When::At(100_000), Some(300_000), 5));
        let Action::Call(read) = &e[2].action else { panic!("{:?}", e[2]) };
        assert_eq!((read.arguments.len(), read.result, read.error.as_deref()), (3, Some(-1), Some("EAGAIN")));
        assert_eq!(e[3].when, When::Within(0, 200_000));
        let Action::Out(s) = &e[3].action else { panic!("{:?}", e[3]) };
        assert_eq!((s.flags, s.seq, s.len, s.ack), (0x18, 1, 2, Some(9)));
        assert_eq!(s.options.as_deref().unwrap(), [Opt::Nop, Opt::Nop, Opt::Ts(5, 6)]);
        assert!(matches!(&e[4], Event { when: When::Any, action: Action::Out(Segment { options: None, .. }), .. }));
        assert_eq!(e[5].action, Action::Icmp(Some((1, 2)), "unreachable".into(), "frag_needed".into(), 900));
        let Action::Call(poll) = &e[7].action else { panic!("{:?}", e[7]) };
        assert_eq!((poll.arguments.len(), poll.result), (3, Some(1)));
    }

    #[test]
    fn what_is_no_script_is_refused_and_what_is_out_of_scope_said() {
        let options = |line: &str| match &parse(line).unwrap().events[0].action {
            Action::In(segment) => segment.options.clone().unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(options("+0 < S 0:0(0) <FOEXP 1234>"), [Opt::Other(254, vec![0xf9, 0x89, 0x12, 0x34])]);
        assert!(parse("+0 < icmp packet_too_big mtu 1280 [1:3(2)]").is_ok());
        for bad in ["+0 > X 0:0(0)", "+0 > . 0:5(4)", "x > . 0:0(0)", "+0 read(3", "+0 read(3) 5", "+0 fly", "+0 `a"] {
            assert!(matches!(parse(bad), Err(Refusal::Syntax(_))), "{bad}");
        }
        for other in ["+0 < SEW 0:0(0)", "+0 < [ect0] . 0:0(0)", "+0 > S. 0:0(0) <FO abcd>", "+0 < S 0:0(0) <exp 1>"] {
            assert!(matches!(parse(other), Err(Refusal::Scope(_))), "{other}");
        }
    }
}
