//! The system calls of a script.

use super::{PORT, Runner, Stop, Waiting};
use crate::face::Outcome;
use crate::script::{Call, Event, number, split};
use libc::{self as c, c_int};
use std::net::SocketAddr;
use zstack::time::Time;

/// The descriptor of a file.
const FILE: c_int = -2;

/// What a call did.
enum Done {
    /// It returned; what it returned other than a number was compared.
    Returned(Outcome),
    /// It waits.
    Waits,
}

impl Runner {
    /// Begins a call; one that need not wait ends, too.
    pub(super) fn begin(&mut self, call: &Call, event: &Event, base: u64) -> Result<(), Stop> {
        self.finish_waiting()?;
        self.say(' ', &format!("{}({})", call.name, call.arguments.join(", ")));
        let end = event.end.map(|e| base + e);
        let mut waiting =
            Waiting { call: call.clone(), line: event.line, end: end.unwrap_or(self.now - self.start), progress: 0 };
        match self.attempt(&mut waiting)? {
            Done::Returned(outcome) if end.is_none() => self.check(&waiting, outcome),
            Done::Returned(outcome) => self.check_time(&waiting).and_then(|()| self.check(&waiting, outcome)),
            Done::Waits if end.is_none() => {
                // It may return as soon as the engine has moved.
                self.waiting = Some(waiting);
                self.turn()?;
                match self.waiting.take() {
                    None => Ok(()),
                    Some(_) => Err("it waits, and is not to".to_owned().into()),
                }
            }
            Done::Waits => {
                self.waiting = Some(waiting);
                Ok(())
            }
        }
    }

    /// Tries the call that waits once more; whether it returned.
    pub(super) fn try_waiting(&mut self) -> Result<bool, Stop> {
        let Some(mut waiting) = self.waiting.take() else { return Ok(false) };
        match self.attempt(&mut waiting)? {
            Done::Waits => {
                self.waiting = Some(waiting);
                Ok(false)
            }
            Done::Returned(outcome) => {
                self.say(' ', &format!("... {} returns", waiting.call.name));
                self.check_time(&waiting)?;
                self.check(&waiting, outcome)?;
                Ok(true)
            }
        }
    }

    /// The call that waits must return, by when it is to.
    pub(super) fn finish_waiting(&mut self) -> Result<(), Stop> {
        let Some(waiting) = &self.waiting else { return Ok(()) };
        let until = (self.start + waiting.end + self.tolerance).max(self.now);
        self.advance(until, false)?;
        match &self.waiting {
            Some(w) => Err(format!("the call of line {} waits longer than it is to", w.line).into()),
            None => Ok(()),
        }
    }

    fn check_time(&self, waiting: &Waiting) -> Result<(), Stop> {
        let now = self.now - self.start;
        if now.abs_diff(waiting.end) <= self.tolerance {
            return Ok(());
        }
        let text = format!(
            "the call of line {} returns at {:.6}, not at {:.6}",
            waiting.line,
            now as f64 / 1e6,
            waiting.end as f64 / 1e6
        );
        Err(text.into())
    }

    fn check(&self, waiting: &Waiting, outcome: Outcome) -> Result<(), Stop> {
        let call = &waiting.call;
        let Some(result) = call.result else { return Ok(()) };
        match (outcome, &call.error) {
            (Ok(n), None) if n == result => Ok(()),
            (Err(_), None) if result == -1 => Ok(()),
            (Err(e), Some(name)) if constant(name) == Some(i64::from(e)) => Ok(()),
            (Err(c::ENOPROTOOPT), None) if call.name.ends_with("sockopt") => {
                Err(Stop::Scope(format!("option {} {}", call.arguments[1], call.arguments[2])))
            }
            (Err(e), _) => {
                let text = std::io::Error::from_raw_os_error(e);
                Err(format!("the call of line {} fails: {text}", waiting.line).into())
            }
            (Ok(n), _) => Err(format!("the call of line {} returns {n}", waiting.line).into()),
        }
    }

    fn fd(&self, argument: &str) -> c_int {
        let n = number(argument).unwrap_or(-1);
        self.fds.get(&n).copied().unwrap_or(-1)
    }

    /// A call that would wait on a descriptor that waits.
    fn or_waits(&self, fd: c_int, flags: c_int, outcome: Outcome) -> Done {
        let waits = matches!(outcome, Err(c::EAGAIN | c::EINPROGRESS | c::EALREADY));
        if waits && self.face.blocking(fd) && flags & c::MSG_DONTWAIT == 0 {
            Done::Waits
        } else {
            Done::Returned(outcome)
        }
    }

    fn new_fd(&mut self, call: &Call, outcome: Outcome) -> Outcome {
        if let (Ok(fd), Some(script)) = (outcome, call.result) {
            // The numbers of a script are its own.
            self.fds.insert(script, fd as c_int);
            return Ok(script);
        }
        outcome
    }

    fn attempt(&mut self, waiting: &mut Waiting) -> Result<Done, Stop> {
        let call = waiting.call.clone();
        let a = |i: usize| call.arguments.get(i).map_or("", String::as_str);
        let fd = self.fd(a(0));
        let outcome = match call.name.as_str() {
            "socket" => {
                let kind = constant(a(1)).ok_or_else(|| Stop::Scope(format!("socket of {}", a(1))))?;
                let domain = match a(0) {
                    "..." if self.ours.is_ipv4() => c::AF_INET,
                    "..." => c::AF_INET6,
                    name => constant(name).unwrap_or(-1) as c_int,
                };
                let outcome = self.face.socket(domain, kind as c_int, constant(a(2)).unwrap_or(0) as c_int);
                self.new_fd(&call, outcome)
            }
            "bind" => self.face.bind(fd, SocketAddr::new(self.ours, self.port)),
            "listen" => {
                (self.listening, self.conn, self.active) = (true, None, false);
                self.face.listen(fd, constant(a(1)).unwrap_or(0) as c_int)
            }
            "accept" | "accept4" => {
                let outcome = self.face.accept(fd, constant(a(3)).unwrap_or(0) as c_int).map(|(fd, _)| fd);
                if let Done::Waits = self.or_waits(fd, 0, outcome) {
                    return Ok(Done::Waits);
                }
                self.new_fd(&call, outcome)
            }
            "connect" => {
                let outcome = self.face.connect(Time(self.now), fd, SocketAddr::new(self.theirs, PORT));
                if outcome == Err(c::EINPROGRESS) {
                    // What is sent next is a new connection's.
                    (self.conn, self.listening, self.active) = (None, false, true);
                }
                return Ok(self.or_waits(fd, 0, outcome));
            }
            "read" | "recv" | "recvfrom" | "readv" | "recvmsg" => {
                let (len, flags) = received(&call)?;
                if a(1) == "NULL" {
                    return Ok(Done::Returned(Err(c::EFAULT)));
                }
                let mut into = vec![0; len];
                let outcome = self.face.recv(fd, &mut into, flags);
                let done = self.or_waits(fd, flags, outcome);
                if let (Done::Returned(Ok(_)), Some(want)) = (&done, control(a(1))) {
                    let left = self.face.left(fd);
                    if left != Some(want) {
                        return Err(format!("TCP_CM_INQ is {left:?}").into());
                    }
                }
                return Ok(done);
            }
            "write" | "send" | "sendto" | "writev" | "sendmsg" => {
                let (len, flags) = sent(&call)?;
                if a(1) == "NULL" {
                    return Ok(Done::Returned(Err(c::EFAULT)));
                }
                let bytes = vec![0; len - waiting.progress as usize];
                let outcome = match self.face.send(fd, &bytes, flags) {
                    Ok(n) => {
                        waiting.progress += n;
                        if (waiting.progress as usize) < len && self.face.blocking(fd) {
                            if self.face.fills_send_buffer(fd, len) {
                                // How much a buffer of SO_SNDBUF's size takes, and when it takes more, is no business of TCP's.
                                return Err(Stop::Scope("what Linux's send buffer holds beside payload".to_owned()));
                            }
                            return Ok(Done::Waits);
                        }
                        Ok(waiting.progress)
                    }
                    Err(_) if waiting.progress > 0 && !self.face.blocking(fd) => Ok(waiting.progress),
                    error => error,
                };
                return Ok(self.or_waits(fd, flags, outcome));
            }
            "open" => {
                // A file of zeros, as long as anybody reads.
                if let Some(file) = call.result {
                    self.fds.insert(file, FILE);
                }
                Ok(call.result.unwrap_or(-1))
            }
            "sendfile" if self.fd(a(1)) == FILE => {
                let len = number(a(3)).unwrap_or(0) as usize;
                self.face.send(fd, &vec![0; len], 0)
            }
            "close" if fd == FILE => Ok(0),
            "close" => self.face.close(fd),
            "shutdown" => self.face.shutdown(fd, constant(a(1)).unwrap_or(-1) as c_int),
            "fcntl" => match constant(a(1)).map(|n| n as c_int) {
                Some(c::F_GETFL) => self.face.flags(fd),
                Some(c::F_SETFL) => self.face.set_flags(fd, constant(a(2)).unwrap_or(0) as c_int),
                _ => return Err(Stop::Scope(format!("fcntl {}", a(1)))),
            },
            "ioctl" => {
                let Some(request) = constant(a(1)) else { return Err(Stop::Scope(format!("ioctl {}", a(1)))) };
                match self.face.queued(fd, request as u64) {
                    Ok(n) => {
                        let want = number(a(2).trim_matches(['[', ']']));
                        if want.is_some_and(|w| w != n) {
                            return Err(format!("{} is {n}", a(1)).into());
                        }
                        Ok(0)
                    }
                    error => error,
                }
            }
            "setsockopt" => {
                let (level, name, value) = self.option(&call)?;
                self.face.set_option(fd, level, name, &value)
            }
            "getsockopt" => {
                let (level, name, value) = self.option(&call)?;
                match self.face.option(fd, level, name) {
                    Ok(got) if name == c::TCP_CONGESTION && level == c::IPPROTO_TCP => {
                        if got.starts_with(&value) {
                            Ok(0)
                        } else {
                            return Err(format!("{} is other", a(2)).into());
                        }
                    }
                    Ok(got) => {
                        let len = value.len().min(got.len());
                        if got[..len] != value[..len] {
                            let got = got.get(..4).map(|b| c_int::from_ne_bytes(b.try_into().expect("4 bytes")));
                            return Err(format!("{} is {got:?}", a(2)).into());
                        }
                        Ok(0)
                    }
                    Err(e) => Err(e),
                }
            }
            "poll" => return self.poll(&call, waiting),
            "usleep" => Ok(0),
            other => return Err(Stop::Scope(format!("call {other}"))),
        };
        Ok(Done::Returned(outcome))
    }

    /// An option's level, name and value.
    fn option(&mut self, call: &Call) -> Result<(c_int, c_int, Vec<u8>), Stop> {
        let a = |i: usize| call.arguments.get(i).map_or("", String::as_str);
        let (Some(level), Some(name)) = (constant(a(1)), constant(a(2))) else {
            return Err(Stop::Scope(format!("option {} {}", a(1), a(2))));
        };
        let text = a(3).trim();
        if let Some(name_) = text.trim_matches(['[', ']']).strip_prefix('"') {
            return Ok((level as c_int, name as c_int, name_.trim_end_matches('"').as_bytes().to_vec()));
        }
        let inner = text.trim_matches(['[', ']', '{', '}']);
        let numbers: Vec<i64> =
            split(inner).iter().filter_map(|p| constant(p.rsplit('=').next().unwrap_or(p))).collect();
        if numbers.is_empty() && inner != "..." {
            return Err(Stop::Scope(format!("value {text}")));
        }
        Ok((level as c_int, name as c_int, numbers.iter().flat_map(|n| (*n as c_int).to_ne_bytes()).collect()))
    }

    fn poll(&mut self, call: &Call, waiting: &Waiting) -> Result<Done, Stop> {
        let a = |i: usize| call.arguments.get(i).map_or("", String::as_str);
        let timeout = number(a(2)).unwrap_or(0);
        let list = a(0).trim();
        let inner = list.strip_prefix('[').and_then(|l| l.strip_suffix(']')).unwrap_or(list);
        let mut ready = 0;
        let mut wrong = None;
        for entry in split(inner) {
            let field = |name: &str| {
                let fields = split(entry.trim_matches(['{', '}']));
                let found = fields.iter().find_map(|f| f.split_once('=').filter(|(n, _)| n.trim() == name));
                found.map_or(0, |(_, v)| constant(v).unwrap_or(0))
            };
            let fd = self.fd(&field("fd").to_string());
            let asked = field("events") as i16 | c::POLLERR | c::POLLHUP | c::POLLNVAL;
            let events = self.face.ready(fd) & asked;
            ready += i64::from(events != 0);
            if events != field("revents") as i16 {
                wrong = Some(format!("poll tells {events:#x} of {fd}"));
            }
        }
        let late = self.now - self.start + 1 >= waiting.end;
        if ready == 0 && timeout != 0 && !(late && call.result == Some(0)) {
            return Ok(Done::Waits);
        }
        match wrong {
            Some(text) => Err(text.into()),
            None => Ok(Done::Returned(Ok(ready))),
        }
    }
}

/// The length and the flags of a call that sends.
fn sent(call: &Call) -> Result<(usize, c_int), Stop> {
    let a = |i: usize| call.arguments.get(i).map_or("", String::as_str);
    let flags = match call.name.as_str() {
        "write" | "writev" => 0,
        "sendmsg" => flags(a(2))?,
        _ => flags(a(3))?,
    };
    let len = match call.name.as_str() {
        "writev" => vector(a(1)),
        "sendmsg" => message(a(1))?,
        _ => number(a(2)),
    };
    match len {
        Some(n) if n >= 0 => Ok((n as usize, flags)),
        _ => Err(Stop::Scope(format!("{}({})", call.name, call.arguments.join(", ")))),
    }
}

/// The same of one that receives.
fn received(call: &Call) -> Result<(usize, c_int), Stop> {
    let a = |i: usize| call.arguments.get(i).map_or("", String::as_str);
    let (len, flags) = match call.name.as_str() {
        "read" => (number(a(2)), 0),
        "readv" => (vector(a(1)), 0),
        "recvmsg" => (message(a(1))?, flags(a(2))?),
        _ => (number(a(2)), flags(a(3))?),
    };
    match len {
        Some(n) if n >= 0 => Ok((n as usize, flags)),
        _ => Err(Stop::Scope(format!("{}({})", call.name, call.arguments.join(", ")))),
    }
}

fn flags(text: &str) -> Result<c_int, Stop> {
    let flags = constant(text).ok_or_else(|| Stop::Scope(format!("flags {text}")))? as c_int;
    let known = c::MSG_MORE | c::MSG_PEEK | c::MSG_DONTWAIT | c::MSG_NOSIGNAL | c::MSG_TRUNC | c::MSG_ZEROCOPY;
    if flags & !known == 0 { Ok(flags) } else { Err(Stop::Scope(format!("flags {text}"))) }
}

/// The bytes of `[{..., 10}, {..., 20}]`.
fn vector(text: &str) -> Option<i64> {
    let inner = text.trim().strip_prefix('[')?.strip_suffix(']')?;
    split(inner).iter().map(|piece| split(piece.trim_matches(['{', '}'])).last().and_then(|n| number(n))).sum()
}

/// The bytes of a `struct msghdr`.
fn message(text: &str) -> Result<Option<i64>, Stop> {
    if text.contains("msg_control") && control(text).is_none() {
        return Err(Stop::Scope("control messages".to_owned()));
    }
    let inner = text.trim().trim_start_matches('{').trim_end_matches('}');
    let fields = split(&format!("{inner}}}").replace("}}", "}"));
    let found = fields.iter().find_map(|f| f.trim().strip_prefix("msg_iov").and_then(|f| f.split_once('=')));
    Ok(found.and_then(|(_, v)| vector(v.trim().trim_end_matches('}').trim_end_matches(',')).or_else(|| vector(v))))
}

/// What TCP_CM_INQ is to tell, if that is the one control message.
fn control(text: &str) -> Option<i64> {
    let (_, message) = text.split_once("cmsg_type=TCP_CM_INQ")?;
    let (_, data) = message.split_once("cmsg_data=")?;
    data[..data.find(|c: char| !c.is_ascii_digit())?].parse().ok().filter(|_| !message.contains("cmsg_type"))
}

/// The number of a name, of several joined by `|`, or of a number.
pub(super) fn constant(text: &str) -> Option<i64> {
    let mut all = 0;
    for name in text.split('|').map(str::trim) {
        all |= match number(name) {
            Some(n) => n,
            None => i64::from(named(name)?),
        };
    }
    Some(all)
}

fn named(name: &str) -> Option<i32> {
    Some(match name {
        "AF_INET" => c::AF_INET,
        "AF_INET6" => c::AF_INET6,
        "SOCK_STREAM" => c::SOCK_STREAM,
        "SOCK_NONBLOCK" => c::SOCK_NONBLOCK,
        "SOCK_CLOEXEC" => c::SOCK_CLOEXEC,
        "IPPROTO_TCP" | "SOL_TCP" => c::IPPROTO_TCP,
        "SOL_SOCKET" => c::SOL_SOCKET,
        "SOL_IP" | "IPPROTO_IP" => c::IPPROTO_IP,
        "IP_TOS" => c::IP_TOS,
        "IP_MTU_DISCOVER" => c::IP_MTU_DISCOVER,
        "IP_PMTUDISC_DONT" => c::IP_PMTUDISC_DONT,
        "IP_PMTUDISC_WANT" => c::IP_PMTUDISC_WANT,
        "IP_PMTUDISC_DO" => c::IP_PMTUDISC_DO,
        "IP_FREEBIND" => c::IP_FREEBIND,
        "IP_BIND_ADDRESS_NO_PORT" => c::IP_BIND_ADDRESS_NO_PORT,
        "IP_LOCAL_PORT_RANGE" => 51,
        "SO_ZEROCOPY" => c::SO_ZEROCOPY,
        "O_RDONLY" => c::O_RDONLY,
        "EADDRNOTAVAIL" => c::EADDRNOTAVAIL,
        "EFAULT" => c::EFAULT,
        "SO_REUSEADDR" => c::SO_REUSEADDR,
        "SO_REUSEPORT" => c::SO_REUSEPORT,
        "SO_KEEPALIVE" => c::SO_KEEPALIVE,
        "SO_SNDBUF" => c::SO_SNDBUF,
        "SO_RCVBUF" => c::SO_RCVBUF,
        "SO_RCVLOWAT" => c::SO_RCVLOWAT,
        "SO_LINGER" => c::SO_LINGER,
        "SO_ERROR" => c::SO_ERROR,
        "SO_TYPE" => c::SO_TYPE,
        "SO_ACCEPTCONN" => c::SO_ACCEPTCONN,
        "TCP_NODELAY" => c::TCP_NODELAY,
        "TCP_CORK" => c::TCP_CORK,
        "TCP_MAXSEG" => c::TCP_MAXSEG,
        "TCP_KEEPIDLE" => c::TCP_KEEPIDLE,
        "TCP_KEEPINTVL" => c::TCP_KEEPINTVL,
        "TCP_KEEPCNT" => c::TCP_KEEPCNT,
        "TCP_USER_TIMEOUT" => c::TCP_USER_TIMEOUT,
        "TCP_LINGER2" => c::TCP_LINGER2,
        "TCP_CONGESTION" => c::TCP_CONGESTION,
        "TCP_INFO" => c::TCP_INFO,
        "TCP_INQ" => 36,
        "F_GETFL" => c::F_GETFL,
        "F_SETFL" => c::F_SETFL,
        "O_RDWR" => c::O_RDWR,
        "O_NONBLOCK" => c::O_NONBLOCK,
        "SHUT_RD" => c::SHUT_RD,
        "SHUT_WR" => c::SHUT_WR,
        "SHUT_RDWR" => c::SHUT_RDWR,
        "MSG_MORE" => c::MSG_MORE,
        "MSG_PEEK" => c::MSG_PEEK,
        "MSG_TRUNC" => c::MSG_TRUNC,
        "MSG_DONTWAIT" => c::MSG_DONTWAIT,
        "MSG_NOSIGNAL" => c::MSG_NOSIGNAL,
        "MSG_EOR" => c::MSG_EOR,
        "MSG_ZEROCOPY" => c::MSG_ZEROCOPY,
        "MSG_FASTOPEN" => c::MSG_FASTOPEN,
        "SIOCINQ" | "FIONREAD" => c::FIONREAD as i32,
        "SIOCOUTQ" | "TIOCOUTQ" => c::TIOCOUTQ as i32,
        "SIOCOUTQNSD" => 0x894b,
        "POLLIN" => i32::from(c::POLLIN),
        "POLLOUT" => i32::from(c::POLLOUT),
        "POLLERR" => i32::from(c::POLLERR),
        "POLLHUP" => i32::from(c::POLLHUP),
        "POLLNVAL" => i32::from(c::POLLNVAL),
        "POLLRDHUP" => i32::from(c::POLLRDHUP),
        "POLLRDNORM" => i32::from(c::POLLRDNORM),
        "POLLWRNORM" => i32::from(c::POLLWRNORM),
        "EAGAIN" | "EWOULDBLOCK" => c::EAGAIN,
        "EINPROGRESS" => c::EINPROGRESS,
        "EALREADY" => c::EALREADY,
        "EISCONN" => c::EISCONN,
        "ENOTCONN" => c::ENOTCONN,
        "EPIPE" => c::EPIPE,
        "ECONNRESET" => c::ECONNRESET,
        "ECONNREFUSED" => c::ECONNREFUSED,
        "ECONNABORTED" => c::ECONNABORTED,
        "ETIMEDOUT" => c::ETIMEDOUT,
        "EHOSTUNREACH" => c::EHOSTUNREACH,
        "ENETUNREACH" => c::ENETUNREACH,
        "EINVAL" => c::EINVAL,
        "EBADF" => c::EBADF,
        "ENOPROTOOPT" => c::ENOPROTOOPT,
        "EADDRINUSE" => c::EADDRINUSE,
        "EDESTADDRREQ" => c::EDESTADDRREQ,
        "EPROTO" => c::EPROTO,
        _ => return None,
    })
}
