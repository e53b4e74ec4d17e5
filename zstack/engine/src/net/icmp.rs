//! ICMP (RFC 792) and ICMPv6 (RFC 4443): echo both ways, errors about packets of ours, and "port unreachable" for UDP.

use super::input::{Arrival, Ip, Link};
use super::interface::{Interface, Path, Verdict};
use super::output::{HOPS, Packet};
use super::pmtu::plateau;
use super::report::{Kind, Quoted, Report};
use super::unsent::Unsent;
use crate::counters::Counter;
use crate::time::Time;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use zstack_wire::checksum::Sum;
use zstack_wire::ethernet::ethertype;
use zstack_wire::icmpv4::{self, Echo, unreachable};
use zstack_wire::{Seq, icmpv6, ipv4, ipv6, protocol, udp};

/// How long an error may be, IP header included: RFC 1812, section 4.3.2.3; RFC 4443, section 3.1.
const ERROR_V4: usize = 576;
const ERROR_V6: usize = 1280;

impl Interface {
    #[cold]
    #[inline(never)]
    pub(super) fn icmp_v4(&mut self, arrival: Arrival<'_>, link: Link, ip: Ip) -> Result<Verdict, Counter> {
        self.message_v4(arrival, link, ip).or_else(|reason| self.useless(reason))
    }

    fn message_v4(&mut self, arrival: Arrival<'_>, link: Link, ip: Ip) -> Result<Verdict, Counter> {
        let bytes = &arrival.frame[ip.payload..ip.end];
        if !icmpv4::checksum_valid(bytes) {
            return Err(Counter::IcmpChecksum);
        }
        match icmpv4::Message::parse(bytes).map_err(|_| Counter::IcmpMalformed)? {
            icmpv4::Message::EchoRequest(echo) => self.answer_echo(arrival, link, ip, echo),
            icmpv4::Message::EchoReply(echo) => Ok(echoed(ip, echo)),
            icmpv4::Message::Error { error, quote } => {
                let quoted = ipv4::Packet::quoted(quote).map_err(|_| Counter::IcmpMalformed)?;
                let kind = kind_v4(error, quoted.total_len()).ok_or(Counter::IcmpUnwanted)?;
                let ends = (quoted.source().into(), quoted.destination().into());
                let whole = quoted.fragment_offset() == 0;
                self.report(ip, kind, ends, quoted.protocol(), if whole { quoted.payload() } else { &[] })
            }
            icmpv4::Message::Other { .. } => Err(Counter::IcmpUnwanted),
        }
    }

    #[cold]
    #[inline(never)]
    pub(super) fn icmp_v6(
        &mut self,
        arrival: Arrival<'_>,
        link: Link,
        ip: Ip,
        ends: (Ipv6Addr, Ipv6Addr),
    ) -> Result<Verdict, Counter> {
        // Where there are stations, neighbour discovery is ours alone, and so is what speaks to groups.
        let discovery = matches!(arrival.frame.get(ip.payload), Some(133..=137));
        let ours = self.mac.is_some() && (discovery || ends.0.is_unspecified() || ends.1.is_multicast());
        let verdict = self.message_v6(arrival, link, ip, ends);
        verdict.or_else(|reason| if ours { Err(reason) } else { self.useless(reason) })
    }

    fn message_v6(
        &mut self,
        arrival: Arrival<'_>,
        link: Link,
        ip: Ip,
        ends: (Ipv6Addr, Ipv6Addr),
    ) -> Result<Verdict, Counter> {
        let bytes = &arrival.frame[ip.payload..ip.end];
        if !Sum::pseudo_v6(&ends.0, &ends.1, protocol::ICMPV6, bytes.len() as u32).bytes(bytes).valid() {
            return Err(Counter::IcmpChecksum);
        }
        let message = icmpv6::Message::parse(bytes).map_err(|malformed| match malformed {
            icmpv6::Malformed::Ndp(_) => Counter::NeighbourMalformed,
            icmpv6::Malformed::Truncated => Counter::IcmpMalformed,
        })?;
        if let icmpv6::Message::Ndp(message) = message {
            return self.ndp(arrival, link, ip, ends, message);
        }
        // Only neighbour discovery speaks to groups, and only it from no address.
        if ends.1.is_multicast() {
            return Err(Counter::IpDestinationMany);
        }
        if ends.0.is_unspecified() {
            return Err(Counter::IpSourceInvalid);
        }
        match message {
            icmpv6::Message::EchoRequest(echo) => self.answer_echo(arrival, link, ip, echo),
            icmpv6::Message::EchoReply(echo) => Ok(echoed(ip, echo)),
            icmpv6::Message::Error { error, quote } => {
                let quoted = ipv6::Packet::quoted(quote).map_err(|_| Counter::IcmpMalformed)?;
                let kind = kind_v6(error).ok_or(Counter::IcmpUnwanted)?;
                let ends = (quoted.source().into(), quoted.destination().into());
                self.report(
                    ip,
                    kind,
                    ends,
                    quoted.protocol(),
                    if quoted.is_fragment() { &[] } else { quoted.payload() },
                )
            }
            icmpv6::Message::Ndp(_) | icmpv6::Message::Other { .. } => Err(Counter::IcmpUnwanted),
        }
    }

    /// An error about a packet of ours, as far as the quotation can say (RFC 5927, section 4; RFC 1122, 3.2.2).
    fn report(
        &self,
        ip: Ip,
        kind: Kind,
        (source, destination): (IpAddr, IpAddr),
        protocol: u8,
        quote: &[u8],
    ) -> Result<Verdict, Counter> {
        // It was sent to whoever sent the packet.
        if source != ip.destination {
            return Err(Counter::IcmpUnknown);
        }
        let &[a, b, c, d, e, f, g, h, ..] = quote else { return Err(Counter::IcmpMalformed) };
        let quoted = match (protocol, source.is_ipv4(), a) {
            (protocol::TCP, ..) => Quoted::Tcp {
                local: SocketAddr::new(source, u16::from_be_bytes([a, b])),
                remote: SocketAddr::new(destination, u16::from_be_bytes([c, d])),
                seq: Seq(u32::from_be_bytes([e, f, g, h])),
            },
            (protocol::ICMP, true, 8) | (protocol::ICMPV6, false, 128) => {
                Quoted::Echo { destination, id: u16::from_be_bytes([e, f]), sequence: u16::from_be_bytes([g, h]) }
            }
            _ => return Err(Counter::IcmpUnknown),
        };
        Ok(Verdict::Report(Report { kind, from: ip.source, quoted }))
    }

    fn answer_echo(&mut self, arrival: Arrival<'_>, link: Link, ip: Ip, echo: Echo<'_>) -> Result<Verdict, Counter> {
        if self.bridge {
            return Err(Counter::IcmpUnwanted);
        }
        if !self.echoes.take(arrival.now) {
            return Err(Counter::IcmpLimited);
        }
        let message = match ip.source {
            IpAddr::V4(_) => Message::V4(icmpv4::Message::EchoReply(echo)),
            IpAddr::V6(_) => Message::V6(icmpv6::Message::EchoReply(echo)),
        };
        let len = self.answer(arrival.reply, link, ip, message).ok_or(Counter::IcmpLimited)?;
        arrival.counters.count(Counter::IcmpEcho);
        Ok(Verdict::Reply(len))
    }

    /// UDP is not spoken here, and that is said (RFC 1122, 4.1.3.1).
    #[cold]
    #[inline(never)]
    pub(super) fn udp(&mut self, arrival: Arrival<'_>, link: Link, ip: Ip) -> Result<Verdict, Counter> {
        if self.bridge {
            return Ok(Verdict::Pass);
        }
        let datagram = udp::Datagram::parse(&arrival.frame[ip.payload..ip.end]).map_err(|_| Counter::UdpMalformed)?;
        if !arrival.verified && !datagram.checksum_valid(ip.source, ip.destination) {
            return Err(Counter::UdpMalformed);
        }
        if !self.errors.take(arrival.now) {
            return Err(Counter::IcmpLimited);
        }
        let packet = &arrival.frame[link.start..ip.end];
        let message = match ip.source {
            IpAddr::V4(_) => {
                let quote = &packet[..packet.len().min(ERROR_V4 - ipv4::HEADER - icmpv4::HEADER)];
                Message::V4(icmpv4::Message::Error { error: icmpv4::Error::Unreachable(unreachable::PORT), quote })
            }
            IpAddr::V6(_) => {
                let quote = &packet[..packet.len().min(ERROR_V6 - ipv6::HEADER - icmpv6::HEADER)];
                Message::V6(icmpv6::Message::Error {
                    error: icmpv6::Error::Unreachable(icmpv6::unreachable::PORT),
                    quote,
                })
            }
        };
        let len = self.answer(arrival.reply, link, ip, message).ok_or(Counter::IcmpLimited)?;
        arrival.counters.count(Counter::UdpUnreachable);
        Ok(Verdict::Reply(len))
    }

    /// Builds a message back to where the packet came from.
    fn answer(&mut self, out: &mut [u8], link: Link, ip: Ip, message: Message<'_>) -> Option<usize> {
        let ethertype = if ip.source.is_ipv4() { ethertype::IPV4 } else { ethertype::IPV6 };
        let at = self.frame_link(out, link.from, ethertype)?;
        let id = Some(self.next_id());
        message.emit(out, at, ip.destination, ip.source, id)
    }

    /// Builds an echo request in `out`; the answer is a [`Verdict::Echo`], an error a [`Verdict::Report`]. `source`: one of our
    /// addresses, or `None` for the one that [`Interface::source`] chooses. The packet must not be fragmented on its way.
    ///
    /// # Errors
    /// It cannot be sent now: ask again after the event, if one is promised.
    #[allow(clippy::too_many_arguments)]
    pub fn echo(
        &mut self,
        now: Time,
        out: &mut [u8],
        source: Option<IpAddr>,
        destination: IpAddr,
        id: u16,
        sequence: u16,
        data: &[u8],
    ) -> Result<usize, Unsent> {
        let source = source.or_else(|| self.source(destination)).ok_or(Unsent::NoRoute)?;
        let mut path = Path::default();
        let link = *self.find(now, &mut path, destination)?;
        // A link header without a tag stands at the end of its array.
        let at = self.neighbours.link_len();
        out.get_mut(..at).ok_or(Unsent::Long)?.copy_from_slice(&link[link.len() - at..]);
        let echo = Echo { id, sequence, data };
        let message = match destination {
            IpAddr::V4(_) => Message::V4(icmpv4::Message::EchoRequest(echo)),
            IpAddr::V6(_) => Message::V6(icmpv6::Message::EchoRequest(echo)),
        };
        let len = message.emit(out, at, source, destination, None).ok_or(Unsent::Long)?;
        if len - at > usize::from(self.mtu) { Err(Unsent::Long) } else { Ok(len) }
    }
}

/// A message of either version.
#[derive(Clone, Copy)]
enum Message<'a> {
    V4(icmpv4::Message<'a>),
    V6(icmpv6::Message<'a>),
}

impl Message<'_> {
    /// Writes IP header and message from `at` on, and returns where they end; `None`: they do not fit.
    fn emit(&self, out: &mut [u8], at: usize, source: IpAddr, destination: IpAddr, id: Option<u16>) -> Option<usize> {
        let (len, protocol) = match self {
            Message::V4(message) => (message.len(), protocol::ICMP),
            Message::V6(message) => (message.len(), protocol::ICMPV6),
        };
        let packet = Packet { source, destination, protocol, hops: HOPS, class: 0, id, len: u16::try_from(len).ok()? };
        let at = at + packet.emit(out.get_mut(at..)?)?;
        let body = out.get_mut(at..at + len)?;
        match (self, source, destination) {
            (Message::V4(message), IpAddr::V4(_), _) => message.emit(body),
            (Message::V6(message), IpAddr::V6(source), IpAddr::V6(destination)) => {
                message.emit(&source, &destination, body)
            }
            _ => return None,
        };
        Some(at + len)
    }
}

fn echoed(ip: Ip, echo: Echo<'_>) -> Verdict {
    let range = ip.end - echo.data.len()..ip.end;
    Verdict::Echo { from: ip.source, id: echo.id, sequence: echo.sequence, hops: ip.hops, range }
}

/// `len`: the length of the packet that it is about.
fn kind_v4(error: icmpv4::Error, len: u16) -> Option<Kind> {
    Some(match error {
        icmpv4::Error::Unreachable(code) => match code {
            unreachable::NET | unreachable::NET_UNKNOWN | unreachable::NET_TOS => Kind::Network,
            unreachable::HOST | unreachable::HOST_TOS => Kind::Host,
            unreachable::SOURCE_ROUTE => Kind::SourceRoute,
            unreachable::HOST_UNKNOWN => Kind::HostUnknown,
            unreachable::ISOLATED => Kind::Isolated,
            unreachable::PROTOCOL => Kind::Protocol,
            unreachable::PORT => Kind::Port,
            unreachable::NET_PROHIBITED => Kind::NetworkProhibited,
            unreachable::HOST_PROHIBITED
            | unreachable::PROHIBITED
            | unreachable::PRECEDENCE
            | unreachable::PRECEDENCE_CUTOFF => Kind::Prohibited,
            _ => return None,
        },
        icmpv4::Error::TooBig { mtu: 0 } => Kind::TooBig(plateau(len)),
        icmpv4::Error::TooBig { mtu } => Kind::TooBig(mtu),
        icmpv4::Error::TimeExceeded(_) => Kind::TimeExceeded,
        icmpv4::Error::ParameterProblem { .. } => Kind::Malformed,
        // RFC 6633; routes are static.
        icmpv4::Error::Quench | icmpv4::Error::Redirect { .. } => return None,
    })
}

fn kind_v6(error: icmpv6::Error) -> Option<Kind> {
    Some(match error {
        icmpv6::Error::Unreachable(code) => match code {
            icmpv6::unreachable::NO_ROUTE => Kind::Network,
            icmpv6::unreachable::SCOPE | icmpv6::unreachable::ADDRESS => Kind::Host,
            icmpv6::unreachable::PORT => Kind::Port,
            icmpv6::unreachable::PROHIBITED | icmpv6::unreachable::POLICY | icmpv6::unreachable::REJECT_ROUTE => {
                Kind::Prohibited
            }
            _ => return None,
        },
        icmpv6::Error::TooBig { mtu } => Kind::TooBig(u16::try_from(mtu).unwrap_or(u16::MAX)),
        icmpv6::Error::TimeExceeded(_) => Kind::TimeExceeded,
        // The next header that is not known: RFC 4443, section 3.4.
        icmpv6::Error::ParameterProblem { code: icmpv6::problem::NEXT_HEADER, .. } => Kind::Protocol,
        icmpv6::Error::ParameterProblem { .. } => Kind::Malformed,
        icmpv6::Error::Unknown { .. } => return None,
    })
}

#[cfg(test)]
mod tests;
