//! Packets that programs send into the tun: which of them is the SYN of a new connection, and what its options ask for.

use crate::flow::Flow;
use std::net::{IpAddr, SocketAddr};
use zstack_wire::tcp::{Flags, Segment};
use zstack_wire::{Seq, ipv4, ipv6, protocol};

/// A SYN that opens a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Syn {
    /// Whose it is.
    pub flow: Flow,
    /// Its sequence number, by which repetitions are told from another attempt.
    pub isn: Seq,
    /// It asks for something that a split connection would not give: see [`exotic`].
    pub exotic: Option<&'static str>,
}

/// The addresses of a packet: where it comes from, where it goes to.
pub fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match packet.first()? >> 4 {
        4 => ipv4::Packet::parse(packet).ok().map(|ip| (ip.source().into(), ip.destination().into())),
        6 => ipv6::Packet::parse(packet).ok().map(|ip| (ip.source().into(), ip.destination().into())),
        _ => None,
    }
}

/// The connection that a TCP segment of a program's belongs to. `None`: it is no TCP, or a fragment.
pub fn flow(packet: &[u8]) -> Option<Flow> {
    segment(packet).map(|(flow, _)| flow)
}

/// Looks at a packet of a program's. `None`: it is no SYN that opens a connection.
pub fn parse(packet: &[u8]) -> Option<Syn> {
    let (flow, segment) = segment(packet)?;
    let header = Segment::parse(segment).ok()?.fixed();
    if !header.flags.has(Flags::SYN) || header.flags.has(Flags::ACK) || header.flags.has(Flags::RST) {
        return None;
    }
    Some(Syn { flow, isn: header.seq, exotic: exotic(segment) })
}

/// A TCP segment in an IP packet, and whose it is.
fn segment(packet: &[u8]) -> Option<(Flow, &[u8])> {
    let (source, destination, segment): (IpAddr, IpAddr, &[u8]) = match packet.first()? >> 4 {
        4 => {
            let ip =
                ipv4::Packet::parse(packet).ok().filter(|ip| !ip.is_fragment() && ip.protocol() == protocol::TCP)?;
            (ip.source().into(), ip.destination().into(), ip.payload())
        }
        6 => {
            let ip =
                ipv6::Packet::parse(packet).ok().filter(|ip| !ip.is_fragment() && ip.protocol() == protocol::TCP)?;
            (ip.source().into(), ip.destination().into(), ip.payload())
        }
        _ => return None,
    };
    let tcp = Segment::parse(segment).ok()?;
    let flow =
        Flow { local: SocketAddr::new(source, tcp.source()), remote: SocketAddr::new(destination, tcp.destination()) };
    Some((flow, segment))
}

/// The number of a segment's first byte. `segment`: its TCP header and what follows.
pub fn number(segment: &[u8]) -> Option<Seq> {
    Segment::parse(segment).ok().map(|tcp| tcp.fixed().seq)
}

/// Whether a segment opens a connection: a SYN that acknowledges nothing. `segment`: its TCP header and what follows.
pub fn is_first(segment: &[u8]) -> bool {
    Segment::parse(segment).is_ok_and(|tcp| {
        let flags = tcp.fixed().flags;
        flags.has(Flags::SYN) && !flags.has(Flags::ACK)
    })
}

/// What a SYN asks for that a connection in two parts cannot give its program, or the engine its peer: then the kernels of both
/// ends speak with each other. `segment`: its TCP header and what follows.
pub fn exotic(segment: &[u8]) -> Option<&'static str> {
    const MD5: u8 = 19;
    const AO: u8 = 29;
    const MPTCP: u8 = 30;
    const FAST_OPEN: u8 = 34;
    const EXPERIMENTS: [u8; 2] = [253, 254];
    let tcp = Segment::parse(segment).ok()?;
    let header_len = tcp.header_len();
    if segment.len() > header_len {
        return Some("payload in its SYN");
    }
    let mut options = segment.get(20..header_len)?;
    while let [kind, rest @ ..] = options {
        match *kind {
            0 => return None,
            1 => {
                options = rest;
                continue;
            }
            MD5 => return Some("MD5 signatures"),
            AO => return Some("TCP-AO"),
            MPTCP => return Some("MPTCP"),
            FAST_OPEN => return Some("TCP Fast Open"),
            kind if EXPERIMENTS.contains(&kind) => return Some("an experimental option"),
            _ => {}
        }
        let len = usize::from(*rest.first()?);
        // A length that cannot be ends the options (tcp_parse_options).
        options = if len < 2 { &[] } else { options.get(len..)? };
    }
    None
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use zstack_wire::tcp::Header;

    /// A SYN as a program's kernel sends it, with these options behind the usual ones.
    pub(crate) fn packet(flow: Flow, isn: u32, flags: Flags, options: &[u8]) -> Vec<u8> {
        let header = Header {
            source: flow.local.port(),
            destination: flow.remote.port(),
            seq: Seq(isn),
            flags,
            mss: Some(1460).filter(|_| flags.has(Flags::SYN)),
            ..Header::default()
        };
        let mut segment = vec![0; header.len() + options.len()];
        header.emit(&mut segment);
        let len = segment.len();
        segment[len - options.len()..].copy_from_slice(options);
        segment[12] = (len as u8 / 4) << 4;
        crate::packet::around(flow.local.ip(), flow.remote.ip(), protocol::TCP, &segment)
    }

    fn flow(v6: bool) -> Flow {
        let text = if v6 { ["[fd00::1]:40000", "[fd00::2]:80"] } else { ["10.1.0.1:40000", "10.9.0.2:80"] };
        Flow { local: text[0].parse().unwrap(), remote: text[1].parse().unwrap() }
    }

    #[test]
    fn a_syn_is_found() {
        for v6 in [false, true] {
            let syn = parse(&packet(flow(v6), 77, Flags::SYN, &[])).unwrap();
            assert_eq!(syn, Syn { flow: flow(v6), isn: Seq(77), exotic: None });
        }
    }

    #[test]
    fn other_packets_are_not() {
        for flags in [Flags::ACK, Flags::RST, Flags::FIN, Flags::SYN.with(Flags::ACK), Flags::SYN.with(Flags::RST)] {
            assert_eq!(parse(&packet(flow(false), 77, flags, &[])), None, "{flags:?}");
        }
        let whole = packet(flow(false), 77, Flags::SYN, &[]);
        (0..whole.len()).for_each(|len| assert_eq!(parse(&whole[..len]), None, "{len}"));
        let mut udp = whole.clone();
        udp[9] = protocol::UDP;
        assert_eq!(parse(&udp), None);
    }

    #[test]
    fn options_that_are_not_carried() {
        for (options, what) in [
            (&[34, 2, 1, 1][..], "TCP Fast Open"),
            (&[1, 30, 3, 0][..], "MPTCP"),
            (&[253, 4, 0xf9, 0x89][..], "an experimental option"),
            (&[19, 18, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1][..], "MD5 signatures"),
        ] {
            assert_eq!(parse(&packet(flow(false), 1, Flags::SYN, options)).unwrap().exotic, Some(what));
        }
        for fine in
            [&[8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1][..], &[1, 3, 3, 7], &[4, 2, 0, 34], &[200, 0, 34, 2], &[7, 1, 1, 1]]
        {
            assert_eq!(parse(&packet(flow(true), 1, Flags::SYN, fine)).unwrap().exotic, None, "{fine:?}");
        }
    }
}
