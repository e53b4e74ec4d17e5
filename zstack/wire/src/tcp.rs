//! TCP headers (RFC 9293, section 3.1) and options.

use crate::Seq;
use serde::{Deserialize, Serialize};

/// The control bits, as they stand in the header's byte 13.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Flags(pub u8);

#[allow(missing_docs)]
impl Flags {
    pub const FIN: Flags = Flags(0x01);
    pub const SYN: Flags = Flags(0x02);
    pub const RST: Flags = Flags(0x04);
    pub const PSH: Flags = Flags(0x08);
    pub const ACK: Flags = Flags(0x10);
    pub const URG: Flags = Flags(0x20);
    pub const ECE: Flags = Flags(0x40);
    pub const CWR: Flags = Flags(0x80);

    /// Whether all of `other` are set.
    #[inline]
    pub const fn has(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets together.
    #[inline]
    pub const fn with(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }
}

/// A range of sequence numbers: from `left` up to, not including, `right`. The order on the wire is nobody's promise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Range {
    /// The first number.
    pub left: Seq,
    /// The number behind the last.
    pub right: Seq,
}

/// The timestamps option (RFC 7323).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Timestamps {
    /// TSval.
    pub value: u32,
    /// TSecr.
    pub echo: u32,
}

/// Blocks of a SACK option, in the order of the wire (RFC 2018: the first is the latest).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sack {
    blocks: [Range; 4],
    count: u8,
}

impl Sack {
    /// At most four blocks; more are not taken.
    #[inline]
    pub fn push(&mut self, block: Range) -> bool {
        let Some(place) = self.blocks.get_mut(usize::from(self.count)) else { return false };
        *place = block;
        self.count += 1;
        true
    }

    /// The blocks.
    #[inline]
    pub fn blocks(&self) -> &[Range] {
        &self.blocks[..usize::from(self.count)]
    }
}

/// What a header says, options included.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Header {
    /// The sender's port.
    pub source: u16,
    /// The receiver's port.
    pub destination: u16,
    /// The number of the first byte, or of the SYN.
    pub seq: Seq,
    /// The next number expected; meaningful with [`Flags::ACK`].
    pub ack: Seq,
    /// The control bits.
    pub flags: Flags,
    /// The window as it stands in the header, not scaled.
    pub window: u16,
    /// The urgent pointer; meaningful with [`Flags::URG`].
    pub urgent: u16,
    /// MSS option (SYN only).
    pub mss: Option<u16>,
    /// Window scale option (SYN only), as sent: may be over 14.
    pub scale: Option<u8>,
    /// SACK-permitted option (SYN only).
    pub sack_permitted: bool,
    /// Timestamps option.
    pub timestamps: Option<Timestamps>,
    /// SACK blocks.
    pub sack: Sack,
}
