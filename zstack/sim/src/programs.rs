//! All programs of a host, as the engine sees them: the owner of the streams' memory.

use crate::card::Packet;
use crate::endpoint::Endpoint;
use crate::memory::Pattern;
use crate::rng::mix;
use crate::scenario::{End, Scenario};
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;
use zstack::payload::{Host, Spans};
use zstack::stack::{ConnId, ListenerId};
use zstack::tcp::Event;

/// The programs of a host.
#[derive(Debug)]
pub struct Programs {
    scenario: Rc<Scenario>,
    /// It is now.
    pub now: u64,
    /// All ends that there were; none is ever removed, so that memory that was read late can be told from memory that is gone.
    pub ends: Vec<Endpoint>,
    names: HashMap<ConnId, usize>,
    /// Whose connection a listener's are.
    pub listeners: HashMap<ListenerId, usize>,
    /// Ends that something has happened to.
    pub news: Vec<usize>,
    /// What must not be.
    pub faults: Vec<String>,
    /// What happened, in words, if somebody wants to know.
    pub told: Option<Vec<String>>,
    /// Events, so that their order is part of a run's fingerprint.
    pub digest: u64,
}

/// What a direction of a connection carries: `app` sends it.
pub fn stream(scenario: &Scenario, conn: usize, app: usize) -> Pattern {
    Pattern(mix(scenario.seed ^ (conn as u64 * 2 + app as u64 + 1)))
}

impl Programs {
    /// A host without connections.
    pub fn new(scenario: Rc<Scenario>, verbose: bool) -> Programs {
        Programs {
            scenario,
            now: 0,
            ends: Vec::new(),
            names: HashMap::new(),
            listeners: HashMap::new(),
            news: Vec::new(),
            faults: Vec::new(),
            told: verbose.then(Vec::new),
            digest: 0,
        }
    }

    /// A connection begins.
    pub fn add(&mut self, id: ConnId, conn: Option<usize>, app: usize) -> usize {
        let index = self.ends.len();
        let c = conn.unwrap_or(0);
        let apps = &self.scenario.conns[c].apps;
        let (mut plan, peer) = (apps[app].clone(), &apps[1 - app]);
        // Two programs that both wait for the other's end would wait for ever.
        plan.end = match plan.end {
            End::AfterPeer if app == 0 && peer.end == End::AfterPeer => End::HalfClose,
            End::Close(bytes) => End::Close(bytes.min(peer.send)),
            End::Abort(bytes) => End::Abort(bytes.min(plan.send + peer.send)),
            end => end,
        };
        let streams = (stream(&self.scenario, c, app), stream(&self.scenario, c, 1 - app));
        let seed = self.scenario.seed ^ (index as u64) << 8 ^ 5;
        self.ends.push(Endpoint::new(id, conn, app, plan, streams, seed));
        if let Some(old) = self.names.insert(id, index)
            && !self.ends[old].freed
        {
            self.faults.push(format!("{id:?} was given to a second connection"));
        }
        self.news.push(index);
        index
    }

    /// The name of a connection has changed: it was taken out and adopted.
    pub fn rename(&mut self, index: usize, id: ConnId) {
        self.ends[index].id = id;
        self.names.insert(id, index);
        self.news.push(index);
    }

    fn end(&mut self, id: ConnId) -> Option<usize> {
        let found = self.names.get(&id).copied();
        if found.is_none() {
            self.faults.push(format!("{id:?} is no connection"));
        }
        found
    }

    fn blame(&mut self, index: usize, fault: String) {
        let end = &self.ends[index];
        self.faults.push(format!("connection {:?}, program {}: {fault}", end.conn, end.app));
    }

    fn tell(&mut self, id: ConnId, what: impl FnOnce() -> String) {
        if let Some(told) = &mut self.told {
            let text = what();
            let conn = self.names.get(&id).and_then(|&i| self.ends[i].conn);
            told.push(format!("connection {conn:?}: {text}"));
        }
    }

    fn incoming(&mut self, id: ConnId, listener: ListenerId) {
        let Some(&conn) = self.listeners.get(&listener) else {
            self.faults.push(format!("{listener:?} is no listener"));
            return;
        };
        // A SYN that came twice, or late, makes a connection that no program waits for, unless the first has come to nothing.
        let taken =
            self.ends.iter().any(|e| e.conn == Some(conn) && e.app == 1 && (e.established || e.ended.is_none()));
        self.add(id, (!taken).then_some(conn), 1);
    }
}

// SAFETY: rings live as long as the run does: ends are never removed. Only one thread runs it.
#[allow(unsafe_code)]
unsafe impl Host for Programs {
    type Buffer = Packet;

    fn spans(&mut self, conn: ConnId, from: u64, len: u32) -> Spans {
        let Some(i) = self.end(conn) else { return Spans::EMPTY };
        self.ends[i].spans(from, len).unwrap_or_else(|fault| {
            self.blame(i, fault);
            // Anything but the stream's bytes: the run has failed, and goes on to its end.
            Spans::EMPTY
        })
    }

    fn release(&mut self, conn: ConnId, to: u64) {
        let Some(i) = self.end(conn) else { return };
        self.tell(conn, || format!("released to {to}"));
        if let Err(fault) = self.ends[i].release(to) {
            self.blame(i, fault);
        }
        self.news.push(i);
    }

    fn place(&mut self, conn: ConnId, at: u64, buffer: Packet, range: Range<usize>) -> bool {
        let Some(i) = self.end(conn) else { return false };
        let len = range.len();
        let taken = self.ends[i].place(at, buffer, range).unwrap_or_else(|fault| {
            self.blame(i, fault);
            true
        });
        self.tell(conn, || format!("placed {at} to {}{}", at + len as u64, if taken { "" } else { ": not taken" }));
        taken
    }

    fn publish(&mut self, conn: ConnId, to: u64) {
        let Some(i) = self.end(conn) else { return };
        self.tell(conn, || format!("published to {to}"));
        if let Err(fault) = self.ends[i].publish(to) {
            self.blame(i, fault);
        }
        self.news.push(i);
    }

    fn event(&mut self, conn: ConnId, event: Event) {
        self.digest = mix(self.digest ^ self.now ^ u64::from(conn.index) << 40);
        if let Event::Incoming(listener) = event {
            self.incoming(conn, listener);
            self.tell(conn, || format!("{event:?}"));
            return;
        }
        let Some(i) = self.end(conn) else { return };
        self.tell(conn, || format!("{event:?}"));
        let now = self.now;
        let scenario = self.scenario.clone();
        let end = &mut self.ends[i];
        let fault = match event {
            _ if end.freed => Some("after its last event"),
            Event::Incoming(_) => None,
            Event::Asked => {
                let decision = end.conn.and_then(|c| scenario.conns[c].decision);
                end.decision = Some(decision.map_or((now, false), |d| (now + d.after, d.accept)));
                None
            }
            Event::Established if end.established => Some("for the second time"),
            Event::Established if end.ended.is_some() => Some("after the end"),
            Event::Established => {
                end.established = true;
                None
            }
            Event::PeerClosed if end.peer_closed || end.ended.is_some() => Some("after the end"),
            Event::PeerClosed => {
                end.peer_closed = true;
                None
            }
            Event::Ended(_) if end.ended.is_some() => Some("for the second time"),
            Event::Ended(cause) => {
                end.ended = Some(cause);
                end.ended_at = now;
                None
            }
            Event::Free if end.ended.is_none() => Some("before the end"),
            Event::Free => {
                end.free();
                None
            }
        };
        self.digest = mix(self.digest
            ^ match event {
                Event::Ended(cause) => 10 + cause as u64,
                Event::Free => 4,
                Event::PeerClosed => 3,
                Event::Established => 2,
                Event::Asked | Event::Incoming(_) => 1,
            });
        if let Some(fault) = fault {
            self.blame(i, format!("{event:?} {fault}"));
        }
        self.news.push(i);
    }
}
