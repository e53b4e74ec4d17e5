//! Packets that neither host sent.

use super::{World, service};
use crate::facts::Side;
use crate::network;
use crate::packet::{self, Opt, Tcp, flag};
use crate::scenario::{Knows, Noise};

impl World {
    pub(super) fn noise(&mut self, i: usize) {
        let scenario = self.scenario.clone();
        let noise = &scenario.noise[i];
        let plan = &scenario.conns[noise.conn];
        let Some(port) = self.ports[noise.conn] else { return };
        if noise.flags & (flag::SYN | flag::ACK) == flag::SYN {
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
        if noise.knows != Knows::Nothing && !self.known(noise, &mut tcp) {
            return;
        }
        let address = |s: usize| network::address(s, plan.v6, scenario.routed);
        let r = &mut self.rng;
        let payload: Vec<u8> = (0..noise.len).map(|_| r.draw() as u8).collect();
        let packet = packet::segment(address(1 - noise.to), address(noise.to), &tcp, &payload);
        let frame = if scenario.routed || !scenario.sides[noise.to].card.ethernet {
            self.network.framed(noise.to, &packet)
        } else {
            let mut frame = self.network.framed(noise.to, &packet);
            frame[6..12].copy_from_slice(&network::mac(1 - noise.to));
            frame
        };
        self.note(|| format!("noise for {}: {}", noise.to, packet::describe(&tcp, payload.len(), (0, 0))));
        self.sides[noise.to].card.arrive(frame);
        self.turn(noise.to);
    }

    /// Gives a packet from nowhere the numbers that its sender knows. False: there is no such connection now.
    fn known(&mut self, noise: &Noise, tcp: &mut Tcp) -> bool {
        let side = &self.sides[noise.to];
        let Some(end) = side.programs.ends.iter().find(|e| e.conn == Some(noise.conn) && e.established) else {
            return false;
        };
        let Some(info) = side.stack.info(end.id).filter(|_| end.ended.is_none()) else { return false };
        let base = self.base[noise.conn];
        let (Some(ours), Some(theirs), Some(stamp)) =
            (base[noise.to], base[1 - noise.to], self.stamps[noise.conn][1 - noise.to])
        else {
            return false;
        };
        let r = &mut self.rng;
        tcp.flags = flag::ACK;
        tcp.ack = ours.wrapping_add(1).wrapping_add(info.tcp.acknowledged as u32);
        tcp.seq = theirs.wrapping_add(1).wrapping_add(info.tcp.received as u32);
        if noise.knows == Knows::Flight {
            tcp.ack = tcp.ack.wrapping_add(info.tcp.in_flight);
            tcp.seq = tcp.seq.wrapping_add(info.tcp.offered).wrapping_add(r.between(2, 1 << 29) as u32);
            return info.tcp.in_flight > 0;
        }
        // A millisecond before the connection's first: its peer has sent none that is older.
        tcp.options = vec![Opt::Nop, Opt::Nop, Opt::Ts(stamp.wrapping_sub(1), 0)];
        info.tcp.timestamps && noise.len > 0
    }
}
