//! TCP headers (RFC 9293, section 3.1) and options.

use crate::Seq;
use serde::{Deserialize, Serialize};
use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The length of a header without options.
pub const HEADER: usize = 20;

/// The length of the longest header.
pub const MAX_HEADER: usize = 60;

/// Where in the header the control bits stand.
pub const FLAGS: usize = 13;

/// Where in the header the checksum stands.
pub const CHECKSUM: usize = 16;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    source: U16,
    destination: U16,
    seq: U32,
    ack: U32,
    /// The header's length in words of 4 bytes, in the upper four bits; the lower ones are ignored (RFC 9293, section 3.1).
    offset: u8,
    flags: u8,
    window: U16,
    checksum: U16,
    urgent: U16,
}

/// The timestamps option behind two NOPs, as nearly every segment has it (RFC 7323, appendix A).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawTimestamps {
    lead: U32,
    value: U32,
    echo: U32,
}

const TIMESTAMPS_LEAD: u32 = 0x0101_080a;

/// Kinds of options (IANA, "TCP Option Kind Numbers").
mod kind {
    pub const END: u8 = 0;
    pub const NOP: u8 = 1;
    pub const MSS: u8 = 2;
    pub const SCALE: u8 = 3;
    pub const SACK_PERMITTED: u8 = 4;
    pub const SACK: u8 = 5;
    pub const TIMESTAMPS: u8 = 8;
}

/// Why bytes are not a TCP segment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Malformed {
    /// Fewer bytes than a header has.
    Truncated,
    /// The header's length is below 20 bytes, or more than there are.
    HeaderLength,
}

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

    /// Those that are not in `other`.
    #[inline]
    pub const fn without(self, other: Flags) -> Flags {
        Flags(self.0 & !other.0)
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

/// A segment as bytes whose lengths fit each other: for whoever wants to know whose it is before all is read.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    raw: &'a Raw,
    options: &'a [u8],
    len: usize,
}

impl<'a> Segment<'a> {
    /// From the bytes of a whole segment.
    ///
    /// # Errors
    /// The lengths contradict each other.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Segment<'a>, Malformed> {
        let Some((raw, rest)) = bytes.split_first_chunk::<HEADER>() else { return Err(Malformed::Truncated) };
        let raw: &Raw = zerocopy::transmute_ref!(raw);
        let options = usize::from(raw.offset >> 4).checked_sub(HEADER / 4).and_then(|words| rest.get(..words * 4));
        Ok(Segment { raw, options: options.ok_or(Malformed::HeaderLength)?, len: bytes.len() })
    }

    /// The sender's port.
    #[inline]
    pub fn source(&self) -> u16 {
        self.raw.source.get()
    }

    /// The receiver's port.
    #[inline]
    pub fn destination(&self) -> u16 {
        self.raw.destination.get()
    }

    /// The length of its header, where its payload begins.
    #[inline]
    pub fn header_len(&self) -> usize {
        HEADER + self.options.len()
    }

    /// The length of all of it.
    #[inline]
    #[allow(clippy::len_without_is_empty, reason = "no segment is empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// What its header says, but for the options.
    #[inline]
    pub fn fixed(&self) -> Header {
        let raw = self.raw;
        Header {
            source: raw.source.get(),
            destination: raw.destination.get(),
            seq: Seq(raw.seq.get()),
            ack: Seq(raw.ack.get()),
            flags: Flags(raw.flags),
            window: raw.window.get(),
            urgent: raw.urgent.get(),
            ..Header::default()
        }
    }

    /// What its header says.
    #[inline]
    pub fn header(&self) -> Header {
        let mut header = self.fixed();
        match RawTimestamps::ref_from_bytes(self.options) {
            Ok(t) if t.lead.get() == TIMESTAMPS_LEAD => {
                header.timestamps = Some(Timestamps { value: t.value.get(), echo: t.echo.get() });
            }
            _ if self.options.is_empty() => {}
            _ => header.parse_options(self.options),
        }
        header
    }

    /// What it says, if it is a plain one. Options stand as Linux places them, or it is none.
    #[inline(always)]
    pub fn plain(&self) -> Option<Plain> {
        let raw = self.raw;
        if !Plain::has(Flags(raw.flags)) {
            return None;
        }
        let timestamps = match RawTimestamps::ref_from_bytes(self.options) {
            Ok(t) if t.lead.get() == TIMESTAMPS_LEAD => Some(Timestamps { value: t.value.get(), echo: t.echo.get() }),
            _ if self.options.is_empty() => None,
            _ => return None,
        };
        Some(Plain { seq: Seq(raw.seq.get()), ack: Seq(raw.ack.get()), window: raw.window.get(), timestamps })
    }
}

/// A segment that has the ACK bit, no FIN, SYN, RST or URG, and no options but timestamps: what nearly all are. What its header says but
/// for the ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plain {
    /// The number of the first byte.
    pub seq: Seq,
    /// The next number expected.
    pub ack: Seq,
    /// The window as it stands in the header, not scaled.
    pub window: u16,
    /// Timestamps option.
    pub timestamps: Option<Timestamps>,
}

impl Plain {
    /// Whether these bits are those of a plain segment.
    #[inline]
    const fn has(flags: Flags) -> bool {
        const UNUSUAL: Flags = Flags::FIN.with(Flags::SYN).with(Flags::RST).with(Flags::URG);
        flags.0 & UNUSUAL.with(Flags::ACK).0 == Flags::ACK.0
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

impl Header {
    /// Reads the header that `bytes`, a whole segment, begin with; the number is the header's length, where the payload begins.
    /// The checksum is not looked at.
    ///
    /// Options that are unknown, of a wrong length, or out of place (those of a SYN elsewhere) are skipped. An option that
    /// reaches beyond the header ends the options, and the segment is taken with those before it, as by Linux
    /// (`tcp_parse_options`).
    ///
    /// # Errors
    /// The lengths contradict each other.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<(Header, usize), Malformed> {
        let segment = Segment::parse(bytes)?;
        Ok((segment.header(), segment.header_len()))
    }

    /// What it says, if it is that of a plain segment.
    #[inline]
    pub fn plain(&self) -> Option<Plain> {
        let Header { seq, ack, window, timestamps, .. } = *self;
        // Options of a SYN are found in no other segment.
        let plain = Plain::has(self.flags) && self.sack.count == 0;
        plain.then_some(Plain { seq, ack, window, timestamps })
    }

    #[inline(never)]
    fn parse_options(&mut self, mut options: &[u8]) {
        let syn = self.flags.has(Flags::SYN);
        while let [kind, rest @ ..] = options {
            match *kind {
                kind::END => return,
                kind::NOP => {
                    options = rest;
                    continue;
                }
                _ => {}
            }
            let [len, ..] = rest else { return };
            let Some((body, behind)) = usize::from(*len).checked_sub(1).and_then(|n| rest.split_at_checked(n)) else {
                return;
            };
            // The body begins with the length, unless that was 1.
            let [_, body @ ..] = body else { return };
            options = behind;
            match (*kind, body) {
                // An MSS of 0 says nothing.
                (kind::MSS, &[a, b]) if syn => self.mss = Some(u16::from_be_bytes([a, b])).filter(|m| *m != 0),
                (kind::SCALE, &[scale]) if syn => self.scale = Some(scale),
                (kind::SACK_PERMITTED, []) if syn => self.sack_permitted = true,
                (kind::TIMESTAMPS, body) => {
                    if let Ok(t) = <[U32; 2]>::read_from_bytes(body) {
                        self.timestamps = Some(Timestamps { value: t[0].get(), echo: t[1].get() });
                    }
                }
                (kind::SACK, body) => {
                    if let Ok(edges) = <[[U32; 2]]>::ref_from_bytes(body) {
                        self.sack = Sack::default();
                        for [left, right] in edges {
                            self.sack.push(Range { left: Seq(left.get()), right: Seq(right.get()) });
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// The length that the header has when it is [emitted](Header::emit): a multiple of 4, from 20 to 60.
    #[inline]
    #[allow(clippy::len_without_is_empty, reason = "no header is empty")]
    pub fn len(&self) -> usize {
        let syn = self.syn_options();
        let sack = self.fitting(HEADER + syn);
        HEADER + syn + if sack > 0 { 4 + 8 * sack } else { 0 }
    }

    /// Writes the header to the first [`len`](Header::len) bytes of `into`, and says how many these are. The checksum's field is
    /// 0. The options stand as Linux places them (`tcp_options_write`); of the SACK blocks there are as many, from the first
    /// on, as fit.
    ///
    /// # Panics
    /// If `into` is shorter.
    #[inline(always)]
    pub fn emit(&self, into: &mut [u8]) -> usize {
        let mut raw = Raw {
            source: U16::new(self.source),
            destination: U16::new(self.destination),
            seq: U32::new(self.seq.0),
            ack: U32::new(self.ack.0),
            offset: 0,
            flags: self.flags.0,
            window: U16::new(self.window),
            checksum: U16::ZERO,
            urgent: U16::new(self.urgent),
        };
        let plain = self.mss.is_none() & self.scale.is_none() & !self.sack_permitted & (self.sack.count == 0);
        let len = match self.timestamps {
            Some(t) if plain => {
                const LEN: usize = HEADER + 12;
                let into = into.first_chunk_mut::<LEN>().expect("room for the header");
                let option =
                    RawTimestamps { lead: U32::new(TIMESTAMPS_LEAD), value: U32::new(t.value), echo: U32::new(t.echo) };
                into[HEADER..].copy_from_slice(option.as_bytes());
                LEN
            }
            None if plain => HEADER,
            _ => self.emit_options(into),
        };
        raw.offset = (len as u8) << 2;
        into[..HEADER].copy_from_slice(raw.as_bytes());
        len
    }

    /// The bytes of all options but SACK.
    #[inline]
    fn syn_options(&self) -> usize {
        let word = |present: bool| if present { 4 } else { 0 };
        // SACK-permitted stands in the place of the timestamps' two NOPs.
        let timestamps = if self.timestamps.is_some() { 12 } else { word(self.sack_permitted) };
        word(self.mss.is_some()) + timestamps + word(self.scale.is_some())
    }

    /// How many SACK blocks fit behind `len` bytes of header.
    #[inline]
    fn fitting(&self, len: usize) -> usize {
        usize::from(self.sack.count).min((MAX_HEADER - len).saturating_sub(4) / 8)
    }

    /// Writes the options; the number is the header's length. It takes a copy, so that a header of which [`Header::emit`] is all
    /// that is asked need not lie in memory.
    #[inline(never)]
    fn emit_options(self, into: &mut [u8]) -> usize {
        let mut at = HEADER;
        let mut word = |a: u8, b: u8, c: u8, d: u8| {
            into[at..at + 4].copy_from_slice(&[a, b, c, d]);
            at += 4;
            at
        };
        let mut len = HEADER;
        if let Some(mss) = self.mss {
            let [a, b] = mss.to_be_bytes();
            len = word(kind::MSS, 4, a, b);
        }
        if let Some(t) = self.timestamps {
            if self.sack_permitted {
                word(kind::SACK_PERMITTED, 2, kind::TIMESTAMPS, 10);
            } else {
                word(kind::NOP, kind::NOP, kind::TIMESTAMPS, 10);
            }
            for number in [t.value, t.echo] {
                let [a, b, c, d] = number.to_be_bytes();
                len = word(a, b, c, d);
            }
        } else if self.sack_permitted {
            len = word(kind::NOP, kind::NOP, kind::SACK_PERMITTED, 2);
        }
        if let Some(scale) = self.scale {
            len = word(kind::NOP, kind::SCALE, 3, scale);
        }
        let blocks = self.fitting(len);
        if blocks > 0 {
            word(kind::NOP, kind::NOP, kind::SACK, 2 + 8 * blocks as u8);
            for number in self.sack.blocks[..blocks].iter().flat_map(|b| [b.left.0, b.right.0]) {
                let [a, b, c, d] = number.to_be_bytes();
                len = word(a, b, c, d);
            }
        }
        len
    }
}

/// The beginning of a header, which an ICMP error quotes: 8 bytes at least (RFC 792), often no more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quoted {
    /// The port of the segment's sender: whoever receives the error.
    pub source: u16,
    /// The port that it was sent to.
    pub destination: u16,
    /// Its sequence number: an error about a connection is credible if this is in flight (RFC 5927, section 4.1).
    pub seq: Seq,
}

impl Quoted {
    /// Reads what `bytes` begin with.
    ///
    /// # Errors
    /// There are fewer than 8 bytes.
    pub fn parse(bytes: &[u8]) -> Result<Quoted, Malformed> {
        let Some(&[a, b, c, d, e, f, g, h]) = bytes.first_chunk() else { return Err(Malformed::Truncated) };
        Ok(Quoted {
            source: u16::from_be_bytes([a, b]),
            destination: u16::from_be_bytes([c, d]),
            seq: Seq(u32::from_be_bytes([e, f, g, h])),
        })
    }
}

#[cfg(test)]
mod tests;
