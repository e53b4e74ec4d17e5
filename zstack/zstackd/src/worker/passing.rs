//! What goes by: packets that belong to no connection of this worker's. They are of another worker's connections, or the programs' kernel's and
//! the wire's, unchanged.

use super::Worker;
use super::mail::Letter;
use crate::answer;
use crate::counters::Counter;
use crate::syn;
use crate::wire::Wire;
use zstack::payload::Buffer;
use zstack::stack::Unforwarded;
use zstack::tcp::Cause;

impl<P: Wire> Worker<P> {
    /// A packet of a program's is of a connection that another worker has.
    pub(super) fn hand_program_over(&mut self, owner: u16, packet: &[u8]) {
        let sent = self.with.mail.send(owner, Letter::FromProgram(packet.into()));
        self.counters.count(if sent { Counter::HandedOver } else { Counter::HandedOverLost });
    }

    /// Packets from the wire that are nobody's here are of another worker's connections, or go to the programs' kernel.
    pub(super) fn pass_inward(&mut self) -> bool {
        let mut any = false;
        while let Some((buffer, range)) = self.endpoint.next_passed() {
            any = true;
            let bytes = Buffer::bytes(&buffer);
            let packet = &bytes[range.clone()];
            let owner = self.common.division.are_several().then(|| syn::flow(packet)).flatten();
            let owner = owner.and_then(|flow| self.common.division.other(&flow.reversed(), self.number));
            self.counters.count(match owner {
                Some(owner) if self.endpoint.port().hand_over(owner, &bytes[..range.end]) => Counter::HandedOver,
                Some(_) => Counter::HandedOverLost,
                None if self.lane.write(packet).is_ok() => Counter::RawIn,
                None => Counter::RawInLost,
            });
        }
        while let Some(packet) = self.endpoint.next_undelivered() {
            any = true;
            self.undelivered(&packet);
        }
        any
    }

    /// A packet of a program's goes to the wire as it is.
    pub(super) fn pass_outward(&mut self, packet: &[u8]) {
        let now = self.clock.now();
        let Err(why) = self.endpoint.forward_packet(now, packet) else {
            self.counters.count(Counter::RawOut);
            return;
        };
        self.counters.count(Counter::RawOutLost);
        let Some((from, to)) = syn::addresses(packet) else { return };
        let reply = match why {
            Unforwarded::NoRoute => answer::failed(packet, to, from, Cause::NetUnreachable),
            Unforwarded::Unreachable => answer::failed(packet, to, from, Cause::HostUnreachable),
            Unforwarded::TooBig(mtu) => Some(answer::too_big(packet, to, from, mtu)),
            // As on a wire that is full, or unplugged.
            _ => None,
        };
        if let Some(reply) = reply {
            self.tell_program(&reply);
        }
    }

    /// A packet of a program's had to wait for a neighbour, who does not answer.
    fn undelivered(&mut self, packet: &[u8]) {
        self.counters.count(Counter::RawOutLost);
        let told = |(from, to)| answer::failed(packet, to, from, Cause::HostUnreachable);
        if let Some(reply) = syn::addresses(packet).and_then(told) {
            self.tell_program(&reply);
        }
    }

    /// A packet that a program's kernel takes for the network's.
    pub(super) fn tell_program(&mut self, packet: &[u8]) {
        if self.lane.write(packet).is_err() {
            self.counters.count(Counter::RawInLost);
        }
    }
}
