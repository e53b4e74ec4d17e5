//! TCP as the simulated kernel has it: two ends, bytes that are under way between them, and what the ends know of it. Nothing is
//! lost or reordered, and there is no time: what has been sent arrives at once, or when the test says so.
//!
//! What it answers is the kernel's (tcp_poll, tcp_recvmsg_locked, tcp_sendmsg_locked, tcp_fin, tcp_reset, tcp_close, tcp_ioctl,
//! tcp_get_info): it is the reference that the engine is compared with.

use std::collections::VecDeque;

const ESTABLISHED: u8 = 1;
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const CLOSE: u8 = 7;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const CLOSING: u8 = 11;

const RCV_SHUTDOWN: u8 = 1;
const SEND_SHUTDOWN: u8 = 2;

/// One end of a connection.
pub struct End {
    state: u8,
    /// Sent, and not arrived.
    under_way: VecDeque<u8>,
    /// A FIN is behind that.
    fin_under_way: bool,
    /// Arrived, and not read.
    queue: VecDeque<u8>,
    /// `tcpi_bytes_acked`: with the SYN of the end that sent it, and the FIN.
    acked: u64,
    /// `tcpi_bytes_received`: with the FIN.
    received: u64,
    shutdown: u8,
    /// A FIN has come (SOCK_DONE).
    done: bool,
    /// `sk_err`.
    error: i32,
    /// No process has it.
    orphan: bool,
    /// Bytes that its queue takes.
    pub room: usize,
    /// Bytes that it takes of its program before they have arrived.
    pub sndbuf: usize,
    /// SO_RCVLOWAT.
    pub lowat: usize,
    /// SIGPIPEs that its sends have raised.
    pub sigpipes: u32,
}

impl End {
    fn new(sent_syn: bool) -> End {
        End {
            state: ESTABLISHED,
            under_way: VecDeque::new(),
            fin_under_way: false,
            queue: VecDeque::new(),
            acked: u64::from(sent_syn),
            received: 0,
            shutdown: 0,
            done: false,
            error: 0,
            orphan: false,
            room: 1 << 20,
            sndbuf: 1 << 20,
            lowat: 1,
            sigpipes: 0,
        }
    }

    /// tcp_done.
    fn end(&mut self) {
        self.state = CLOSE;
        self.shutdown = RCV_SHUTDOWN | SEND_SHUTDOWN;
        self.under_way.clear();
        self.fin_under_way = false;
    }

    fn is_writable(&self) -> bool {
        // sk_stream_is_writeable: a third is free.
        3 * self.under_way.len() <= 2 * self.sndbuf
    }
}

/// A connection: the end that connected, and the one that was accepted.
pub struct Tcp {
    ends: [End; 2],
    /// What is sent stays under way until [`Tcp::arrive`].
    pub slow: bool,
}

impl Tcp {
    pub fn new() -> Tcp {
        Tcp { ends: [End::new(true), End::new(false)], slow: false }
    }

    pub fn end(&mut self, i: usize) -> &mut End {
        &mut self.ends[i]
    }

    /// Up to `n` bytes that end `i` has sent arrive; behind the last one a FIN, if there is one.
    pub fn arrive(&mut self, i: usize, n: usize) {
        let (from, to) = match &mut self.ends {
            [a, b] if i == 0 => (a, b),
            [a, b] => (b, a),
        };
        if to.state == CLOSE || to.orphan && !from.under_way.is_empty() {
            // The receiving socket is closed, or nobody will ever read these bytes (tcp_rcv_state_process): it answers with a
            // RST.
            if !from.under_way.is_empty() || from.fin_under_way && to.state == CLOSE {
                to.end();
                Self::reset(from);
            }
            return;
        }
        if n > 0
            && !from.under_way.is_empty()
            && to.shutdown & RCV_SHUTDOWN != 0
            && matches!(to.state, FIN_WAIT1 | FIN_WAIT2)
        {
            // Data behind a shutdown of both directions resets both ends (tcp_rcv_state_process).
            Self::reset(to);
            Self::reset(from);
            return;
        }
        let n = n.min(from.under_way.len()).min(to.room.saturating_sub(to.queue.len()));
        to.queue.extend(from.under_way.drain(..n));
        from.acked += n as u64;
        to.received += n as u64;
        if from.under_way.is_empty() && from.fin_under_way {
            from.fin_under_way = false;
            from.acked += 1;
            from.state = match from.state {
                FIN_WAIT1 => FIN_WAIT2,
                // The rest is done without the socket (tcp_time_wait).
                CLOSING | LAST_ACK => CLOSE,
                state => state,
            };
            if from.state == CLOSE {
                from.end();
            }
            // tcp_fin.
            to.received += 1;
            to.shutdown |= RCV_SHUTDOWN;
            to.done = true;
            to.state = match to.state {
                ESTABLISHED => CLOSE_WAIT,
                FIN_WAIT1 => CLOSING,
                FIN_WAIT2 => CLOSE,
                state => state,
            };
            if to.state == CLOSE {
                to.end();
            }
        }
    }

    /// tcp_reset.
    fn reset(end: &mut End) {
        end.error = match end.state {
            CLOSE => return,
            CLOSE_WAIT => libc::EPIPE,
            _ => libc::ECONNRESET,
        };
        end.end();
    }

    fn go_on(&mut self, i: usize) {
        if !self.slow {
            self.arrive(i, usize::MAX);
        }
    }

    /// `recv` without waiting.
    pub fn recv(&mut self, i: usize, n: usize, peek: bool) -> Result<Vec<u8>, i32> {
        let e = &mut self.ends[i];
        if !e.queue.is_empty() {
            let n = n.min(e.queue.len());
            let bytes = if peek { e.queue.iter().take(n).copied().collect() } else { e.queue.drain(..n).collect() };
            // The window opens.
            self.go_on(1 - i);
            return Ok(bytes);
        }
        if e.done {
            return Ok(Vec::new());
        }
        match std::mem::take(&mut e.error) {
            0 if e.shutdown & RCV_SHUTDOWN != 0 => Ok(Vec::new()),
            0 if e.state == CLOSE => Err(libc::ENOTCONN),
            0 => Err(libc::EAGAIN),
            error => Err(error),
        }
    }

    /// `send` without waiting.
    pub fn send(&mut self, i: usize, bytes: &[u8], signal: bool) -> Result<usize, i32> {
        let e = &mut self.ends[i];
        if e.error != 0 || e.shutdown & SEND_SHUTDOWN != 0 {
            // sk_stream_error.
            let error = match std::mem::take(&mut e.error) {
                0 => libc::EPIPE,
                error => error,
            };
            e.sigpipes += u32::from(signal && error == libc::EPIPE);
            return Err(error);
        }
        let n = bytes.len().min(e.sndbuf.saturating_sub(e.under_way.len()));
        if n == 0 && !bytes.is_empty() {
            return Err(libc::EAGAIN);
        }
        e.under_way.extend(&bytes[..n]);
        self.go_on(i);
        Ok(n)
    }

    fn finish(&mut self, i: usize) {
        let e = &mut self.ends[i];
        e.state = match e.state {
            ESTABLISHED => FIN_WAIT1,
            CLOSE_WAIT => LAST_ACK,
            _ => return,
        };
        e.fin_under_way = true;
        self.go_on(i);
    }

    /// `shutdown`.
    pub fn shutdown(&mut self, i: usize, how: i32) -> Result<(), i32> {
        let e = &mut self.ends[i];
        if e.state == CLOSE {
            // inet_shutdown: it is noted all the same.
            e.shutdown |= how as u8 + 1;
            return Err(libc::ENOTCONN);
        }
        e.shutdown |= how as u8 + 1;
        if how != libc::SHUT_RD {
            self.finish(i);
        }
        Ok(())
    }

    /// The last descriptor of end `i` is closed, by the program or by its death. `abort`: SO_LINGER says that it is reset.
    pub fn close(&mut self, i: usize, abort: bool) {
        let e = &mut self.ends[i];
        e.orphan = true;
        if abort || !e.queue.is_empty() {
            // tcp_close: unread bytes are a reset.
            let lives = e.state != CLOSE;
            e.queue.clear();
            e.end();
            if lives {
                Self::reset(&mut self.ends[1 - i]);
            }
            return;
        }
        e.shutdown = RCV_SHUTDOWN | SEND_SHUTDOWN;
        self.finish(i);
    }

    /// connect(AF_UNSPEC): tcp_disconnect.
    pub fn disconnect(&mut self, i: usize) {
        let e = &mut self.ends[i];
        if e.state != CLOSE {
            e.error = libc::ECONNRESET;
            Self::reset(&mut self.ends[1 - i]);
        }
        let e = &mut self.ends[i];
        e.queue.clear();
        e.end();
        e.shutdown = 0;
        e.done = false;
        (e.acked, e.received) = (0, 0);
    }

    /// tcp_poll.
    pub fn poll(&self, i: usize) -> i16 {
        let e = &self.ends[i];
        let mut r = 0;
        if e.shutdown == RCV_SHUTDOWN | SEND_SHUTDOWN || e.state == CLOSE {
            r |= libc::POLLHUP;
        }
        if e.shutdown & RCV_SHUTDOWN != 0 {
            r |= libc::POLLIN | libc::POLLRDNORM | libc::POLLRDHUP;
        }
        if e.queue.len() >= e.lowat.max(1) {
            r |= libc::POLLIN | libc::POLLRDNORM;
        }
        if e.shutdown & SEND_SHUTDOWN != 0 || e.is_writable() {
            r |= libc::POLLOUT | libc::POLLWRNORM;
        }
        if e.error != 0 {
            r |= libc::POLLERR;
        }
        r
    }

    /// FIONREAD.
    pub fn unread(&self, i: usize) -> u64 {
        self.ends[i].queue.len() as u64
    }

    /// TIOCOUTQ: a FIN counts as one.
    pub fn unsent(&self, i: usize) -> u64 {
        self.ends[i].under_way.len() as u64 + u64::from(self.ends[i].fin_under_way)
    }

    /// TCP_INFO: state, bytes_acked, bytes_received.
    pub fn info(&self, i: usize) -> (u8, u64, u64) {
        let e = &self.ends[i];
        (e.state, e.acked, e.received)
    }

    /// SO_ERROR.
    pub fn take_error(&mut self, i: usize) -> i32 {
        std::mem::take(&mut self.ends[i].error)
    }

    /// Whether no process has end `i`.
    pub fn is_orphan(&self, i: usize) -> bool {
        self.ends[i].orphan
    }

    /// Whether it is connected, as far as its peer's address goes.
    pub fn is_connected(&self, i: usize) -> bool {
        self.ends[i].state != CLOSE
    }
}
