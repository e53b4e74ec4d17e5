//! The receiving side: the driver's steps (`shmring::driver`), one effect at a time, and what a thread of a program does
//! around them: native receives, waiting, `poll`, leaving and exec, as in `engine/src/io.rs`, `engine/src/rx/`, `readiness.rs`,
//! `poll.rs` and `handoff/`.

use crate::hands::{self, View};
use crate::port::{self, Of};
use crate::search::Next;
use crate::world::{Act, Config, FLAG, Receiving, SHUT, Slot, Verdict, World, arbiter, echo, echo_word};
use shmring::driver::{self, Began, Brought, Native, Outcome, Place, Sees, Skipped, Unread, Wait};
use shmring::family::OPEN;
use shmring::layout::{Arbiter, Producer};
use shmring::position::{Claim, RingPos, StreamPos};
use shmring::ring;
use shmring::switch::{self, RxPhase};
use shmring::word::{Code, Coded};

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Pc {
    Idle,
    Ready,
    Take,
    // driver::bring, and what recv makes of it
    Early,
    Bring(Place),
    GotNothing,
    GotEof,
    GotError,
    Stirred,
    Sleep,
    // poll
    PollAdvance,
    PollRing,
    PollLifeline,
    PollEvents,
    PollArm,
    PollNews,
    PollSleep,
    // native
    Counted,
    CountedRecv,
    CountedEnd,
    CountedEof,
    Raw,
    // leaving: driver::begin, see, conclude
    LeaveTake,
    Begin,
    See(Wait),
    ConcludeTake(Outcome),
    Conclude(Outcome, bool),
    LeaveDrop,
    LeaveReset,
    LeaveDone,
    LeaveStays,
    // pass_on
    PassOn,
    // a new image's file
    File,
    // looks at the ring where it is
    View(View),
    Done,
}

fn process_dead(c: &Config, w: &World, i: usize) -> bool {
    w.dead & (1 << c.receivers[i]) != 0
}

fn available(c: &Config, w: &World) -> Result<u64, shmring::position::Corrupt> {
    let m = w.slot();
    let p = Producer { tail: Coded::new(at(m.tail).claim()), base: Coded::new(at(m.base)), ..Producer::default() };
    ring::available(&p, at(w.rx.head), u64::from(c.ring))
}

fn at(pos: u8) -> RingPos {
    RingPos::new(pos.into())
}

/// What the model's byte of a word stands for.
fn word<T: Code<Bits = u64>>(byte: u8) -> T {
    T::of(byte.into())
}

/// Where the ring ends, as far as it is known.
fn ring_end(c: &Config, w: &World) -> Option<Claim<RingPos>> {
    let m = w.slot();
    let rewind = if c.rules.heal_cut || m.rewind == SHUT { arbiter(m.rewind) } else { Arbiter::Open };
    switch::end(word(w.rx.cut), rewind, word(m.down))
}

/// `rx::on_ring`.
fn on_ring(c: &Config, w: &World) -> u64 {
    let n = switch::left(available(c, w).unwrap_or(0), at(w.rx.head), ring_end(c, w));
    if w.rx.phase == RxPhase::Ring as u8 && w.rx.leaving == 0 { n } else { 0 }
}

fn doubled(c: &Config, w: &World) -> bool {
    let phase = match RxPhase::from_u32(u32::from(w.rx.phase)) {
        RxPhase::Transit if !c.rules.doubled_in_ring => RxPhase::Ring,
        phase => phase,
    };
    switch::doubled(phase, arbiter(w.slot().rewind), echo(w.slot().echo))
}

/// `rx::in_steps`: what ends the wait may come in a way that tells nobody.
fn in_steps(c: &Config, w: &World, i: usize) -> bool {
    w.rx.leaving != 0
        || c.rules.transit_in_steps && w.rx.phase < RxPhase::Ring as u8 && w.slot().up != 0
        || c.rules.viewed_in_steps && hands::another_looks(c, w, i)
}

/// Notifies the peer. An image that got its ring from an exec has none.
fn tell(c: &Config, n: &mut World) {
    if !n.rx.image && !c.mute {
        n.notify_senders();
    }
}

/// What thread `i` has set out to do.
fn act(c: &Config, n: &World, i: usize) -> Act {
    c.acts[c.acts.len() - 1 - n.r[i].act as usize]
}

pub fn token_free(c: &Config, w: &World) -> bool {
    w.rx.token == 0 || process_dead(c, w, w.rx.token as usize - 1)
}

/// Thread `i` has got `k` bytes.
pub fn got(n: &mut World, i: usize, k: u8) {
    n.r[i].left = match n.r[i].left {
        0 => 0,
        STOPS => STOPS,
        left if left <= k => STOPS,
        left => left - k,
    };
}

/// In `left`: it has got all that it wants.
const STOPS: u8 = 0xff;

pub fn end(n: &mut World, i: usize, pc: Pc) {
    n.r[i].rest();
    n.r[i].pc = pc;
}

/// Bytes that thread `i` asks for.
fn want(c: &Config, w: &World, i: usize) -> u8 {
    match w.r[i].left {
        0 | STOPS => c.want,
        left => c.want.min(left),
    }
}

/// The place at which a receive begins.
pub fn place(w: &World) -> Place {
    Place { phase: RxPhase::from_u32(w.rx.phase.into()), head: at(w.rx.head), seen_end: false, some: false, before: 0 }
}

/// What a native receive of at most `max` bytes brings.
fn native(n: &mut World, i: usize, max: u8) -> Native {
    let k = n.kernel_recv(max);
    if k > 0 {
        got(n, i, k);
        Native::Bytes(k.into())
    } else if n.k.rst {
        Native::Failed(0)
    } else if n.k.fin == 2 {
        Native::End
    } else {
        Native::Nothing
    }
}

fn unread(act: Act) -> Unread {
    if matches!(act, Act::Cut | Act::Exec) { Unread::Keep } else { Unread::Rewind }
}

/// The receiver leaves so: it takes the token to say so, unless it has it.
fn outcome(c: &Config, n: &mut World, i: usize, wait: Option<Wait>, outcome: Outcome) {
    if outcome == Outcome::Break {
        n.g.excused |= match wait {
            Some(Wait::TakenBack(..)) => n.m.down != n.m.rewind & !FLAG,
            _ => true,
        };
    }
    if wait == Some(Wait::Echo) && outcome == Outcome::Stay(None) {
        n.g.excused |= n.slot().echo != 0;
    }
    let _ = c;
    n.r[i].pc = if wait.is_some() { Pc::ConcludeTake(outcome) } else { Pc::Conclude(outcome, false) };
}

/// Whether the receiver may have enough of waiting, and what it makes of that.
fn impatient(c: &Config, w: &World, i: usize, wait: Wait) -> Option<World> {
    let mut o = *w;
    match wait {
        // Dead already, and not even the kernel has said so.
        Wait::TakenBack(..) => o.g.owed |= w.k.fin == 1 && w.m.down == 0,
        // The sender stopped on its way down, or a holder of several died there.
        Wait::Closed if crate::sender::outside(c, w) => {}
        Wait::Echo
            if w.kernel_room(c) == 0 || w.k.queue.len >= c.window || w.rx.image || crate::sender::outside(c, w) => {}
        // The rest waits for the next reader to make room; a RST drops it.
        Wait::Arrival if w.k.queue.len >= c.window => {
            o.g.late = true;
            o.g.due = 0;
        }
        _ => return None,
    }
    match wait.impatient() {
        Sees::Over(so) => outcome(c, &mut o, i, Some(wait), so),
        _ => unreachable!("patience ends a wait"),
    }
    Some(o)
}

/// Everything thread `i` can do next.
pub fn step(c: &Config, w: &World, i: usize, out: &mut Vec<Next>) {
    let t = w.r[i];
    let mut n = *w;
    let me = 5 + i as u8;
    let phase = RxPhase::from_u32(u32::from(w.rx.phase));
    let label: &'static str = match t.pc {
        Pc::Done => return,
        Pc::Idle => {
            if t.left == STOPS && t.hand.n > 0 {
                hands::releases(w, i, false, out);
                return;
            }
            if t.left == STOPS {
                n.r[i].left = 0;
                n.r[i].act = 0;
                n.r[i].pc = Pc::Done;
                out.push((n, "has got what it wants", me));
                return;
            }
            if t.act > 0 && !w.rx.raw && !w.rx.filed {
                let mut o = *w;
                o.r[i].act -= 1;
                o.r[i].pc = Pc::LeaveTake;
                let execs = matches!(act(c, &o, i), Act::Exec | Act::Foreign | Act::Stdin);
                // A connection shared with others that go on reading it through another image is nobody's stream.
                if !execs || (0..c.receivers.len()).all(|j| j == i || w.r[j].pc == Pc::Done) {
                    out.push((o, "begins to leave", me));
                }
            }
            hands::looks(c, w, i, out);
            let polls = c.polls | c.epolls;
            // `rx::is_kernels`.
            let unseen = w.rx.viewed == 0 || !c.rules.viewed_by_token;
            n.r[i].pc = if w.rx.filed {
                Pc::File
            } else if w.rx.raw && unseen {
                Pc::Raw
            } else if polls & (1 << i) != 0 && t.then == 0 && (w.rx.word == FLAG || phase == RxPhase::Down) {
                Pc::PollAdvance
            } else if phase == RxPhase::Down && w.rx.skip == 0 && unseen {
                Pc::Raw
            } else {
                Pc::Ready
            };
            "receives"
        }
        Pc::Ready => {
            port::advance(
                c,
                w,
                Of::Receiver,
                i,
                0,
                |p, conn| driver::make_ready(p, conn),
                |mut n, r| {
                    let polls = (c.polls | c.epolls) & (1 << i) != 0 && t.then == 0;
                    match r {
                        None => {}
                        Some(true) => n.r[i].pc = if polls { Pc::PollAdvance } else { Pc::Take },
                        Some(false) => n.r[i].pc = Pc::Counted,
                    }
                    out.push((n, "make_ready", me));
                },
            );
            return;
        }
        Pc::Take => {
            if !token_free(c, w) {
                return;
            }
            n.rx.token = 1 + i as u8;
            n.r[i].rest();
            if c.eager && phase == RxPhase::Ring && w.slot().echo & FLAG != 0 {
                let mut o = n;
                o.r[i].pc = Pc::Early;
                out.push((o, "takes the token, to come down early", me));
            }
            n.r[i].pc = Pc::Bring(place(w));
            "takes the token"
        }
        Pc::Early => {
            port::advance(
                c,
                w,
                Of::Receiver,
                i,
                0,
                |p, conn| if driver::all_echoed(p, conn)? { driver::come_down(p, conn) } else { Ok(()) },
                |mut n, r| {
                    if r.is_some() {
                        n.r[i].pc = Pc::Bring(place(&n));
                    }
                    out.push((n, "all is echoed", me));
                },
            );
            return;
        }
        Pc::Bring(at) => {
            let want = want(c, w, i);
            port::advance(
                c,
                w,
                Of::Receiver,
                i,
                want,
                |p, conn| {
                    let mut at = at;
                    driver::bring(p, conn, &mut at, want.into()).map(|brought| (brought, at))
                },
                |mut n, r| {
                    if let Some((brought, at)) = r {
                        brings(&mut n, i, brought, at);
                    }
                    out.push((n, "bring", me));
                },
            );
            return;
        }
        Pc::GotEof | Pc::GotError => {
            n.rx.token = 0;
            if t.pc == Pc::GotEof {
                n.end_of_stream()
            } else {
                n.connection_reset()
            }
            n.r[i].act = 0;
            n.r[i].left = 0;
            if t.hand.n > 0 {
                n.r[i].rest();
                hands::releases(&n, i, true, out);
                return;
            }
            end(&mut n, i, Pc::Done);
            "end of stream"
        }
        Pc::GotNothing if (c.polls | c.epolls) & (1 << i) != 0 => {
            n.rx.token = 0;
            if c.receivers.len() == 1 {
                n.g.verdict = Verdict::Lied;
            }
            end(&mut n, i, Pc::Idle);
            "nothing: EAGAIN"
        }
        // Who has a view, which may be all of the ring, does not wait.
        Pc::GotNothing if t.hand.n > 0 => {
            n.rx.token = 0;
            end(&mut n, i, Pc::Idle);
            "nothing: EAGAIN"
        }
        Pc::GotNothing => {
            n.rx.token = 0;
            n.r[i].armed = true;
            n.r[i].b = u8::from(in_steps(c, w, i));
            n.r[i].pc = Pc::Stirred;
            "nothing: arms"
        }
        Pc::Stirred => {
            let stirred = match phase {
                _ if w.rx.leaving != 0 => false,
                RxPhase::Native => w.slot().up != 0,
                RxPhase::Ring => w.slot().tail != w.rx.head || ring_end(c, w) == Some(at(w.rx.head).claim()),
                RxPhase::Transit | RxPhase::Down => false,
            };
            if stirred {
                n.r[i].wipe();
                n.r[i].pc = Pc::Idle;
            } else {
                n.r[i].pc = Pc::Sleep;
            }
            "looks again"
        }
        Pc::Sleep => {
            // In transit it sleeps in steps: another process may move on to the ring, and cannot tell.
            if !t.bell && !w.k.readable() && t.b == 0 {
                return;
            }
            n.r[i].wipe();
            n.r[i].pc = Pc::Idle;
            "wakes"
        }

        // `advance`, as one step: what it does, it does with the token.
        Pc::PollAdvance => {
            if !token_free(c, w) {
                return;
            }
            let mut o = *w;
            // An edge is consumed before anything is looked at.
            o.k.edge = false;
            (n, ()) = port::whole(c, &o, Of::Receiver, i, |p, conn| {
                driver::advance(p, conn, false)?;
                hands::forget_the_dead(p, conn, c.ring.into())
            });
            n.r[i].pc = Pc::PollRing;
            "poll: moves on"
        }
        Pc::PollRing => {
            if on_ring(c, w) > 0 {
                n.r[i].then = 1;
                n.r[i].pc = Pc::Idle;
            } else {
                n.r[i].pc = Pc::PollLifeline;
            }
            "poll: looks at the ring"
        }
        Pc::PollLifeline => {
            n.rx.fin |= w.k.ended();
            n.r[i].pc = if w.rx.leaving == 0 && w.k.readable() && w.rx.skip == 0 && (w.k.ended() || !doubled(c, w)) {
                n.r[i].then = 1;
                Pc::Idle
            } else {
                Pc::PollEvents
            };
            "poll: looks at the lifeline"
        }
        Pc::PollEvents => {
            n.r[i].c = u8::from(!doubled(c, w));
            n.r[i].pc = Pc::PollArm;
            "poll: lifeline events"
        }
        Pc::PollArm => {
            n.r[i].armed = true;
            n.r[i].b = u8::from(in_steps(c, w, i));
            n.r[i].pc = Pc::PollNews;
            "poll: arms"
        }
        Pc::PollNews => {
            let news = match phase {
                _ if w.rx.leaving != 0 => false,
                RxPhase::Native => w.slot().up != 0,
                RxPhase::Ring => on_ring(c, w) > 0 || ring_end(c, w) == Some(at(w.rx.head).claim()),
                RxPhase::Transit | RxPhase::Down => false,
            };
            if news {
                n.r[i].wipe();
                n.r[i].pc = Pc::Idle;
            } else {
                n.r[i].pc = Pc::PollSleep;
            }
            "poll: looks again"
        }
        Pc::PollSleep => {
            let lifeline = match c.epolls & (1 << i) != 0 {
                true => w.k.edge,
                false => w.k.ended() || t.c == 1 && w.k.readable(),
            };
            // While the lifeline repeats the ring it is not slept on, but in steps.
            let step = t.b == 1 || c.rules.doubled_in_steps && t.c == 0;
            let woken = t.bell || lifeline || step && c.epolls & (1 << i) == 0;
            if !woken {
                return;
            }
            n.r[i].wipe();
            n.r[i].pc = Pc::Idle;
            "poll: wakes"
        }

        Pc::Counted => {
            port::advance(
                c,
                w,
                Of::Receiver,
                i,
                0,
                |p, conn| driver::enter_native(p, &conn.ep.rx_word, OPEN),
                |mut n, r| {
                    match r {
                        None => {}
                        Some(true) => n.r[i].pc = Pc::CountedRecv,
                        Some(false) => n.r[i].pc = Pc::Idle,
                    }
                    out.push((n, "counted: enters", me));
                },
            );
            return;
        }
        Pc::CountedRecv | Pc::Raw => {
            if !w.k.readable() {
                return;
            }
            let counted = t.pc == Pc::CountedRecv;
            let got = native(&mut n, i, want(c, w, i));
            n.r[i].rest();
            n.r[i].pc = match (got, counted) {
                (Native::Bytes(_), true) => Pc::CountedEnd,
                (Native::Bytes(_), false) => Pc::Idle,
                (got, counted) => {
                    if got == Native::End {
                        n.end_of_stream()
                    } else {
                        n.connection_reset()
                    }
                    n.r[i].act = 0;
                    n.r[i].left = 0;
                    if counted { Pc::CountedEof } else { Pc::Done }
                }
            };
            "blocks in recv"
        }
        Pc::CountedEnd | Pc::CountedEof => {
            n.rx.word = w.rx.word.wrapping_sub(1);
            n.r[i].pc = if t.pc == Pc::CountedEnd { Pc::Idle } else { Pc::Done };
            "counted: leaves"
        }

        Pc::LeaveTake | Pc::ConcludeTake(_) => {
            if !token_free(c, w) {
                return;
            }
            n.rx.token = 1 + i as u8;
            n.r[i].pc = match t.pc {
                Pc::ConcludeTake(outcome) => Pc::Conclude(outcome, true),
                _ => Pc::Begin,
            };
            "leaving: takes the token"
        }
        Pc::Begin => {
            let unread = unread(act(c, w, i));
            port::advance(
                c,
                w,
                Of::Receiver,
                i,
                0,
                |p, conn| driver::begin(p, conn, unread, 1 + i as u64),
                |mut n, r| {
                    match r {
                        None => {}
                        Some(Began::Busy) => {
                            n.rx.token = 0;
                            n.r[i].pc = Pc::LeaveTake;
                        }
                        Some(Began::Down) => {
                            n.rx.token = 0;
                            n.r[i].pc = Pc::LeaveDrop;
                        }
                        Some(Began::Over(so)) => outcome(c, &mut n, i, None, so),
                        Some(Began::Wait(wait)) => {
                            n.rx.token = 0;
                            n.r[i].pc = Pc::See(wait);
                        }
                    }
                    out.push((n, "leaving: begin", me));
                },
            );
            return;
        }
        Pc::See(wait) => {
            port::advance(
                c,
                w,
                Of::Receiver,
                i,
                0,
                |p, conn| driver::see(p, conn, wait),
                |mut n, r| {
                    match r {
                        None => {}
                        Some(Sees::NotYet) => {
                            if let Some(o) = impatient(c, &n, i, wait) {
                                out.push((o, "leaving: enough patience", me));
                            }
                        }
                        Some(Sees::Then(next)) => n.r[i].pc = Pc::See(next),
                        Some(Sees::Over(so)) => outcome(c, &mut n, i, Some(wait), so),
                    }
                    out.push((n, "leaving: see", me));
                },
            );
            return;
        }
        Pc::Conclude(so, waited) => {
            let leaver = if waited { 1 + i as u64 } else { 0 };
            port::advance(
                c,
                w,
                Of::Receiver,
                i,
                0,
                |p, conn| driver::conclude(p, conn, leaver, so),
                |mut n, r| {
                    if let Some(complete) = r {
                        n.rx.token = 0;
                        n.r[i].pc = match complete {
                            None => Pc::LeaveTake,
                            Some(true) => Pc::LeaveDrop,
                            Some(false) => Pc::LeaveStays,
                        };
                    }
                    out.push((n, "leaving: conclude", me));
                },
            );
            return;
        }
        Pc::LeaveDrop => {
            if !token_free(c, w) {
                return;
            }
            let skipped = if c.rules.drop_echo {
                let step = |p: &mut port::Run, conn: &driver::Conn| loop {
                    match driver::skip(p, conn)? {
                        Skipped::Some => {}
                        other => return Ok(other),
                    }
                };
                let r;
                (n, r) = port::whole(c, w, Of::Receiver, i, step);
                r
            } else {
                Skipped::All
            };
            if skipped == Skipped::All {
                n.r[i].pc = Pc::LeaveDone;
            } else if n == *w {
                if echo_word(w.slot().echo) & shmring::layout::ECHOED != 0
                    || !(crate::sender::outside(c, w) || w.rx.image)
                {
                    return;
                }
                // It does not come.
                n.g.excused = true;
                n.r[i].pc = Pc::LeaveReset;
            }
            "leaving: drops the echo"
        }
        Pc::LeaveReset => {
            n.reset();
            n.k.queue.clear();
            n.r[i].pc = Pc::LeaveDone;
            "leaving: resets"
        }
        Pc::LeaveStays => {
            tell(c, &mut n);
            end(&mut n, i, Pc::Idle);
            match act(c, w, i) {
                Act::Cut | Act::Rewind => {}
                Act::Retire => {
                    // What was cut before, or handed on, has only the ring.
                    n.g.excused |= w.rx.cut != 0 || w.rx.image;
                    n.reset();
                    n.k.queue.clear();
                    n.rx.raw = true;
                }
                Act::Exec | Act::Foreign | Act::Stdin => n.r[i].pc = Pc::PassOn,
            }
            "leaving: something is left"
        }
        Pc::LeaveDone => {
            tell(c, &mut n);
            end(&mut n, i, Pc::Idle);
            match act(c, w, i) {
                Act::Cut | Act::Rewind => {}
                Act::Retire => n.rx.raw = true,
                Act::Exec | Act::Foreign | Act::Stdin => n.r[i].pc = Pc::PassOn,
            }
            "leaving: all done"
        }

        Pc::PassOn => {
            end(&mut n, i, Pc::Idle);
            // What the image before this one looked at is gone with it.
            (n.r[i].hand, n.rx.viewed) = Default::default();
            pass_on(c, &mut n, act(c, w, i));
            "exec: hands on"
        }
        Pc::View(at) => {
            hands::view(c, w, i, at, out);
            return;
        }
        Pc::File => {
            for _ in 0..want(c, w, i).min(w.file.len) {
                let id = n.file.pop();
                n.deliver(id);
            }
            n.r[i].pc = Pc::Idle;
            if w.file.len == 0 {
                n.end_of_stream();
                n.r[i].act = 0;
                n.r[i].pc = Pc::Done;
            }
            "reads the file"
        }
    };
    out.push((n, label, me));
}

/// What a step of a receive has come to.
fn brings(n: &mut World, i: usize, brought: Brought<(), ()>, at: Place) {
    let pc = match brought {
        Brought::Again => Pc::Bring(at),
        Brought::Bytes(_) | Brought::Last(_) => {
            n.rx.token = 0;
            Pc::Idle
        }
        Brought::Nothing | Brought::Lifeline(Native::Nothing) | Brought::Behind(Native::Nothing) => Pc::GotNothing,
        Brought::Lifeline(Native::End) | Brought::Behind(Native::End) => Pc::GotEof,
        Brought::Lifeline(_) | Brought::Behind(_) => Pc::GotError,
        Brought::Corrupt => {
            n.g.verdict = Verdict::Accused;
            Pc::Done
        }
        Brought::Ended(()) | Brought::NoMore | Brought::Fault(()) | Brought::Unknown => {
            unreachable!("not of the model")
        }
    };
    end(n, i, pc);
}

/// `handoff::pass_on`, one step: the process has one thread by then, and the sender writes nothing to what it reads.
fn pass_on(c: &Config, n: &mut World, act: Act) {
    let (m, rx) = (*n.slot(), n.rx);
    let there = available(c, n).unwrap_or(0);
    let left = switch::left(there, at(rx.head), ring_end(c, n)) as u8;
    if rx.phase == RxPhase::Down as u8 || left == 0 {
        n.rx.raw = true;
        return;
    }
    let mut ids = [0; 4];
    for (k, id) in ids.iter_mut().enumerate().take(left as usize) {
        *id = m.cells[c.geometry().spans(at(m.base), at(rx.head).plus(k as u64), 1)[0].0];
    }
    let received = n.k.consumed + n.k.queue.len;
    let all = match c.rules.file_is_all {
        true => {
            let received = StreamPos::new(received.into());
            switch::is_all(arbiter(m.rewind), word(m.up), echo(m.echo), n.k.ended(), received)
        }
        false => m.rewind == SHUT || n.k.ended(),
    };
    match act {
        Act::Stdin if all => {
            while rx.phase != RxPhase::Ring as u8
                && n.k.queue.len > 0
                && (n.k.consumed < m.up - 1 || !c.rules.file_to_x)
            {
                let id = n.kernel_take();
                n.file.push(id);
            }
            ids.iter().take(left as usize).for_each(|&id| n.file.push(id));
            n.rx = Receiving { filed: true, ..Receiving::default() };
        }
        Act::Exec => {
            let (up, echo) =
                switch::hand_on(arbiter(m.rewind), word(m.up), echo(m.echo), at(rx.head), u64::from(c.ring));
            let up = if c.rules.hand_on_behind { up.code() as u8 } else { m.up };
            let mut cells = [0; 4];
            for (k, id) in ids.iter().enumerate().take(left as usize) {
                cells[c.geometry().spans(RingPos::START, at(k as u8), 1)[0].0] = *id;
            }
            n.h = Slot {
                up,
                down: left + 1,
                rewind: SHUT,
                echo: echo.code() as u8,
                tail: left,
                cells,
                ..Slot::default()
            };
            n.rx =
                Receiving { word: FLAG, phase: rx.phase, up: up - 1, fin: rx.fin, image: true, ..Receiving::default() };
        }
        _ => {
            n.g.excused |= rx.cut != 0 || rx.image;
            n.reset();
            n.k.queue.clear();
            n.rx.raw = true;
        }
    }
}
