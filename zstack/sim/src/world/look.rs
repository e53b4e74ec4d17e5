//! What a run sees of frames: whose they are, what they say, and whether it can be true.

use super::World;
use crate::endpoint::Endpoint;
use crate::network::service;
use crate::packet::{self, Tcp, flag};
use crate::rng::mix;

impl World {
    pub(super) fn look(&mut self, s: usize, frame: &[u8]) {
        let at = if self.scenario.sides[s].card.ethernet { packet::link(frame) } else { Some(0) };
        let mut print = mix(self.now ^ (frame.len() as u64) << 40);
        if let Some(ip) = at.and_then(|at| packet::ip(frame, at)) {
            for chunk in frame[ip.at..ip.end.min(ip.transport + 60)].chunks(8) {
                let mut eight = [0; 8];
                eight[..chunk.len()].copy_from_slice(chunk);
                print = mix(print ^ u64::from_le_bytes(eight));
            }
            if let Some((tcp, _)) = packet::tcp(frame, &ip) {
                let conn = self.conn_of(tcp.destination, tcp.source);
                if let Some(conn) = conn {
                    if tcp.destination == service(conn) && self.ports[conn].is_none() {
                        self.ports[conn] = Some(tcp.source);
                    }
                    let sent = &mut self.sent[conn][s];
                    if tcp.flags & flag::SYN != 0 {
                        sent.base = Some(tcp.seq);
                    }
                    if let Some(stamp) = tcp.stamp() {
                        let (first, _, arrived) = sent.stamps.unwrap_or((stamp, stamp, stamp));
                        sent.stamps = Some((first, stamp, arrived));
                    }
                }
            }
        }
        self.outcome.digest = mix(self.outcome.digest ^ print);
        if self.verbose {
            let line = self.line(frame, s, s);
            self.note(|| format!("{s}  > {line}"));
        }
    }

    /// A frame arrives at host `side`: its timestamp may be the latest.
    pub(super) fn stamped(&mut self, side: usize, frame: &[u8]) {
        let at = if self.network.is_ethernet(side) { packet::link(frame) } else { Some(0) };
        let Some((conn, tcp)) = self.segment(frame, side) else { return };
        let right = at.and_then(|at| packet::ip(frame, at)).is_some_and(|ip| packet::checksum_right(frame, &ip));
        if let (Some(stamp), Some((.., arrived)), true) = (tcp.stamp(), &mut self.sent[conn][1 - side].stamps, right)
            && (stamp.wrapping_sub(*arrived) as i32) > 0
        {
            *arrived = stamp;
        }
    }

    /// The segment in a frame at host `side`, and whose it is.
    pub(super) fn segment(&self, frame: &[u8], side: usize) -> Option<(usize, Tcp)> {
        let at = if self.network.is_ethernet(side) { packet::link(frame) } else { Some(0) }?;
        let (tcp, _) = packet::tcp(frame, &packet::ip(frame, at)?)?;
        Some((self.conn_of(tcp.source, tcp.destination)?, tcp))
    }

    /// What a host takes for arrived, by SACK, has arrived at the other.
    pub(super) fn sacked(&mut self, side: usize, conn: usize) {
        let find = |e: &&mut Endpoint| e.conn == Some(conn) && !e.freed && e.established && e.ended.is_none();
        let [a, b] = &mut self.sides;
        let (ours, theirs) = if side == 0 { (a, b) } else { (b, a) };
        let Some(end) = ours.programs.ends.iter_mut().find(find) else { return };
        let Some(peer) = theirs.programs.ends.iter_mut().find(find) else { return };
        let Some(info) = ours.stack.info(end.id) else { return };
        let held = peer.holds(info.tcp.acknowledged.wrapping_sub(end.shift.0));
        // The FIN has a number, too.
        if info.tcp.sack && u64::from(info.tcp.sacked) > held + u64::from(end.shut) {
            let sacked = info.tcp.sacked;
            self.fault(format!(
                "host {side}: connection {conn}: {sacked} bytes count as arrived, the peer holds {held}"
            ));
        }
    }

    /// A frame at host `side`, sent by host `sender`, with numbers that begin at each connection's first.
    pub(super) fn line(&self, frame: &[u8], side: usize, sender: usize) -> String {
        let at = if self.network.is_ethernet(side) { packet::link(frame) } else { Some(0) };
        let tcp = at.and_then(|at| packet::ip(frame, at)).and_then(|ip| packet::tcp(frame, &ip));
        let conn = tcp.and_then(|(t, _)| self.conn_of(t.source, t.destination));
        let of = |s: usize| conn.and_then(|c| self.sent[c][s].base).unwrap_or(0);
        packet::Line { frame, at, base: (of(sender), of(1 - sender)) }.to_string()
    }

    pub(super) fn conn_of(&self, a: u16, b: u16) -> Option<usize> {
        [a, b].iter().find(|p| (1000..1000 + self.ports.len() as u16).contains(p)).map(|p| usize::from(p - 1000))
    }
}
