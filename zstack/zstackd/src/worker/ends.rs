//! How connections end: in order, by a program that is gone, by a peer that is gone, or before they have begun.

use super::{LISTENERS, PARTED, Worker};
use crate::conn::Stage;
use crate::counters::Counter;
use crate::front::{break_off, end_in_order};
use crate::membership;
use crate::policy::Program;
use crate::relay::{self, Outcome};
use crate::wire::Wire;
use log::debug;
use rendezvous::diag::KeepAlive;
use rendezvous::registry::End;
use std::cmp::Reverse;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use zstack::sockets::errno;
use zstack::tcp::Options;
use zstack::time::Time;

/// How often the kernel is asked about a connection's program, in microseconds: whether its end is closed altogether, or only shut for
/// sending (Linux keeps a closed end so long, too, tcp_fin_timeout), and whether it wants keep-alive.
const LOOK: u64 = 60_000_000;

/// How often the kernel is asked whether a program still waits for a remote host that does not answer, in microseconds.
pub(super) const STILL: u64 = 1_000_000;

/// How long after a look at a connection whose SYN was written back the next one comes, in microseconds.
const AGAIN: u64 = 200_000;

/// How long a program that reads nothing keeps a connection that broke off, in microseconds.
pub(super) const PATIENCE: u64 = 3_000_000;

/// How long a socket that is to be reset waits for the port to send frames that point at its ring, in microseconds.
const FRAMES: u64 = 1_000_000;

/// Where more of them wait it is looked at all of them once in so many microseconds, and else in each round.
const FEW_PARTED: usize = 64;
const PARTED_EVERY: u64 = 1000;

/// By how much two answers of the kernel about the same timer may differ, in milliseconds.
const COARSE: u32 = 50;

impl<P: Wire> Worker<P> {
    /// What follows from what [`relay::pump`](crate::relay::pump) has found.
    pub(super) fn after(&mut self, index: usize, outcome: Outcome) {
        match outcome {
            Outcome::Waits => {}
            Outcome::More => self.queue(index),
            Outcome::Done => {
                self.counters.count(Counter::EndedInOrder);
                let conn = &self.conns[index];
                debug!("{}: ended in order: {} sent, {} received", conn.flow, conn.sent, conn.received);
                self.close_in_order(index);
            }
            Outcome::ProgramGone => {
                self.counters.count(Counter::RemotesReset);
                debug!("{}: reset by the program's end", self.conns[index].flow);
                self.abandon(index);
            }
            Outcome::Broken => self.broken(index),
        }
    }

    /// The outer connection broke off, and the program is told.
    fn broken(&mut self, index: usize) {
        self.counters.count(Counter::ProgramsReset);
        debug!("{}: broke off on the wire", self.conns[index].flow);
        // A server accepts what broke off behind its handshake, too, and is told by the first read.
        self.send_acks_before(index);
        self.send_ack(index);
        self.say_why(index);
        // Dropping the inner socket resets it.
        self.endpoint.close(self.conns[index].outer);
        self.remove(index);
    }

    /// The program's socket is about to be reset, which says nothing else than that: where the wire's end has another reason its process is
    /// told by the registry.
    fn say_why(&self, index: usize) {
        let conn = &self.conns[index];
        let cause = self.endpoint.ready(conn.outer).error;
        if let Some(end) = cause.and_then(|cause| End::new(errno(cause)))
            && let Some(program) = self.policy().program(&conn.flow)
            && program.holds
        {
            membership::say_end(program.cookie, end);
        }
    }

    /// A remote host has given up a connection that the server here has not taken yet.
    pub(super) fn given_up_by_remote(&mut self, index: usize) {
        self.counters.count(Counter::Unanswered);
        debug!("{}: given up by the remote host", self.conns[index].flow);
        self.endpoint.close(self.conns[index].outer);
        self.remove(index);
    }

    /// Gives a connection up: the remote host is sent a RST, and so is the program if it has its end.
    pub(super) fn abandon(&mut self, index: usize) {
        self.endpoint.abort(self.conns[index].outer);
        self.remove(index);
    }

    /// Forgets a connection. Its inner socket is closed; what happens to the outer one was said before.
    pub(super) fn remove(&mut self, index: usize) {
        let mut conn = self.conns.remove(index);
        if let Some(inner) = conn.inner.take() {
            self.part(inner, conn.ended_in_order);
        }
        if matches!(conn.stage, Stage::Released { .. }) {
            // Its handshake may be completed yet, or is.
            self.released -= 1;
            self.strays += 1;
            self.lane.expect_no_more(conn.flow.local, conn.flow.remote);
        }
        self.generations[index] = self.generations[index].wrapping_add(1);
        if self.flows.get(&conn.flow) == Some(&index) {
            self.flows.remove(&conn.flow);
        }
        if self.by_socket[conn.outer.index as usize] == index {
            self.by_socket[conn.outer.index as usize] = usize::MAX;
        }
        self.common.quotas.closed(conn.user, matches!(conn.stage, Stage::Open));
        self.leave(conn.flow);
    }

    /// The inner socket of a connection that is over is closed when the engine has nothing of its ring any more; at once, nearly always.
    fn part(&mut self, inner: Arc<TcpStream>, in_order: bool) {
        if Arc::strong_count(&inner) == 1 {
            return;
        }
        let _ = self.poller.forget(&*inner);
        if in_order {
            // The program is told now. The engine closes it, when the remote host has acknowledged what the program had sent.
            let _ = inner.shutdown(Shutdown::Write);
            return;
        }
        // To close it is to reset it, which does not wait for more than the frames that the port has.
        let at = Time(self.clock.now().0 + FRAMES);
        self.parted.push((at, inner));
        self.looks.push(Reverse((at, PARTED)));
    }

    /// Closes what was parted with.
    fn close_parted(&mut self) {
        let now = self.clock.now();
        if self.parted.len() > FEW_PARTED {
            if now < self.parting {
                return;
            }
            self.parting = Time(now.0 + PARTED_EVERY);
            self.looks.push(Reverse((self.parting, PARTED)));
        }
        self.parted.retain(|(at, inner)| {
            let shared = Arc::strong_count(inner) > 1;
            if shared && *at <= now {
                // The port is stuck. The socket stays open, so that its ring is nobody else's.
                let _ = break_off(inner.as_fd());
            }
            shared && *at > now
        });
    }

    /// Looks at a connection when so many microseconds are over, and not earlier.
    pub(super) fn look_in(&mut self, index: usize, after: u64) {
        let at = Time(self.clock.now().0 + after);
        self.conns[index].look = at;
        self.looks.push(Reverse((at, self.token(index))));
    }

    /// Looks at what is to be looked at by now.
    pub(super) fn look(&mut self) -> bool {
        let now = self.clock.now();
        let mut any = false;
        if !self.parted.is_empty() {
            self.close_parted();
        }
        while let Some(Reverse((at, token))) = self.looks.peek().copied()
            && at <= now
        {
            self.looks.pop();
            if token == PARTED {
                any = true;
            } else if token == LISTENERS {
                any = true;
                let _ = self.accept();
            } else if let Some(index) = self.at(token)
                && self.conns[index].look == at
            {
                any = true;
                self.look_at(index);
            }
        }
        any
    }

    fn look_at(&mut self, index: usize) {
        let conn = &mut self.conns[index];
        let outer = conn.outer;
        if matches!(conn.stage, Stage::Open) && self.endpoint.ready(outer).error.is_some() {
            // It broke off, and its program has not taken what arrived before. One that reads gets all of it. One that does not read
            // would, on the kernel, have learnt of it long ago: by its next write.
            if conn.received_then.replace(conn.received) == Some(conn.received) {
                return self.broken(index);
            }
            return self.look_in(index, PATIENCE);
        }
        let now = self.clock.now();
        let is_open = matches!(self.conns[index].stage, Stage::Open);
        let waits = is_open.then(|| self.waits_for_acknowledgement(index)).flatten();
        // Little may have been acknowledged since it was told last.
        let conn = &mut self.conns[index];
        relay::give_back(conn, &mut self.endpoint);
        if conn.program_ended {
            relay::take_over(conn, &mut self.endpoint);
        }
        if is_open && waits != Some(true) && now < self.conns[index].ask {
            // It is only looked at since it has sent something.
            return self.look_again(index, waits.is_some());
        }
        let program = self.policy().program(&self.conns[index].flow);
        let gone = program.is_some_and(|program| !program.asks && !program.holds);
        if gone && matches!(self.conns[index].stage, Stage::Released { .. }) && self.is_in_queue(index) {
            return;
        }
        let conn = &self.conns[index];
        match &conn.stage {
            // Nobody knows: as if it did.
            Stage::Asked { .. } if program.is_none_or(|program| program.asks) => self.look_in(index, STILL),
            Stage::Released { syn, .. } if program.is_none_or(|program| program.asks || program.holds) => {
                if program.is_some_and(|program| program.asks) {
                    // The SYN was lost, or the listener's queue is full: once more.
                    let _ = self.lane.write(syn);
                }
                self.look_in(index, AGAIN);
            }
            Stage::Asked { .. } | Stage::Released { .. } => {
                self.counters.count(Counter::GivenUp);
                debug!("{}: given up by its program", conn.flow);
                self.abandon(index);
            }
            Stage::Open => {
                if conn.program_ended && program.is_some_and(|program| !program.holds) {
                    // Closed, not shut: nobody will read what comes. The engine waits for the FIN as long as Linux does.
                    self.counters.count(Counter::EndedInOrder);
                    return self.close_in_order(index);
                }
                if let Some(program) = program {
                    self.follow(index, &program);
                }
                if self.conns[index].ask <= now {
                    self.conns[index].ask = Time(now.0 + LOOK);
                }
                self.look_again(index, waits.is_some());
            }
            Stage::Inward => {}
        }
    }

    /// Whether a connection that was written back, and whose program is gone by now, waits in our listener's queue, or may: with what the
    /// program has sent before it ended. It is accepted, or looked at again.
    fn is_in_queue(&mut self, index: usize) -> bool {
        let token = self.token(index);
        let all = self.accept();
        if self.at(token).is_none_or(|index| matches!(self.conns[index].stage, Stage::Open)) {
            return true;
        }
        if !all {
            self.look_in(index, AGAIN);
        }
        !all
    }

    /// A program has sent something on this connection, or ended.
    pub(super) fn has_sent(&mut self, index: usize) {
        let conn = &mut self.conns[index];
        // Otherwise nobody need know.
        let stalled = conn.stalls > 0;
        let acknowledged = stalled.then(|| self.endpoint.info(conn.outer)).flatten().map(|info| info.tcp.acknowledged);
        let at = conn.has_sent(self.clock.now(), acknowledged.unwrap_or(conn.acknowledged));
        self.enter(index, at);
    }

    /// The next look at a connection that is open: when the kernel is to be asked, and before if it waits for an acknowledgement.
    fn look_again(&mut self, index: usize, waits: bool) {
        let at = self.conns[index].look_again(self.clock.now(), waits);
        self.enter(index, at);
    }

    fn enter(&mut self, index: usize, at: Option<Time>) {
        let token = self.token(index);
        self.looks.extend(at.map(|at| Reverse((at, token))));
    }

    /// Whether the remote host has acknowledged nothing since this was asked last; `None`: it has acknowledged everything.
    fn waits_for_acknowledgement(&mut self, index: usize) -> Option<bool> {
        let info = self.endpoint.info(self.conns[index].outer)?.tcp;
        self.conns[index].is_stalled(info.acknowledged, u64::from(info.in_flight) + info.unsent > 0)
    }

    /// The remote host is probed as the program's kernel would probe it, and waited for as long as the program says.
    fn follow(&mut self, index: usize, program: &Program) {
        let conn = &mut self.conns[index];
        let probed = match program.keep_alive {
            KeepAlive::Unknown => conn.keep_alive,
            KeepAlive::Off => None,
            // While a probe to our end is on its way its timer says less. The clock of the kernel's timers is a coarse one.
            KeepAlive::After(idle) => Some(conn.keep_alive.filter(|known| idle <= known + COARSE).unwrap_or(idle)),
        };
        // What others' entries have taken the place of was not taken back.
        let user_timeout = membership::timeout(program.user, program.cookie).unwrap_or(conn.timeout);
        if (conn.keep_alive, conn.timeout) != (probed, user_timeout) {
            (conn.keep_alive, conn.timeout) = (probed, user_timeout);
            self.set_options(index);
        }
    }

    /// The outer connection is as its program wants it.
    pub(super) fn set_options(&mut self, index: usize) {
        let conn = &self.conns[index];
        let keepalive_idle = conn.keep_alive.unwrap_or(self.options.keepalive_idle);
        let options = Options {
            keepalive: conn.keep_alive.is_some(),
            keepalive_idle,
            user_timeout: conn.timeout,
            nodelay: !conn.waits,
            cork: conn.corked,
            ..self.options
        };
        self.endpoint.set_options(conn.outer, options);
    }

    /// Closes both ends, with all that was sent before.
    fn close_in_order(&mut self, index: usize) {
        let conn = &mut self.conns[index];
        conn.ended_in_order = true;
        relay::take_over(conn, &mut self.endpoint);
        if let Some(inner) = &conn.inner {
            // Fails where the socket is broken already.
            let _ = end_in_order(inner.as_fd());
        }
        self.endpoint.close(conn.outer);
        self.remove(index);
    }
}
