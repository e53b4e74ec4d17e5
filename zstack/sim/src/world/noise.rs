//! Packets that neither host sent.

use super::World;
use crate::endpoint::Endpoint;
use crate::facts::Side;
use crate::network::{self, service};
use crate::packet::{self, Opt, Tcp, flag};
use crate::rng::Rng;
use crate::scenario::{Knows, Lie, Noise};

/// The numbers of a connection at one of its ends, as somebody sees them who sees everything.
struct Numbers {
    /// SND.UNA and SND.NXT.
    una: u32,
    nxt: u32,
    /// RCV.NXT, and the window's right edge as the peer was told.
    next: u32,
    edge: u32,
    /// The window that the peer offers, and how a header scales it.
    window: u32,
    scale: u8,
    /// How many bytes the peer has acknowledged, and how many it has got beyond them.
    acknowledged: u64,
    got: u64,
    /// TSval as the peer's last segments had it, and TSecr that fits; `None`: there are no timestamps.
    stamps: Option<(u32, u32)>,
    /// The peer's first timestamp.
    first: Option<u32>,
}

impl World {
    pub(super) fn noise(&mut self, i: usize) {
        let scenario = self.scenario.clone();
        let noise = &scenario.noise[i];
        let plan = &scenario.conns[noise.conn];
        let Some(port) = self.ports[noise.conn] else { return };
        let syn = noise.flags & (flag::SYN | flag::ACK) == flag::SYN || noise.knows == Knows::Lies(Lie::Syn);
        if syn {
            // In SYN-SENT, or where a listener waits, a SYN from nowhere is as good as any: only those who have a connection
            // can tell.
            let both = |s: &Side| {
                s.programs
                    .ends
                    .iter()
                    .any(|e| e.conn == Some(noise.conn) && e.established && e.ended.is_none() && !e.shut)
            };
            if !self.sides.iter().all(both) {
                return;
            }
        }
        let (source, destination) =
            if noise.to == plan.opener { (service(noise.conn), port) } else { (port, service(noise.conn)) };
        let r = &mut self.rng;
        let mut tcp = Tcp {
            source,
            destination,
            seq: r.draw() as u32,
            ack: r.draw() as u32,
            flags: noise.flags,
            window: r.draw() as u16,
            urgent: r.draw() as u16,
            options: Vec::new(),
        };
        let mut len = noise.len;
        if noise.knows != Knows::Nothing && !self.known(noise, &mut tcp, &mut len) {
            return;
        }
        let address = |s: usize| network::address(s, plan.v6, scenario.routed);
        let r = &mut self.rng;
        let payload: Vec<u8> = (0..len).map(|_| r.draw() as u8).collect();
        let packet = packet::segment(address(1 - noise.to), address(noise.to), &tcp, &payload);
        let mut frame = self.network.framed(noise.to, &packet);
        if !scenario.routed && scenario.sides[noise.to].card.ethernet {
            frame[6..12].copy_from_slice(&network::mac(1 - noise.to));
        }
        let base = |s: usize| self.sent[noise.conn][s].base.unwrap_or(0);
        let base = (base(1 - noise.to), base(noise.to));
        self.note(|| format!("{} <  noise: {}", noise.to, packet::describe(&tcp, payload.len(), base)));
        self.sides[noise.to].card.arrive(frame);
        self.turn(noise.to);
        if noise.knows == Knows::Lies(Lie::Sack) {
            self.sacked(noise.to, noise.conn);
        }
    }

    /// The numbers of a connection at host `to`, if it is established there and nothing is under way to its engine.
    fn numbers(&mut self, to: usize, conn: usize) -> Option<Numbers> {
        if self.stopped(to) || self.sides[to].card.has_arrived() {
            return None;
        }
        let is = |e: &&Endpoint| e.conn == Some(conn) && e.established && e.ended.is_none();
        let side = &self.sides[to];
        let end = side.programs.ends.iter().find(is)?;
        let tcp = side.stack.info(end.id)?.tcp;
        let peer = self.sides[1 - to].programs.ends.iter().find(is);
        let acknowledged = tcp.acknowledged.wrapping_sub(end.shift.0);
        let [ours, theirs] = [&self.sent[conn][to], &self.sent[conn][1 - to]];
        let una = ours.base?.wrapping_add(1).wrapping_add(acknowledged as u32);
        let received = tcp.received.wrapping_sub(end.shift.1) as u32;
        let next = theirs.base?.wrapping_add(1).wrapping_add(received).wrapping_add(u32::from(end.peer_closed));
        let echo = ours.stamps.map_or(0, |s| s.1);
        Some(Numbers {
            una,
            nxt: una.wrapping_add(tcp.in_flight),
            next,
            edge: next.wrapping_add(tcp.offered),
            window: tcp.window,
            scale: tcp.scales.map_or(0, |s| s.0),
            acknowledged,
            got: peer.map_or(0, |peer| peer.published.saturating_sub(acknowledged)),
            stamps: theirs.stamps.filter(|_| tcp.timestamps).map(|s| (s.2, echo)),
            first: theirs.stamps.filter(|_| tcp.timestamps).map(|s| s.0),
        })
    }

    /// Gives a packet from nowhere the numbers that its sender knows. False: there is no such connection now, or nothing to say.
    fn known(&mut self, noise: &Noise, tcp: &mut Tcp, len: &mut u16) -> bool {
        let Some(n) = self.numbers(noise.to, noise.conn) else { return false };
        let r = &mut self.rng;
        tcp.flags = flag::ACK;
        (tcp.seq, tcp.ack) = (n.next, n.una);
        match noise.knows {
            Knows::Nothing => true,
            Knows::Flight => {
                tcp.ack = n.nxt;
                tcp.seq = n.edge.wrapping_add(r.between(2, 1 << 29) as u32);
                n.una != n.nxt
            }
            Knows::Everything => {
                // A millisecond before the connection's first: its peer has sent none that is older.
                tcp.options = n.first.iter().flat_map(|first| stamps((first.wrapping_sub(1), 0))).collect();
                n.first.is_some() && *len > 0
            }
            Knows::Lies(lie) => {
                tcp.window = (n.window >> n.scale) as u16;
                tcp.options = n.stamps.into_iter().flat_map(stamps).collect();
                let said = n.say(lie, r, tcp, len);
                if said && matches!(lie, Lie::Kill | Lie::Early) {
                    self.sent[noise.conn][noise.to].deceived = true;
                }
                said
            }
        }
    }
}

fn stamps(of: (u32, u32)) -> [Opt; 3] {
    [Opt::Nop, Opt::Nop, Opt::Ts(of.0, of.1)]
}

impl Numbers {
    /// Makes a lie of a segment that is true so far. Near edges one number more or less matters most. False: there is nothing to lie
    /// about.
    fn say(&self, lie: Lie, r: &mut Rng, tcp: &mut Tcp, len: &mut u16) -> bool {
        let flight = self.nxt.wrapping_sub(self.una);
        let near = |r: &mut Rng| r.pick(&[1, 1, 2, 1000, 100_000, 1 << 29]);
        match lie {
            Lie::AckAhead => {
                // One more where a FIN may be in flight, or acknowledged, that its bytes do not tell.
                tcp.ack = self.nxt.wrapping_add(1 + near(r));
                true
            }
            Lie::Sack => {
                *len = 0;
                let blocks = (0..r.between(1, 2)).map(|_| self.block(r, flight));
                tcp.options.extend([Opt::Nop, Opt::Nop, Opt::Sack(blocks.collect())]);
                true
            }
            Lie::Beyond => {
                // Not at the edge itself: its ACK and window are believed there, as Linux does (tcp_sequence), and from then on no older
                // window is.
                tcp.seq = self.edge.wrapping_add(r.pick(&[1, 1, 2, 1000]));
                tcp.flags |= r.pick(&[0, 0, flag::FIN, flag::PSH]);
                *len > 0
            }
            Lie::Before => {
                tcp.seq = self.next.wrapping_sub(u32::from(*len) + near(r));
                tcp.flags |= r.pick(&[0, 0, flag::FIN, flag::PSH]);
                true
            }
            Lie::Reset => {
                let edges = [self.next, self.next, self.edge, self.edge];
                let away = r.pick(&[0, 1, 1, 2, 1000, 1 << 30]);
                tcp.seq = r.pick(&edges).wrapping_add(away).wrapping_sub(r.pick(&[0, 2 * away]));
                tcp.flags = flag::RST | r.pick(&[0, flag::ACK]);
                *len = 0;
                tcp.seq != self.next
            }
            Lie::Syn => {
                tcp.seq = r.pick(&[self.next, self.edge, self.next.wrapping_add(1)]).wrapping_sub(r.below(3) as u32);
                tcp.flags = flag::SYN | r.pick(&[0, flag::ACK]);
                *len = 0;
                true
            }
            Lie::OldAck => {
                let back = near(r).min(self.acknowledged.min(self.window.into()) as u32);
                tcp.ack = self.una.wrapping_sub(back);
                tcp.window = 0;
                *len = 0;
                back > 0
            }
            Lie::Part => {
                if self.got < 2 {
                    return false;
                }
                let part = r.between(1, self.got - 1) as u32;
                tcp.ack = self.una.wrapping_add(part);
                tcp.window = (self.window.saturating_sub(part) >> self.scale) as u16;
                *len = 0;
                true
            }
            Lie::Kill => {
                tcp.flags = flag::RST;
                *len = 0;
                true
            }
            Lie::Early => {
                tcp.ack = self.nxt;
                *len = 0;
                flight > 0
            }
        }
    }

    /// A SACK block that the peer cannot mean (RFC 2018, section 3; tcp_is_sackblock_valid).
    fn block(&self, r: &mut Rng, flight: u32) -> (u32, u32) {
        let inside = self.una.wrapping_add(r.between(0, u64::from(flight)) as u32);
        let beyond = self.nxt.wrapping_add(r.pick(&[2, 3, 1000, 1 << 30]));
        match r.below(6) {
            0 => (self.una.wrapping_sub(r.pick(&[1, 2, 1000, 1 << 30])), inside.wrapping_add(1)),
            1 => (inside, beyond),
            2 => (beyond, beyond.wrapping_add(500)),
            3 => (self.una, inside),
            4 => (inside, inside),
            _ => (self.nxt, inside),
        }
    }
}
