//! What the model's processes share: the kernel's socket, the slot's words and ring, the two families'
//! memory, and what an observer outside knows (`Ghost`).

use shmring::layout::CLOSED;
use shmring::ring::Geometry;

/// Longest stream any scenario sends, plus one.
pub const MAX: usize = 8;
/// A ring cell that was written but not published.
pub const RAW: u8 = 254;
/// `Side::rewind` in one byte: [`CLOSED`].
pub const SHUT: u8 = 255;
/// `tx_word`, `rx_word` in one byte: the flag above the count.
pub const FLAG: u8 = 0x80;

/// Bytes on their way, each named by its place in the stream.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Fifo {
    pub len: u8,
    b: [u8; MAX],
}

impl Fifo {
    pub fn push(&mut self, id: u8) {
        self.b[self.len as usize] = id;
        self.len += 1;
    }
    pub fn pop(&mut self) -> u8 {
        let id = self.b[0];
        self.b.copy_within(1.., 0);
        self.len -= 1;
        self.b[self.len as usize] = 0;
        id
    }
    pub fn clear(&mut self) {
        *self = Fifo::default();
    }
}

/// One direction of a kernel TCP connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Kernel {
    /// Sent, not yet arrived.
    pub wire: Fifo,
    /// Receive queue.
    pub queue: Fifo,
    /// Bytes ever sent (tcpi_bytes_acked + SIOCOUTQ).
    pub sent: u8,
    /// Bytes ever read by the receiver (tcpi_bytes_received - SIOCINQ).
    pub consumed: u8,
    /// The sender's FIN: 0 not sent, 1 on the wire, 2 arrived.
    pub fin: u8,
    /// The connection was reset; the receiver reads what is queued, then ECONNRESET.
    pub rst: bool,
    /// The receiver's socket is gone: POLLRDHUP for the sender, EPIPE for its sends.
    pub deaf: bool,
}

impl Kernel {
    pub fn ended(&self) -> bool {
        self.fin == 2 || self.rst
    }
    pub fn readable(&self) -> bool {
        self.queue.len > 0 || self.ended()
    }
    pub fn reset(&mut self) {
        self.rst = true;
        self.deaf = true;
        self.wire.clear();
    }
}

/// The slot: every word in it is shared between the two families.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Slot {
    pub up: u8,
    pub down: u8,
    pub rewind: u8,
    pub rx: u8,
    /// 0, or which wish for space it is.
    pub want: u8,
    pub wr_shut: bool,
    pub tail: u8,
    pub base: u8,
    pub head: u8,
    pub cells: [u8; 4],
}

/// `Side::rewind` as the production word.
pub fn rewind_word(v: u8) -> u64 {
    if v == SHUT { CLOSED } else { u64::from(v) }
}

/// Family memory of the sending side.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Sending {
    pub token: u8,
    pub word: u8,
    pub phase: u8,
    pub tail: u8,
    pub head: u8,
    pub base: u8,
    /// Stream position of the switch.
    pub up: u8,
    pub fin: bool,
    pub latched: bool,
}

/// Family memory of the receiving side.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Receiving {
    pub token: u8,
    pub word: u8,
    pub phase: u8,
    pub head: u8,
    pub fin: bool,
}

/// What is true whoever knows it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Ghost {
    /// Bytes that became part of the stream (reached the kernel, or were published on the ring).
    pub stream: u8,
    /// Bytes the receiving program got.
    pub delivered: u8,
    /// A process died that still owed the kernel bytes of a rewind: the one loss nobody can report.
    pub owed: bool,
    /// The model's verdict; empty while all is well.
    pub verdict: Verdict,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Verdict {
    #[default]
    Fine,
    /// A byte came twice, too early or garbled.
    Order,
    /// The program saw the end of the stream before the last byte.
    Truncated,
    /// An honest peer was called corrupt.
    Accused,
}

/// One thread: where it is and its registers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Thread<P> {
    pub pc: P,
    /// Bytes it still has to send.
    pub left: u8,
    /// May still do its special act (leave, retire).
    pub act: bool,
    pub armed: bool,
    pub bell: bool,
    pub a: u8,
    pub b: u8,
    pub c: u8,
    /// Where to go on after a shared piece of code.
    pub then: u8,
}

impl<P> Thread<P> {
    pub fn new(pc: P, left: u8, act: bool) -> Thread<P> {
        Thread { pc, left, act, armed: false, bell: false, a: 0, b: 0, c: 0, then: 0 }
    }
    pub fn wipe(&mut self) {
        self.armed = false;
        self.bell = false;
        self.rest();
    }
    /// Dead registers are zeroed, so that states that differ in nothing else are one.
    pub fn rest(&mut self) {
        self.a = 0;
        self.b = 0;
        self.c = 0;
        self.then = 0;
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct World {
    pub k: Kernel,
    pub m: Slot,
    pub tx: Sending,
    pub rx: Receiving,
    pub g: Ghost,
    pub s: [Thread<crate::sender::Pc>; 2],
    pub r: [Thread<crate::receiver::Pc>; 2],
    /// Processes that were killed, a bit each: senders 0 and 1, receivers 2 and 3.
    pub dead: u8,
}

/// Guards of the protocol that can be taken out one by one, to see that the model misses them.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// A receiver still native reads no more than lay queued before it saw that the sender is not up.
    pub bounded_native: bool,
    /// `shutdown(SHUT_WR)` and `close` go down, and finish a rewind or reset, before the FIN.
    pub down_before_fin: bool,
    /// Space is reported by what the receiver sees after it gave the room back.
    pub space_after_consume: bool,
    /// The arbiter of a direction that goes down is used.
    pub arbiter: bool,
    /// A sender looks again at `rx` and `rewind` after it published `up`.
    pub look_after_up: bool,
    /// What a dead holder of the family left half done is completed by the next one.
    pub heal: bool,
    /// The receiver looks at the ring again after it saw the end on the lifeline.
    pub look_after_end: bool,
    /// Native receivers in flight hold READY back.
    pub count_receivers: bool,
    /// A receiver that retires looks for the end after it moved the arbiter, not before.
    pub look_after_rewind: bool,
    /// A receiver that must reset does so before anybody can see its phase.
    pub reset_first: bool,
    /// The receiver clears the wish for space that it served; the sender arms before it wishes.
    pub reader_clears_want: bool,
    /// A sender that is about to sleep for ring space notices that a rewind has begun.
    pub stir_on_rewind: bool,
    /// READY never overwrites REFUSED.
    pub ready_by_cas: bool,
    /// Native senders in flight hold UP back.
    pub count_senders: bool,
}

/// The protocol as it should be.
pub const RULES: Rules = Rules {
    bounded_native: true,
    down_before_fin: true,
    space_after_consume: true,
    arbiter: true,
    look_after_up: true,
    heal: true,
    look_after_end: true,
    count_receivers: true,
    look_after_rewind: true,
    reset_first: true,
    reader_clears_want: true,
    stir_on_rewind: true,
    ready_by_cas: true,
    count_senders: true,
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// `close` through the library.
    Close,
    /// `shutdown(SHUT_WR)` through the library.
    Shutdown,
    /// Exit: the kernel closes.
    Exit,
}

/// A scenario.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    pub name: &'static str,
    /// Process of each sending thread (0 or 1), and bytes it sends.
    pub senders: &'static [(u8, u8)],
    /// Process of each receiving thread (2 or 3).
    pub receivers: &'static [u8],
    /// Bytes of one send call and of one receive call.
    pub chunk: u8,
    pub want: u8,
    /// Ring and kernel buffer.
    pub ring: u8,
    pub cap: u8,
    /// Sent bytes arrive later.
    pub wire: bool,
    /// Processes that may be killed at any step, a bit each.
    pub kill: u8,
    pub end: End,
    /// The first sending thread takes its direction down at some moment.
    pub leave: bool,
    /// The last receiving thread retires the direction at some moment.
    pub retire: bool,
    /// Receivers were blocked in the kernel when the connection was attached.
    pub blocked: bool,
    pub rules: Rules,
}

impl Config {
    pub fn geometry(&self) -> Geometry {
        Geometry { size: u64::from(self.ring), home: 1 }
    }
}

impl World {
    pub fn new(c: &Config) -> World {
        use crate::{receiver, sender};
        let s = core::array::from_fn(|i| match c.senders.get(i) {
            Some(&(_, n)) => Thread::new(sender::Pc::Idle, n, c.leave && i == 0),
            None => Thread::new(sender::Pc::Done, 0, false),
        });
        let r = core::array::from_fn(|i| match c.receivers.get(i) {
            Some(_) if c.blocked => Thread::new(receiver::Pc::CountedRecv, 0, false),
            Some(_) => Thread::new(receiver::Pc::Idle, 0, c.retire && i + 1 == c.receivers.len()),
            None => Thread::new(receiver::Pc::Done, 0, false),
        });
        let rx = Receiving { word: if c.blocked { c.receivers.len() as u8 } else { 0 }, ..Receiving::default() };
        World { k: Kernel::default(), m: Slot::default(), tx: Sending::default(), rx, g: Ghost::default(), s, r, dead: 0 }
    }

    pub fn finished(&self) -> bool {
        self.s.iter().all(|t| t.pc == crate::sender::Pc::Done) && self.r.iter().all(|t| t.pc == crate::receiver::Pc::Done)
    }

    /// The doorbells of the receiving, or sending, side.
    pub fn notify_receivers(&mut self) {
        for t in &mut self.r {
            t.bell |= t.armed;
        }
    }
    pub fn notify_senders(&mut self) {
        for t in &mut self.s {
            t.bell |= t.armed;
        }
    }

    /// The program got byte `id`.
    pub fn deliver(&mut self, id: u8) {
        if id != self.g.delivered {
            self.g.verdict = Verdict::Order;
        }
        self.g.delivered += 1;
    }

    /// The program saw the end of the stream.
    pub fn end_of_stream(&mut self) {
        if self.g.delivered != self.g.stream && !self.g.owed {
            self.g.verdict = Verdict::Truncated;
        }
    }

    /// Sends `n` bytes natively, new ones.
    pub fn kernel_send(&mut self, c: &Config, n: u8) {
        for _ in 0..n {
            let id = self.g.stream;
            self.g.stream += 1;
            self.kernel_put(c, id);
        }
    }

    /// Puts byte `id` on the lifeline.
    pub fn kernel_put(&mut self, c: &Config, id: u8) {
        self.k.sent += 1;
        if c.wire { self.k.wire.push(id) } else { self.k.queue.push(id) }
    }

    pub fn kernel_room(&self, c: &Config) -> u8 {
        c.cap.saturating_sub(self.k.wire.len + self.k.queue.len)
    }

    pub fn kernel_fin(&mut self, c: &Config) {
        if self.k.fin == 0 {
            self.k.fin = if c.wire { 1 } else { 2 };
        }
    }

    /// A native receive of at most `max` bytes; how many came.
    pub fn kernel_recv(&mut self, max: u8) -> u8 {
        let n = max.min(self.k.queue.len);
        for _ in 0..n {
            let id = self.k.queue.pop();
            self.k.consumed += 1;
            self.deliver(id);
        }
        n
    }
}
