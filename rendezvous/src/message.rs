//! The messages that mailboxes exchange: one datagram of 64 bytes each, and descriptors beside it.
//!
//! ```text
//! 0 magic  8 version  12 kind  16 from  24 nonce  32 channel  40 mask  48 ring, role or version  52 zeros
//! ```
//! The first 32 bytes, and kind 0, stay as they are in every version, so that two versions can tell each
//! other politely that they do not understand. A message is a claim by whoever sent it.

use crate::os;
use shmring::layout::{RING_MAX, RING_MIN, Role};

/// Length of every message, bytes.
pub const LEN: usize = 64;
/// `"culvmail"`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"culvmail");
/// Changes with every incompatible change of the messages or of the shared memory they announce.
pub const VERSION: u32 = shmring::layout::VERSION << 16 | 1;
/// Most descriptors beside one message: a channel's memory and a doorbell for each of 64 pollers.
pub const MAX_FDS: usize = 1 + shmring::layout::POLLERS;

/// A message. `from` is the sender's mailbox; `nonce` pairs an answer with its question. Descriptors
/// travel in the order of the bits of `pollers`, lowest first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message {
    /// An acceptor asks a connector: shall we share memory? No descriptors.
    Knock {
        /// Sender's mailbox.
        from: u64,
        /// Chosen by the acceptor.
        nonce: u64,
    },
    /// The connector's yes, with the doorbells of its pollers.
    Welcome {
        /// Sender's mailbox.
        from: u64,
        /// The nonce of the knock.
        nonce: u64,
        /// Bit per poller whose doorbell comes along.
        pollers: u64,
    },
    /// The acceptor's shared memory: its memfd, then the doorbells of the acceptor's pollers.
    Channel {
        /// Sender's mailbox.
        from: u64,
        /// The nonce of the knock.
        nonce: u64,
        /// Name of the channel, as in its header.
        channel: u64,
        /// Bytes of one ring; a power of two in the layout's range.
        ring: u32,
        /// Bit per poller whose doorbell comes along.
        pollers: u64,
    },
    /// More doorbells for an existing channel.
    Doorbell {
        /// Sender's mailbox.
        from: u64,
        /// The channel.
        channel: u64,
        /// The sender's role in it.
        role: Role,
        /// Bit per poller whose doorbell comes along; at least one.
        pollers: u64,
    },
    /// "I speak another version than the message with this nonce." Never answered.
    VersionNo {
        /// Sender's mailbox.
        from: u64,
        /// The nonce of the message refused.
        nonce: u64,
        /// The sender's version.
        version: u32,
    },
}

const VERSION_NO: u32 = 0;
const KNOCK: u32 = 1;
const WELCOME: u32 = 2;
const CHANNEL: u32 = 3;
const DOORBELL: u32 = 4;

/// Why bytes are not a [`Message`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bad {
    /// Not ours at all.
    Foreign,
    /// Ours, of another version.
    Version {
        /// Mailbox of the sender.
        from: u64,
        /// Its nonce, to be repeated in a [`Message::VersionNo`].
        nonce: u64,
        /// The version it speaks.
        version: u32,
        /// It is itself a refusal, and must not be answered.
        refusal: bool,
    },
    /// Of our version, but breaks the rules.
    Malformed,
}

impl Message {
    /// Descriptors that belong to this message.
    pub fn fds(&self) -> usize {
        match self {
            Message::Knock { .. } | Message::VersionNo { .. } => 0,
            Message::Welcome { pollers, .. } | Message::Doorbell { pollers, .. } => pollers.count_ones() as usize,
            Message::Channel { pollers, .. } => 1 + pollers.count_ones() as usize,
        }
    }

    /// The sender's mailbox.
    pub fn from(&self) -> u64 {
        match *self {
            Message::Knock { from, .. }
            | Message::Welcome { from, .. }
            | Message::Channel { from, .. }
            | Message::Doorbell { from, .. }
            | Message::VersionNo { from, .. } => from,
        }
    }

    /// The bytes of the message.
    pub fn encode(&self) -> [u8; LEN] {
        let (kind, nonce, channel, pollers, last) = match *self {
            Message::VersionNo { nonce, version, .. } => (VERSION_NO, nonce, 0, 0, version),
            Message::Knock { nonce, .. } => (KNOCK, nonce, 0, 0, 0),
            Message::Welcome { nonce, pollers, .. } => (WELCOME, nonce, 0, pollers, 0),
            Message::Channel { nonce, channel, ring, pollers, .. } => (CHANNEL, nonce, channel, pollers, ring),
            Message::Doorbell { channel, role, pollers, .. } => (DOORBELL, 0, channel, pollers, role as u32),
        };
        let mut b = [0; LEN];
        os::put(&mut b, 0, &MAGIC.to_ne_bytes());
        os::put(&mut b, 8, &VERSION.to_ne_bytes());
        os::put(&mut b, 12, &kind.to_ne_bytes());
        os::put(&mut b, 16, &self.from().to_ne_bytes());
        os::put(&mut b, 24, &nonce.to_ne_bytes());
        os::put(&mut b, 32, &channel.to_ne_bytes());
        os::put(&mut b, 40, &pollers.to_ne_bytes());
        os::put(&mut b, 48, &last.to_ne_bytes());
        b
    }

    /// Reads a message. Strict: every accepted byte string is what [`encode`](Message::encode) gives.
    ///
    /// # Errors
    /// [`Bad`].
    pub fn decode(b: &[u8]) -> Result<Message, Bad> {
        if b.len() < 32 || os::u64_at(b, 0) != MAGIC {
            return Err(Bad::Foreign);
        }
        let (version, kind) = (os::u32_at(b, 8), os::u32_at(b, 12));
        let (from, nonce) = (os::u64_at(b, 16), os::u64_at(b, 24));
        if version != VERSION {
            return Err(Bad::Version { from, nonce, version, refusal: kind == VERSION_NO });
        }
        let (channel, pollers, last) = (os::u64_at(b, 32), os::u64_at(b, 40), os::u32_at(b, 48));
        let message = match kind {
            VERSION_NO => Message::VersionNo { from, nonce, version: last },
            KNOCK => Message::Knock { from, nonce },
            WELCOME => Message::Welcome { from, nonce, pollers },
            CHANNEL => Message::Channel { from, nonce, channel, ring: last, pollers },
            DOORBELL => {
                let role = match last {
                    0 => Role::Connector,
                    1 => Role::Acceptor,
                    _ => return Err(Bad::Malformed),
                };
                Message::Doorbell { from, channel, role, pollers }
            }
            _ => return Err(Bad::Malformed),
        };
        // Fields that this kind does not use must be zero, and the length exact.
        if from != 0 && message.is_sound() && b == message.encode() { Ok(message) } else { Err(Bad::Malformed) }
    }

    fn is_sound(&self) -> bool {
        match *self {
            Message::Channel { ring, .. } => ring.is_power_of_two() && (RING_MIN..=RING_MAX).contains(&(ring as usize)),
            Message::Doorbell { pollers, .. } => pollers != 0,
            _ => true,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn any_message() -> impl Strategy<Value = Message> {
        let id = 1..=u64::MAX;
        prop_oneof![
            (id.clone(), any::<u64>()).prop_map(|(from, nonce)| Message::Knock { from, nonce }),
            (id.clone(), any::<u64>(), any::<u64>()).prop_map(|(from, nonce, pollers)| Message::Welcome {
                from,
                nonce,
                pollers
            }),
            (id.clone(), any::<u64>(), any::<u64>(), 12u32..=26, any::<u64>()).prop_map(
                |(from, nonce, channel, bits, pollers)| Message::Channel {
                    from,
                    nonce,
                    channel,
                    ring: 1 << bits,
                    pollers
                }
            ),
            (id.clone(), any::<u64>(), any::<bool>(), 1..=u64::MAX).prop_map(|(from, channel, acceptor, pollers)| {
                let role = if acceptor { Role::Acceptor } else { Role::Connector };
                Message::Doorbell { from, channel, role, pollers }
            }),
            (id, any::<u64>(), any::<u32>()).prop_map(|(from, nonce, version)| Message::VersionNo {
                from,
                nonce,
                version
            }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(m in any_message()) {
            prop_assert_eq!(Message::decode(&m.encode()), Ok(m));
            prop_assert!(m.fds() <= MAX_FDS);
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
            let mut b = Message::Knock { from: 1, nonce: 0 }.encode();
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
    fn another_version_is_recognised_whatever_follows() {
        let mut b = Message::Knock { from: 7, nonce: 9 }.encode().to_vec();
        os::put(&mut b, 8, &99u32.to_ne_bytes());
        b.extend([0xaa; 30]);
        let version = |refusal| Err(Bad::Version { from: 7, nonce: 9, version: 99, refusal });
        assert_eq!(Message::decode(&b), version(false));
        assert_eq!(Message::decode(&b[..32]), version(false));
        os::put(&mut b, 12, &VERSION_NO.to_ne_bytes());
        assert_eq!(Message::decode(&b), version(true));
    }

    #[test]
    fn impossible_values_are_refused() {
        let ok = Message::Channel { from: 1, nonce: 2, channel: 3, ring: 4096, pollers: 1 };
        for ring in [0u32, 1, 2048, 4097, 12288, 1 << 27, u32::MAX] {
            let mut b = ok.encode();
            os::put(&mut b, 48, &ring.to_ne_bytes());
            assert_eq!(Message::decode(&b), Err(Bad::Malformed), "{ring}");
        }
        let none = Message::Doorbell { from: 1, channel: 3, role: Role::Acceptor, pollers: 0 };
        assert_eq!(Message::decode(&none.encode()), Err(Bad::Malformed));
        assert_eq!(Message::decode(&Message::Knock { from: 0, nonce: 1 }.encode()), Err(Bad::Malformed));
    }
}
