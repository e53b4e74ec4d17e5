//! The messages that mailboxes exchange: one datagram of 64 bytes each; beside one of them, a descriptor.
//!
//! ```text
//! 0 magic  8 version  12 kind  16 from  24 nonce  32 and 40: see below  48 ring  52 zeros
//! ```
//! A message is a claim by whoever sent it. Those of another version are not heard (see [`mailbox`](crate::mailbox)): the
//! [`registry`](crate::registry) tells two versions that they do not understand each other.

use crate::os;
use shmring::layout::{RING_MAX, RING_MIN};

/// Length of every message, bytes.
pub const LEN: usize = 64;
/// `"culvmail"`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"culvmail");
/// Changes with every incompatible change of the messages, of the doorbells, or of the shared memory that they announce.
pub const VERSION: u32 = shmring::layout::VERSION << 16 | 3;

/// A message. `from` is the mailbox to answer to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message {
    /// An acceptor asks a connector: this is a connection between us; shall we share memory?
    Knock {
        /// Sender's mailbox.
        from: u64,
        /// Chosen by the acceptor: whoever repeats it holds the mailbox that was knocked at.
        nonce: u64,
        /// `SO_COOKIE` of the connector's socket.
        connector: u64,
        /// `SO_COOKIE` of the acceptor's socket.
        acceptor: u64,
    },
    /// The connector's yes.
    Welcome {
        /// Sender's mailbox.
        from: u64,
        /// The nonce of the knock.
        nonce: u64,
        /// The mailbox that takes the [`Message::Channel`], and nothing else.
        answer: u64,
        /// What that message must have as its nonce.
        key: u64,
    },
    /// The acceptor's shared memory, whose memfd comes along.
    Channel {
        /// Sender's mailbox.
        from: u64,
        /// The key of the welcome.
        nonce: u64,
        /// Name of the channel, as in its header.
        channel: u64,
        /// Bytes of one ring; a power of two in the layout's range.
        ring: u32,
    },
}

pub(crate) const KNOCK: u32 = 1;
pub(crate) const WELCOME: u32 = 2;
pub(crate) const CHANNEL: u32 = 3;

/// Why bytes are not a [`Message`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bad {
    /// Not ours at all, or of another version.
    Foreign,
    /// Of our version, but breaks the rules.
    Malformed,
}

impl Message {
    /// Descriptors that belong to this message.
    pub fn fds(&self) -> usize {
        usize::from(matches!(self, Message::Channel { .. }))
    }

    /// The sender's mailbox.
    pub fn from(&self) -> u64 {
        match *self {
            Message::Knock { from, .. } | Message::Welcome { from, .. } | Message::Channel { from, .. } => from,
        }
    }

    /// The bytes of the message.
    pub fn encode(&self) -> [u8; LEN] {
        let (kind, nonce, a, b, ring) = match *self {
            Message::Knock { nonce, connector, acceptor, .. } => (KNOCK, nonce, connector, acceptor, 0),
            Message::Welcome { nonce, answer, key, .. } => (WELCOME, nonce, answer, key, 0),
            Message::Channel { nonce, channel, ring, .. } => (CHANNEL, nonce, channel, 0, ring),
        };
        let mut bytes = [0; LEN];
        os::put(&mut bytes, 0, &MAGIC.to_ne_bytes());
        os::put(&mut bytes, 8, &VERSION.to_ne_bytes());
        os::put(&mut bytes, 12, &kind.to_ne_bytes());
        os::put(&mut bytes, 16, &self.from().to_ne_bytes());
        os::put(&mut bytes, 24, &nonce.to_ne_bytes());
        os::put(&mut bytes, 32, &a.to_ne_bytes());
        os::put(&mut bytes, 40, &b.to_ne_bytes());
        os::put(&mut bytes, 48, &ring.to_ne_bytes());
        bytes
    }

    /// Reads a message. Strict: every accepted byte string is what [`encode`](Message::encode) gives.
    ///
    /// # Errors
    /// [`Bad`].
    pub fn decode(bytes: &[u8]) -> Result<Message, Bad> {
        if bytes.len() < 16 || os::u64_at(bytes, 0) != MAGIC || os::u32_at(bytes, 8) != VERSION {
            return Err(Bad::Foreign);
        }
        let (from, nonce) = (os::u64_at(bytes, 16), os::u64_at(bytes, 24));
        let (a, b, ring) = (os::u64_at(bytes, 32), os::u64_at(bytes, 40), os::u32_at(bytes, 48));
        let message = match os::u32_at(bytes, 12) {
            KNOCK => Message::Knock { from, nonce, connector: a, acceptor: b },
            WELCOME => Message::Welcome { from, nonce, answer: a, key: b },
            CHANNEL => Message::Channel { from, nonce, channel: a, ring },
            _ => return Err(Bad::Malformed),
        };
        // Fields that this kind does not use must be zero, and the length exact.
        if message.is_sound() && bytes == message.encode() { Ok(message) } else { Err(Bad::Malformed) }
    }

    fn is_sound(&self) -> bool {
        self.from() != 0
            && match *self {
                // The kernel gives no socket the cookie 0.
                Message::Knock { connector, acceptor, .. } => connector != 0 && acceptor != 0,
                Message::Welcome { answer, key, .. } => answer != 0 && key != 0,
                Message::Channel { ring, .. } => {
                    ring.is_power_of_two() && (RING_MIN..=RING_MAX).contains(&(ring as usize))
                }
            }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn any_message() -> impl Strategy<Value = Message> {
        let id = || 1..=u64::MAX;
        prop_oneof![
            (id(), any::<u64>(), id(), id()).prop_map(|(from, nonce, connector, acceptor)| Message::Knock {
                from,
                nonce,
                connector,
                acceptor
            }),
            (id(), any::<u64>(), id(), id()).prop_map(|(from, nonce, answer, key)| Message::Welcome {
                from,
                nonce,
                answer,
                key
            }),
            (id(), any::<u64>(), any::<u64>(), 12u32..=26).prop_map(|(from, nonce, channel, bits)| Message::Channel {
                from,
                nonce,
                channel,
                ring: 1 << bits
            }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(m in any_message()) {
            prop_assert_eq!(Message::decode(&m.encode()), Ok(m));
        }

        #[test]
        fn only_canonical_bytes_are_accepted(m in any_message(), at in 0..LEN, bit in 0..8u32, cut in 0..LEN) {
            let mut b = m.encode();
            b[at] ^= 1 << bit;
            if let Ok(other) = Message::decode(&b) {
                prop_assert_ne!(other, m);
                prop_assert_eq!(other.encode(), b);
            }
            prop_assert!(Message::decode(&m.encode()[..cut]).is_err());
            let mut long = m.encode().to_vec();
            long.push(0);
            prop_assert_eq!(Message::decode(&long), Err(Bad::Malformed));
        }

        #[test]
        fn noise_is_foreign(b in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assume!(b.len() < 8 || os::u64_at(&b, 0) != MAGIC);
            prop_assert_eq!(Message::decode(&b), Err(Bad::Foreign));
        }

        #[test]
        fn noise_behind_a_good_header_is_canonical_or_refused(kind in 0u32..8, body in any::<[u8; 32]>(), rest in any::<[u8; 16]>()) {
            let mut b = Message::Knock { from: 1, nonce: 0, connector: 1, acceptor: 1 }.encode();
            os::put(&mut b, 12, &kind.to_ne_bytes());
            os::put(&mut b, 16, &rest);
            os::put(&mut b, 32, &body);
            match Message::decode(&b) {
                Ok(m) => prop_assert_eq!(m.encode(), b),
                Err(e) => prop_assert_eq!(e, Bad::Malformed),
            }
        }
    }

    #[test]
    fn another_version_is_foreign_whatever_follows() {
        let mut b = Message::Knock { from: 7, nonce: 9, connector: 1, acceptor: 2 }.encode().to_vec();
        for version in [0, VERSION - 1, VERSION + 1, u32::MAX] {
            os::put(&mut b, 8, &version.to_ne_bytes());
            assert_eq!(Message::decode(&b), Err(Bad::Foreign));
        }
    }

    #[test]
    fn impossible_values_are_refused() {
        let ok = Message::Channel { from: 1, nonce: 2, channel: 3, ring: 4096 };
        for ring in [0u32, 1, 2048, 4097, 12288, 1 << 27, u32::MAX] {
            let mut b = ok.encode();
            os::put(&mut b, 48, &ring.to_ne_bytes());
            assert_eq!(Message::decode(&b), Err(Bad::Malformed), "{ring}");
        }
        for none in [
            Message::Knock { from: 0, nonce: 1, connector: 1, acceptor: 1 },
            Message::Knock { from: 1, nonce: 1, connector: 0, acceptor: 1 },
            Message::Knock { from: 1, nonce: 1, connector: 1, acceptor: 0 },
            Message::Welcome { from: 1, nonce: 1, answer: 0, key: 1 },
            Message::Welcome { from: 1, nonce: 1, answer: 1, key: 0 },
        ] {
            assert_eq!(Message::decode(&none.encode()), Err(Bad::Malformed));
        }
    }
}
