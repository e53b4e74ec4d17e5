//! The receiving side, one shared access or system call a step, in the order of `shim/src/rx.rs`
//! (`make_ready`, `attempt`, `recv`) and `io.rs` (`recv`, `retire`).

use crate::search::Next;
use crate::world::{Config, FLAG, RAW, SHUT, Verdict, World};
use shmring::layout::{Producer, READY, REFUSED};
use shmring::ring;
use shmring::switch::{self, RxPhase, RxStep, RxView, Transit};
use shmring::sync::AtomicU64;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Pc {
    Idle,
    Ready,
    ReadyStore,
    ReadyNotify,
    Take,
    // attempt
    Bound,
    LoadDown,
    LoadTail,
    LoadUp,
    Native,
    NativeUp,
    TransitRecv,
    TransitWait,
    Copy,
    Head,
    Consume,
    Space,
    SpaceClear,
    Empty,
    Mend,
    // what recv makes of it
    GotBytes,
    GotNothing,
    GotEof,
    GotError,
    Stirred,
    Sleep,
    // native
    Counted,
    CountedBack,
    CountedRecv,
    CountedEnd,
    CountedEof,
    Raw,
    // retire
    RetireTake,
    Refuse,
    RetireUp,
    RetireShut,
    RetireLook,
    RetireArbiter,
    RetireTell,
    RetireUnread,
    RetireReset,
    RetirePhase,
    RetireWord,
    RetireNotify,
    Done,
}

/// In register `c`: the lifeline had ended when it was looked at; no bound is known.
const ENDED: u8 = 0x80;

fn process_dead(c: &Config, w: &World, i: usize) -> bool {
    w.dead & (1 << c.receivers[i]) != 0
}

fn available(c: &Config, w: &World) -> Result<u64, ring::Corrupt> {
    let p = Producer { tail: AtomicU64::new(u64::from(w.m.tail)), base: AtomicU64::new(u64::from(w.m.base)) };
    ring::available(&p, u64::from(w.rx.head), u64::from(c.ring))
}

fn again(n: &mut World, i: usize, seen_end: bool) {
    n.r[i].rest();
    n.r[i].then = u8::from(seen_end);
    n.r[i].pc = Pc::Bound;
}

fn end(n: &mut World, i: usize, pc: Pc) {
    n.r[i].rest();
    n.r[i].pc = pc;
}

/// What a native receive of at most `max` bytes brings.
fn native(n: &mut World, i: usize, max: u8) {
    let pc = if n.kernel_recv(max) > 0 {
        Pc::GotBytes
    } else if n.k.rst {
        Pc::GotError
    } else if n.k.fin == 2 {
        Pc::GotEof
    } else {
        Pc::GotNothing
    };
    end(n, i, pc);
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
            if t.act {
                let mut o = *w;
                o.r[i].act = false;
                o.r[i].pc = Pc::RetireTake;
                out.push((o, "begins to retire", me));
            }
            n.r[i].pc = if phase == RxPhase::Down {
                Pc::Raw
            } else if w.rx.word == FLAG {
                Pc::Take
            } else if w.rx.word == 0 || (!c.rules.count_receivers && w.rx.word & FLAG == 0) {
                n.rx.word |= FLAG;
                Pc::Ready
            } else {
                Pc::Counted
            };
            "receives"
        }
        Pc::Ready => {
            if c.rules.ready_by_cas {
                if w.m.rx == 0 {
                    n.m.rx = READY as u8;
                }
                n.r[i].pc = Pc::ReadyNotify;
            } else {
                n.r[i].pc = if w.m.rx == 0 { Pc::ReadyStore } else { Pc::Take };
            }
            "make_ready: rx"
        }
        Pc::ReadyStore => {
            n.m.rx = READY as u8;
            n.r[i].pc = Pc::ReadyNotify;
            "make_ready: READY"
        }
        Pc::ReadyNotify => {
            n.notify_senders();
            n.r[i].pc = Pc::Take;
            "make_ready: notifies"
        }
        Pc::Take => {
            if w.rx.token != 0 && !process_dead(c, w, w.rx.token as usize - 1) {
                return;
            }
            n.rx.token = 1 + i as u8;
            again(&mut n, i, false);
            "takes the token"
        }

        Pc::Bound => {
            if c.rules.heal && phase != RxPhase::Down && w.m.rewind != 0 && w.m.rewind != SHUT {
                // The holder that retired died before it could say so.
                n.rx.phase = RxPhase::Down as u8;
                n.notify_senders();
            }
            n.r[i].c = if !c.rules.bounded_native || w.k.ended() { ENDED } else { w.k.queue.len };
            n.r[i].pc = Pc::LoadDown;
            "attempt: FIONREAD"
        }
        Pc::LoadDown => {
            n.r[i].a = w.m.down;
            n.r[i].pc = Pc::LoadTail;
            "attempt: down"
        }
        Pc::LoadTail => {
            n.r[i].pc = Pc::LoadUp;
            match available(c, w) {
                Ok(b) => n.r[i].b = b as u8,
                Err(_) if phase == RxPhase::Down => {}
                Err(_) => n.g.verdict = Verdict::Accused,
            }
            "attempt: tail"
        }
        Pc::LoadUp => {
            let view = RxView {
                phase,
                up: u64::from(w.m.up),
                down: u64::from(t.a),
                head: u64::from(w.rx.head),
                available: u64::from(t.b),
            };
            decide(c, &mut n, i, switch::rx(view));
            "attempt: up, decides"
        }
        Pc::Native => {
            let bound = if phase != RxPhase::Native || t.c == ENDED { c.want } else { t.c.min(c.want) };
            if bound == 0 {
                end(&mut n, i, Pc::GotNothing);
            } else {
                native(&mut n, i, bound);
            }
            if phase == RxPhase::Native && matches!(n.r[i].pc, Pc::GotNothing | Pc::GotEof) {
                n.r[i].c = u8::from(n.r[i].pc == Pc::GotEof);
                n.r[i].pc = Pc::NativeUp;
            }
            "lifeline: recv"
        }
        Pc::NativeUp => {
            if w.m.up != 0 {
                again(&mut n, i, false);
            } else {
                end(&mut n, i, if t.c == 1 { Pc::GotEof } else { Pc::GotNothing });
            }
            "lifeline: up again"
        }
        Pc::TransitRecv => {
            native(&mut n, i, t.b.min(c.want));
            "transit: recv"
        }
        Pc::TransitWait => {
            if w.k.rst {
                n.r[i].pc = Pc::TransitRecv;
            } else {
                end(&mut n, i, Pc::GotNothing);
            }
            "transit: waits"
        }
        Pc::Copy => {
            let g = c.geometry();
            let mut ids = [0; 2];
            for (k, id) in ids.iter_mut().enumerate().take(t.c as usize) {
                let (at, _) = g.spans(u64::from(w.m.base), u64::from(w.rx.head) + k as u64, 1)[0];
                *id = w.m.cells[at];
            }
            n.r[i].a = ids[0];
            n.r[i].b = ids[1];
            n.r[i].then = c.ring - (w.m.tail - w.rx.head).min(c.ring);
            n.r[i].pc = Pc::Head;
            "ring: copies"
        }
        Pc::Head => {
            n.rx.head += t.c;
            for id in [t.a, t.b].into_iter().take(t.c as usize) {
                n.deliver(if id == RAW { u8::MAX } else { id });
            }
            n.r[i].a = 0;
            n.r[i].b = 0;
            n.r[i].pc = Pc::Consume;
            "ring: own head"
        }
        Pc::Consume => {
            n.m.head = w.rx.head;
            n.r[i].pc = Pc::Space;
            "ring: gives back"
        }
        Pc::Space => {
            let third = (c.ring / 3).max(1);
            let (before, after) = if c.rules.space_after_consume {
                (0, c.ring - (w.m.tail - w.rx.head))
            } else {
                (t.then, t.then + t.c)
            };
            if w.m.want != 0 && before < third && after >= third {
                n.notify_senders();
                if c.rules.reader_clears_want {
                    n.r[i].a = w.m.want;
                    n.r[i].pc = Pc::SpaceClear;
                }
            }
            if n.r[i].pc == Pc::Space {
                end(&mut n, i, Pc::GotBytes);
            }
            "ring: tells of space"
        }
        Pc::SpaceClear => {
            if w.m.want == t.a {
                n.m.want = 0;
            }
            end(&mut n, i, Pc::GotBytes);
            "ring: clears the wish for space"
        }
        Pc::Empty => {
            if t.then == 0 {
                if c.rules.heal && (w.m.head != w.rx.head || w.m.want != 0) && t.c != 1 {
                    n.m.head = w.rx.head;
                    n.r[i].pc = Pc::Mend;
                } else if !w.k.readable() {
                    end(&mut n, i, Pc::GotNothing);
                } else {
                    n.rx.fin |= w.k.ended();
                    again(&mut n, i, true);
                    if !c.rules.look_after_end {
                        n.r[i].pc = Pc::Empty;
                    }
                }
            } else {
                native(&mut n, i, c.want);
            }
            "empty: looks at the lifeline"
        }
        Pc::Mend => {
            if w.m.want != 0 {
                n.notify_senders();
            }
            n.r[i].c = 1;
            n.r[i].pc = Pc::Empty;
            "empty: tells of space"
        }

        Pc::GotBytes => {
            n.rx.token = 0;
            end(&mut n, i, Pc::Idle);
            "got bytes"
        }
        Pc::GotEof | Pc::GotError => {
            n.rx.token = 0;
            if t.pc == Pc::GotEof {
                n.end_of_stream();
            }
            n.r[i].act = false;
            end(&mut n, i, Pc::Done);
            "end of stream"
        }
        Pc::GotNothing => {
            n.rx.token = 0;
            n.r[i].armed = true;
            n.r[i].pc = Pc::Stirred;
            "nothing: arms"
        }
        Pc::Stirred => {
            let stirred = match phase {
                RxPhase::Native => w.m.up != 0,
                RxPhase::Ring => w.m.tail != w.rx.head || w.m.down != 0,
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
            if !t.bell && !w.k.readable() {
                return;
            }
            n.r[i].wipe();
            n.r[i].pc = Pc::Idle;
            "wakes"
        }

        Pc::Counted => {
            n.rx.word = w.rx.word.wrapping_add(1);
            n.r[i].pc = if w.rx.word & FLAG != 0 { Pc::CountedBack } else { Pc::CountedRecv };
            "counted: enters"
        }
        Pc::CountedBack => {
            n.rx.word = w.rx.word.wrapping_sub(1);
            n.r[i].pc = Pc::Idle;
            "counted: steps back"
        }
        Pc::CountedRecv | Pc::Raw => {
            if !w.k.readable() {
                return;
            }
            let counted = t.pc == Pc::CountedRecv;
            native(&mut n, i, c.want);
            n.r[i].pc = match (n.r[i].pc, counted) {
                (Pc::GotBytes, true) => Pc::CountedEnd,
                (Pc::GotBytes, false) => Pc::Idle,
                (got, counted) => {
                    if got == Pc::GotEof {
                        n.end_of_stream();
                    }
                    n.r[i].act = false;
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

        Pc::RetireTake => {
            if w.rx.token != 0 && !process_dead(c, w, w.rx.token as usize - 1) {
                return;
            }
            n.rx.token = 1 + i as u8;
            n.r[i].pc = if phase == RxPhase::Down { Pc::RetireNotify } else { Pc::Refuse };
            "retire: takes the token"
        }
        Pc::Refuse => {
            n.m.rx = REFUSED as u8;
            n.r[i].pc = Pc::RetireUp;
            "retire: REFUSED"
        }
        Pc::RetireUp => {
            n.r[i].pc = match w.m.up {
                0 => Pc::RetirePhase,
                _ if c.rules.look_after_rewind => Pc::RetireArbiter,
                _ => Pc::RetireShut,
            };
            "retire: up"
        }
        Pc::RetireShut => {
            n.r[i].b = u8::from(w.m.wr_shut);
            n.r[i].pc = Pc::RetireLook;
            "retire: wr_shut"
        }
        Pc::RetireLook => {
            n.r[i].b |= u8::from(w.k.ended());
            n.r[i].pc = match c.rules.look_after_rewind {
                false => Pc::RetireArbiter,
                true if n.r[i].b != 0 => Pc::RetireUnread,
                true => Pc::RetirePhase,
            };
            "retire: looks at the lifeline"
        }
        Pc::RetireArbiter => {
            n.r[i].pc = Pc::RetirePhase;
            match w.m.rewind {
                0 => {
                    n.m.rewind = w.rx.head + 1;
                    if c.rules.look_after_rewind {
                        n.r[i].pc = Pc::RetireLook;
                        n.r[i].then = 1;
                    } else if t.b != 0 {
                        n.r[i].pc = Pc::RetireUnread;
                    }
                    if c.rules.heal {
                        n.r[i].c = if n.r[i].pc == Pc::RetireLook { 2 } else { n.r[i].c };
                        n.r[i].pc = Pc::RetireTell;
                    }
                    if w.k.fin == 1 && w.m.tail != w.rx.head {
                        // Dead already, and not even the kernel has said so.
                        n.g.owed = true;
                    }
                }
                SHUT if c.rules.arbiter => n.r[i].pc = Pc::RetireUnread,
                SHUT => n.m.rewind = w.rx.head + 1,
                _ => {}
            }
            "retire: arbiter"
        }
        Pc::RetireTell => {
            // Before the phase says that all is done: whoever finds it undone tells again.
            n.notify_senders();
            n.r[i].c = 0;
            n.r[i].pc = match (t.c, t.b) {
                (2, _) => Pc::RetireLook,
                (_, 0) => Pc::RetirePhase,
                _ => Pc::RetireUnread,
            };
            "retire: notifies"
        }
        Pc::RetireUnread => {
            // With `then`, the rewind was accepted: a sender that served it before its FIN says so.
            n.r[i].c = u8::from(available(c, w) != Ok(0) && (t.then == 0 || w.m.down == 0));
            n.r[i].pc = if c.rules.reset_first && n.r[i].c == 1 { Pc::RetireReset } else { Pc::RetirePhase };
            "retire: unread"
        }
        Pc::RetireReset => {
            n.k.reset();
            n.k.queue.clear();
            n.r[i].c = 0;
            n.r[i].pc = Pc::RetirePhase;
            "retire: resets"
        }
        Pc::RetirePhase => {
            n.rx.phase = RxPhase::Down as u8;
            n.r[i].pc = Pc::RetireWord;
            "retire: phase"
        }
        Pc::RetireWord => {
            n.rx.word = w.rx.word & !FLAG;
            n.r[i].pc = Pc::RetireNotify;
            "retire: word"
        }
        Pc::RetireNotify => {
            n.rx.token = 0;
            n.notify_senders();
            if t.c == 1 {
                n.k.reset();
                n.k.queue.clear();
            }
            end(&mut n, i, Pc::Idle);
            "retire: releases, notifies"
        }
    };
    out.push((n, label, me));
}

fn decide(c: &Config, n: &mut World, i: usize, step: RxStep) {
    let seen_end = n.r[i].then == 1;
    match step {
        RxStep::Lifeline => n.r[i].pc = Pc::Native,
        RxStep::Transit { x } => {
            n.rx.phase = RxPhase::Transit as u8;
            let (consumed, queued) = (u64::from(n.k.consumed), u64::from(n.k.queue.len));
            n.r[i].b = 0;
            n.r[i].c = 0;
            match switch::transit(x, consumed, queued) {
                Transit::Lifeline => {
                    n.r[i].b = (x - consumed) as u8;
                    n.r[i].pc = Pc::TransitRecv;
                }
                Transit::Wait => {
                    n.r[i].b = (x - consumed) as u8;
                    n.r[i].pc = Pc::TransitWait;
                }
                Transit::Ring => {
                    n.rx.phase = RxPhase::Ring as u8;
                    again(n, i, seen_end);
                }
                Transit::Corrupt => n.g.verdict = Verdict::Accused,
            }
        }
        RxStep::Ring(k) => {
            end(n, i, Pc::Copy);
            n.r[i].c = (k as u8).min(c.want);
        }
        RxStep::Empty => {
            end(n, i, Pc::Empty);
            n.r[i].then = u8::from(seen_end);
        }
        RxStep::Ended => {
            n.rx.phase = RxPhase::Down as u8;
            again(n, i, seen_end);
        }
        RxStep::Corrupt => n.g.verdict = Verdict::Accused,
    }
}
