//! What a program is told, in packets that its kernel takes for the network's: a connection was refused, or a host cannot be reached.

use crate::flow::Flow;
use crate::packet;
use std::net::IpAddr;
use zstack::tcp::Cause;
use zstack_wire::checksum::Sum;
use zstack_wire::tcp::{Flags, Header};
use zstack_wire::{Seq, ipv4, ipv6, protocol};

/// So much of a packet is quoted: what fits into the least packet that every link takes (RFC 1812, section 4.3.2.3; RFC 4443).
const QUOTE: [usize; 2] = [576 - ipv4::HEADER - 8, 1280 - ipv6::HEADER - 8];

/// The RST by which the remote host refuses the SYN with the number `isn` (RFC 9293, section 3.10.7.1).
pub fn refusal(flow: &Flow, isn: Seq) -> Vec<u8> {
    let header = Header {
        source: flow.remote.port(),
        destination: flow.local.port(),
        ack: Seq(isn.0.wrapping_add(1)),
        flags: Flags::RST.with(Flags::ACK),
        ..Header::default()
    };
    let mut segment = [0; 60];
    let len = header.emit(&mut segment);
    let segment = &mut segment[..len];
    let (from, to) = (flow.remote.ip(), flow.local.ip());
    let sum = Sum::pseudo(from, to, protocol::TCP, len as u16).bytes(segment).field();
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    packet::around(from, to, protocol::TCP, segment)
}

/// The ICMP error that says of a packet of `to`'s why it does not reach `from`, its destination. It comes from there: who on the way
/// has said so is not known any more. `None`: this is not told by an error.
pub fn failed(sent: &[u8], from: IpAddr, to: IpAddr, why: Cause) -> Option<Vec<u8>> {
    let (kind, code) = why.icmp(to.is_ipv6())?;
    Some(error(sent, from, to, kind, code, 0))
}

/// The ICMP error that says of a program's packet that it is longer than the wire's MTU, in bytes. It comes from `router`.
pub fn too_big(sent: &[u8], router: IpAddr, to: IpAddr, mtu: u16) -> Vec<u8> {
    let (kind, code) = if to.is_ipv4() { (3, 4) } else { (2, 0) };
    error(sent, router, to, kind, code, u32::from(mtu))
}

fn error(sent: &[u8], from: IpAddr, to: IpAddr, kind: u8, code: u8, rest: u32) -> Vec<u8> {
    let v4 = to.is_ipv4();
    let quote = &sent[..sent.len().min(QUOTE[usize::from(!v4)])];
    let mut message = vec![kind, code, 0, 0];
    message.extend_from_slice(&rest.to_be_bytes());
    message.extend_from_slice(quote);
    let sum = if v4 {
        Sum::default().bytes(&message)
    } else {
        Sum::pseudo(from, to, protocol::ICMPV6, message.len() as u16).bytes(&message)
    };
    message[2..4].copy_from_slice(&sum.field().to_be_bytes());
    packet::around(from, to, if v4 { protocol::ICMP } else { protocol::ICMPV6 }, &message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::syn::tests::packet as syn;
    use zstack_wire::icmpv4::{self, Message};
    use zstack_wire::{icmpv6, tcp};

    fn flow(v6: bool) -> Flow {
        let text = if v6 { ["[fd00::1]:40000", "[fd00::2]:80"] } else { ["10.1.0.1:40000", "10.9.0.2:80"] };
        Flow { local: text[0].parse().unwrap(), remote: text[1].parse().unwrap() }
    }

    #[test]
    fn a_refusal_acknowledges_the_syn() {
        let bytes = refusal(&flow(false), Seq(u32::MAX));
        let ip = ipv4::Packet::parse(&bytes).unwrap();
        assert!(ip.checksum_valid() && ip.pseudo().bytes(ip.payload()).valid());
        let (header, _) = tcp::Header::parse(ip.payload()).unwrap();
        assert_eq!((header.source, header.destination, header.ack), (80, 40000, Seq(0)));
        assert!(header.flags.has(Flags::RST) && header.flags.has(Flags::ACK) && !header.flags.has(Flags::SYN));
        let bytes = refusal(&flow(true), Seq(5));
        let ip = ipv6::Packet::parse(&bytes).unwrap();
        assert!(ip.pseudo().bytes(ip.payload()).valid());
    }

    #[test]
    fn errors_quote_what_was_sent() {
        let causes = [Cause::NetUnreachable, Cause::HostUnreachable, Cause::Refused, Cause::Prohibited];
        for (why, code) in causes.into_iter().zip([0, 1, 3, 13]) {
            let sent = syn(flow(false), 1, Flags::SYN, &[]);
            let bytes = failed(&sent, flow(false).remote.ip(), flow(false).local.ip(), why).unwrap();
            let ip = ipv4::Packet::parse(&bytes).unwrap();
            assert!(icmpv4::checksum_valid(ip.payload()));
            let expected = icmpv4::Error::Unreachable(code);
            assert_eq!(Message::parse(ip.payload()), Ok(Message::Error { error: expected, quote: &sent }));
        }
        for (why, code) in causes.into_iter().zip([0, 3, 4, 1]) {
            let sent = syn(flow(true), 1, Flags::SYN, &[]);
            let bytes = failed(&sent, flow(true).remote.ip(), flow(true).local.ip(), why).unwrap();
            let ip = ipv6::Packet::parse(&bytes).unwrap();
            assert!(ip.pseudo().bytes(ip.payload()).valid());
            let expected = icmpv6::Error::Unreachable(code);
            assert_eq!(
                icmpv6::Message::parse(ip.payload()),
                Ok(icmpv6::Message::Error { error: expected, quote: &sent })
            );
        }
    }

    #[test]
    fn a_long_packet_is_quoted_in_part() {
        let sent = packet::around("10.1.0.1".parse().unwrap(), "10.9.0.2".parse().unwrap(), protocol::UDP, &[0; 3000]);
        let bytes = too_big(&sent, "10.9.0.2".parse().unwrap(), "10.1.0.1".parse().unwrap(), 1500);
        assert_eq!(bytes.len(), 576);
        let ip = ipv4::Packet::parse(&bytes).unwrap();
        let Ok(Message::Error { error, .. }) = Message::parse(ip.payload()) else { panic!() };
        assert_eq!(error, icmpv4::Error::TooBig { mtu: 1500 });
    }
}
