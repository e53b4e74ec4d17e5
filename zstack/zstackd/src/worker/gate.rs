//! How connections begin.
//!
//! A program's SYN is held while the engine opens the same connection on the wire; when the remote host has taken that, the SYN is
//! written back, and the program's kernel completes the handshake with zstackd's listener. So connect(2) says what the remote host
//! says. A SYN from the wire is not answered before zstackd has connected, from the client's address, to the server here.

use super::LISTENERS;
use super::claims::Claims;
use super::ends::{PATIENCE, STILL};
use super::{Worker, lock};
use crate::answer;
use crate::conn::{Ack, Conn, Stage};
use crate::counters::Counter;
use crate::flow::Flow;
use crate::front::{Accepted, acknowledge};
use crate::policy::{Policy, Raw, Verdict};
use crate::syn::{self, Syn};
use crate::wire::Wire;
use log::{debug, warn};
use nix::errno::Errno;
use std::cmp::Reverse;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use zstack::sockets::{Ready, Receive, Socket, Takes, Taking};
use zstack::stack::{Connect, ConnectError};
use zstack::tcp::Cause;
use zstack::time::Time;
use zstack_port::Clock;

/// How long after a SYN was written back the program's kernel may take for the handshake, in microseconds: then the kernel is asked
/// whether the program still waits.
const HANDSHAKE: u64 = 20_000;

/// How long the last ACK of a server's handshake waits for there to be nothing else to do, in microseconds.
const LATE: u64 = 1_000;

/// What the engine asks for each SYN that comes from the wire, and each cookie. What it is to pass goes to its worker, or the program's kernel.
pub(super) fn takes(policy: Arc<Mutex<Policy>>, claims: Arc<Mutex<Claims>>, clock: Clock) -> Takes {
    Box::new(move |local, remote, segment, memory| {
        let flow = Flow { local, remote };
        let Some(isn) = syn::number(segment) else { return Taking::Pass };
        let (mut policy, mut claims) = (lock(&policy), lock(&claims));
        let now = clock.now();
        if claims.is_anothers(&flow) {
            return Taking::Pass;
        }
        if !syn::is_first(segment) {
            // A cookie comes back.
            return if claims.claim(&flow) { Taking::Take } else { Taking::Pass };
        }
        if syn::exotic(segment).is_none() && !policy.was_handed_on(&flow, isn) {
            match policy.incoming(&flow, now) {
                Verdict::Split(user) if !memory.admits(user) => _ = policy.lacks_memory(),
                Verdict::Split(_) if claims.claim(&flow) => return Taking::Take,
                Verdict::Split(_) => return Taking::Pass,
                // The kernel would refuse it, at the cost of others.
                Verdict::Raw(Raw::NoListener) if !policy.may_refuse(now) => return Taking::Drop,
                Verdict::Raw(_) => {}
            }
        }
        policy.hand_on(flow, isn);
        Taking::Pass
    })
}

/// When the kernel is first asked about the program of a connection that has begun, in microseconds: connections that end before
/// cost no question.
const FIRST: u64 = 5_000_000;

/// Packets of programs that are read before others have their turn.
const TUN_ROUND: usize = 64;

/// When to try again to accept what there was no descriptor for, in microseconds.
const RETRY: u64 = 50_000;

impl<P: Wire> Worker<P> {
    /// Reads what programs have sent into the tun. Whether there may be more, and whether there was anything.
    pub(super) fn read_tun(&mut self) -> Result<(bool, bool), String> {
        for n in 0..TUN_ROUND {
            let mut packet = std::mem::take(&mut self.packet);
            let got = self.lane.read(&mut packet);
            let result = match got {
                Ok(n) => {
                    self.sent_by_program(&packet[..n]);
                    Ok(true)
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(false),
                Err(e) if e.kind() == ErrorKind::Interrupted => Ok(true),
                Err(e) => Err(format!("the tun is gone: {e}: was its interface removed?")),
            };
            self.packet = packet;
            if !matches!(result, Ok(true)) {
                return result.map(|more| (more, n > 0));
            }
        }
        Ok((true, true))
    }

    pub(super) fn sent_by_program(&mut self, packet: &[u8]) {
        let flow = syn::flow(packet);
        let known = flow.and_then(|flow| self.flows.get(&flow)).copied();
        if known.is_none()
            && let Some(owner) = flow.and_then(|flow| self.common.division.other(&flow, self.number))
        {
            return self.hand_program_over(owner, packet);
        }
        if let Some(syn) = syn::parse(packet) {
            return self.asked(&syn, packet);
        }
        match known {
            // The end of a handshake that our listener's kernel has answered with a cookie: there was no socket of ours to turn it round to.
            Some(index) if matches!(self.conns[index].stage, Stage::Released { .. }) => self.tell_program(packet),
            // On the wire these addresses are the engine's, with other numbers.
            Some(_) => self.counters.count(Counter::Stray),
            None => self.pass_outward(packet),
        }
    }

    /// A program asks for a connection.
    fn asked(&mut self, syn: &Syn, packet: &[u8]) {
        if let Some(&index) = self.flows.get(&syn.flow) {
            match &self.conns[index].stage {
                Stage::Asked { isn, .. } if *isn == syn.isn => self.counters.count(Counter::Repeated),
                // It was lost on its way to our listener.
                Stage::Released { isn, .. } if *isn == syn.isn => {
                    self.counters.count(Counter::Repeated);
                    self.tell_program(packet);
                }
                // The program has given that attempt up, and has begun another one from the same port.
                Stage::Asked { .. } | Stage::Released { .. } => {
                    self.counters.count(Counter::GivenUp);
                    self.abandon(index);
                    self.open(syn, packet);
                }
                // Its last connection with these addresses is not over on the wire: the kernel asks again.
                Stage::Inward | Stage::Open => self.counters.count(Counter::Repeated),
            }
            return;
        }
        self.open(syn, packet);
    }

    fn open(&mut self, syn: &Syn, packet: &[u8]) {
        let verdict = match syn.exotic {
            Some(_) => Verdict::Raw(Raw::Exotic),
            None if self.policy().was_handed_on(&syn.flow, syn.isn) => Verdict::Raw(Raw::Handed),
            None if self.common.quotas.is_crowded() => Verdict::Raw(Raw::Full),
            None => {
                let owner = self.lane.owner(&syn.flow, syn.isn);
                self.policy().outgoing(&syn.flow, owner)
            }
        };
        let verdict = match verdict {
            Verdict::Split(user) if !self.endpoint.sockets().budget().admits(user) => {
                Verdict::Raw(self.policy().lacks_memory())
            }
            verdict => verdict,
        };
        let user = match verdict {
            Verdict::Split(user) => user,
            Verdict::Raw(why) => {
                debug!("{}: handed on: {why:?}", syn.flow);
                self.counters.count(Counter::Handed);
                self.policy().hand_on(syn.flow, syn.isn);
                return self.pass_outward(packet);
            }
        };
        if let Err(owner) = self.common.division.claim(&syn.flow, self.number) {
            // Just now.
            return self.hand_program_over(owner, packet);
        }
        let connect = Connect {
            local: Some(syn.flow.local.ip()),
            local_port: Some(syn.flow.local.port()),
            ..Connect::new(syn.flow.remote, self.endpoint.room())
        };
        match self.endpoint.connect(self.clock.now(), connect, Receive::Keep) {
            Ok(outer) => {
                self.endpoint.set_account(outer, user);
                let stage = Stage::Asked { syn: packet.to_vec(), isn: syn.isn };
                let index = self.add(Conn::new(syn.flow, outer, user, stage));
                self.look_in(index, STILL);
            }
            Err(ConnectError::NoRoute(_)) => {
                self.leave(syn.flow);
                self.counters.count(Counter::Unreachable);
                let (from, to) = (syn.flow.remote.ip(), syn.flow.local.ip());
                if let Some(reply) = answer::failed(packet, from, to, Cause::NetUnreachable) {
                    self.tell_program(&reply);
                }
            }
            // The kernel asks again.
            Err(why) => {
                self.leave(syn.flow);
                debug!("{}: not opened: {why}", syn.flow);
                self.counters.count(Counter::TooMany);
            }
        }
    }

    pub(super) fn add(&mut self, conn: Conn) -> usize {
        self.common.quotas.begun(conn.user);
        let (flow, socket) = (conn.flow, conn.outer.index as usize);
        let index = self.conns.insert(conn);
        if index == self.generations.len() {
            self.generations.push(0);
        }
        self.flows.insert(flow, index);
        if self.by_socket.len() <= socket {
            self.by_socket.resize(socket + 1, usize::MAX);
        }
        self.by_socket[socket] = index;
        index
    }

    /// Something has happened to an outer connection.
    pub(super) fn outer_ready(&mut self, index: usize, ready: Ready) {
        let conn = &self.conns[index];
        match &conn.stage {
            Stage::Asked { .. } if ready.hang_up => self.refused(index, ready.error),
            Stage::Asked { .. } if self.endpoint.sockets().established(conn.outer) => self.released(index),
            Stage::Inward if ready.hang_up => self.given_up_by_remote(index),
            Stage::Open => {
                self.queue(index);
                if ready.error.is_some() {
                    self.look_in(index, PATIENCE);
                }
            }
            _ => {}
        }
    }

    /// The remote host has taken a program's connection.
    fn released(&mut self, index: usize) {
        let conn = &mut self.conns[index];
        let Stage::Asked { syn, isn } = &mut conn.stage else { return };
        let (syn, isn, flow) = (std::mem::take(syn), *isn, conn.flow);
        if let Err(e) = self.lane.expect(flow.local, flow.remote) {
            // The program's kernel asks again.
            warn!("{flow}: {e}");
            self.counters.count(Counter::CallsFailed);
            return self.abandon(index);
        }
        self.tell_program(&syn);
        self.conns[index].stage = Stage::Released { syn, isn };
        self.released += 1;
        self.look_in(index, HANDSHAKE);
    }

    /// The remote host has not taken a program's connection.
    fn refused(&mut self, index: usize, why: Option<Cause>) {
        let conn = &self.conns[index];
        let (flow, Stage::Asked { syn, isn }) = (conn.flow, &conn.stage) else { return };
        let failed = |why| answer::failed(syn, flow.remote.ip(), flow.local.ip(), why);
        let (reply, counter) = match why {
            Some(Cause::Refused | Cause::Reset) => (Some(answer::refusal(&flow, *isn)), Counter::RefusedByRemotes),
            why => match why.and_then(failed) {
                Some(reply) => (Some(reply), Counter::Unreachable),
                // The program's kernel has its own timer, and asks again until that is over.
                None => (None, Counter::Unanswered),
            },
        };
        debug!("{flow}: not taken by the remote host: {why:?}");
        self.counters.count(counter);
        if let Some(reply) = reply {
            self.tell_program(&reply);
        }
        self.endpoint.close(self.conns[index].outer);
        self.remove(index);
    }

    /// Programs' kernels have completed handshakes with our listeners. Whether all of them were accepted.
    pub(super) fn accept(&mut self) -> bool {
        loop {
            match self.lane.accept() {
                Ok(Some(Accepted { socket, program: local, remote })) => {
                    self.accepted(socket, Flow { local, remote });
                    // Only SYNs that were written back lead to a listener: when each of them has come, nothing is there. But the first of
                    // several workers gets what nobody expects any more.
                    if self.released == 0 && self.strays == 0 && !self.common.division.are_several() {
                        return true;
                    }
                }
                Ok(None) => return true,
                Err(e) => {
                    // No descriptor is left, or the like: the kernel keeps the connection until there is one.
                    if self.counters.get(Counter::CallsFailed) == 0 {
                        warn!("accept: {e}: raise the limit of open files (LimitNOFILE) if this lasts");
                    }
                    self.counters.count(Counter::CallsFailed);
                    self.looks.push(Reverse((Time(self.clock.now().0 + RETRY), LISTENERS)));
                    return false;
                }
            }
        }
    }

    fn accepted(&mut self, inner: TcpStream, flow: Flow) {
        let known = self.flows.get(&flow).copied();
        let Some(index) = known.filter(|&index| matches!(self.conns[index].stage, Stage::Released { .. })) else {
            // Nobody's any more; dropping it resets it.
            debug!("{flow}: accepted, and not wanted any more");
            self.strays = self.strays.saturating_sub(1);
            return;
        };
        let token = self.token(index);
        if let Err(e) = self.poller.watch_edges(&inner, token) {
            warn!("{flow}: epoll_ctl: {e}");
            self.counters.count(Counter::CallsFailed);
            self.abandon(index);
            return;
        }
        self.lane.expect_no_more(flow.local, flow.remote);
        debug!("{flow}: opened by a program of user {}", self.conns[index].user);
        self.open_now(index, Arc::new(inner));
        self.counters.count(Counter::OpenedOutward);
    }

    /// Remote hosts have asked for connections to servers here.
    pub(super) fn take_incoming(&mut self) -> bool {
        let mut any = false;
        while let Some(outer) = self.endpoint.accept(self.listener) {
            any = true;
            self.incoming(outer);
        }
        any
    }

    /// Where it is left without an answer, the remote host asks again, as it does where a listener's queue is full.
    fn incoming(&mut self, outer: Socket) {
        let Some(info) = self.endpoint.info(outer) else { return self.endpoint.abort(outer) };
        let flow = Flow { local: info.local, remote: info.remote };
        let verdict = self.policy().incoming(&flow, self.clock.now());
        let Verdict::Split(user) = verdict else {
            // There was room for it when its SYN came.
            debug!("{flow}: not taken after all: {verdict:?}");
            return self.endpoint.ignore(outer);
        };
        if self.flows.contains_key(&flow) || self.common.division.claim(&flow, self.number).is_err() {
            self.counters.count(Counter::TooMany);
            return self.endpoint.ignore(outer);
        }
        let inner = match self.lane.connect_inward(flow.remote, flow.local) {
            Ok(inner) => inner,
            Err(e) if e.raw_os_error() == Some(libc::ECONNREFUSED) => {
                self.counters.count(Counter::RefusedByServers);
                return self.endpoint.refuse(outer);
            }
            Err(e) => {
                // The remote host asks again: the addresses are those of a connection that is not quite over, or no descriptor is left.
                debug!("{flow}: connect: {e}");
                self.counters.count(Counter::CallsFailed);
                return self.endpoint.ignore(outer);
            }
        };
        self.endpoint.set_account(outer, user);
        let index = self.add(Conn { ack: Ack::Held, ..Conn::new(flow, outer, user, Stage::Inward) });
        let watched = self.poller.watch_edges(&inner, self.token(index));
        self.conns[index].inner = Some(Arc::new(inner));
        if let Err(e) = watched {
            warn!("{flow}: epoll_ctl: {e}");
            self.counters.count(Counter::CallsFailed);
            self.endpoint.ignore(outer);
            self.remove(index);
        }
    }

    /// The inner socket of a remote host's connection has something: the server has taken it, or not.
    pub(super) fn inward_ready(&mut self, index: usize) {
        let conn = &mut self.conns[index];
        let (flow, outer, writable) = (conn.flow, conn.outer, conn.writable);
        let Some(inner) = conn.inner.take() else { return };
        // It is told with an error, or there is none.
        let error = if writable && !conn.failed { Ok(None) } else { inner.take_error() };
        match error {
            Ok(None) if !writable => conn.inner = Some(inner),
            Ok(None) => {
                // Established already, where its handshake was completed by a cookie.
                self.endpoint.answer(outer);
                debug!("{flow}: taken by a server of user {}", conn.user);
                self.open_now(index, inner);
                self.counters.count(Counter::OpenedInward);
            }
            Ok(Some(e)) | Err(e) => {
                debug!("{flow}: not taken by the server: {e}");
                if e.raw_os_error() == Some(Errno::ECONNREFUSED as i32) {
                    self.counters.count(Counter::RefusedByServers);
                    self.endpoint.refuse(outer);
                } else {
                    self.counters.count(Counter::Unanswered);
                    self.endpoint.ignore(outer);
                }
                self.remove(index);
            }
        }
    }

    /// The server hears of its connection when the remote host has completed its handshake: with the first bytes if they have come by the
    /// time that there is nothing else to do. Called when what there was has been moved.
    pub(super) fn hold_ack(&mut self, index: usize) {
        let token = self.token(index);
        let conn = &mut self.conns[index];
        match conn.ack {
            Ack::Sent => {}
            _ if conn.received > 0 => {
                conn.ack = Ack::Sent;
                if self.acks.front().is_some_and(|(_, first)| *first == token) {
                    self.acks.pop_front();
                }
            }
            Ack::Held if self.endpoint.sockets().established(conn.outer) => {
                conn.ack = Ack::Due;
                self.acks.push_back((self.clock.now(), token));
            }
            Ack::Held | Ack::Due => {}
        }
    }

    /// Whether some have waited for long, since there is always something else to do: their servers may be the ones to speak first. And the
    /// kernel would send them by itself, those of a moment in any order.
    pub(super) fn are_acks_late(&self) -> bool {
        self.acks.front().is_some_and(|(since, _)| self.clock.now().0 >= since.0 + LATE)
    }

    /// There is nothing else to do, or they are late.
    pub(super) fn send_acks(&mut self) {
        self.send_acks_up_to(None);
    }

    /// What is about to be moved brings the server the ACK: those that are due before go first.
    pub(super) fn send_acks_before(&mut self, index: usize) {
        let conn = &self.conns[index];
        if conn.ack != Ack::Sent && !self.acks.is_empty() {
            let ready = self.endpoint.ready(conn.outer);
            if ready.readable || ready.peer_closed || ready.hang_up {
                self.send_acks_up_to(Some(self.token(index)));
            }
        }
    }

    fn send_acks_up_to(&mut self, end: Option<u64>) {
        while let Some(&(_, token)) = self.acks.front() {
            // It keeps its place until its own is sent: it may break off without bytes.
            if Some(token) == end {
                break;
            }
            self.acks.pop_front();
            if let Some(index) = self.at(token) {
                self.send_ack(index);
            }
        }
    }

    /// Sends the ACK that the server waits for to accept its connection, if it is due.
    pub(super) fn send_ack(&mut self, index: usize) {
        let conn = &mut self.conns[index];
        if conn.ack == Ack::Due
            && let Some(inner) = &conn.inner
        {
            // Fails where the server's end is gone already, which a read tells.
            let _ = acknowledge(inner.as_fd());
            conn.ack = Ack::Sent;
        }
    }

    /// Both ends are there.
    fn open_now(&mut self, index: usize, inner: Arc<TcpStream>) {
        let conn = &mut self.conns[index];
        self.released -= u32::from(matches!(conn.stage, Stage::Released { .. }));
        conn.stage = Stage::Open;
        conn.inner = Some(inner);
        let user = conn.user;
        self.common.quotas.made(user);
        conn.ask = Time(self.clock.now().0 + FIRST);
        self.queue(index);
        self.look_in(index, FIRST);
    }
}
