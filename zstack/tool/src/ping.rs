//! `ping`: ICMP echo.

use crate::sys;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use zstack_port::{Interest, wait_any};
use zstack_wire::checksum::Sum;

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Plan {
    pub to: IpAddr,
    /// 0: until a signal comes.
    pub count: u32,
    pub interval: Duration,
    /// For so long an answer is waited for.
    pub patience: Duration,
    /// Bytes of payload.
    pub size: usize,
}

/// An answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    pub sequence: u16,
    pub from: IpAddr,
    /// Bytes of payload.
    pub len: usize,
    /// Whether they are those that were sent.
    pub same: bool,
    /// TTL or hop limit, if known.
    pub hops: Option<u8>,
}

/// Whatever sends echo requests.
pub trait Pinger {
    /// Sends one.
    ///
    /// # Errors
    /// Not sent, with the reason; the next may be.
    fn send(&mut self, to: IpAddr, sequence: u16, payload: &[u8]) -> Result<(), String>;

    /// Waits until something has happened, at most `limit`; true: a signal came.
    ///
    /// # Errors
    /// Nothing will ever come.
    fn wait(
        &mut self,
        limit: Duration,
        signals: &OwnedFd,
        payload: &[u8],
        answers: &mut Vec<Answer>,
    ) -> Result<bool, String>;
}

/// Sends, and prints a line for each answer and a summary. An error if there was no answer.
///
/// # Errors
/// A line for the user.
pub fn run(plan: &Plan, pinger: &mut dyn Pinger, signals: &OwnedFd) -> Result<(), String> {
    let payload: Vec<u8> = (0..plan.size).map(|i| i as u8).collect();
    let began = Instant::now();
    let mut sent: Vec<Option<Instant>> = Vec::new();
    let (mut received, mut twice, mut times) = (0u32, 0u32, Vec::new());
    let mut next = began;
    let mut answers = Vec::new();
    crate::out::line(format_args!("ping {}: {} bytes of payload", plan.to, plan.size));
    loop {
        let now = Instant::now();
        let all = plan.count > 0 && sent.len() >= plan.count as usize;
        if !all && now >= next {
            // Sixteen bits on the wire: an answer to one of 65,536 requests ago cannot be told from one to this.
            match pinger.send(plan.to, sent.len() as u16, &payload) {
                Ok(()) => {}
                Err(text) => crate::out::line(format_args!("seq {}: {text}", sent.len())),
            }
            sent.push(Some(now));
            next = now + plan.interval;
        }
        let last = sent.last().copied().flatten().unwrap_or(now);
        let until = if all { last + plan.patience } else { next };
        let waits = sent.iter().rev().take(1 << 16).any(Option::is_some);
        if all && (!waits || Instant::now() >= until) {
            break;
        }
        let limit = until.saturating_duration_since(Instant::now());
        if pinger.wait(limit, signals, &payload, &mut answers)? {
            break;
        }
        if crate::out::unread() {
            return Ok(());
        }
        for answer in answers.drain(..) {
            let high = sent.len().saturating_sub(1) & !0xffff;
            let index = high | usize::from(answer.sequence);
            let index = if index < sent.len() { Some(index) } else { index.checked_sub(1 << 16) };
            let Some(place) = index.and_then(|i| sent.get_mut(i)) else { continue };
            let Some(at) = place.take() else {
                twice += 1;
                continue;
            };
            let time = at.elapsed();
            if time > plan.patience {
                continue;
            }
            received += 1;
            times.push(time);
            let hops = answer.hops.map_or(String::new(), |h| format!(" hops={h}"));
            let wrong = if answer.same { "" } else { " PAYLOAD DIFFERS" };
            let ms = time.as_secs_f64() * 1e3;
            crate::out::line(format_args!(
                "{} bytes from {}: seq={}{hops} time={ms:.3} ms{wrong}",
                answer.len, answer.from, answer.sequence
            ));
        }
    }
    let n = sent.len() as u32;
    let lost = f64::from(n - received) * 100.0 / f64::from(n.max(1));
    crate::out::line(format_args!(
        "{n} sent, {received} received, {twice} duplicates, {lost:.1} % lost, {:.3} s",
        began.elapsed().as_secs_f64()
    ));
    if let (Some(min), Some(max)) = (times.iter().min(), times.iter().max()) {
        let mean = times.iter().sum::<Duration>().as_secs_f64() / f64::from(received);
        crate::out::line(format_args!(
            "round trip min/mean/max {:.3}/{:.3}/{:.3} ms",
            min.as_secs_f64() * 1e3,
            mean * 1e3,
            max.as_secs_f64() * 1e3
        ));
        return Ok(());
    }
    Err(format!("{} does not answer", plan.to))
}

/// The kernel's ICMP sockets.
pub struct Kernel {
    fd: OwnedFd,
    /// Of a raw socket, which gets everybody's messages: ours. The kernel chooses that of the others.
    id: Option<u16>,
}

impl Kernel {
    /// # Errors
    /// A line for the user.
    pub fn new(to: IpAddr) -> Result<Kernel, String> {
        let protocol = if to.is_ipv4() { libc::IPPROTO_ICMP } else { libc::IPPROTO_ICMPV6 };
        if let Ok(fd) = sys::socket(to, libc::SOCK_DGRAM, protocol) {
            return Ok(Kernel { fd, id: None });
        }
        let fd = sys::socket(to, libc::SOCK_RAW, protocol).map_err(|e| {
            format!("ping: {e}: it needs CAP_NET_RAW, or this group in the sysctl net.ipv4.ping_group_range")
        })?;
        Ok(Kernel { fd, id: Some(std::process::id() as u16) })
    }
}

impl Pinger for Kernel {
    fn send(&mut self, to: IpAddr, sequence: u16, payload: &[u8]) -> Result<(), String> {
        let kind = if to.is_ipv4() { 8 } else { 128 };
        let mut message = vec![kind, 0, 0, 0];
        message.extend(self.id.unwrap_or(0).to_be_bytes());
        message.extend(sequence.to_be_bytes());
        message.extend(payload);
        if to.is_ipv4() {
            // Of ICMPv6 the kernel computes it always (RFC 3542, section 3.1).
            let sum = Sum::default().bytes(&message).field();
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        sys::send_to(&self.fd, &message, SocketAddr::new(to, 0)).map(drop).map_err(|e| e.to_string())
    }

    fn wait(
        &mut self,
        limit: Duration,
        signals: &OwnedFd,
        payload: &[u8],
        answers: &mut Vec<Answer>,
    ) -> Result<bool, String> {
        let mut interests = [Interest::read(self.fd.as_fd()), Interest::read(signals.as_fd())];
        wait_any(&mut interests, Some(limit)).map_err(|e| format!("poll: {e}"))?;
        let signal = interests[1].ready;
        let mut memory = vec![0; 65536];
        loop {
            let (n, from) = match sys::receive_from(&self.fd, &mut memory) {
                Ok(received) => received,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(signal),
                Err(e) => {
                    crate::out::line(format_args!("{e}"));
                    return Ok(signal);
                }
            };
            answers.extend(self.answer(&memory[..n], from, payload));
        }
    }
}

impl Kernel {
    fn answer(&self, bytes: &[u8], from: IpAddr, payload: &[u8]) -> Option<Answer> {
        let (hops, message) = match (self.id, bytes.first()? >> 4) {
            // Raw sockets give the IPv4 header too (raw(7)).
            (Some(_), 4) => (Some(*bytes.get(8)?), bytes.get(usize::from(bytes[0] & 15) * 4..)?),
            _ => (None, bytes),
        };
        let header = message.get(..8)?;
        if !matches!(header[0], 0 | 129) || self.id.is_some_and(|id| id.to_be_bytes() != header[4..6]) {
            return None;
        }
        Some(Answer {
            sequence: u16::from_be_bytes([header[6], header[7]]),
            from,
            len: message.len() - 8,
            same: &message[8..] == payload,
            hops,
        })
    }
}
