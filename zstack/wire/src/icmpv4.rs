//! ICMP (RFC 792).

use crate::checksum::Sum;
use std::net::Ipv4Addr;
use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The length of what stands before a message's body.
pub const HEADER: usize = 8;

/// Where in the message the checksum stands.
pub const CHECKSUM: usize = 2;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    kind: u8,
    code: u8,
    checksum: U16,
    rest: [u8; 4],
}

mod kind {
    pub const ECHO_REPLY: u8 = 0;
    pub const UNREACHABLE: u8 = 3;
    pub const QUENCH: u8 = 4;
    pub const REDIRECT: u8 = 5;
    pub const ECHO_REQUEST: u8 = 8;
    pub const TIME_EXCEEDED: u8 = 11;
    pub const PARAMETER_PROBLEM: u8 = 12;
}

/// Codes of [`Error::Unreachable`] (RFC 792; RFC 1812, section 5.2.7.1).
#[allow(missing_docs)]
pub mod unreachable {
    pub const NET: u8 = 0;
    pub const HOST: u8 = 1;
    pub const PROTOCOL: u8 = 2;
    pub const PORT: u8 = 3;
    /// Read and written as [`super::Error::TooBig`].
    pub const FRAGMENTATION_NEEDED: u8 = 4;
    pub const SOURCE_ROUTE: u8 = 5;
    pub const NET_UNKNOWN: u8 = 6;
    pub const HOST_UNKNOWN: u8 = 7;
    pub const ISOLATED: u8 = 8;
    pub const NET_PROHIBITED: u8 = 9;
    pub const HOST_PROHIBITED: u8 = 10;
    pub const NET_TOS: u8 = 11;
    pub const HOST_TOS: u8 = 12;
    pub const PROHIBITED: u8 = 13;
    pub const PRECEDENCE: u8 = 14;
    pub const PRECEDENCE_CUTOFF: u8 = 15;
}

/// Why bytes are not an ICMP message.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Malformed {
    /// Fewer bytes than a header has.
    Truncated,
}

/// What a router or host says of a packet that it was sent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Error {
    /// It did not reach its destination; the code is one of [`unreachable`].
    Unreachable(u8),
    /// It was larger than the next link takes, and must not be fragmented. (RFC 1191. Routers from before then write 0.)
    TooBig {
        /// The largest packet that the link takes.
        mtu: u16,
    },
    /// Deprecated by RFC 6633.
    Quench,
    /// Another router is nearer; the code says for which packets.
    Redirect {
        /// 0 or 2: for the network, 1 or 3: for the host.
        code: u8,
        /// The other router.
        gateway: Ipv4Addr,
    },
    /// No hops were left (code 0), or fragments were missing (code 1).
    TimeExceeded(u8),
    /// Its header has an error.
    ParameterProblem {
        /// With 0 the pointer counts.
        code: u8,
        /// The byte with the error.
        pointer: u8,
    },
}

/// A message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message<'a> {
    /// Asks for [`Message::EchoReply`].
    EchoRequest(Echo<'a>),
    /// Repeats what was asked.
    EchoReply(Echo<'a>),
    /// Something happened to a packet of the receiver's.
    Error {
        /// What happened.
        error: Error,
        /// The beginning of that packet ([`crate::ipv4::Packet::quoted`]). Extensions (RFC 4884) may follow it.
        quote: &'a [u8],
    },
    /// Anything else.
    Other {
        /// The type.
        kind: u8,
        /// The code.
        code: u8,
        /// What stands behind the checksum.
        rest: [u8; 4],
        /// What follows.
        body: &'a [u8],
    },
}

/// What an echo request asks to have repeated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Echo<'a> {
    /// Whose it is.
    pub id: u16,
    /// Its number.
    pub sequence: u16,
    /// Anything.
    pub data: &'a [u8],
}

impl<'a> Echo<'a> {
    pub(crate) fn read(rest: [u8; 4], data: &'a [u8]) -> Echo<'a> {
        let [a, b, c, d] = rest;
        Echo { id: u16::from_be_bytes([a, b]), sequence: u16::from_be_bytes([c, d]), data }
    }

    pub(crate) fn rest(&self) -> [u8; 4] {
        let ([a, b], [c, d]) = (self.id.to_be_bytes(), self.sequence.to_be_bytes());
        [a, b, c, d]
    }
}

/// Whether the checksum of the message, all of `bytes`, is right.
pub fn checksum_valid(bytes: &[u8]) -> bool {
    Sum::ZERO.bytes(bytes).valid()
}

impl<'a> Message<'a> {
    /// Looks at the message that is all of `bytes`. The checksum is not looked at: see [`checksum_valid`].
    ///
    /// # Errors
    /// It is too short.
    pub fn parse(bytes: &'a [u8]) -> Result<Message<'a>, Malformed> {
        let Ok((&Raw { kind, code, rest, .. }, body)) = Raw::ref_from_prefix(bytes) else {
            return Err(Malformed::Truncated);
        };
        let error = match (kind, code) {
            (kind::ECHO_REQUEST, 0) => return Ok(Message::EchoRequest(Echo::read(rest, body))),
            (kind::ECHO_REPLY, 0) => return Ok(Message::EchoReply(Echo::read(rest, body))),
            (kind::UNREACHABLE, unreachable::FRAGMENTATION_NEEDED) => {
                Error::TooBig { mtu: u16::from_be_bytes([rest[2], rest[3]]) }
            }
            (kind::UNREACHABLE, code) => Error::Unreachable(code),
            (kind::QUENCH, 0) => Error::Quench,
            (kind::REDIRECT, code) => Error::Redirect { code, gateway: rest.into() },
            (kind::TIME_EXCEEDED, code) => Error::TimeExceeded(code),
            (kind::PARAMETER_PROBLEM, code) => Error::ParameterProblem { code, pointer: rest[0] },
            (kind, code) => return Ok(Message::Other { kind, code, rest, body }),
        };
        Ok(Message::Error { error, quote: body })
    }

    /// The bytes before the body; the checksum's field is 0. For a body that is not copied: [`Sum`] over both belongs there.
    pub fn head(&self) -> [u8; HEADER] {
        let (kind, code, rest) = match *self {
            Message::EchoRequest(echo) => (kind::ECHO_REQUEST, 0, echo.rest()),
            Message::EchoReply(echo) => (kind::ECHO_REPLY, 0, echo.rest()),
            Message::Other { kind, code, rest, .. } => (kind, code, rest),
            Message::Error { error, .. } => match error {
                Error::Unreachable(code) => (kind::UNREACHABLE, code, [0; 4]),
                Error::TooBig { mtu } => {
                    let [a, b] = mtu.to_be_bytes();
                    (kind::UNREACHABLE, unreachable::FRAGMENTATION_NEEDED, [0, 0, a, b])
                }
                Error::Quench => (kind::QUENCH, 0, [0; 4]),
                Error::Redirect { code, gateway } => (kind::REDIRECT, code, gateway.octets()),
                Error::TimeExceeded(code) => (kind::TIME_EXCEEDED, code, [0; 4]),
                Error::ParameterProblem { code, pointer } => (kind::PARAMETER_PROBLEM, code, [pointer, 0, 0, 0]),
            },
        };
        zerocopy::transmute!(Raw { kind, code, checksum: U16::ZERO, rest })
    }

    /// What follows the [head](Message::head).
    pub fn body(&self) -> &'a [u8] {
        match *self {
            Message::EchoRequest(echo) | Message::EchoReply(echo) => echo.data,
            Message::Error { quote, .. } => quote,
            Message::Other { body, .. } => body,
        }
    }

    /// The length of the whole message.
    #[allow(clippy::len_without_is_empty, reason = "no message is empty")]
    pub fn len(&self) -> usize {
        HEADER + self.body().len()
    }

    /// Writes the whole message with its checksum to the first [`len`](Message::len) bytes of `into`, and says how many these
    /// are.
    ///
    /// # Panics
    /// If `into` is shorter.
    pub fn emit(&self, into: &mut [u8]) -> usize {
        let (head, body) = (self.head(), self.body());
        let into = &mut into[..HEADER + body.len()];
        into[..HEADER].copy_from_slice(&head);
        into[HEADER..].copy_from_slice(body);
        let field = Sum::ZERO.bytes(into).field();
        into[CHECKSUM..CHECKSUM + 2].copy_from_slice(&field.to_be_bytes());
        into.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn emitted(message: &Message<'_>) -> Vec<u8> {
        let mut bytes = vec![0xee; message.len() + 1];
        assert_eq!(message.emit(&mut bytes), message.len());
        assert_eq!(bytes.pop(), Some(0xee));
        bytes
    }

    #[test]
    fn echo() {
        let echo = Echo { id: 0x1234, sequence: 7, data: b"abc" };
        let bytes = emitted(&Message::EchoRequest(echo));
        assert_eq!(bytes[..2], [8, 0]);
        assert_eq!(bytes[4..], [0x12, 0x34, 0, 7, b'a', b'b', b'c']);
        assert!(checksum_valid(&bytes));
        assert_eq!(Message::parse(&bytes), Ok(Message::EchoRequest(echo)));
        assert_eq!(emitted(&Message::EchoReply(echo))[..2], [0, 0]);
        assert_eq!(Message::parse(&bytes[..7]), Err(Malformed::Truncated));
    }

    #[test]
    fn errors() {
        let gateway = Ipv4Addr::new(192, 0, 2, 1);
        let cases = [
            (Error::Unreachable(unreachable::PORT), [3, 3, 0, 0, 0, 0]),
            (Error::TooBig { mtu: 1280 }, [3, 4, 0, 0, 5, 0]),
            (Error::Quench, [4, 0, 0, 0, 0, 0]),
            (Error::Redirect { code: 1, gateway }, [5, 1, 192, 0, 2, 1]),
            (Error::TimeExceeded(0), [11, 0, 0, 0, 0, 0]),
            (Error::ParameterProblem { code: 0, pointer: 9 }, [12, 0, 9, 0, 0, 0]),
        ];
        for (error, [kind, code, rest @ ..]) in cases {
            let message = Message::Error { error, quote: b"a packet" };
            let bytes = emitted(&message);
            assert_eq!((bytes[0], bytes[1], &bytes[4..8], &bytes[8..]), (kind, code, &rest[..], &b"a packet"[..]));
            assert!(checksum_valid(&bytes));
            assert_eq!(Message::parse(&bytes), Ok(message));
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_again(bytes in prop::collection::vec(any::<u8>(), 8..40), kind in 0u8..20, code in 0u8..5) {
            let mut bytes = bytes;
            (bytes[0], bytes[1]) = (kind, code);
            let message = Message::parse(&bytes).unwrap();
            let written = emitted(&message);
            prop_assert!(checksum_valid(&written));
            prop_assert_eq!(Message::parse(&written), Ok(message));
            prop_assert_eq!(&written[..2], &bytes[..2]);
            prop_assert_eq!(&written[8..], &bytes[8..]);
        }
    }
}
