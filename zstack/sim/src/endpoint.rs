//! One end of a connection: its memory, and the program that uses it.

use crate::card::Packet;
use crate::memory::{Pattern, Ring};
use crate::rng::Rng;
use crate::scenario::{AppOptions, AppPlan, End};
use std::ops::Range;
use zstack::payload::Buffer;
use zstack::stack::{ConnId, Stack};
use zstack::tcp::recovery::Algorithm;
use zstack::tcp::{Cause, Options};
use zstack::time::Time;

/// What a plan's settings are for the engine.
pub fn options(plan: &AppOptions) -> Options {
    let mut o = Options {
        nodelay: plan.nodelay,
        cork: plan.cork,
        user_timeout: plan.user_timeout,
        timestamps: plan.timestamps,
        sack: plan.sack,
        scaling: plan.scaling,
        mss: plan.mss,
        congestion: if plan.reno { Algorithm::Reno } else { Algorithm::Cubic },
        ..Options::default()
    };
    if let Some((idle, interval, count)) = plan.keepalive {
        (o.keepalive, o.keepalive_idle, o.keepalive_interval, o.keepalive_count) = (true, idle, interval, count);
    }
    o
}

/// One end.
#[derive(Debug)]
pub struct Endpoint {
    /// The connection's name.
    pub id: ConnId,
    /// Which connection of the scenario it is; `None`: one that no program wanted (an old SYN that came again).
    pub conn: Option<usize>,
    /// Its program: 0 is the opener's.
    pub app: usize,
    plan: AppPlan,
    rng: Rng,
    outgoing: Pattern,
    incoming: Pattern,
    tx: Ring,
    rx: Ring,
    /// The program has written so many bytes.
    pub written: u64,
    /// So many of them were given back.
    pub released: u64,
    /// So many have arrived in order.
    pub published: u64,
    /// The program has read so many.
    pub read: u64,
    edge: u64,
    /// What the engine's positions in the streams, outgoing and incoming, are ahead of the program's.
    pub shift: (u64, u64),
    kept: Vec<(u64, Packet, Range<usize>)>,
    next_write: u64,
    stalled: u64,
    stall: usize,
    changes: u32,
    /// The handshake is complete.
    pub established: bool,
    /// The peer's stream has ended.
    pub peer_closed: bool,
    /// Why it ended.
    pub ended: Option<Cause>,
    /// When.
    pub ended_at: u64,
    /// The last event has come.
    pub freed: bool,
    /// The program has ended its direction.
    pub shut: bool,
    /// The program has closed.
    pub closed: bool,
    /// It closed before it had read to the end of the peer's stream.
    pub early: bool,
    /// The program has aborted.
    pub aborted: bool,
    /// A deferred decision: when, and which.
    pub decision: Option<(u64, bool)>,
    scratch: Vec<u8>,
    /// Ranges that were placed and are not published.
    placed: Vec<(u64, u64)>,
}

impl Endpoint {
    /// The end of a connection, with its streams' contents: what it sends and what it must receive.
    pub fn new(
        id: ConnId,
        conn: Option<usize>,
        app: usize,
        plan: AppPlan,
        streams: (Pattern, Pattern),
        seed: u64,
    ) -> Endpoint {
        let (tx, rx) = (Ring::new(plan.rings.0, plan.piece), Ring::new(plan.rings.1, 0));
        Endpoint {
            id,
            conn,
            app,
            edge: rx.size(),
            shift: (0, 0),
            changes: plan.change,
            plan,
            rng: Rng::new(seed),
            outgoing: streams.0,
            incoming: streams.1,
            tx,
            rx,
            written: 0,
            released: 0,
            published: 0,
            read: 0,
            kept: Vec::new(),
            next_write: 0,
            stalled: 0,
            stall: 0,
            established: false,
            peer_closed: false,
            ended: None,
            ended_at: 0,
            freed: false,
            shut: false,
            closed: false,
            early: false,
            aborted: false,
            decision: None,
            scratch: Vec::new(),
            placed: Vec::new(),
        }
    }

    /// How many bytes its program wants to send.
    pub fn wants(&self) -> u64 {
        self.plan.send
    }

    /// The memory behind a range of the outgoing stream.
    pub fn spans(&self, from: u64, len: u32) -> Result<zstack::payload::Spans, String> {
        let from = from.wrapping_sub(self.shift.0);
        if len == 0 || from < self.released || from.saturating_add(u64::from(len)) > self.written {
            return Err(format!(
                "{len} bytes from {from} on were asked for; {} are released and {} written",
                self.released, self.written
            ));
        }
        Ok(self.tx.spans(from, len))
    }

    /// Memory comes back.
    pub fn release(&mut self, to: u64) -> Result<(), String> {
        let to = to.wrapping_sub(self.shift.0);
        if to <= self.released || to > self.written || self.freed {
            return Err(format!("released to {to}; it was {} of {} before", self.released, self.written));
        }
        self.tx.poison(self.released, to - self.released);
        self.released = to;
        Ok(())
    }

    /// Bytes arrive.
    pub fn place(&mut self, at: u64, buffer: Packet, range: Range<usize>) -> Result<bool, String> {
        let bytes = buffer.bytes().get(range.clone()).ok_or("a range outside its buffer was placed")?;
        let at = at.wrapping_sub(self.shift.1);
        let end = at.saturating_add(bytes.len() as u64);
        if bytes.is_empty() || at < self.published || end > self.edge {
            return Err(format!(
                "bytes {at} to {end} were placed; {} are published, the edge is {}",
                self.published, self.edge
            ));
        }
        if self.closed || self.ended.is_some() {
            return Err(format!("bytes {at} to {end} were placed after the connection was closed"));
        }
        if let Some(wrong) = self.incoming.differs(at, bytes) {
            return Err(format!("byte {wrong} of the incoming stream is wrong (placed {at} to {end})"));
        }
        if self.rng.often(self.plan.refuse) {
            return Ok(false);
        }
        self.placed.push((at, end));
        if !buffer.scarce() && self.kept.len() < self.plan.keep as usize {
            self.kept.push((at, buffer, range));
        } else {
            self.rx.write(at, bytes);
        }
        Ok(true)
    }

    /// How many bytes of the incoming stream are here, from `at` on.
    pub fn holds(&mut self, at: u64) -> u64 {
        self.placed.sort_unstable();
        let (mut reach, mut held) = (self.published.max(at), self.published.saturating_sub(at));
        for &(from, to) in &self.placed {
            held += to.saturating_sub(reach.max(from));
            reach = reach.max(to);
        }
        held
    }

    /// Bytes are in order.
    pub fn publish(&mut self, to: u64) -> Result<(), String> {
        let to = to.wrapping_sub(self.shift.1);
        if to <= self.published || to > self.edge {
            return Err(format!("published to {to}; it was {} before, the edge is {}", self.published, self.edge));
        }
        if self.peer_closed {
            return Err("bytes were published behind the end of the stream".to_owned());
        }
        // Buffers that were kept are looked at now, so that one that the engine gives to somebody else shows.
        for (at, buffer, range) in self.kept.extract_if(.., |k| k.0 < to) {
            let skip = self.published.saturating_sub(at) as usize;
            let bytes = &buffer.bytes()[range];
            if skip < bytes.len() {
                self.rx.write(at + skip as u64, &bytes[skip..]);
            }
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        self.rx.read(self.published, to - self.published, &mut scratch);
        let wrong = self.incoming.differs(self.published, &scratch);
        self.scratch = scratch;
        if let Some(wrong) = wrong {
            return Err(format!("byte {wrong} was published (up to {to}), but it had not been placed"));
        }
        self.published = to;
        self.placed.retain(|p| p.1 > to);
        Ok(())
    }

    /// Gives every byte of memory back: the engine may read none of it.
    pub fn free(&mut self) {
        self.freed = true;
        self.kept.clear();
        self.tx.poison(0, self.tx.size());
    }

    /// The program acts: reads, writes, ends. Returns when it wants to act next, if not only when something happens, and
    /// whether it called the engine.
    pub fn act(&mut self, now: u64, stack: &mut Stack) -> (Option<u64>, bool) {
        let (mut wake, mut called) = (None, false);
        let mut later = |at: u64| wake = Some(wake.map_or(at, |w: u64| w.min(at)));
        if self.freed || self.ended.is_some() && self.closed {
            return (None, false);
        }
        if let Some((at, accept)) = self.decision {
            if now < at {
                return (Some(at), false);
            }
            self.decision = None;
            if accept {
                stack.accept(self.id)
            } else {
                stack.refuse(self.id)
            }
            return (None, true);
        }
        if self.closed {
            return (None, false);
        }
        if let Some(next) = self.take(now) {
            stack.room(self.id, self.edge + self.shift.1);
            called = true;
            if let Some(next) = next {
                later(next);
            }
        } else if self.stalled > now {
            later(self.stalled);
        }
        let over = self.ended.is_some();
        while !over && !self.shut && self.written < self.plan.send {
            if self.next_write > now {
                later(self.next_write);
                break;
            }
            let space = self.tx.size() - (self.written - self.released);
            let n =
                self.rng.between(self.plan.write.0, self.plan.write.1).min(space).min(self.plan.send - self.written);
            if n == 0 {
                break;
            }
            self.scratch.resize(n as usize, 0);
            self.outgoing.fill(self.written, &mut self.scratch);
            self.tx.write(self.written, &self.scratch);
            self.written += n;
            let full = self.written - self.released == self.tx.size();
            // What is not pushed may wait for more: the last byte must be, and what there is no room to follow.
            let push = self.written == self.plan.send || full || self.rng.often(self.plan.push);
            stack.commit(self.id, self.written + self.shift.0, push);
            called = true;
            self.next_write = now + self.rng.between(self.plan.pause.0, self.plan.pause.1);
            if self.changes > 0 && self.rng.often(3000) {
                self.changes -= 1;
                let o = &mut self.plan.options;
                if self.rng.often(5000) {
                    o.nodelay ^= true
                } else {
                    o.cork ^= true
                }
                stack.set_options(self.id, options(&self.plan.options));
            }
        }
        called |= self.finish(stack);
        (wake, called)
    }

    /// Reads. `None`: nothing. `Some(when)`: something; and when it reads on, if it need not wait for more.
    fn take(&mut self, now: u64) -> Option<Option<u64>> {
        if self.stalled > now || self.read == self.published {
            return None;
        }
        let mut n = (self.published - self.read).min(self.plan.read);
        if let Some(&(at, length)) = self.plan.stalls.get(self.stall)
            && self.read + n >= at
        {
            self.stall += 1;
            self.stalled = now + length;
            n = at.saturating_sub(self.read).max(1).min(n);
        }
        let from = self.read;
        self.rx.poison(from, n);
        self.read += n;
        self.edge = self.edge.max(self.read + self.rx.size());
        let more = (self.read < self.published).then(|| self.stalled.max(now + 50));
        Some(more.or((self.stalled > now).then_some(self.stalled)))
    }

    fn finish(&mut self, stack: &mut Stack) -> bool {
        let wrote_all = self.written == self.plan.send;
        let read_all = self.peer_closed && self.read == self.published;
        let over = self.ended.is_some();
        let mut called = false;
        let close = match self.plan.end {
            _ if over => true,
            End::HalfClose => {
                if wrote_all && !self.shut {
                    self.shut = true;
                    stack.shutdown(self.id);
                    called = true;
                }
                wrote_all && read_all
            }
            End::AfterPeer => wrote_all && read_all,
            End::Close(read) => wrote_all && (read_all || self.read >= read),
            End::Abort(bytes) => {
                if self.written + self.read >= bytes || wrote_all && read_all {
                    self.aborted = true;
                    self.closed = true;
                    stack.abort(self.id);
                    return true;
                }
                false
            }
        };
        if close {
            self.early = !read_all;
            self.closed = true;
            if self.read < self.published && !over {
                // RFC 2525, section 2.17: the peer learns by a reset that bytes reached nobody.
                self.aborted = true;
                stack.abort(self.id);
            } else {
                self.shut = true;
                stack.close(self.id, false);
            }
            called = true;
        }
        called
    }

    /// Takes the connection out of its stack as plain data and lets the stack build it again, `by` further on in its streams. Not
    /// possible at every moment: not before it is established, nor while the card may read its memory.
    ///
    /// # Errors
    /// What was given is not taken.
    pub fn adopt(&mut self, stack: &mut Stack, now: Time, by: (u64, u64)) -> Result<Option<ConnId>, String> {
        if !self.established || self.ended.is_some() {
            return Ok(None);
        }
        let Some(mut given) = stack.surrender(self.id) else { return Ok(None) };
        given.options = Some(options(&self.plan.options));
        let state = &mut given.state;
        state.una_position += by.0;
        state.end += by.0;
        state.rcv_position += by.1;
        state.room += by.1;
        (self.shift.0, self.shift.1) = (self.shift.0 + by.0, self.shift.1 + by.1);
        let id =
            stack.adopt(now, given).map_err(|e| format!("a connection that was surrendered was not adopted: {e:?}"))?;
        Ok(Some(id))
    }

    /// The program is told by somebody that the peer will never answer, and gives up.
    pub fn give_up(&mut self, stack: &mut Stack) {
        self.aborted = true;
        self.closed = true;
        stack.abort(self.id);
    }
}
