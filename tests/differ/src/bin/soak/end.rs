//! One end of one connection: what it sends, receives and checks.

use crate::errno;
use differ::rng::{Rng, pattern};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// Longest time without progress on a connection before it counts as stalled.
pub const STALL: Duration = Duration::from_secs(20);

/// A stream's name and how much of it has passed: all that a successor needs to go on.
#[derive(Clone, Copy, Debug)]
pub struct End {
    pub fd: i32,
    /// Seeds of what is sent and received.
    pub tx: u64,
    pub rx: u64,
    /// Lengths of both.
    pub tx_len: u64,
    pub rx_len: u64,
    pub sent: u64,
    pub got: u64,
    /// Choices: chunk sizes and ways of waiting.
    pub choice: u64,
    /// Where to say how far it is, for somebody who goes on if this process is killed.
    pub log: Option<&'static Log>,
    /// How many more bytes than `got` may have been received, by somebody who was killed meanwhile.
    pub doubt: u64,
}

/// What a process says of its part in a connection, in memory that it shares with its parent.
#[derive(Debug, Default)]
pub struct Log {
    pub sent: AtomicU64,
    pub got: AtomicU64,
    /// Bytes that a call under way may send, and receive.
    pub sending: AtomicU64,
    pub receiving: AtomicU64,
}

#[derive(Debug)]
pub enum Outcome {
    /// The connection broke: right only if somebody was killed.
    Broken(String),
    /// Never right.
    Wrong(String),
}

impl End {
    /// The two ends of connection `seed`; both derive everything from it.
    pub fn new(fd: i32, seed: u64, client: bool, largest: u64) -> End {
        let mut rng = Rng::new(seed);
        let mut len = || match rng.below(4) {
            0 => rng.range(0, 300) as u64,
            1 => rng.range(0, 60_000) as u64,
            _ => rng.next() % (largest + 1),
        };
        let (a, b) = (len(), len());
        let (tx, rx, tx_len, rx_len) =
            if client { (seed * 2, seed * 2 + 1, a, b) } else { (seed * 2 + 1, seed * 2, b, a) };
        let choice = seed ^ u64::from(client);
        End { fd, tx, rx, tx_len, rx_len, sent: 0, got: 0, choice, log: None, doubt: 0 }
    }

    pub fn arguments(&self) -> String {
        let End { fd, tx, rx, tx_len, rx_len, sent, got, choice, .. } = self;
        format!("{fd},{tx},{rx},{tx_len},{rx_len},{sent},{got},{choice}")
    }

    /// The number of the connection.
    pub fn seed(&self) -> u64 {
        self.tx / 2
    }

    pub fn from_arguments(text: &str) -> Option<End> {
        let n: Vec<u64> = text.split(',').map_while(|x| x.parse().ok()).collect();
        let [fd, tx, rx, tx_len, rx_len, sent, got, choice] = n[..] else { return None };
        Some(End { fd: fd as i32, tx, rx, tx_len, rx_len, sent, got, choice, log: None, doubt: 0 })
    }

    /// Moves bytes until both streams have ended, or until a random point when `handover` is given.
    pub fn run(&mut self, stop_at: Option<u64>) -> Result<bool, Outcome> {
        let mut rng = Rng::new(self.choice ^ self.sent << 20 ^ self.got);
        let mut buf = vec![0u8; 1 << 20];
        let mut largest = *rng.pick(&[1usize, 300, 5000, 70_000, 1 << 20]);
        let mut turns = 0;
        let blocking = rng.chance(30);
        let how = rng.below(4);
        let epoll = if how == 3 { call!(epoll_create1(libc::EPOLL_CLOEXEC)) } else { -1 };
        let edge =
            *rng.pick(&[0, libc::EPOLLET, libc::EPOLLET, libc::EPOLLET | libc::EPOLLEXCLUSIVE, libc::EPOLLONESHOT]);
        let edge = edge as u32;
        if epoll >= 0 {
            // epoll_ctl(2): EPOLLRDHUP does not go with EPOLLEXCLUSIVE.
            let hup = if edge & libc::EPOLLEXCLUSIVE as u32 == 0 { libc::EPOLLRDHUP } else { 0 };
            let events = (libc::EPOLLIN | libc::EPOLLOUT | hup) as u32 | edge;
            let mut e = libc::epoll_event { events, u64: 1 };
            call!(epoll_ctl(epoll, libc::EPOLL_CTL_ADD, self.fd, &raw mut e));
        }
        let old = call!(fcntl(self.fd, libc::F_GETFL));
        call!(fcntl(self.fd, libc::F_SETFL, old | libc::O_NONBLOCK));
        let mut ended = false;
        let mut closed_write = false;
        let result = loop {
            if stop_at.is_some_and(|s| self.sent + self.got >= s) && !closed_write && !ended {
                break Ok(false);
            }
            let mut moved = false;
            turns += 1;
            if turns == 2000 {
                // Long streams do not end byte by byte in reasonable time.
                largest = 1 << 20;
            }
            if self.sent < self.tx_len {
                match self.send_some(&mut buf, rng.length(largest)) {
                    Ok(m) => moved |= m,
                    Err(o) => break Err(o),
                }
            }
            if self.sent == self.tx_len && !closed_write {
                closed_write = true;
                call!(shutdown(self.fd, libc::SHUT_WR));
                moved = true;
            }
            if !ended {
                match self.receive_some(&mut buf, rng.length(largest), &mut ended, blocking && closed_write) {
                    Ok(m) => moved |= m,
                    Err(o) => break Err(o),
                }
            }
            if ended && closed_write {
                break Ok(true);
            }
            let waited = if moved { Ok(()) } else { self.wait(epoll, how, edge, ended) };
            if let Err(o) = waited {
                break Err(o);
            }
        };
        if epoll >= 0 {
            call!(close(epoll));
        }
        result
    }

    fn send_some(&mut self, buf: &mut [u8], n: usize) -> Result<bool, Outcome> {
        let n = n.min((self.tx_len - self.sent) as usize);
        for (i, b) in buf[..n].iter_mut().enumerate() {
            *b = pattern(self.tx, self.sent + i as u64);
        }
        if let Some(log) = self.log {
            log.sending.store(n as u64, SeqCst);
        }
        match call!(send(self.fd, buf.as_ptr().cast(), n, libc::MSG_NOSIGNAL)) {
            r if r > 0 => {
                self.sent += r as u64;
                if let Some(log) = self.log {
                    log.sent.store(self.sent, SeqCst);
                    log.sending.store(0, SeqCst);
                }
                Ok(true)
            }
            _ if matches!(errno(), libc::EAGAIN | libc::EINTR) => Ok(false),
            _ => Err(Outcome::Broken(format!("send errno {} after {} of {}", errno(), self.sent, self.tx_len))),
        }
    }

    fn receive_some(&mut self, buf: &mut [u8], n: usize, ended: &mut bool, block: bool) -> Result<bool, Outcome> {
        if block {
            // Nothing is left to send: the ordinary blocking read, with a time-out to notice stalls.
            let old = call!(fcntl(self.fd, libc::F_GETFL));
            call!(fcntl(self.fd, libc::F_SETFL, old & !libc::O_NONBLOCK));
            let time = libc::timeval { tv_sec: STALL.as_secs() as i64, tv_usec: 0 };
            let (p, len) = ((&raw const time).cast(), size_of_val(&time) as u32);
            call!(setsockopt(self.fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, p, len));
        }
        if let Some(log) = self.log {
            log.receiving.store(n as u64, SeqCst);
        }
        if self.doubt > 0 && !self.find_place()? {
            return Ok(false);
        }
        match call!(recv(self.fd, buf.as_mut_ptr().cast(), n, 0)) {
            0 if self.got == self.rx_len => {
                *ended = true;
                Ok(true)
            }
            0 => Err(Outcome::Broken(format!("end after {} of {}", self.got, self.rx_len))),
            r if r > 0 => {
                for (i, b) in buf[..r as usize].iter().enumerate() {
                    let at = self.got + i as u64;
                    if at >= self.rx_len || *b != pattern(self.rx, at) {
                        return Err(Outcome::Wrong(self.misplaced(&buf[i..r as usize], at)));
                    }
                }
                self.got += r as u64;
                if let Some(log) = self.log {
                    log.got.store(self.got, SeqCst);
                    log.receiving.store(0, SeqCst);
                }
                Ok(true)
            }
            _ if block && errno() == libc::EAGAIN => Err(self.stalled("recv")),
            _ if matches!(errno(), libc::EAGAIN | libc::EINTR) => Ok(false),
            _ => Err(Outcome::Broken(format!("recv errno {} after {} of {}", errno(), self.got, self.rx_len))),
        }
    }

    /// After somebody was killed who received: what comes next says how far he was. False if nothing is there yet.
    pub fn find_place(&mut self) -> Result<bool, Outcome> {
        // Few bytes may fit in several places: more are awaited, or they are the last ones.
        let mut hup = libc::pollfd { fd: self.fd, events: libc::POLLRDHUP, revents: 0 };
        let ended = call!(poll(&raw mut hup, 1, 0)) > 0;
        let mut probe = [0u8; 16];
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        let n = match call!(recv(self.fd, probe.as_mut_ptr().cast(), probe.len(), flags)) {
            -1 if matches!(errno(), libc::EAGAIN | libc::EINTR) => return Ok(false),
            -1 => return Err(Outcome::Broken(format!("recv errno {} in search of the place", errno()))),
            n => n as usize,
        };
        let fits = |p: &u64| (0..n).all(|i| probe[i] == pattern(self.rx, p + i as u64)) && p + n as u64 <= self.rx_len;
        let mut places = (self.got..=self.got + self.doubt).filter(fits);
        let place = match (places.next(), n) {
            (_, 0) if self.got + self.doubt >= self.rx_len => Some(self.rx_len),
            (_, 0) => return Err(Outcome::Broken(format!("end after {} of {}", self.got, self.rx_len))),
            (first, 16) => first,
            (first, _) => match places.next() {
                None => first,
                Some(_) if ended && fits(&(self.rx_len - n as u64)) => Some(self.rx_len - n as u64),
                Some(_) => {
                    call!(usleep(1000));
                    return Ok(false);
                }
            },
        };
        match place {
            Some(p) => {
                (self.got, self.doubt) = (p, 0);
                Ok(true)
            }
            None => Err(Outcome::Wrong(self.misplaced(&probe[..n], self.got))),
        }
    }

    /// Sends in this thread and receives in another, both in blocking calls, to the end of both streams.
    pub fn split(&mut self) -> Result<bool, Outcome> {
        let old = call!(fcntl(self.fd, libc::F_GETFL));
        call!(fcntl(self.fd, libc::F_SETFL, old & !libc::O_NONBLOCK));
        let time = libc::timeval { tv_sec: STALL.as_secs() as i64, tv_usec: 0 };
        for name in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
            let (p, len) = ((&raw const time).cast(), size_of_val(&time) as u32);
            call!(setsockopt(self.fd, libc::SOL_SOCKET, name, p, len));
        }
        let (mut out, mut into) = (*self, *self);
        let (a, b) = std::thread::scope(|s| {
            let receiver = s.spawn(move || into.receive_all().map(|()| into.got));
            (out.send_all(), receiver.join().expect("the receiving thread"))
        });
        a?;
        (self.sent, self.got) = (out.sent, b?);
        Ok(true)
    }

    fn send_all(&mut self) -> Result<(), Outcome> {
        let mut rng = Rng::new(self.choice ^ self.sent << 20 ^ 1);
        let mut buf = vec![0u8; 1 << 20];
        let largest = *rng.pick(&[5000, 70_000, 1 << 20]);
        let mut since = Instant::now();
        while self.sent < self.tx_len {
            if self.send_some(&mut buf, rng.length(largest))? {
                since = Instant::now();
            } else if since.elapsed() > STALL / 2 {
                return Err(self.stalled("a blocking send"));
            }
        }
        call!(shutdown(self.fd, libc::SHUT_WR));
        Ok(())
    }

    fn receive_all(&mut self) -> Result<(), Outcome> {
        let mut rng = Rng::new(self.choice ^ self.got << 20 ^ 2);
        let mut buf = vec![0u8; 1 << 20];
        let largest = *rng.pick(&[5000, 70_000, 1 << 20]);
        let (mut ended, mut since) = (false, Instant::now());
        while !ended {
            if self.receive_some(&mut buf, rng.length(largest), &mut ended, false)? {
                since = Instant::now();
            } else if since.elapsed() > STALL / 2 {
                return Err(self.stalled("a blocking recv"));
            }
        }
        Ok(())
    }

    /// Says whether the wrong bytes belong elsewhere in the stream: lost, repeated or garbled.
    fn misplaced(&self, found: &[u8], at: u64) -> String {
        let probe = &found[..found.len().min(12)];
        let from = at.saturating_sub(2 << 20);
        let fits = |p: &u64| probe.iter().enumerate().all(|(i, b)| *b == pattern(self.rx, p + i as u64));
        let place = if probe.len() >= 4 { (from..at + (2 << 20)).find(fits) } else { None };
        match place {
            Some(p) if p > at => format!("LOST {} bytes at {at} of {}", p - at, self.rx_len),
            Some(p) => format!("REPEATED {} bytes at {at} of {}", at - p, self.rx_len),
            None => {
                let bytes: String = found.iter().take(64).map(|b| format!("{b:02x}")).collect();
                format!("GARBLED at {at} of {} ({} bytes left in the read): {bytes} {self:?}", self.rx_len, found.len())
            }
        }
    }

    fn stalled(&self, place: &str) -> Outcome {
        Outcome::Wrong(format!("STALLED in {place}: {self:?}"))
    }

    fn wait(&self, epoll: i32, how: usize, edge: u32, ended: bool) -> Result<(), Outcome> {
        let mut want = if ended { 0 } else { libc::POLLIN };
        if self.sent < self.tx_len {
            want |= libc::POLLOUT;
        }
        let ms = STALL.as_millis() as i32;
        let (r, place) = match how {
            3 => {
                let mut e = libc::epoll_event { events: want as u32 | edge, u64: 1 };
                if edge & (libc::EPOLLET as u32) == 0 {
                    call!(epoll_ctl(epoll, libc::EPOLL_CTL_MOD, self.fd, &raw mut e));
                }
                (call!(epoll_wait(epoll, &raw mut e, 1, ms)), "epoll_wait")
            }
            2 if self.fd < 1024 => (self.select(want), "select"),
            _ => {
                let mut p = libc::pollfd { fd: self.fd, events: want, revents: 0 };
                (call!(poll(&raw mut p, 1, ms)), "poll")
            }
        };
        if r == 0 { Err(self.stalled(place)) } else { Ok(()) }
    }

    fn select(&self, want: i16) -> i32 {
        // SAFETY: zero is the empty set; the descriptor is below FD_SETSIZE.
        let (mut rd, mut wr): (libc::fd_set, libc::fd_set) = unsafe {
            let mut sets = (std::mem::zeroed(), std::mem::zeroed());
            if want & libc::POLLIN != 0 {
                libc::FD_SET(self.fd, &raw mut sets.0);
            }
            if want & libc::POLLOUT != 0 {
                libc::FD_SET(self.fd, &raw mut sets.1);
            }
            sets
        };
        let mut time = libc::timeval { tv_sec: STALL.as_secs() as i64, tv_usec: 0 };
        call!(select(self.fd + 1, &raw mut rd, &raw mut wr, std::ptr::null_mut(), &raw mut time))
    }
}
