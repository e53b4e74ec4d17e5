//! ICMPv6 (RFC 4443).

use crate::checksum::Sum;
pub use crate::icmpv4::{CHECKSUM, Echo, HEADER};
use crate::{ndp, protocol};
use std::net::Ipv6Addr;

mod kind {
    pub const UNREACHABLE: u8 = 1;
    pub const TOO_BIG: u8 = 2;
    pub const TIME_EXCEEDED: u8 = 3;
    pub const PARAMETER_PROBLEM: u8 = 4;
    pub const ECHO_REQUEST: u8 = 128;
    pub const ECHO_REPLY: u8 = 129;
}

/// Codes of [`Error::Unreachable`] (RFC 4443, section 3.1).
#[allow(missing_docs)]
pub mod unreachable {
    pub const NO_ROUTE: u8 = 0;
    pub const PROHIBITED: u8 = 1;
    pub const SCOPE: u8 = 2;
    pub const ADDRESS: u8 = 3;
    pub const PORT: u8 = 4;
    pub const POLICY: u8 = 5;
    pub const REJECT_ROUTE: u8 = 6;
}

/// Codes of [`Error::ParameterProblem`] (RFC 4443, section 3.4).
#[allow(missing_docs)]
pub mod problem {
    pub const HEADER_FIELD: u8 = 0;
    pub const NEXT_HEADER: u8 = 1;
    pub const OPTION: u8 = 2;
}

/// Why bytes are not an ICMPv6 message.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Malformed {
    /// Fewer bytes than a header has.
    Truncated,
    /// A message of neighbour discovery is malformed.
    Ndp(ndp::Malformed),
}

/// What a router or host says of a packet that it was sent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Error {
    /// It did not reach its destination; the code is one of [`unreachable`].
    Unreachable(u8),
    /// It was larger than the next link takes.
    TooBig {
        /// The largest packet that the link takes.
        mtu: u32,
    },
    /// No hops were left (code 0), or fragments were missing (code 1).
    TimeExceeded(u8),
    /// A header has an error.
    ParameterProblem {
        /// One of [`problem`].
        code: u8,
        /// The byte with the error.
        pointer: u32,
    },
    /// An error of a type that is not known here (below 128).
    Unknown {
        /// The type.
        kind: u8,
        /// The code.
        code: u8,
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
        /// The beginning of that packet ([`crate::ipv6::Packet::quoted`]).
        quote: &'a [u8],
    },
    /// Neighbour discovery.
    Ndp(ndp::Message<'a>),
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

impl<'a> Message<'a> {
    /// Looks at the message that is all of `bytes`. The checksum is not looked at: it is right if
    /// [`pseudo`](crate::ipv6::Packet::pseudo) and the message add up ([`Sum::valid`]).
    ///
    /// # Errors
    /// It is too short, or neighbour discovery's and malformed.
    pub fn parse(bytes: &'a [u8]) -> Result<Message<'a>, Malformed> {
        let Some((&[kind, code, _, _, ref rest @ ..], body)) = bytes.split_first_chunk::<HEADER>() else {
            return Err(Malformed::Truncated);
        };
        if let Some(message) = ndp::Message::parse(bytes).map_err(Malformed::Ndp)? {
            return Ok(Message::Ndp(message));
        }
        let (rest, number) = (*rest, u32::from_be_bytes(*rest));
        let error = match (kind, code) {
            (kind::ECHO_REQUEST, 0) => return Ok(Message::EchoRequest(Echo::read(rest, body))),
            (kind::ECHO_REPLY, 0) => return Ok(Message::EchoReply(Echo::read(rest, body))),
            (kind::UNREACHABLE, code) => Error::Unreachable(code),
            // The code is to be ignored (RFC 4443, section 3.2).
            (kind::TOO_BIG, _) => Error::TooBig { mtu: number },
            (kind::TIME_EXCEEDED, code) => Error::TimeExceeded(code),
            (kind::PARAMETER_PROBLEM, code) => Error::ParameterProblem { code, pointer: number },
            (0..128, code) => Error::Unknown { kind, code },
            (kind, code) => return Ok(Message::Other { kind, code, rest, body }),
        };
        Ok(Message::Error { error, quote: body })
    }

    /// The length of the whole message.
    #[allow(clippy::len_without_is_empty, reason = "no message is empty")]
    pub fn len(&self) -> usize {
        match self {
            Message::Ndp(message) => message.len(),
            Message::EchoRequest(echo) | Message::EchoReply(echo) => HEADER + echo.data.len(),
            Message::Error { quote, .. } => HEADER + quote.len(),
            Message::Other { body, .. } => HEADER + body.len(),
        }
    }

    /// The bytes before the body, and the body; the checksum's field is 0. For a body that is not copied: [`Sum`] over the pseudo
    /// header and both belongs there. `None`: neighbour discovery's messages are only written whole.
    pub fn parts(&self) -> Option<([u8; HEADER], &'a [u8])> {
        let (kind, code, rest, body) = match *self {
            Message::Ndp(_) => return None,
            Message::EchoRequest(echo) => (kind::ECHO_REQUEST, 0, echo.rest(), echo.data),
            Message::EchoReply(echo) => (kind::ECHO_REPLY, 0, echo.rest(), echo.data),
            Message::Other { kind, code, rest, body } => (kind, code, rest, body),
            Message::Error { error, quote } => {
                let (kind, code, number) = match error {
                    Error::Unreachable(code) => (kind::UNREACHABLE, code, 0),
                    Error::TooBig { mtu } => (kind::TOO_BIG, 0, mtu),
                    Error::TimeExceeded(code) => (kind::TIME_EXCEEDED, code, 0),
                    Error::ParameterProblem { code, pointer } => (kind::PARAMETER_PROBLEM, code, pointer),
                    Error::Unknown { kind, code } => (kind, code, 0),
                };
                (kind, code, number.to_be_bytes(), quote)
            }
        };
        let [a, b, c, d] = rest;
        Some(([kind, code, 0, 0, a, b, c, d], body))
    }

    /// Writes the whole message with its checksum between these addresses to the first [`len`](Message::len) bytes of `into`, and
    /// says how many these are.
    ///
    /// # Panics
    /// If `into` is shorter.
    pub fn emit(&self, source: &Ipv6Addr, destination: &Ipv6Addr, into: &mut [u8]) -> usize {
        let into = &mut into[..self.len()];
        match (self, self.parts()) {
            (Message::Ndp(message), _) => {
                message.emit(into);
            }
            (_, Some((head, body))) => {
                into[..HEADER].copy_from_slice(&head);
                into[HEADER..].copy_from_slice(body);
            }
            _ => unreachable!("every other message has parts"),
        }
        let pseudo = Sum::pseudo_v6(source, destination, protocol::ICMPV6, into.len() as u32);
        let field = pseudo.bytes(into).field();
        into[CHECKSUM..CHECKSUM + 2].copy_from_slice(&field.to_be_bytes());
        into.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn emitted(message: &Message<'_>) -> Vec<u8> {
        let (a, b) = ("fe80::1".parse().unwrap(), "fe80::2".parse().unwrap());
        let mut bytes = vec![0xee; message.len() + 1];
        assert_eq!(message.emit(&a, &b, &mut bytes), message.len());
        assert_eq!(bytes.pop(), Some(0xee));
        assert!(Sum::pseudo_v6(&a, &b, 58, bytes.len() as u32).bytes(&bytes).valid());
        bytes
    }

    #[test]
    fn echo() {
        let echo = Echo { id: 0x1234, sequence: 7, data: b"abc" };
        let bytes = emitted(&Message::EchoRequest(echo));
        assert_eq!(bytes[..2], [128, 0]);
        assert_eq!(bytes[4..], [0x12, 0x34, 0, 7, b'a', b'b', b'c']);
        assert_eq!(Message::parse(&bytes), Ok(Message::EchoRequest(echo)));
        assert_eq!(emitted(&Message::EchoReply(echo))[..2], [129, 0]);
        assert_eq!(Message::parse(&bytes[..7]), Err(Malformed::Truncated));
    }

    #[test]
    fn errors() {
        let cases = [
            (Error::Unreachable(unreachable::PORT), [1, 4, 0, 0, 0, 0]),
            (Error::TooBig { mtu: 1280 }, [2, 0, 0, 0, 5, 0]),
            (Error::TimeExceeded(0), [3, 0, 0, 0, 0, 0]),
            (Error::ParameterProblem { code: problem::NEXT_HEADER, pointer: 40 }, [4, 1, 0, 0, 0, 40]),
            (Error::Unknown { kind: 100, code: 3 }, [100, 3, 0, 0, 0, 0]),
        ];
        for (error, [kind, code, rest @ ..]) in cases {
            let message = Message::Error { error, quote: b"a packet" };
            let bytes = emitted(&message);
            assert_eq!((bytes[0], bytes[1], &bytes[4..8], &bytes[8..]), (kind, code, &rest[..], &b"a packet"[..]));
            assert_eq!(Message::parse(&bytes), Ok(message));
        }
    }

    #[test]
    fn malformed_discovery_is_no_other_message() {
        let mut bytes = [0; 24];
        bytes[0] = 135;
        bytes[1] = 1;
        assert_eq!(Message::parse(&bytes), Err(Malformed::Ndp(ndp::Malformed::Code)));
        assert_eq!(Message::parse(&bytes[..20]), Err(Malformed::Ndp(ndp::Malformed::Truncated)));
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_again(bytes in prop::collection::vec(any::<u8>(), 8..40), kind in 0usize..12, code in 0u8..3) {
            let mut bytes = bytes;
            (bytes[0], bytes[1]) = ([0, 1, 2, 3, 4, 100, 127, 128, 129, 130, 137, 255][kind], code);
            let message = Message::parse(&bytes).unwrap();
            let written = emitted(&message);
            prop_assert_eq!(Message::parse(&written), Ok(message));
            prop_assert_eq!(&written[8..], &bytes[8..]);
        }
    }
}
