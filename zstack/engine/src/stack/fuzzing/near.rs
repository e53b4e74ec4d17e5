//! Segments and ICMP errors whose numbers lie near those of a connection.

use super::{Bed, Input, OURS, THEIRS};
use crate::tuple::Tuple;
use std::net::SocketAddr;
use zstack_wire::tcp::{Flags, Header, Range, Sack, Timestamps};
use zstack_wire::{Seq, icmpv4, ipv4, protocol};

/// What the peer of a connection knows of it.
struct Known {
    tuple: Tuple,
    una: Seq,
    nxt: Seq,
    rcv_nxt: Seq,
    edge: Seq,
    /// Its last timestamp, and ours.
    stamps: Option<(u32, u32)>,
}

impl Bed {
    /// The numbers of one of the connections.
    fn known(&self, choice: u8) -> Option<Known> {
        let count = self.stack.conns.len() as usize;
        let (_, _, entry) = self.stack.conns.iter().nth(usize::from(choice).checked_rem(count)?)?;
        let tuple = entry.names.tuple;
        let last = self.wire.last.get(&(tuple.remote().ip(), tuple.remote_port, tuple.local_port));
        let sent = last.and_then(|(header, _)| header.timestamps).map_or(0, |stamps| stamps.value);
        if let Some(state) = entry.tcb.state() {
            let stamps = state.stamps.map(|stamps| (stamps.recent, sent));
            let (una, nxt, rcv_nxt, edge) = (state.una, state.nxt, state.rcv_nxt, state.rcv_edge);
            return Some(Known { tuple, una, nxt, rcv_nxt, edge, stamps });
        }
        let (header, len) = last?;
        let numbers = u32::from(header.flags.0 & (Flags::SYN.0 | Flags::FIN.0) != 0);
        Some(Known {
            tuple,
            una: header.seq,
            nxt: header.seq + *len + numbers,
            rcv_nxt: header.ack,
            edge: header.ack + u32::from(header.window),
            stamps: header.timestamps.map(|stamps| (stamps.echo, stamps.value)),
        })
    }

    /// A segment of the peer, or near what it would send.
    pub(super) fn segment(&mut self, input: &mut Input<'_>) {
        let (choice, shape, kind) = (input.u8(), input.u16(), input.u8());
        if choice >= 0xf8 {
            return self.stranger(input, choice);
        }
        let Some(known) = self.known(choice) else { return self.stranger(input, choice) };
        let delta = |input: &mut Input<'_>| {
            let far = input.u8();
            match far & 7 {
                0..=2 => u32::from(far >> 3),
                3 => u32::from(far >> 3).wrapping_neg(),
                4 => u32::from(far >> 3) * 1460,
                5 => (u32::from(far >> 3) * 1460).wrapping_neg(),
                6 => 1 << (far >> 3),
                _ => input.u32(),
            }
        };
        let seq = match shape & 7 {
            0..=3 => known.rcv_nxt,
            4 => known.rcv_nxt + delta(input),
            5 => known.edge - delta(input),
            6 => known.rcv_nxt - delta(input),
            _ => known.rcv_nxt + 1460 * u32::from(input.u8() % 20),
        };
        let ack = match shape >> 3 & 3 {
            0 => known.nxt,
            1 => known.una,
            2 => known.una + delta(input),
            _ => known.nxt - delta(input),
        };
        let flags = match kind & 15 {
            0..=8 => Flags::ACK,
            9 => Flags::ACK.with(Flags::FIN),
            10 => Flags::RST,
            11 => Flags::SYN,
            12 => Flags::SYN.with(Flags::ACK),
            13 => Flags::ACK.with(Flags::PSH),
            14 => Flags::RST.with(Flags::ACK),
            _ => Flags(input.u8()),
        };
        let len = match kind >> 4 & 3 {
            0 => 0,
            1 => 1,
            2 => usize::from(input.u8()),
            _ => 1448,
        };
        let mut sack = Sack::default();
        for _ in 0..shape >> 5 & 3 {
            let left = known.una + delta(input);
            sack.push(Range { left, right: left + delta(input) });
        }
        let timestamps = known.stamps.filter(|_| shape & 0x80 == 0).map(|(recent, sent)| {
            let far = if shape & 0x100 != 0 { delta(input) } else { 0 };
            Timestamps { value: recent.wrapping_add(far), echo: sent.wrapping_sub(u32::from(kind >> 6)) }
        });
        let syn = flags.has(Flags::SYN);
        let header = Header {
            seq,
            ack,
            flags,
            window: if shape & 0x200 != 0 { input.u16() } else { 40_000 },
            sack,
            timestamps,
            mss: syn.then(|| input.u16()),
            scale: (syn && shape & 0x400 != 0).then(|| input.u8()),
            sack_permitted: syn && shape & 0x800 != 0,
            ..Header::default()
        };
        self.arrives(known.tuple.local(), known.tuple.remote(), header, len);
    }

    /// A segment of no connection.
    fn stranger(&mut self, input: &mut Input<'_>, choice: u8) {
        let (port, flags) = (input.u8(), input.u8());
        let header = Header {
            seq: Seq(input.u32()),
            ack: Seq(input.u32()),
            flags: if flags & 0xc0 == 0 { Flags::SYN } else { Flags(flags) },
            window: 1000,
            mss: (flags & 0x40 != 0).then_some(1460),
            timestamps: (flags & 0x80 != 0).then_some(Timestamps { value: 7, echo: 0 }),
            ..Header::default()
        };
        let remote = SocketAddr::new(THEIRS.into(), 2000 + u16::from(port >> 2));
        self.arrives(SocketAddr::new(OURS.into(), 80 + u16::from(choice & 1)), remote, header, usize::from(port & 3));
    }

    fn arrives(&mut self, local: SocketAddr, remote: SocketAddr, header: Header, len: usize) {
        let header = Header { source: remote.port(), destination: local.port(), ..header };
        let mut bytes = vec![0; header.len()];
        header.emit(&mut bytes);
        bytes.resize(bytes.len() + len, 0x61);
        self.sum(remote.ip(), local.ip(), protocol::TCP, &mut bytes);
        self.deliver(remote.ip(), local.ip(), protocol::TCP, &bytes);
    }

    /// An ICMP error about a segment near one that is in flight.
    pub(super) fn icmp(&mut self, input: &mut Input<'_>) {
        let (choice, kind, code, far) = (input.u8(), input.u8(), input.u8(), input.u16());
        let Some(known) = self.known(choice) else { return };
        let (SocketAddr::V4(local), SocketAddr::V4(remote)) = (known.tuple.local(), known.tuple.remote()) else {
            return;
        };
        let quoted = ipv4::Header {
            source: *local.ip(),
            destination: *remote.ip(),
            protocol: protocol::TCP,
            ttl: 60,
            tos: 0,
            id: 1,
            dont_fragment: true,
            payload: 1000,
        };
        let mut quote = vec![0; ipv4::HEADER];
        quoted.emit(&mut quote);
        quote.extend_from_slice(&local.port().to_be_bytes());
        quote.extend_from_slice(&remote.port().to_be_bytes());
        let seq = if kind & 0x80 != 0 { known.una + u32::from(far) } else { known.una - u32::from(kind & 1) };
        quote.extend_from_slice(&seq.0.to_be_bytes());
        let error = match kind & 3 {
            0 => icmpv4::Error::TooBig { mtu: far },
            1 => icmpv4::Error::TimeExceeded(code & 1),
            2 => icmpv4::Error::ParameterProblem { code: 0, pointer: code },
            _ => icmpv4::Error::Unreachable(code & 15),
        };
        let message = icmpv4::Message::Error { error, quote: &quote };
        let mut bytes = vec![0; message.len()];
        message.emit(&mut bytes);
        self.deliver((*remote.ip()).into(), (*local.ip()).into(), protocol::ICMP, &bytes);
    }

    /// The peer answers the SYN of the connection that is being opened, and another one opens a connection to us.
    pub(super) fn handshake(&mut self) {
        self.stranger(&mut Input(&[0, 0xc2, 1, 1, 1, 1]), 0);
        self.turns();
        for choice in 0..self.stack.conns.len() as u8 {
            let Some(known) = self.known(choice) else { continue };
            let count = self.stack.conns.len() as usize;
            let phase = self.stack.conns.iter().nth(usize::from(choice) % count).map(|(_, _, entry)| entry.tcb.phase());
            let answer = match phase {
                Some(crate::tcp::Phase::SynSent) => Header {
                    seq: Seq(0x7fff_fff0),
                    ack: known.nxt,
                    flags: Flags::SYN.with(Flags::ACK),
                    window: 50_000,
                    mss: Some(1460),
                    scale: Some(3),
                    sack_permitted: true,
                    timestamps: known.stamps.map(|(_, sent)| Timestamps { value: 900, echo: sent }),
                    ..Header::default()
                },
                Some(crate::tcp::Phase::SynReceived) => Header {
                    seq: known.rcv_nxt,
                    ack: known.nxt,
                    flags: Flags::ACK,
                    window: 50_000,
                    timestamps: known.stamps.map(|(recent, sent)| Timestamps { value: recent, echo: sent }),
                    ..Header::default()
                },
                _ => continue,
            };
            self.arrives(known.tuple.local(), known.tuple.remote(), answer, 0);
        }
        self.turns();
    }
}
