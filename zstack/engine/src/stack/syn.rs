//! SYNs for listeners: new connections, half-open ones within bounds, and cookies beyond them.

use super::arrive::Arrived;
use super::config::mss;
use super::entry::{Entry, Waits};
use super::names::{HALF, NAMED, Names, V4};
use super::transmit::Run;
use super::{Listen, ListenerId, Stack};
use crate::counters::Counter;
use crate::isn::Offer;
use crate::net::Path;
use crate::payload::Host;
use crate::port::Port;
use crate::tcp::{Cookie, MSS_DEFAULT, Options, Start, Tcb, scale_for};
use crate::time::Time;
use crate::tuple::Tuple;
use zstack_wire::Seq;
use zstack_wire::tcp::{Flags, Header};

/// How long after a listener's last cookie ACKs to it are looked at as cookies, in milliseconds: as long as one is good.
const COOKIES: u64 = 120_000;

/// How many half-open connections a listener may have though all others together have as many as the limit says.
pub(super) fn assured(limit: u32) -> u32 {
    (limit / 16).max(1)
}

impl Stack {
    /// A segment for a listener, no RST (RFC 9293, section 3.10.7.2). `behind`: the initial sequence number must not come before it.
    pub(super) fn knock<P: Port<Buffer = H::Buffer>, H: Host>(
        &mut self,
        run: &mut Run<'_, P, H>,
        listener: u32,
        arrived: Arrived<'_, H::Buffer>,
        behind: Option<Seq>,
    ) {
        let flags = arrived.header.flags;
        if flags.has(Flags::ACK) {
            self.cookie_back(run, listener, arrived);
        } else if flags.has(Flags::SYN) && !flags.has(Flags::FIN) {
            self.syn(run, listener, &arrived.tuple, arrived.header, behind);
        } else {
            self.core.counters.count(Counter::TcpUnknown);
        }
    }

    pub(super) fn syn<P: Port<Buffer = H::Buffer>, H: Host>(
        &mut self,
        run: &mut Run<'_, P, H>,
        name: u32,
        tuple: &Tuple,
        header: &Header,
        behind: Option<Seq>,
    ) {
        self.core.counters.count(Counter::SynReceived);
        let Some(listener) = self.core.listeners.get(name) else { return };
        let wanted = listener.wanted;
        if !run.host.admits(ListenerId(name)) {
            self.core.counters.count(Counter::SynHostFull);
            return;
        }
        // A flood at one listener leaves the others a few.
        let limit = self.core.limits.half_open;
        let crowded = self.half_open >= limit && listener.half_open >= assured(limit);
        if listener.half_open >= wanted.backlog || crowded {
            if wanted.deferred && !wanted.deferred_cookies {
                self.core.counters.count(Counter::SynDeferredFull);
            } else {
                self.cookie(run, name, &wanted, tuple, header);
            }
            return;
        }
        if self.conns.len() >= self.core.limits.connections {
            self.core.counters.count(Counter::SynConnectionsFull);
            return;
        }
        listener.half_open += 1;
        self.half_open += 1;
        self.waiting.remove(tuple);
        if behind.is_some() {
            self.core.counters.count(Counter::TimeWaitReused);
        }
        let isn = self.secrets.isn(run.now, tuple);
        let start = self.start(run.now, tuple, behind.map_or(isn, |behind| isn.later(behind)), wanted.room);
        let tcb = Tcb::incoming(run.now, &self.options_of(&wanted), &start, header, wanted.deferred);
        let index = self.add(run.now, tcb, tuple, name, HALF);
        if wanted.deferred {
            // The host hears of it now.
            self.visit(run, index, true, |tcb, cx| tcb.output(cx));
        }
    }

    fn options_of(&self, wanted: &Listen) -> Options {
        wanted.options.unwrap_or(self.core.options)
    }

    /// What a new connection begins with.
    pub(super) fn start(&self, now: Time, tuple: &Tuple, iss: Seq, room: u64) -> Start {
        let mtu = self.core.net.mtu(now, tuple.remote().ip());
        Start {
            iss,
            stamp_offset: self.secrets.stamp_offset(tuple),
            mss: mss(mtu, tuple.is_v4()),
            port_mss: mss(self.core.port.mtu, tuple.is_v4()),
            room,
        }
    }

    /// Takes in a new connection.
    pub(super) fn add(&mut self, now: Time, tcb: Tcb, tuple: &Tuple, listener: u32, marks: u8) -> u32 {
        let family = if tuple.is_v4() { V4 } else { 0 };
        let (index, _) = self.conns.insert(Entry {
            tcb,
            names: Names { tuple: *tuple, path: Path::default(), listener, marks: marks | NAMED | family },
            timer: Default::default(),
            place: Default::default(),
            waits: Waits::Not,
        });
        self.table.insert(tuple.hash(&self.key) as u32, index);
        self.settle(now, index);
        index
    }

    /// Answers a SYN without keeping anything of it (RFC 4987, section 3.6).
    fn cookie<P: Port<Buffer = H::Buffer>, H: Host>(
        &mut self,
        run: &mut Run<'_, P, H>,
        name: u32,
        wanted: &Listen,
        tuple: &Tuple,
        header: &Header,
    ) {
        let options = self.options_of(wanted);
        let theirs = header.mss.unwrap_or(MSS_DEFAULT);
        let seq = self.secrets.cookie(run.now, tuple, header.seq, theirs);
        let start = self.start(run.now, tuple, seq, wanted.room);
        // Only timestamps can tell what else was offered.
        let stamps = header.timestamps.filter(|_| options.timestamps);
        let offer = Offer {
            mss: theirs,
            scale: header.scale.filter(|_| options.scaling && stamps.is_some()),
            sack: header.sack_permitted && options.sack && stamps.is_some(),
        };
        let ours = if options.mss > 0 { start.port_mss.min(options.mss) } else { start.port_mss };
        let answer = Header {
            seq,
            ack: header.seq + 1,
            flags: Flags::SYN.with(Flags::ACK),
            window: wanted.room.min(0xffff) as u16,
            mss: Some(ours),
            scale: offer.scale.map(|_| scale_for(options.most_room(wanted.room))),
            sack_permitted: offer.sack,
            timestamps: stamps.map(|stamps| self.secrets.cookie_stamps(run.now, tuple, &offer, stamps.value)),
            ..Header::default()
        };
        if self.core.send_segment(run.now, run.port, tuple, &answer) {
            self.core.counters.count(Counter::CookieSent);
            self.taken.begin();
            if let Some(listener) = self.core.listeners.get(name) {
                listener.cookies_until = run.now.after_millis(COOKIES);
            }
        }
    }

    /// An ACK for a listener: a cookie comes back, or it belongs to no connection.
    ///
    /// While the listener's cookies are good, a segment that brings none back may be of a connection that we know nothing of yet: its
    /// handshake's ACK, and the first segment, which brings the cookie too, were lost or come later. An RST would end it for good;
    /// without an answer the peer sends the first segment again, and the connection is made. What belongs to no connection at all is
    /// told so when the cookies have run out (Linux keeps the same time, tcp_synq_overflow, but resets at once).
    pub(super) fn cookie_back<P: Port<Buffer = H::Buffer>, H: Host>(
        &mut self,
        run: &mut Run<'_, P, H>,
        name: u32,
        arrived: Arrived<'_, H::Buffer>,
    ) {
        let Arrived { tuple, header, buffer, payload } = arrived;
        // While no cookie is out, guesses have no chance.
        let expected = self.core.listeners.get(name).is_some_and(|listener| run.now < listener.cookies_until);
        if !expected || header.flags.has(Flags::SYN) {
            self.reset(run, &tuple, header, payload.len() as u32);
            return;
        }
        let (hash, number) = (tuple.hash(&self.key), header.ack.0.wrapping_sub(1));
        let cookie = self.open_cookie(run.now, name, &tuple, header);
        // The connection that the cookie made, or the one that this belongs to, is over.
        let over = if cookie.is_some() { self.taken.has(hash, number) } else { self.taken.ended(hash) };
        if over {
            self.reset(run, &tuple, header, payload.len() as u32);
            return;
        }
        let Some(cookie) = cookie else { return };
        let Some(listener) = self.core.listeners.get(name) else { return };
        let wanted = listener.wanted;
        if self.conns.len() >= self.core.limits.connections {
            self.core.counters.count(Counter::SynConnectionsFull);
            return;
        }
        if !run.host.admits(ListenerId(name)) {
            self.core.counters.count(Counter::SynHostFull);
            return;
        }
        listener.half_open += 1;
        self.half_open += 1;
        self.core.counters.count(Counter::CookieAccepted);
        self.taken.add(hash, number);
        let start = self.start(run.now, &tuple, header.ack - 1, wanted.room);
        let tcb = Tcb::from_cookie(run.now, &self.options_of(&wanted), &start, header, &cookie);
        let index = self.add(run.now, tcb, &tuple, name, HALF);
        self.visit(run, index, false, |tcb, cx| tcb.segment(cx, header, buffer, payload));
    }

    /// Whether [`Stack::cookie_back`] would make a connection of this segment, or has done so before of its like and not answered it: all
    /// others belong to nobody here. While cookies are about a bridge cannot wait for what comes next, for the segment may be of a
    /// connection of others.
    pub(super) fn brings_cookie(&mut self, now: Time, name: u32, tuple: &Tuple, header: &Header) -> bool {
        let expected = self.core.listeners.get(name).is_some_and(|listener| now < listener.cookies_until);
        expected
            && self.open_cookie(now, name, tuple, header).is_some()
            && !self.taken.has(tuple.hash(&self.key), header.ack.0.wrapping_sub(1))
    }

    fn open_cookie(&mut self, now: Time, name: u32, tuple: &Tuple, header: &Header) -> Option<Cookie> {
        let wanted = self.core.listeners.get(name)?.wanted;
        let options = self.options_of(&wanted);
        let echo = header.timestamps.filter(|_| options.timestamps).map(|stamps| stamps.echo);
        let opened = self.secrets.open_cookie(now, tuple, header.seq - 1, header.ack - 1);
        let offer = opened.and_then(|mss| self.secrets.offer(tuple, mss, echo));
        let Some(Offer { mss, scale, sack }) = offer else {
            self.core.counters.count(Counter::CookieInvalid);
            return None;
        };
        let ours = scale_for(options.most_room(wanted.room));
        Some(Cookie { mss, scales: scale.map(|theirs| (theirs, ours)), sack, stamps: echo.is_some() })
    }
}
