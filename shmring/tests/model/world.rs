//! What the model's processes share: the kernel's socket, the slot's words and ring, the two families'
//! memory, and what an observer outside knows (`Ghost`).

use crate::hands::Hand;
use crate::port::Log;
use shmring::layout::{Arbiter, CLOSED, ECHOED, Echo, TAKEN};
use shmring::ring::Geometry;
use shmring::word::Code;

/// Longest stream any scenario sends, plus one.
pub const MAX: usize = 8;
/// A ring cell that was written but not published.
pub const RAW: u8 = 254;
/// `Side::rewind` in one byte: [`CLOSED`].
pub const SHUT: u8 = 255;
/// `tx_word`, `rx_word`, `Side::echo` and `Side::rewind` in one byte: the flag above the rest.
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
    /// The receiver has shut down its own sending side, and goes on reading: POLLRDHUP for the sender.
    pub half: bool,
    /// Something has come since an edge-triggered poller last heard of it.
    pub edge: bool,
}

impl Kernel {
    pub fn ended(&self) -> bool {
        self.fin == 2 || self.rst
    }
    pub fn readable(&self) -> bool {
        self.queue.len > 0 || self.ended()
    }
    pub fn reset(&mut self) {
        self.edge = true;
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
    /// Ring position + 1 from which on unread bytes are echoed, and [`ECHOED`].
    pub echo: u8,
    pub rx: u8,
    /// 0, or which wish for space it is.
    pub want: u8,
    pub wr_shut: bool,
    pub tail: u8,
    pub base: u8,
    pub head: u8,
    /// How far the receiver has said that it has read, where it gave no room back for that.
    pub read: u8,
    pub cells: [u8; 4],
}

/// `Side::rewind` as the production word.
pub fn rewind_word(v: u8) -> u64 {
    match v {
        SHUT => CLOSED,
        v => u64::from(v & !FLAG) | if v & FLAG != 0 { TAKEN } else { 0 },
    }
}

/// The production word as that byte.
pub fn rewind_byte(v: u64) -> u8 {
    match v {
        CLOSED => SHUT,
        v => (v & 0x7f) as u8 | if v & TAKEN != 0 { FLAG } else { 0 },
    }
}

/// `Side::echo` as the production word.
pub fn echo_word(v: u8) -> u64 {
    u64::from(v & !FLAG) | if v & FLAG != 0 { ECHOED } else { 0 }
}

/// `Side::rewind`.
pub fn arbiter(v: u8) -> Arbiter {
    Arbiter::of(rewind_word(v))
}

/// `Side::echo`.
pub fn echo(v: u8) -> Option<Echo> {
    Code::of(echo_word(v))
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
    /// `switch::Again`.
    pub again: u8,
    pub fin: bool,
    pub latched: bool,
    /// The thread whose room lies behind the tail, + 1.
    pub reserved: u8,
}

/// Family memory of the receiving side.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Receiving {
    pub token: u8,
    pub word: u8,
    pub phase: u8,
    pub head: u8,
    pub shown: u8,
    /// The thread that leaves, + 1.
    pub leaving: u8,
    /// The process that looks at the ring, + 1.
    pub viewed: u8,
    /// `rx_down_at`, where somebody looks.
    pub down_at: u8,
    /// Stream position of the switch, `rx_cut` and `rx_skip`.
    pub up: u8,
    pub cut: u8,
    pub skip: u8,
    pub fin: bool,
    /// The receiver is a new program image: what is left of the ring is its own copy (`World::h`).
    pub image: bool,
    /// The receiver reads its descriptor without the library: no ring, no phase.
    pub raw: bool,
    /// The receiver's descriptor is a file.
    pub filed: bool,
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
    /// There is a reason for a reset: a process was killed, the lifeline did not take an echo, or the sender has reset.
    pub excused: bool,
    /// Bytes that had reached the receiver when the sender reset: they are read first.
    pub due: u8,
    /// A receiver has left although not all of an echo had come: what has not is not due.
    pub late: bool,
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
    /// The connection was reset for no reason.
    Reset,
    /// A poller was told of something to read, and there was nothing.
    Lied,
}

/// One thread: where it is and its registers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Thread<P> {
    pub pc: P,
    /// Bytes it still has to send.
    pub left: u8,
    /// Special acts (leaving) that it may still do.
    pub act: u8,
    pub armed: bool,
    pub bell: bool,
    /// What the step that it is in has brought so far.
    pub log: Log,
    pub b: u8,
    pub c: u8,
    /// Where to go on after a shared piece of code.
    pub then: u8,
    /// Room, or a view.
    pub hand: Hand,
}

impl<P> Thread<P> {
    pub fn new(pc: P, left: u8, act: u8) -> Thread<P> {
        Thread {
            pc,
            left,
            act,
            armed: false,
            bell: false,
            log: Log::default(),
            b: 0,
            c: 0,
            then: 0,
            hand: Hand::default(),
        }
    }
    pub fn wipe(&mut self) {
        self.armed = false;
        self.bell = false;
        self.log = Log::default();
        self.rest();
    }
    /// Dead registers are zeroed, so that states that differ in nothing else are one.
    pub fn rest(&mut self) {
        self.b = 0;
        self.c = 0;
        self.then = 0;
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct World {
    pub k: Kernel,
    pub m: Slot,
    /// What an exec handed on to a new image.
    pub h: Slot,
    pub file: Fifo,
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
    /// The receiver clears the wish for space that it served; the sender arms before it wishes.
    pub reader_clears_want: bool,
    /// A sender that is about to sleep for ring space notices that a rewind has begun.
    pub stir_on_rewind: bool,
    /// READY never overwrites REFUSED.
    pub ready_by_cas: bool,
    /// Native senders in flight hold UP back.
    pub count_senders: bool,
    /// A sender that goes down repeats over the lifeline what lies unread on the ring.
    pub echo: bool,
    /// The sender stores what it repeats (`echo`) before it stores that it has gone down.
    pub echo_before_down: bool,
    /// A receiver that leaves trusts an echo only when all of it is the kernel's.
    pub echo_complete: bool,
    /// A receiver that comes down drops what it has read on the ring.
    pub skip: bool,
    /// A receiver that leaves does so before anybody reads the descriptor without the library.
    pub drop_echo: bool,
    /// A receiver that leaves a ring that is closed waits for the sender to say what it echoes.
    pub down_before_leaving: bool,
    /// In transit, the lifeline is no echo.
    pub doubled_in_ring: bool,
    /// A sender that cannot finish its echo is not down before its FIN.
    pub fin_before_down: bool,
    /// A poller that does not sleep on a lifeline that repeats the ring sleeps in steps.
    pub doubled_in_steps: bool,
    /// A receiver that keeps what is on the ring looks whether more came behind it meanwhile.
    pub behind_the_cut: bool,
    /// What is left of a ring that was cut counts in transit, too.
    pub cut_in_transit: bool,
    /// Where the ring ends is seen from the arbiter if a holder died before it noted its cut.
    pub heal_cut: bool,
    /// A receiver whose sender was killed before it took anything back reads the ring.
    pub take_back: bool,
    /// A receiver whose sender was killed over taking back what was unread is reset.
    pub killed_over_it: bool,
    /// What an exec hands on begins behind what of the echo was read.
    pub hand_on_behind: bool,
    /// A receiver that leaves a ring because all of it is echoed looks whether the echo has come.
    pub arrived: bool,
    /// A file takes the place of standard input only if all has come.
    pub file_is_all: bool,
    /// Before the ring's bytes, the file gets those before X, and no echo.
    pub file_to_x: bool,
    /// A thread that moves a receiver from transit to the ring tells the others of its process.
    pub tell_on_ring: bool,
    /// In transit, receivers and pollers sleep in steps.
    pub transit_in_steps: bool,
    /// What was read of a ring is not given back while somebody looks at it.
    pub keep_viewed: bool,
    /// Nobody sends where a program fills its room.
    pub keep_reserved: bool,
    /// A release counts what was read on the lifeline since the look.
    pub count_behind: bool,
    /// While somebody looks, nobody receives without the token.
    pub viewed_by_token: bool,
    /// The look ends behind what the release leaves to be dropped.
    pub end_last: bool,
    /// While another process looks, receivers and pollers sleep in steps.
    pub viewed_in_steps: bool,
    /// A receiver that keeps what is on the ring keeps what came behind it meanwhile, too.
    pub moves_the_cut: bool,
    /// A sender looks after it has published, and told, whether the receiver has left.
    pub look_after_put: bool,
    /// A sender that waits for an answer on the lifeline hears its doorbell.
    pub waits_for_both: bool,
    /// Who waits for room sleeps in steps.
    pub room_in_steps: bool,
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
    reader_clears_want: true,
    stir_on_rewind: true,
    ready_by_cas: true,
    count_senders: true,
    echo: true,
    echo_before_down: true,
    echo_complete: true,
    skip: true,
    drop_echo: true,
    down_before_leaving: true,
    doubled_in_ring: true,
    fin_before_down: true,
    doubled_in_steps: true,
    behind_the_cut: true,
    cut_in_transit: true,
    heal_cut: true,
    take_back: true,
    killed_over_it: true,
    hand_on_behind: true,
    arrived: true,
    file_is_all: true,
    file_to_x: true,
    tell_on_ring: true,
    transit_in_steps: true,
    keep_viewed: true,
    keep_reserved: true,
    count_behind: true,
    viewed_by_token: true,
    end_last: true,
    viewed_in_steps: true,
    moves_the_cut: true,
    look_after_put: true,
    waits_for_both: true,
    room_in_steps: true,
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// `close` through the library.
    Close,
    /// `shutdown(SHUT_WR)` through the library.
    Shutdown,
    /// The same of a socket that does not linger (SO_LINGER of 0): a RST.
    Reset,
    /// Exit: the kernel closes.
    Exit,
}

/// A receiver leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    /// `io::quit` with `Unread::Keep`; it goes on receiving through the library.
    Cut,
    /// `io::quit` with `Unread::Rewind`; the same.
    Rewind,
    /// `io::retire`: what follows is read behind the library's back.
    Retire,
    /// `exec` of an image that loads the library.
    Exec,
    /// `exec` of one that does not.
    Foreign,
    /// `exec` with the connection as standard input.
    Stdin,
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
    /// What of it the receive queue takes.
    pub window: u8,
    /// Sent bytes arrive later.
    pub wire: bool,
    /// Processes that may be killed at any step, a bit each.
    pub kill: u8,
    pub end: End,
    /// The sender ends the stream only once all of it was read: it waits for an answer.
    pub polite: bool,
    /// The receiver can wake nobody by a doorbell.
    pub mute: bool,
    /// The first sending thread shuts down when it has sent its bytes, whatever the others do.
    pub hasty: bool,
    /// The first sending thread takes its direction down at some moment.
    pub leave: bool,
    /// The receiver shuts down its own sending side at some moment.
    pub half: bool,
    /// The last receiving thread leaves, each time at some moment.
    pub acts: &'static [Act],
    /// Receivers wait in `poll` or epoll, a bit each, and receive without blocking.
    pub polls: u8,
    pub epolls: u8,
    /// The first receiving thread stops after so many bytes, if not 0.
    pub takes: u8,
    /// A receiver comes down as soon as all is echoed (a peek, a low-water mark).
    pub eager: bool,
    /// Receivers were blocked in the kernel when the connection was attached.
    pub blocked: bool,
    /// Senders that reserve room and commit some of it, and receivers that look at bytes and release some of them, a bit each; they
    /// send and receive as well.
    pub rooms: u8,
    pub looks: u8,
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
            Some(&(_, n)) => Thread::new(sender::Pc::Idle, n, u8::from(c.leave && i == 0)),
            None => Thread::new(sender::Pc::Done, 0, 0),
        });
        let r = core::array::from_fn(|i| match c.receivers.get(i) {
            Some(_) if c.blocked => Thread::new(receiver::Pc::CountedRecv, 0, 0),
            Some(_) => {
                let acts = if i + 1 == c.receivers.len() { c.acts.len() as u8 } else { 0 };
                Thread::new(receiver::Pc::Idle, if i == 0 { c.takes } else { 0 }, acts)
            }
            None => Thread::new(receiver::Pc::Done, 0, 0),
        });
        let rx = Receiving { word: if c.blocked { c.receivers.len() as u8 } else { 0 }, ..Receiving::default() };
        World {
            k: Kernel::default(),
            m: Slot::default(),
            h: Slot::default(),
            file: Fifo::default(),
            tx: Sending::default(),
            rx,
            g: Ghost::default(),
            s,
            r,
            dead: 0,
        }
    }

    pub fn finished(&self) -> bool {
        self.s.iter().all(|t| t.pc == crate::sender::Pc::Done)
            && self.r.iter().all(|t| t.pc == crate::receiver::Pc::Done)
    }

    /// The doorbells of the receiving, or sending, side.
    pub fn notify_receivers(&mut self) {
        for t in &mut self.r {
            t.bell |= t.armed;
        }
    }
    /// The slot that the receiver reads: the shared one, or the copy that an exec has handed on.
    pub fn slot(&self) -> &Slot {
        if self.rx.image { &self.h } else { &self.m }
    }
    pub fn slot_mut(&mut self) -> &mut Slot {
        if self.rx.image { &mut self.h } else { &mut self.m }
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

    /// The receiver's side resets the connection, and drops what is unread.
    pub fn reset(&mut self) {
        self.k.reset();
        self.g.due = 0;
    }

    /// The sender's socket is closed with a RST. What is on the wire has not reached the receiver, unless it lies on the
    /// ring as well.
    pub fn kernel_rst(&mut self) {
        if self.k.rst {
            return;
        }
        let up = self.m.up.saturating_sub(1);
        let on_ring = if self.m.up == 0 || self.m.rewind != SHUT || self.g.late { 0..0 } else { up..up + self.m.tail };
        let mut wire = self.k.wire;
        self.g.due = (0..wire.len).map(|_| wire.pop()).find(|id| !on_ring.contains(id)).unwrap_or(self.g.stream);
        self.g.excused = true;
        self.k.reset();
    }

    /// The program saw an error of the connection.
    pub fn connection_reset(&mut self) {
        if self.g.delivered < self.g.due {
            self.g.verdict = Verdict::Truncated;
        }
        if !self.g.excused && !self.g.owed && self.dead == 0 {
            self.g.verdict = Verdict::Reset;
        }
    }

    /// Puts byte `id` on the lifeline.
    pub fn kernel_put(&mut self, c: &Config, id: u8) {
        self.k.sent += 1;
        if c.wire { self.k.wire.push(id) } else { self.arrives(id) }
    }

    pub fn arrives(&mut self, id: u8) {
        self.k.queue.push(id);
        self.k.edge = true;
    }

    /// A byte of the lifeline is taken from the queue.
    pub fn kernel_take(&mut self) -> u8 {
        self.k.consumed += 1;
        self.k.queue.pop()
    }

    pub fn kernel_room(&self, c: &Config) -> u8 {
        c.cap.saturating_sub(self.k.wire.len + self.k.queue.len)
    }

    pub fn kernel_fin(&mut self, c: &Config) {
        if self.k.fin == 0 {
            self.k.fin = if c.wire { 1 } else { 2 };
            self.k.edge = true;
        }
    }

    /// A native receive of at most `max` bytes; how many came.
    pub fn kernel_recv(&mut self, max: u8) -> u8 {
        let n = max.min(self.k.queue.len);
        for _ in 0..n {
            let id = self.kernel_take();
            self.deliver(id);
        }
        n
    }
}
