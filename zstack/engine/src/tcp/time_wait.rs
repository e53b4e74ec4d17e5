//! A connection in TIME-WAIT, without its name: what it takes to answer the peer's last segments, and to tell a new connection's
//! SYN from an old one's (RFC 9293, section 3.10.7.4; RFC 6191).

use super::recovery::tick;
use super::tcb::mark;
use super::{Phase, Tcb};
use crate::time::{Micros, Time};
use serde::{Deserialize, Serialize};
use zstack_wire::Seq;
use zstack_wire::tcp::{Flags, Header, Timestamps};

/// How long TIME-WAIT lasts: what Linux takes for twice the time that a segment lives.
pub const TIME_WAIT: Micros = Micros::from_millis(60_000);

/// TS.Recent is too old to be compared after 24 days (RFC 7323, section 5.5), in seconds.
#[allow(dead_code, reason = "input is to use it")]
pub(super) const PAWS_IDLE: u32 = 24 * 24 * 3600;

/// A segment out of window is answered at most twice a second ("tcp_invalid_ratelimit" of Linux), in milliseconds.
pub(super) const CHALLENGE: u32 = 500;

/// How far behind the last number the next connection of the same tuple begins: more than an unscaled window (tcp_twsk_unique).
const BEHIND: u32 = 65_537;

/// What is kept of a connection in TIME-WAIT beside its addresses and its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TimeWait {
    /// SND.NXT.
    nxt: Seq,
    /// RCV.NXT.
    rcv_nxt: Seq,
    recent: u32,
    stamp_offset: u32,
    /// The window as it stands in a header.
    window: u16,
    /// When a segment was last answered, in units of [`CHALLENGE`].
    answered: u8,
    stamps: bool,
}

/// With addresses, ports and links it is 64 bytes (`time_wait.rs` of the engine).
const _: () = assert!(size_of::<TimeWait>() <= 20);

/// What is to be done with a segment for a connection in TIME-WAIT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Nothing.
    Drop,
    /// TIME-WAIT begins anew: the peer has sent its FIN again, or may.
    Restart,
    /// The same, and this is the answer.
    Answer(Header),
    /// The answer, and TIME-WAIT goes on as it was.
    Only(Header),
    /// The connection is forgotten (an RST that fits exactly).
    Forget,
    /// The SYN is a new connection's: it may be opened, with an initial sequence number behind this one (RFC 6191, section 2).
    Reuse(Seq),
}

impl Tcb {
    /// What is left of the connection once [`Event::Free`](super::Event::Free) was told: `Some` where it is in TIME-WAIT, which
    /// the holder takes care of from then on, for [`TIME_WAIT`] at least.
    pub fn time_wait(&self) -> Option<TimeWait> {
        (self.phase == Phase::TimeWait).then(|| TimeWait {
            nxt: self.nxt,
            rcv_nxt: self.rcv_nxt,
            recent: self.recent,
            stamp_offset: self.stamp_offset,
            window: self.window_field(),
            answered: (self.challenged / CHALLENGE) as u8,
            stamps: self.marks & mark::STAMPS != 0,
        })
    }
}

impl TimeWait {
    /// The number that the initial one of a new connection of ours must lie behind. `stamped`: `None` without timestamps, for the numbers
    /// alone tell both connections' segments apart only where the peer's grow, too (RFC 6528).
    pub fn behind(&self, stamped: bool) -> Option<Seq> {
        (self.stamps || !stamped).then(|| self.nxt + BEHIND)
    }

    /// Judges a segment with `len` bytes of payload.
    pub fn segment(&mut self, now: Time, header: &Header, len: u32) -> Verdict {
        let flags = header.flags;
        let end = header.seq + len + u32::from(flags.has(Flags::SYN)) + u32::from(flags.has(Flags::FIN));
        let stamps = header.timestamps.filter(|_| self.stamps);
        let old = stamps.is_some_and(|stamps| self.old(stamps.value));
        // What fits exactly and carries nothing: the peer has our last ACK, or gives up (tcp_timewait_state_process).
        if !old && header.seq == self.rcv_nxt && (end == header.seq || flags.has(Flags::RST)) {
            if flags.has(Flags::RST) {
                return Verdict::Forget;
            }
            if let Some(stamps) = stamps {
                self.recent = stamps.value;
            }
            return Verdict::Restart;
        }
        if flags.has(Flags::SYN) && !flags.has(Flags::ACK) && !flags.has(Flags::RST) && !old {
            // RFC 6191, section 2: later timestamps, or without them later numbers, show that the SYN is no old one.
            let later = stamps.is_some_and(|stamps| (stamps.value.wrapping_sub(self.recent) as i32) > 0);
            if later || self.rcv_nxt.before(header.seq) {
                return Verdict::Reuse(self.nxt + BEHIND);
            }
        }
        if flags.has(Flags::RST) {
            return Verdict::Drop;
        }
        let restart = old || flags.has(Flags::ACK);
        if len == 0 || flags.has(Flags::SYN) {
            let unit = (tick(now) / CHALLENGE) as u8;
            if unit == self.answered {
                return if restart { Verdict::Restart } else { Verdict::Drop };
            }
            self.answered = unit;
        }
        let answer = self.answer(now);
        if restart { Verdict::Answer(answer) } else { Verdict::Only(answer) }
    }

    /// PAWS (RFC 7323, section 5). TS.Recent was taken from the peer's FIN, or later: it is not too old to be compared.
    fn old(&self, value: u32) -> bool {
        (value.wrapping_sub(self.recent) as i32) < 0
    }

    /// The ACK of the peer's FIN.
    fn answer(&self, now: Time) -> Header {
        Header {
            seq: self.nxt,
            ack: self.rcv_nxt,
            flags: Flags::ACK,
            window: self.window,
            timestamps: self
                .stamps
                .then(|| Timestamps { value: tick(now).wrapping_add(self.stamp_offset), echo: self.recent }),
            ..Header::default()
        }
    }
}
