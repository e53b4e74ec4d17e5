//! Socket options, and TCP_INFO, in the bytes that libc's calls pass.

use libc::{self as c, c_int};
use zstack::stack::Info;
use zstack::tcp::{Options, Phase};

/// What setsockopt(2) has set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) options: Options,
    /// SO_LINGER's seconds, if it is on.
    pub(crate) linger: Option<u32>,
    /// SO_SNDBUF as getsockopt(2) tells it: twice what was set; `None`: the engine's own.
    pub(crate) send_buffer: Option<u32>,
    receive_buffer: u32,
    reuse: c_int,
    inq: c_int,
    low_water: c_int,
    zero_copy: c_int,
    /// IP_LOCAL_PORT_RANGE: what connect(2) takes a port from without bind(2).
    pub(crate) ports: Option<(u16, u16)>,
    /// What IP has that changes nothing here: IP_TOS, IP_MTU_DISCOVER, IP_FREEBIND, IP_BIND_ADDRESS_NO_PORT.
    ip: [c_int; 4],
}

const TCP_INQ: c_int = 36;
const IP_LOCAL_PORT_RANGE: c_int = 51;
/// `struct tcp_info` as far as its first fields, those that every kernel has.
const INFO: usize = 104;

impl Settings {
    pub(crate) fn new(options: Options) -> Settings {
        Settings {
            options,
            linger: None,
            send_buffer: None,
            receive_buffer: 540_000,
            reuse: 0,
            inq: 0,
            low_water: 1,
            zero_copy: 0,
            ports: None,
            ip: [0; 4],
        }
    }

    /// setsockopt(2).
    pub(crate) fn set(&mut self, level: c_int, name: c_int, value: &[u8]) -> Result<(), c_int> {
        let number = |at: usize| value.get(at..at + 4).map(|b| c_int::from_ne_bytes(b.try_into().expect("4 bytes")));
        let first = number(0).ok_or(c::EINVAL);
        let seconds = |most: c_int| {
            let n = number(0).ok_or(c::EINVAL)?;
            if (1..=most).contains(&n) { Ok(n as u32 * 1000) } else { Err(c::EINVAL) }
        };
        let o = &mut self.options;
        match (level, name) {
            (c::SOL_SOCKET, c::SO_REUSEADDR | c::SO_REUSEPORT) => self.reuse = first?,
            (c::SOL_SOCKET, c::SO_KEEPALIVE) => o.keepalive = first? != 0,
            (c::SOL_SOCKET, c::SO_SNDBUF) => self.send_buffer = Some((first?.max(2304) as u32).saturating_mul(2)),
            (c::SOL_SOCKET, c::SO_RCVBUF) => self.receive_buffer = (first?.max(1152) as u32).saturating_mul(2),
            (c::SOL_SOCKET, c::SO_RCVLOWAT) => self.low_water = first?.max(1),
            // The engine reads a program's bytes in place; that it is done with them, nobody is told by MSG_ERRQUEUE.
            (c::SOL_SOCKET, c::SO_ZEROCOPY) => self.zero_copy = c_int::from(first? != 0),
            (c::IPPROTO_IP, IP_LOCAL_PORT_RANGE) => {
                let (low, high) = (first? as u32 as u16, (first? as u32 >> 16) as u16);
                self.ports = (low != 0 && low <= high).then_some((low, high));
            }
            (c::IPPROTO_IP, name) => {
                let of = quiet(name).ok_or(c::ENOPROTOOPT)?;
                self.ip[of] = first?;
            }
            (c::SOL_SOCKET, c::SO_LINGER) => {
                let seconds = number(4).ok_or(c::EINVAL)?.max(0) as u32;
                self.linger = (first? != 0).then_some(seconds);
                o.linger = self.linger.map_or(u32::MAX, |s| s.saturating_mul(1000));
            }
            (c::IPPROTO_TCP, c::TCP_NODELAY) => o.nodelay = first? != 0,
            (c::IPPROTO_TCP, c::TCP_CORK) => o.cork = first? != 0,
            (c::IPPROTO_TCP, c::TCP_MAXSEG) => {
                let mss = first?;
                if !(88..=32_767).contains(&mss) {
                    return Err(c::EINVAL);
                }
                o.mss = mss as u16;
            }
            (c::IPPROTO_TCP, c::TCP_KEEPIDLE) => o.keepalive_idle = seconds(32_767)?,
            (c::IPPROTO_TCP, c::TCP_KEEPINTVL) => o.keepalive_interval = seconds(32_767)?,
            (c::IPPROTO_TCP, c::TCP_KEEPCNT) => o.keepalive_count = (seconds(127)? / 1000) as u8,
            (c::IPPROTO_TCP, c::TCP_USER_TIMEOUT) => {
                o.user_timeout = u32::try_from(first?).map_err(|_| c::EINVAL)?;
            }
            (c::IPPROTO_TCP, c::TCP_LINGER2) => o.fin_wait = first?.max(0) as u32 * 1000,
            (c::IPPROTO_TCP, TCP_INQ) => match first? {
                on @ (0 | 1) => self.inq = on,
                _ => return Err(c::EINVAL),
            },
            (c::IPPROTO_TCP, c::TCP_CONGESTION) => {
                o.congestion = match value.split(|b| *b == 0).next().unwrap_or(&[]) {
                    b"reno" => zstack::tcp::recovery::Algorithm::Reno,
                    b"cubic" => zstack::tcp::recovery::Algorithm::Cubic,
                    _ => return Err(c::ENOENT),
                }
            }
            _ => return Err(c::ENOPROTOOPT),
        }
        Ok(())
    }

    /// getsockopt(2), SO_ERROR aside.
    pub(crate) fn get(
        &self,
        level: c_int,
        name: c_int,
        info: Option<&Info>,
        accepting: bool,
    ) -> Result<Vec<u8>, c_int> {
        let o = &self.options;
        let seconds = |millis: u32| (millis / 1000) as c_int;
        let number = match (level, name) {
            (c::SOL_SOCKET, c::SO_TYPE) => c::SOCK_STREAM,
            (c::SOL_SOCKET, c::SO_ACCEPTCONN) => c_int::from(accepting),
            (c::SOL_SOCKET, c::SO_REUSEADDR | c::SO_REUSEPORT) => self.reuse,
            (c::SOL_SOCKET, c::SO_KEEPALIVE) => c_int::from(o.keepalive),
            (c::SOL_SOCKET, c::SO_SNDBUF) => self.send_buffer.unwrap_or(1 << 22) as c_int,
            (c::SOL_SOCKET, c::SO_RCVBUF) => self.receive_buffer as c_int,
            (c::SOL_SOCKET, c::SO_RCVLOWAT) => self.low_water,
            (c::SOL_SOCKET, c::SO_ZEROCOPY) => self.zero_copy,
            (c::IPPROTO_IP, IP_LOCAL_PORT_RANGE) => {
                self.ports.map_or(0, |(low, high)| (u32::from(low) | u32::from(high) << 16) as c_int)
            }
            (c::IPPROTO_IP, name) => self.ip[quiet(name).ok_or(c::ENOPROTOOPT)?],
            (c::SOL_SOCKET, c::SO_LINGER) => {
                let both = [c_int::from(self.linger.is_some()), self.linger.unwrap_or(0) as c_int];
                return Ok(both.iter().flat_map(|n| n.to_ne_bytes()).collect());
            }
            (c::IPPROTO_TCP, c::TCP_NODELAY) => c_int::from(o.nodelay),
            (c::IPPROTO_TCP, c::TCP_CORK) => c_int::from(o.cork),
            (c::IPPROTO_TCP, c::TCP_MAXSEG) => match info {
                Some(info) => c_int::from(info.tcp.mss),
                None if o.mss > 0 => c_int::from(o.mss),
                None => 536,
            },
            (c::IPPROTO_TCP, c::TCP_KEEPIDLE) => seconds(o.keepalive_idle),
            (c::IPPROTO_TCP, c::TCP_KEEPINTVL) => seconds(o.keepalive_interval),
            (c::IPPROTO_TCP, c::TCP_KEEPCNT) => c_int::from(o.keepalive_count),
            (c::IPPROTO_TCP, c::TCP_USER_TIMEOUT) => o.user_timeout as c_int,
            (c::IPPROTO_TCP, c::TCP_LINGER2) => seconds(o.fin_wait),
            (c::IPPROTO_TCP, TCP_INQ) => self.inq,
            (c::IPPROTO_TCP, c::TCP_CONGESTION) => {
                let name: &[u8] = match o.congestion {
                    zstack::tcp::recovery::Algorithm::Reno => b"reno",
                    _ => b"cubic",
                };
                return Ok(name.iter().copied().chain(std::iter::repeat(0)).take(16).collect());
            }
            (c::IPPROTO_TCP, c::TCP_INFO) => return Ok(tcp_info(info, accepting)),
            _ => return Err(c::ENOPROTOOPT),
        };
        Ok(number.to_ne_bytes().to_vec())
    }
}

/// Where an option of IP that changes nothing is kept.
fn quiet(name: c_int) -> Option<usize> {
    [c::IP_TOS, c::IP_MTU_DISCOVER, c::IP_FREEBIND, c::IP_BIND_ADDRESS_NO_PORT].iter().position(|n| *n == name)
}

impl Settings {
    /// Whether TCP_INQ asks for the bytes that are left.
    pub(crate) fn inq(&self) -> bool {
        self.inq != 0
    }
}

/// The state's number in `struct tcp_info`.
pub(crate) fn state(info: Option<&Info>, accepting: bool) -> u8 {
    match info.map(|i| i.tcp.phase) {
        _ if accepting => 10,
        None | Some(Phase::Closed) => 7,
        Some(Phase::Listen) => 10,
        Some(Phase::SynSent) => 2,
        Some(Phase::SynReceived) => 3,
        Some(Phase::Established) => 1,
        Some(Phase::CloseWait) => 8,
        Some(Phase::FinWait1) => 4,
        Some(Phase::FinWait2) => 5,
        Some(Phase::Closing) => 11,
        Some(Phase::LastAck) => 9,
        Some(Phase::TimeWait) => 6,
    }
}

/// The fields of `struct tcp_info` that the engine has, at their places; the others are 0. In segments where Linux counts so.
fn tcp_info(info: Option<&Info>, accepting: bool) -> Vec<u8> {
    let mut bytes = vec![0; INFO];
    bytes[0] = state(info, accepting);
    let Some(tcp) = info.map(|i| &i.tcp) else { return bytes };
    bytes[5] = u8::from(tcp.timestamps) | u8::from(tcp.sack) << 1 | u8::from(tcp.scales.is_some()) << 2;
    if let Some((theirs, ours)) = tcp.scales {
        bytes[6] = theirs & 15 | ours << 4;
    }
    let mss = u32::from(tcp.mss).max(1);
    let mut long = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    long(8, tcp.rto.0);
    long(16, mss);
    long(24, tcp.in_flight.div_ceil(mss));
    long(28, tcp.sacked.div_ceil(mss));
    long(68, tcp.srtt.0);
    long(72, tcp.rttvar.0);
    long(76, if tcp.ssthresh >= 1 << 30 { 0x7fff_ffff } else { tcp.ssthresh / mss });
    long(80, tcp.cwnd / mss);
    long(84, mss);
    long(88, 3);
    long(100, tcp.retransmits);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(bytes: &[u8]) -> c_int {
        c_int::from_ne_bytes(bytes.try_into().expect("four bytes"))
    }

    #[test]
    fn what_was_set_is_told_in_the_units_of_libc() {
        let mut s = Settings::new(Options::default());
        for (level, name, set, told) in [
            (c::SOL_SOCKET, c::SO_SNDBUF, 21_000, 42_000),
            (c::IPPROTO_TCP, c::TCP_KEEPIDLE, 7, 7),
            (c::IPPROTO_TCP, c::TCP_USER_TIMEOUT, 1500, 1500),
            (c::IPPROTO_TCP, c::TCP_NODELAY, 5, 1),
        ] {
            s.set(level, name, &c_int::to_ne_bytes(set)).unwrap();
            assert_eq!(number(&s.get(level, name, None, false).unwrap()), told);
        }
        assert_eq!(s.options.keepalive_idle, 7000);
        assert_eq!(s.set(c::IPPROTO_TCP, c::TCP_KEEPCNT, &c_int::to_ne_bytes(128)), Err(c::EINVAL));
        assert_eq!(s.set(c::IPPROTO_TCP, 999, &c_int::to_ne_bytes(1)), Err(c::ENOPROTOOPT));
        assert_eq!(s.set(c::IPPROTO_TCP, c::TCP_CORK, &[1]), Err(c::EINVAL));
        s.set(c::SOL_SOCKET, c::SO_LINGER, &[1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        assert_eq!((s.linger, s.options.linger), (Some(0), 0));
        // Before there is a connection, the MSS is the one that was asked for.
        assert_eq!(number(&s.get(c::IPPROTO_TCP, c::TCP_MAXSEG, None, false).unwrap()), 536);
        s.set(c::IPPROTO_TCP, c::TCP_MAXSEG, &c_int::to_ne_bytes(1100)).unwrap();
        assert_eq!(number(&s.get(c::IPPROTO_TCP, c::TCP_MAXSEG, None, false).unwrap()), 1100);
        s.set(c::IPPROTO_IP, IP_LOCAL_PORT_RANGE, &0x0102_0100_u32.to_ne_bytes()).unwrap();
        assert_eq!(s.ports, Some((0x100, 0x102)));
        s.set(c::IPPROTO_IP, c::IP_TOS, &c_int::to_ne_bytes(4)).unwrap();
        assert_eq!(number(&s.get(c::IPPROTO_IP, c::IP_TOS, None, false).unwrap()), 4);
        assert_eq!(s.set(c::IPPROTO_IP, 999, &c_int::to_ne_bytes(1)), Err(c::ENOPROTOOPT));
    }
}
