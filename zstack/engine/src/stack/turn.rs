//! A turn: what has arrived, the timers that are due, and who sends.

use super::entry::{Place, Waits, Wants};
use super::names::{HALF, NAMED, Names, TOLD};
use super::transmit::{Cx, Run};
use super::{ConnId, Stack, Turn};
use crate::counters::Counter;
use crate::net;
use crate::payload::Host;
use crate::port::{Port, Refused};
use crate::tcp::{Phase, Tcb};
use crate::time::{Micros, Time};

/// How many turns in a row timers wait for what has arrived.
const HELD: u32 = 16;

/// When a port that was full is tried again at the latest, and one that reads late is asked what it has read.
const AGAIN: Micros = Micros::from_millis(1);

impl Stack {
    /// Receives what has arrived, fires timers that are due, and sends what may be sent, each up to a bound
    /// ([`super::Limits`]); `host` is called from within. To be called when something arrives at the port, when the deadline
    /// that the turn before named has come, and after calls that want something of a connection.
    ///
    /// `now` must not be before that of any call before.
    pub fn turn<P, H>(&mut self, now: Time, port: &mut P, host: &mut H) -> Turn
    where
        P: Port<Buffer = H::Buffer>,
        H: Host,
    {
        self.turn_of(now, port, host, true)
    }

    /// A turn that receives nothing: what has arrived stays at the port. It sends what the calls since the last turn want, before a
    /// program goes to sleep on a port that it knows to be empty; a tun device is spared a read(2) that finds nothing.
    pub fn flush<P, H>(&mut self, now: Time, port: &mut P, host: &mut H) -> Turn
    where
        P: Port<Buffer = H::Buffer>,
        H: Host,
    {
        self.turn_of(now, port, host, false)
    }

    #[inline(always)]
    fn turn_of<P, H>(&mut self, now: Time, port: &mut P, host: &mut H, receives: bool) -> Turn
    where
        P: Port<Buffer = H::Buffer>,
        H: Host,
    {
        let mut turn = Turn::default();
        if self.core.gone {
            // Found in an earlier turn, or by `echo` between the turns.
            self.port_gone(&mut Run { now, port, host });
            turn.gone = true;
            return turn;
        }
        self.core.budget = self.core.limits.send;
        self.core.full = false;
        let mut run = Run { now, port, host };
        if self.core.port.late && self.core.completed != self.core.frames {
            self.progress(&mut run);
        }
        turn.received = if receives { self.receive(&mut run) } else { 0 };
        turn.more = turn.received == self.core.limits.receive;
        if turn.received > 0 {
            self.core.net.confirm(now, std::mem::take(&mut self.core.confirmed));
        }
        if turn.received > 0 && self.core.net.has_events() {
            self.neighbours(&mut run);
        }
        self.core.net.age(now);
        if self.wheel.is_due(now) {
            // An ACK that lies at the port already keeps a timer from firing for nothing: while there is more to receive, timers wait,
            // but not for ever, whoever floods us.
            if turn.more && self.held < HELD {
                self.held += 1;
            } else {
                self.held = 0;
                turn.more |= self.timers(&mut run);
            }
        }
        turn.more |= self.output(&mut run);
        // What was sent may have made the net ask for a neighbour. Who waited for one that does not answer is told in the next
        // turn.
        let mut net = self.core.net.deadline();
        if net <= now {
            while let Some(len) = self.core.net.due(now, &mut self.core.reply, &mut self.core.counters) {
                // Whoever asked asks again if there is no room.
                let _ = self.core.send_reply(run.port, len);
            }
            self.neighbours(&mut run);
            turn.more |= !self.due.is_empty() && !self.core.full;
            net = self.core.net.deadline();
        }
        if self.core.sent > 0 {
            run.port.flush();
        }
        if self.core.gone {
            self.port_gone(&mut run);
            turn.more = false;
            turn.gone = true;
        } else {
            turn.full = self.core.full;
            turn.deadline = self.deadline(now, turn.more, net);
        }
        // What is sent between the turns belongs to the next one.
        turn.sent = std::mem::take(&mut self.core.sent);
        turn
    }

    fn deadline(&self, now: Time, more: bool, net: Time) -> Option<Time> {
        if more {
            return Some(now);
        }
        let mut next = net.min(self.wheel.next());
        if self.core.full || !self.core.unread.is_empty() {
            next = next.min(now + AGAIN);
        }
        (next != Time::NEVER).then_some(next)
    }

    /// Asks a port that reads late what it has read, and tells those whose frames they were.
    #[inline(never)]
    fn progress<P: Port<Buffer = H::Buffer>, H: Host>(&mut self, run: &mut Run<'_, P, H>) {
        // Its own count begins at 0. What it says of frames that it never got is not believed.
        self.core.completed = run.port.completed().saturating_add(1).clamp(self.core.completed, self.core.frames);
        let mut last = u32::MAX;
        while let Some(&(number, index)) = self.core.unread.front()
            && number < self.core.completed
        {
            self.core.unread.pop_front();
            if index != last {
                self.visit(run, index, false, |tcb, cx| tcb.port_progress(cx));
            }
            last = index;
        }
    }

    #[inline(always)]
    fn receive<P: Port<Buffer = H::Buffer>, H: Host>(&mut self, run: &mut Run<'_, P, H>) -> u32 {
        for received in 0..self.core.limits.receive {
            match run.port.receive() {
                Ok(Some(packet)) => {
                    self.core.counters.count(Counter::Received);
                    self.arrive(run, packet);
                }
                Ok(None) | Err(Refused::Full | Refused::Unfit) => return received,
                Err(Refused::Gone) => {
                    self.core.gone = true;
                    return received;
                }
            }
        }
        self.core.limits.receive
    }

    /// True: there are more.
    #[inline(never)]
    fn timers<P: Port<Buffer = H::Buffer>, H: Host>(&mut self, run: &mut Run<'_, P, H>) -> bool {
        let mut budget = self.core.limits.timers;
        while let Some(index) = self.wheel.expire(&mut self.conns, run.now, &mut budget) {
            let Some(entry) = self.conns.at(index) else { continue };
            let deadline = entry.tcb.deadline();
            if deadline <= run.now
                && entry.names.marks & (HALF | TOLD) == HALF
                && !self.core.listeners.contains(entry.names.listener)
            {
                // Its SYN-ACK is not sent again for a listener that is gone (reqsk_timer_handler).
                self.half_open -= 1;
                self.core.counters.count(Counter::SynOrphaned);
                self.forget(index);
            } else if deadline <= run.now {
                self.visit(run, index, false, |tcb, cx| tcb.timer(cx));
            } else if deadline != Time::NEVER {
                // It was put off.
                self.wheel.arm(&mut self.conns, index, deadline);
            }
        }
        budget == 0 && self.wheel.next() <= run.now
    }

    /// Each connection that is due has its turn, once. True: some are still due that the port has room for.
    fn output<P: Port<Buffer = H::Buffer>, H: Host>(&mut self, run: &mut Run<'_, P, H>) -> bool {
        for _ in 0..self.due.len().min(self.core.visits) {
            if self.core.full || self.core.gone {
                break;
            }
            let Some(index) = self.due.pop(&mut self.conns) else { break };
            let Some((generation, entry)) = self.conns.entry_mut(index) else { continue };
            entry.waits = Waits::Not;
            let Names { path, tuple, .. } = &mut entry.names;
            // Another connection may have been told of the path, or what was told may be too old to be believed.
            if let Some(mtu) = self.core.net.news(run.now, path, &tuple.remote) {
                entry.tcb.mtu(super::config::mss(mtu, tuple.is_v4()));
            }
            entry.call(run, &mut self.core, ConnId { index, generation }, |tcb, cx| tcb.output(cx));
            let wants = entry.wants(true);
            self.follow(run.now, index, wants);
        }
        !self.due.is_empty() && !self.core.full
    }

    /// What happened to neighbours that connections wait for.
    fn neighbours<P: Port<Buffer = H::Buffer>, H: Host>(&mut self, run: &mut Run<'_, P, H>) {
        while let Some(event) = self.core.net.event() {
            self.queued_ask(run, event);
            match event {
                // One that does not answer is known as such for a while: who asks again is told so.
                net::Event::Ask(neighbour) | net::Event::Unreachable(neighbour) => {
                    if let Some(waiters) = self.core.waiters.remove(&neighbour) {
                        self.ask_again(&waiters);
                    }
                }
                net::Event::AskAll => {
                    for waiters in std::mem::take(&mut self.core.waiters).into_values() {
                        self.ask_again(&waiters);
                    }
                }
            }
        }
    }

    fn ask_again(&mut self, waiters: &[u32]) {
        for &index in waiters {
            if let Some(entry) = self.conns.at_mut(index).filter(|entry| entry.waits == Waits::Neighbour) {
                entry.waits = Waits::Not;
                self.place(index);
            }
        }
    }

    /// Calls a connection, and does what follows from it. `output`: the call was its turn to send.
    #[inline(always)]
    pub(super) fn visit<P, H>(
        &mut self,
        run: &mut Run<'_, P, H>,
        index: u32,
        output: bool,
        call: impl FnOnce(&mut Tcb, &mut Cx<'_, '_, P, H>),
    ) where
        P: Port<Buffer = H::Buffer>,
        H: Host,
    {
        let Some((generation, entry)) = self.conns.entry_mut(index) else { return };
        entry.call(run, &mut self.core, ConnId { index, generation }, call);
        let wants = entry.wants(output || self.core.full);
        self.follow(run.now, index, wants);
    }

    /// Does what a connection wants after a call.
    #[inline(always)]
    pub(super) fn follow(&mut self, now: Time, index: u32, wants: Wants) {
        match wants {
            Wants::Settling => self.settle(now, index),
            Wants::Place(place) => self.put(index, place),
        }
    }

    /// Puts a connection where it is to be.
    #[inline(always)]
    pub(super) fn put(&mut self, index: u32, Place { turn, timer }: Place) {
        if turn {
            self.due.push(&mut self.conns, index);
        }
        if timer != Time::NEVER {
            self.wheel.arm(&mut self.conns, index, timer);
        }
    }

    /// Puts a connection whose state has changed where it belongs: into the list of those that are due, into the wheel, out of
    /// the table, or out of the stack.
    #[cold]
    pub(super) fn settle(&mut self, now: Time, index: u32) {
        let Some(entry) = self.conns.at_mut(index) else { return };
        if entry.names.marks & HALF != 0 && !matches!(entry.tcb.phase(), Phase::Listen | Phase::SynReceived) {
            entry.names.marks &= !HALF;
            self.half_open -= 1;
            if let Some(listener) = self.core.listeners.get(entry.names.listener) {
                listener.half_open -= 1;
            }
        }
        if entry.tcb.phase() == Phase::Closed || entry.tcb.freed() {
            self.end(now, index);
            return;
        }
        self.place(index);
    }

    /// Due, and timed.
    #[inline(never)]
    pub(super) fn place(&mut self, index: u32) {
        let Some(entry) = self.conns.at_mut(index) else { return };
        let place = entry.places(true);
        self.put(index, place);
    }

    /// A connection that has ended: its tuple is free, and it goes as soon as the port reads none of its memory.
    #[cold]
    fn end(&mut self, now: Time, index: u32) {
        let Some(entry) = self.conns.at_mut(index) else { return };
        let tuple = entry.names.tuple;
        if entry.names.marks & NAMED != 0 {
            entry.names.marks &= !NAMED;
            let hash = tuple.hash(&self.key);
            self.table.remove(hash as u32, index);
            if entry.names.listener != 0 {
                self.taken.end(hash);
            }
        }
        if !entry.tcb.freed() {
            self.place(index);
            return;
        }
        if let Some(rest) = entry.tcb.time_wait()
            && self.waiting.insert(now, &tuple, &rest)
        {
            self.core.counters.count(Counter::TimeWaitEvicted);
        }
        self.forget(index);
    }

    /// Takes a connection out of the stack.
    pub(super) fn forget(&mut self, index: u32) {
        let Some(entry) = self.conns.at(index) else { return };
        let (hash, named) = (entry.names.tuple.hash(&self.key), entry.names.marks & NAMED != 0);
        if named {
            self.table.remove(hash as u32, index);
        }
        if entry.waits == Waits::Due {
            self.due.remove(&mut self.conns, index);
        }
        self.wheel.disarm(&mut self.conns, index);
        self.conns.remove(index);
    }

    /// The port is gone: every connection ends.
    #[cold]
    fn port_gone<P: Port<Buffer = H::Buffer>, H: Host>(&mut self, run: &mut Run<'_, P, H>) {
        self.core.completed = self.core.frames;
        self.core.unread.clear();
        self.core.waiters.clear();
        self.queued.clear();
        if self.conns.is_empty() {
            return;
        }
        for index in 0..self.conns.end() {
            self.visit(run, index, true, |tcb, cx| tcb.port_gone(cx));
        }
    }
}
