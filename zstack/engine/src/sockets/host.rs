//! The sockets as the engine sees them: where the bytes to be sent are, where to put those that arrive, and what has happened.

use super::state::*;
use super::{Config, NONE, Sockets};
use crate::event::{Cause, ConnId, Event, ListenerId};
use crate::payload::{Buffer, Host, Spans};
use std::net::SocketAddr;
use std::ops::Range;

// SAFETY: spans point into blocks and pieces that `outgoing` holds until `release` has passed their end, or `Event::Free` came:
// `Outgoing::clear` is called by `retire` alone, which looks for FREE, and a ring is given back only when nothing is in it.
#[allow(unsafe_code)]
unsafe impl<B: Buffer> Host for Sockets<B> {
    type Buffer = B;

    fn spans(&mut self, conn: ConnId, from: u64, len: u32) -> Spans {
        let streams = self.index(conn).and_then(|index| self.entries[index].streams.as_mut());
        streams.map_or(Spans::EMPTY, |s| s.outgoing.spans(from, len))
    }

    fn release(&mut self, conn: ConnId, to: u64) {
        let Some(index) = self.index(conn) else { return };
        let entry = &mut self.entries[index];
        if let Some(streams) = &mut entry.streams {
            streams.outgoing.release(to);
        }
        entry.released = entry.released.max(to.min(entry.end));
        let released = entry.released;
        if let Some(streams) = &mut entry.streams
            && released >= streams.outgoing.watched
        {
            streams.outgoing.watched = u64::MAX;
            self.queue(index);
        }
        let entry = &mut self.entries[index];
        if entry.state & STARVED != 0 {
            // Told when half is free again, or all of what was queued is gone: not for every segment.
            let outgoing = entry.streams.as_ref().map(|s| &s.outgoing);
            let (used, referenced) = outgoing.map_or((0, 0), |o| (o.used() as u64, o.referenced()));
            let whole = self.config.send_ring as usize;
            let ring = outgoing.and_then(|o| o.ring_len()).unwrap_or(whole);
            let (half, unreleased) = (ring as u64 / 2, entry.end - entry.released);
            // A small ring goes, once nothing is queued in it or beside it, where there is memory for a large one.
            let large = ring < whole && self.budget.allows(entry.account, (whole - ring) as u64);
            let enough = match entry.state & LENDS != 0 {
                _ if large => used == 0 && referenced == 0,
                true => unreleased <= half,
                false => used <= half && referenced <= self.config.references / 2,
            };
            if enough {
                entry.state &= !(STARVED | LENDS);
                self.queue(index);
            }
        }
        self.settle(index);
    }

    fn place(&mut self, conn: ConnId, at: u64, buffer: B, range: Range<usize>) -> bool {
        let Some(index) = self.index(conn) else { return false };
        let Config { quota, buffer: least, small, .. } = self.config;
        let entry = &mut self.entries[index];
        let end = at + range.len() as u64;
        if entry.state & CLOSED != 0 || at < entry.published || end > entry.consumed + u64::from(entry.room) {
            return false;
        }
        let scarce = buffer.scarce();
        let mut buffer = buffer;
        if entry.state & KEEP != 0 && !scarce && range.len() > small && at == entry.published {
            let cost = buffer.bytes().len().max(least);
            let incoming = &mut self.streams(index).incoming;
            if incoming.pinned() + cost <= quota {
                let n = range.len() as u64;
                match incoming.keep(at, buffer, range.clone(), cost) {
                    Ok(()) => {
                        self.copies.kept += n;
                        return true;
                    }
                    Err(back) => buffer = back,
                }
            }
        }
        self.ring_to_receive(index);
        let streams = self.streams(index);
        let spilled = if scarce { streams.incoming.spill() } else { 0 };
        streams.incoming.copy(at, &buffer.bytes()[range.clone()]);
        self.copies.spilled += spilled;
        self.copies.received += range.len() as u64;
        true
    }

    fn publish(&mut self, conn: ConnId, to: u64) {
        let Some(index) = self.index(conn) else { return };
        let entry = &mut self.entries[index];
        if to > entry.published && entry.state & CLOSED == 0 {
            entry.published = to;
            self.queue(index);
        }
    }

    fn admits(&mut self, listener: ListenerId) -> bool {
        self.waiting(listener) < self.config.waiting && self.budget.admits_any()
    }

    fn takes(&mut self, local: SocketAddr, remote: SocketAddr, segment: &[u8]) -> bool {
        self.passing.takes(local, remote, segment, &self.budget)
    }

    fn pass(&mut self, buffer: B, range: Range<usize>) -> bool {
        self.passing.push(buffer, range, self.config.passed)
    }

    fn undelivered(&mut self, packet: &[u8]) {
        self.passing.undelivered(packet);
    }

    fn event(&mut self, conn: ConnId, event: Event) {
        if let Event::Incoming(listener) = event {
            let receive = self.receive.get(&listener).copied().unwrap_or_default();
            let socket = self.open(conn, receive);
            self.entries[socket.index as usize].state |= WAITING;
            self.waiting.entry(listener).or_default().push_back(socket.index);
            return;
        }
        let Some(index) = self.index(conn) else { return };
        let entry = &mut self.entries[index];
        match event {
            Event::Incoming(_) | Event::Asked => {}
            Event::Established => entry.state |= ESTABLISHED,
            Event::PeerClosed => entry.state |= PEER_CLOSED,
            Event::Ended(cause) => {
                entry.state |= ENDED;
                entry.cause = cause;
            }
            Event::Free => {
                entry.state |= FREE;
                let place = entry.conn.index as usize;
                let ended = entry.state & ENDED != 0;
                entry.state |= ENDED;
                if !ended {
                    entry.cause = Cause::Aborted;
                }
                self.by_connection[place] = NONE;
                if let Some(streams) = &mut self.entries[index].streams {
                    streams.outgoing.clear();
                }
                self.settle(index);
                self.retire(index);
                if ended {
                    return;
                }
            }
        }
        self.queue(index);
    }
}
