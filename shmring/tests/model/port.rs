//! The driver's port in the model: one effect a run, on real words that are filled from the state and read back into it.
//!
//! A thread that is in the middle of a step keeps what its accesses have brought so far ([`Log`]). To go on, the step is run
//! anew from its beginning: what is in the log is handed out again, then one effect is made, and the next one stops the run.

use crate::hands::LAID;
use crate::world::{Config, FLAG, RAW, Slot, World, echo_word, rewind_byte, rewind_word};
use shmring::driver::{Conn, Failure, Given, Guard, Incoming, Native, Outgoing, Port, Seen};
use shmring::family::{Endpoint, Reason};
use shmring::layout::{ECHOED, Role, SlotHeader, WR_SHUT};
use shmring::position::{RingPos, StreamPos};
use shmring::switch::{RxPhase, TxPhase};
use shmring::sync::Ordering::Relaxed;

/// Bytes of the model's home: so few that both ways past it occur.
pub const HOME: u8 = 2;

const LOG: usize = 30;

/// What the accesses of a step have brought so far.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Log {
    len: u8,
    brought: [u8; LOG],
}

/// A word of the log. Everything in the model is small, but for the words that have a flag.
fn narrow(v: u64) -> u8 {
    match v {
        u64::MAX => u8::MAX,
        v if v & ECHOED != 0 => 0x80 | (v & 0x3f) as u8,
        v if v & 1 << 31 != 0 => 0xc0 | (v & 0x3f) as u8,
        v => {
            assert!(v < 0x80, "{v} is not of the model");
            v as u8
        }
    }
}

fn widen(v: u8) -> u64 {
    match v {
        u8::MAX => u64::MAX,
        v if v & 0xc0 == 0xc0 => 1 << 31 | u64::from(v & 0x3f),
        v if v & 0x80 != 0 => ECHOED | u64::from(v & 0x3f),
        v => u64::from(v),
    }
}

/// The words that the driver works on.
pub struct Memory {
    tx: Endpoint,
    rx: Endpoint,
    slot: SlotHeader,
}

impl Memory {
    fn new() -> Memory {
        // SAFETY: all three are atomics, of which zero is a value.
        unsafe { core::mem::zeroed() }
    }
}

thread_local! {
    static MEMORY: &'static Memory = Box::leak(Box::new(Memory::new()));
}

/// A count with the flag above it, as the production word.
fn counted(v: u8) -> u32 {
    u32::from(v & !FLAG) | if v & FLAG != 0 { 1 << 31 } else { 0 }
}

fn count(v: u32) -> u8 {
    (v & 0x7f) as u8 | if v & 1 << 31 != 0 { FLAG } else { 0 }
}

fn echo_byte(v: u64) -> u8 {
    (v & 0x7f) as u8 | if v & ECHOED != 0 { FLAG } else { 0 }
}

/// In what was copied: a byte that was never published, and no byte.
const GARBAGE: u8 = 0xf;
const NONE: u8 = 0xe;

/// Which side runs the step.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Of {
    Sender,
    Receiver,
}

impl Memory {
    fn fill(&self, c: &Config, w: &World, of: Of) {
        let m: &Slot = if of == Of::Receiver { w.slot() } else { &w.m };
        let [s, r] = &self.slot.side;
        s.up.word().store(m.up.into(), Relaxed);
        s.down.word().store(m.down.into(), Relaxed);
        s.echo.word().store(echo_word(m.echo), Relaxed);
        s.want_space.store(m.want.into(), Relaxed);
        s.wr_shut.store(m.wr_shut.into(), Relaxed);
        r.rewind.word().store(rewind_word(m.rewind), Relaxed);
        r.rx.store(m.rx.into(), Relaxed);
        r.wr_shut.store(if w.k.half { WR_SHUT } else { 0 }, Relaxed);
        self.slot.producer[0].tail.word().store(m.tail.into(), Relaxed);
        self.slot.producer[0].base.word().store(m.base.into(), Relaxed);
        self.slot.consumer[0].head.word().store(m.head.into(), Relaxed);
        self.slot.consumer[0].read.word().store(m.read.into(), Relaxed);
        match of {
            Of::Sender => {
                let (e, t) = (&self.tx, &w.tx);
                e.tx_word.store(counted(t.word), Relaxed);
                e.tx_phase.set(TxPhase::from_u32(t.phase.into()));
                e.tx_tail.word().store(t.tail.into(), Relaxed);
                e.tx_head.word().store(t.head.into(), Relaxed);
                e.tx_base.word().store(t.base.into(), Relaxed);
                e.tx_up.word().store(t.up.into(), Relaxed);
                e.tx_again.word().store(t.again.into(), Relaxed);
                e.rx_fin.store(t.fin.into(), Relaxed);
                e.latched.store(t.latched.into(), Relaxed);
                e.tx_reserved.store(t.reserved.into(), Relaxed);
            }
            Of::Receiver => {
                let (e, r) = (&self.rx, &w.rx);
                e.rx_word.store(counted(r.word), Relaxed);
                e.rx_phase.set(RxPhase::from_u32(r.phase.into()));
                e.rx_head.word().store(r.head.into(), Relaxed);
                e.rx_shown.word().store(r.shown.into(), Relaxed);
                e.rx_up.word().store(r.up.into(), Relaxed);
                e.rx_cut.word().store(r.cut.into(), Relaxed);
                e.rx_skip.word().store(r.skip.into(), Relaxed);
                e.rx_fin.store(r.fin.into(), Relaxed);
                e.rx_leaving.store(r.leaving.into(), Relaxed);
                e.rx_viewed.store(r.viewed.into(), Relaxed);
                if c.looks != 0 {
                    e.rx_down_at.word().store(r.down_at.into(), Relaxed);
                    // The model's kernel counts for itself.
                    e.rx_at.word().store(0, Relaxed);
                }
            }
        }
    }

    fn drain(&self, c: &Config, w: &mut World, of: Of) {
        let [s, r] = &self.slot.side;
        let m: &mut Slot = if of == Of::Receiver { w.slot_mut() } else { &mut w.m };
        m.up = s.up.word().load(Relaxed) as u8;
        m.down = s.down.word().load(Relaxed) as u8;
        m.echo = echo_byte(s.echo.word().load(Relaxed));
        m.want = s.want_space.load(Relaxed) as u8;
        m.rewind = rewind_byte(r.rewind.word().load(Relaxed));
        m.rx = r.rx.load(Relaxed) as u8;
        m.tail = self.slot.producer[0].tail.word().load(Relaxed) as u8;
        m.base = self.slot.producer[0].base.word().load(Relaxed) as u8;
        m.head = self.slot.consumer[0].head.word().load(Relaxed) as u8;
        m.read = self.slot.consumer[0].read.word().load(Relaxed) as u8;
        match of {
            Of::Sender => {
                let (e, t) = (&self.tx, &mut w.tx);
                t.word = count(e.tx_word.load(Relaxed));
                t.phase = e.tx_phase.get() as u8;
                t.tail = e.tx_tail.word().load(Relaxed) as u8;
                t.head = e.tx_head.word().load(Relaxed) as u8;
                t.base = e.tx_base.word().load(Relaxed) as u8;
                t.up = e.tx_up.word().load(Relaxed) as u8;
                t.again = e.tx_again.word().load(Relaxed) as u8;
                t.fin = e.rx_fin.load(Relaxed) != 0;
                t.latched = e.latched.load(Relaxed) != 0;
                t.reserved = e.tx_reserved.load(Relaxed) as u8;
            }
            Of::Receiver => {
                let (e, r) = (&self.rx, &mut w.rx);
                r.word = count(e.rx_word.load(Relaxed));
                r.phase = e.rx_phase.get() as u8;
                r.head = e.rx_head.word().load(Relaxed) as u8;
                r.shown = e.rx_shown.word().load(Relaxed) as u8;
                r.up = e.rx_up.word().load(Relaxed) as u8;
                r.cut = e.rx_cut.word().load(Relaxed) as u8;
                r.skip = e.rx_skip.word().load(Relaxed) as u8;
                r.fin = e.rx_fin.load(Relaxed) != 0;
                r.leaving = e.rx_leaving.load(Relaxed) as u8;
                r.viewed = e.rx_viewed.load(Relaxed) as u8;
                if c.looks != 0 {
                    r.down_at = e.rx_down_at.word().load(Relaxed) as u8;
                }
            }
        }
    }
}

/// The run was stopped before its next effect.
#[derive(Debug)]
pub struct Stopped;

/// One run of a step by thread `i`, up to its next effect.
pub struct Run<'a> {
    c: &'a Config,
    of: Of,
    i: usize,
    memory: &'static Memory,
    w: World,
    log: Log,
    at: usize,
    made: bool,
    /// Effects are not taken apart: the run makes all of them.
    whole: bool,
    choice: u8,
    choices: u8,
    /// Bytes of the ring that are in the thread's hands, one or two.
    copied: u8,
    /// Bytes that a receive of the kernel's, or of a ring, may bring.
    want: u8,
    /// Bytes that a release has seen on the ring, and drops from the lifeline.
    drops: u8,
}

/// Runs `step` of thread `i` up to and with its next effect, in every way in which that can go. `done` gets each new state,
/// and the step's result if it has come to its end.
pub fn advance<T>(
    c: &Config,
    w: &World,
    of: Of,
    i: usize,
    want: u8,
    step: impl Fn(&mut Run, &Conn) -> Result<T, Stopped>,
    mut done: impl FnMut(World, Option<T>),
) {
    run(c, w, of, i, want, false, step, &mut |n, r| done(n, r));
}

/// Runs all of `step` as one.
pub fn whole<T>(
    c: &Config,
    w: &World,
    of: Of,
    i: usize,
    step: impl Fn(&mut Run, &Conn) -> Result<T, Stopped>,
) -> (World, T) {
    let mut out = None;
    run(c, w, of, i, 0, true, step, &mut |n, r| out = r.map(|r| (n, r)));
    out.expect("a whole step comes to its end")
}

#[allow(clippy::too_many_arguments)]
fn run<T>(
    c: &Config,
    w: &World,
    of: Of,
    i: usize,
    want: u8,
    whole: bool,
    step: impl Fn(&mut Run, &Conn) -> Result<T, Stopped>,
    done: &mut dyn FnMut(World, Option<T>),
) {
    let memory = MEMORY.with(|m| *m);
    let log = if whole {
        Log::default()
    } else {
        match of {
            Of::Sender => w.s[i].log,
            Of::Receiver => w.r[i].log,
        }
    };
    let (mut choice, mut choices) = (0, 1);
    while choice < choices {
        memory.fill(c, w, of);
        let mut run = Run {
            c,
            of,
            i,
            memory,
            w: *w,
            log,
            at: 0,
            made: false,
            whole,
            choice,
            choices: 1,
            copied: 0,
            want,
            drops: 0,
        };
        let (ep, role) = match of {
            Of::Sender => (&memory.tx, Role::Connector),
            Of::Receiver => (&memory.rx, Role::Acceptor),
        };
        let conn = Conn { ep, slot: &memory.slot, role, size: c.ring.into() };
        let r = step(&mut run, &conn);
        choices = run.choices;
        choice += 1;
        run.publish();
        let mut n = run.w;
        memory.drain(c, &mut n, of);
        let log = if r.is_ok() { Log::default() } else { run.log };
        if !whole {
            match of {
                Of::Sender => n.s[i].log = log,
                Of::Receiver => n.r[i].log = log,
            }
        }
        done(n, r.ok());
    }
}

impl Run<'_> {
    /// Makes one effect, or hands out again what it brought.
    fn effect(&mut self, f: impl FnOnce(&mut Self) -> u8) -> Result<u8, Stopped> {
        if self.at < self.log.len as usize {
            self.at += 1;
            return Ok(self.log.brought[self.at - 1]);
        }
        if self.made && !self.whole {
            return Err(Stopped);
        }
        self.made = true;
        let v = f(self);
        self.keep(v);
        Ok(v)
    }

    /// An effect that goes one of two ways.
    fn either(&mut self, possible: bool) -> Result<bool, Stopped> {
        let v = self.effect(|s| {
            if possible && !s.whole {
                s.choices = 2;
                s.choice
            } else {
                0
            }
        })?;
        Ok(v != 0)
    }

    fn keep(&mut self, v: u8) {
        if self.whole {
            return;
        }
        self.log.brought[self.log.len as usize] = v;
        self.log.len += 1;
        self.at += 1;
    }

    /// What memory came to mean by the last effect: bytes that were published belong to the stream, bytes that a receiver
    /// has counted are its program's.
    fn publish(&mut self) {
        match self.of {
            Of::Sender => {
                let tail = self.memory.slot.producer[0].tail.word().load(Relaxed) as u8;
                let base = self.memory.tx.tx_base.word().load(Relaxed) as u8;
                for at in self.w.m.tail..tail {
                    name(self.c, &mut self.w, base, at);
                }
            }
            Of::Receiver => {
                let head = self.memory.rx.rx_head.word().load(Relaxed) as u8;
                let n = head - self.w.rx.head;
                if n != 0 {
                    for k in 0..n {
                        let id = self.copied >> (4 * k) & 0xf;
                        self.w.deliver(if id == GARBAGE { u8::MAX } else { id });
                    }
                    crate::receiver::got(&mut self.w, self.i, n);
                }
                // From here on they are read, also if they have yet to come.
                if self.drops > 0 && self.memory.rx.rx_skip.word().load(Relaxed) > self.w.rx.skip.into() {
                    (0..self.drops).for_each(|_| self.w.deliver(self.w.g.delivered));
                    crate::receiver::got(&mut self.w, self.i, self.drops);
                }
            }
        }
    }
}

/// The byte at ring position `at` becomes part of the stream, if it is not.
fn name(c: &Config, w: &mut World, base: u8, at: u8) -> u8 {
    let cell = cell(c, base, at);
    if w.m.cells[cell] == RAW || w.m.cells[cell] & !1 == LAID {
        w.m.cells[cell] = w.g.stream;
        w.g.stream += 1;
    }
    w.m.cells[cell]
}

pub fn cell(c: &Config, base: u8, at: u8) -> usize {
    c.geometry().spans(RingPos::new(base.into()), RingPos::new(at.into()), 1)[0].0
}

impl Port for Run<'_> {
    type Stop = Stopped;
    const HOME: u64 = HOME as u64;

    fn atom<T: Seen>(&mut self, access: impl FnOnce() -> T) -> Result<T, Stopped> {
        if self.whole {
            return Ok(access());
        }
        self.effect(|_| narrow(access().pack())).map(|v| T::unpack(widen(v)))
    }

    fn quiet<T: Seen>(&mut self, access: impl FnOnce() -> T) -> T {
        if self.at < self.log.len as usize {
            self.at += 1;
            return T::unpack(widen(self.log.brought[self.at - 1]));
        }
        let v = access();
        if !self.whole {
            self.keep(narrow(v.pack()));
        }
        v
    }

    fn notify(&mut self) -> Result<(), Stopped> {
        self.effect(|s| {
            match s.of {
                Of::Sender => s.w.notify_receivers(),
                // An image that got its ring from an exec has no peer there.
                Of::Receiver if s.w.rx.image => {}
                Of::Receiver if s.c.mute => {}
                Of::Receiver => s.w.notify_senders(),
            }
            0
        })
        .map(|_| ())
    }

    fn tell_own(&mut self) {
        if self.at < self.log.len as usize {
            self.at += 1;
            return;
        }
        let process = self.c.receivers[self.i];
        for j in 0..self.c.receivers.len() {
            self.w.r[j].bell |= self.w.r[j].armed && self.c.receivers[j] == process && j != self.i;
        }
        self.keep(0);
    }

    fn lacks(&self, guard: Guard) -> bool {
        let r = &self.c.rules;
        !match guard {
            Guard::Arbiter => r.arbiter,
            Guard::Arrived => r.arrived,
            Guard::BehindTheCut => r.behind_the_cut,
            Guard::BoundedNative => r.bounded_native,
            Guard::CountReceivers => r.count_receivers,
            Guard::CountSenders => r.count_senders,
            Guard::CutInTransit => r.cut_in_transit,
            Guard::DoubledInRing => r.doubled_in_ring,
            Guard::DownBeforeLeaving => r.down_before_leaving,
            Guard::Echo => r.echo,
            Guard::EchoBeforeDown => r.echo_before_down,
            Guard::EchoComplete => r.echo_complete,
            Guard::Heal => r.heal,
            Guard::HealCut => r.heal_cut,
            Guard::CountBehind => r.count_behind,
            Guard::KeepReserved => r.keep_reserved,
            Guard::KeepViewed => r.keep_viewed,
            Guard::KilledOverIt => r.killed_over_it,
            Guard::LookAfterEnd => r.look_after_end,
            Guard::LookAfterRewind => r.look_after_rewind,
            Guard::LookAfterUp => r.look_after_up,
            Guard::MovesTheCut => r.moves_the_cut,
            Guard::ReadyByCas => r.ready_by_cas,
            Guard::ServedByReader => r.reader_clears_want,
            Guard::Skip => r.skip,
            Guard::SpaceAfterConsume => r.space_after_consume,
            Guard::TakeBack => r.take_back,
            Guard::TellOnRing => r.tell_on_ring,
        }
    }
}

impl Outgoing for Run<'_> {
    fn natively_sent(&mut self) -> Result<Option<StreamPos>, Stopped> {
        self.effect(|s| s.w.k.sent).map(|n| Some(StreamPos::new(n.into())))
    }
    fn ended(&mut self) -> Result<bool, Stopped> {
        if self.memory.tx.rx_fin.load(Relaxed) != 0 && self.at == self.log.len as usize {
            return self.effect(|_| 1).map(|_| true);
        }
        // The look at the lifeline is due, or it is not.
        let visible = self.w.k.deaf || self.w.k.half;
        let seen = self.either(visible)?;
        if seen && self.at == self.log.len as usize {
            self.memory.tx.rx_fin.store(1, Relaxed);
        }
        Ok(seen)
    }
    fn backlog(&mut self) -> Result<bool, Stopped> {
        Ok(false)
    }
    fn reset(&mut self) -> Result<bool, Stopped> {
        self.effect(|s| s.w.k.rst.into()).map(|v| v != 0)
    }
    fn killed(&mut self) -> Result<bool, Stopped> {
        self.effect(|s| s.w.k.deaf.into()).map(|v| v != 0)
    }
    fn give(&mut self, base: RingPos, from: RingPos, _: u64) -> Result<Given, Stopped> {
        let v = self.effect(|s| {
            if s.w.k.deaf || s.w.k.fin != 0 {
                return 2;
            }
            if s.w.kernel_room(s.c) == 0 {
                return 0;
            }
            let id = name(s.c, &mut s.w, base.number() as u8, from.number() as u8);
            s.w.kernel_put(s.c, id);
            1
        })?;
        Ok(match v {
            0 => Given::Full,
            1 => Given::Took(1),
            _ => Given::Failed(0),
        })
    }
    fn limit(&mut self) -> u64 {
        self.c.ring.into()
    }
    fn fills(&mut self, owner: u64) -> bool {
        let lives = self.w.dead & (1 << self.c.senders[owner as usize - 1].0) == 0;
        self.quiet(|| lives)
    }
    fn tell_cork(&mut self) {}
    fn latch(&mut self, _: Failure) {
        self.quiet(|| ());
        self.memory.tx.latched.store(1, Relaxed);
    }
    fn because(&mut self, _: Reason) {}
}

impl Run<'_> {
    /// The step reads so many bytes that were seen on the ring, by dropping them on the lifeline.
    pub fn drops(&mut self, n: u8) {
        self.drops = n;
    }
    /// Whether who looks at the ring was killed.
    pub fn looker_is_dead(&self) -> bool {
        let viewer = self.memory.rx.rx_viewed.load(Relaxed);
        viewer != 0 && self.w.dead & (1 << (viewer - 1)) != 0
    }
    /// Lays `room` bytes behind `tail`.
    pub fn lay(&mut self, base: RingPos, tail: RingPos, room: u64) -> Result<Result<u64, ()>, Stopped> {
        let n = self.effect(|s| {
            if !s.c.rules.reader_clears_want {
                s.memory.slot.side[0].want_space.store(0, Relaxed);
            }
            for k in 0..room as u8 {
                s.w.m.cells[cell(s.c, base.number() as u8, tail.number() as u8 + k)] = RAW;
            }
            room as u8
        })?;
        Ok(Ok(n.into()))
    }
}

impl Incoming for Run<'_> {
    type Fault = ();
    type Ending = ();

    fn received(&mut self) -> Result<Option<(StreamPos, u64)>, Stopped> {
        let v = self.effect(|s| s.w.k.consumed << 4 | s.w.k.queue.len)?;
        Ok(Some((StreamPos::new((v >> 4).into()), (v & 0xf).into())))
    }
    fn lying(&mut self) -> Result<(bool, u64), Stopped> {
        let v = self.effect(|s| s.w.k.queue.len << 1 | u8::from(s.w.k.ended()))?;
        Ok((v & 1 != 0, (v >> 1).into()))
    }
    fn shows(&mut self) -> Result<bool, Stopped> {
        let v = self.effect(|s| {
            if s.w.k.ended() {
                s.memory.rx.rx_fin.store(1, Relaxed);
            }
            s.w.k.readable().into()
        })?;
        Ok(v != 0)
    }
    fn broken(&mut self) -> Result<bool, Stopped> {
        self.effect(|s| s.w.k.rst.into()).map(|v| v != 0)
    }
    fn peer_ended(&mut self) -> Result<bool, Stopped> {
        self.effect(|s| s.w.k.ended().into()).map(|v| v != 0)
    }
    fn native(&mut self, max: u64) -> Result<Native, Stopped> {
        let v = self.effect(|s| {
            let max = s.want.min(max.min(0xff) as u8);
            let n = s.w.kernel_recv(max);
            if n > 0 {
                crate::receiver::got(&mut s.w, s.i, n);
                return n;
            }
            match (s.w.k.rst, s.w.k.fin) {
                (true, _) => 0x82,
                (_, 2) => 0x81,
                _ => 0x80,
            }
        })?;
        Ok(match v {
            0x80 => Native::Nothing,
            0x81 => Native::End,
            0x82 => Native::Failed(0),
            n => Native::Bytes(n.into()),
        })
    }
    fn discard(&mut self, n: u64) -> Result<u64, Stopped> {
        self.effect(|s| {
            let n = s.w.k.queue.len.min(n.min(0xff) as u8);
            for _ in 0..n {
                s.w.kernel_take();
            }
            n
        })
        .map(u64::from)
    }
    fn copy(&mut self, at: RingPos, n: u64) -> Result<Result<u64, ()>, Stopped> {
        let v = self.effect(|s| {
            let (m, base) = (*s.w.slot(), s.memory.slot.producer[0].base.word().load(Relaxed) as u8);
            let mut v = NONE << 4;
            for k in 0..n as u8 {
                let id = m.cells[cell(s.c, base, at.number() as u8 + k)].min(GARBAGE);
                v = v & !(0xf << (4 * k)) | id << (4 * k);
            }
            v
        })?;
        self.copied = v;
        Ok(Ok(if v >> 4 == NONE { 1 } else { 2 }))
    }
    fn end_sending(&mut self) -> Result<Option<()>, Stopped> {
        Ok(None)
    }
    fn peeks(&self) -> bool {
        false
    }
    fn limit(&mut self) -> u64 {
        self.c.ring.into()
    }
    fn leaves(&mut self, leaver: u64) -> bool {
        self.w.dead & (1 << self.c.receivers[leaver as usize - 1]) == 0
    }
    fn views(&mut self, viewer: u64) -> bool {
        let lives = self.w.dead & (1 << (viewer - 1)) == 0;
        self.quiet(|| lives)
    }
    fn handed_on(&self) -> bool {
        false
    }
    fn break_off(&mut self) -> Result<(), Stopped> {
        self.effect(|s| {
            s.w.reset();
            s.w.k.queue.clear();
            0
        })
        .map(|_| ())
    }
}

/// Whether the sending side is on the lifeline for good.
pub fn is_down(w: &World) -> bool {
    w.tx.phase == TxPhase::Down as u8
}
