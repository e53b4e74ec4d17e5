//! The receiving side, one shared access or system call a step, in the order of `shim/src/rx/`
//! (`make_ready`, `attempt`, `recv`, `advance`, `come_down`, `skip`, `taken_back`, `echoed`), `io.rs` (`recv`,
//! `quit`, `retire`), `readiness.rs` and `poll.rs` (the pollers), and `handoff.rs` (`pass_on`).

use crate::search::Next;
use crate::world::{Act, Config, FLAG, RAW, Receiving, SHUT, Slot, Verdict, World, echo_word, rewind_word};
use shmring::layout::{Producer, READY, REFUSED};
use shmring::ring;
use shmring::switch::{self, Leave, RxPhase, RxStep, RxView, Transit};
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
    LoadEnd,
    LoadTail,
    LoadUp,
    Skip,
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
    // come_down
    Come,
    ComePhase,
    // what recv makes of it
    GotBytes,
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
    CountedBack,
    CountedRecv,
    CountedEnd,
    CountedEof,
    Raw,
    // quit
    LeaveTake,
    Refuse,
    LeaveUp,
    LeaveAt,
    LeaveArbiter,
    LeaveNotify,
    LeaveLeft,
    // taken_back
    BackDown,
    BackLook,
    BackLast,
    // the sender has gone down
    ClosedDown,
    ClosedLeft,
    EchoLook,
    EchoLast,
    EchoEnded,
    EchoArrived,
    LeaveCome,
    LeavePhase,
    LeaveWord,
    LeaveDrop,
    LeaveReset,
    LeaveRelease,
    LeaveStays,
    // pass_on
    PassOn,
    // a new image's file
    File,
    Done,
}

/// In register `c`: the lifeline had ended when it was looked at; no bound is known.
const ENDED: u8 = 0x80;

fn process_dead(c: &Config, w: &World, i: usize) -> bool {
    w.dead & (1 << c.receivers[i]) != 0
}

fn available(c: &Config, w: &World) -> Result<u64, ring::Corrupt> {
    let m = w.slot();
    let p = Producer {
        tail: AtomicU64::new(u64::from(m.tail)),
        base: AtomicU64::new(u64::from(m.base)),
        ..Producer::default()
    };
    ring::available(&p, u64::from(w.rx.head), u64::from(c.ring))
}

/// Where the ring ends, as far as it is known.
fn ring_end(c: &Config, w: &World) -> u64 {
    let m = w.slot();
    let rewind = if c.rules.heal_cut || m.rewind == SHUT { rewind_word(m.rewind) } else { 0 };
    switch::end(u64::from(w.rx.cut), rewind, u64::from(m.down))
}

/// `rx::on_ring`.
fn on_ring(c: &Config, w: &World) -> u64 {
    let n = switch::left(available(c, w).unwrap_or(0), u64::from(w.rx.head), ring_end(c, w));
    if w.rx.phase == RxPhase::Ring as u8 { n } else { 0 }
}

fn doubled(c: &Config, w: &World) -> bool {
    let phase = match RxPhase::from_u32(u32::from(w.rx.phase)) {
        RxPhase::Transit if !c.rules.doubled_in_ring => RxPhase::Ring,
        phase => phase,
    };
    switch::doubled(phase, rewind_word(w.slot().rewind), echo_word(w.slot().echo))
}

/// `rx::all_echoed`.
fn all_echoed(c: &Config, w: &World) -> bool {
    let said = switch::all_echoed(
        RxPhase::from_u32(u32::from(w.rx.phase)),
        rewind_word(w.slot().rewind),
        echo_word(w.slot().echo),
    );
    said && arrived(c, w)
}

/// `rx::arrived`.
fn arrived(c: &Config, w: &World) -> bool {
    let m = w.slot();
    !c.rules.arrived
        || switch::arrived(
            u64::from(m.up),
            u64::from(m.down),
            echo_word(m.echo),
            u64::from(w.k.consumed + w.k.queue.len),
        )
}

/// `rx::in_transit`.
fn in_transit(w: &World) -> bool {
    w.rx.phase < RxPhase::Ring as u8 && w.slot().up != 0
}

/// `rx::go_up`.
fn go_up(c: &Config, n: &mut World, i: usize, x: u8) {
    n.rx.up = x;
    n.rx.phase = RxPhase::Ring as u8;
    for j in 0..c.receivers.len() {
        n.r[j].bell |= n.r[j].armed && c.rules.tell_on_ring && c.receivers[j] == c.receivers[i] && j != i;
    }
}

/// The first half of `rx::come_down`.
fn note_skip(c: &Config, n: &mut World) {
    let m = n.slot();
    let to = switch::skip(
        rewind_word(m.rewind),
        echo_word(m.echo),
        u64::from(n.rx.up),
        u64::from(n.rx.head),
        u64::from(c.ring),
    ) as u8;
    if to != 0 && c.rules.skip {
        n.rx.skip = to;
    }
}

/// The second.
fn come_down(c: &Config, n: &mut World) {
    n.rx.phase = RxPhase::Down as u8;
    if c.rules.tell_again && !matches!(n.slot().rewind, 0 | SHUT) {
        // A holder that died when it had moved the arbiter may have told nobody.
        tell(n);
    }
}

/// Notifies the peer. An image that got its ring from an exec has none.
fn tell(n: &mut World) {
    if !n.rx.image {
        n.notify_senders();
    }
}

/// `rx::skip`.
fn skip(n: &mut World) -> bool {
    let to = n.rx.skip;
    loop {
        let left = to.saturating_sub(n.k.consumed);
        if left == 0 || (n.k.queue.len == 0 && n.k.ended()) {
            n.rx.skip = 0;
            return true;
        }
        if n.k.queue.len == 0 {
            return false;
        }
        for _ in 0..left.min(n.k.queue.len) {
            n.kernel_take();
        }
    }
}

/// What thread `i` has set out to do.
fn act(c: &Config, n: &World, i: usize) -> Act {
    c.acts[c.acts.len() - 1 - n.r[i].act as usize]
}

fn token_free(c: &Config, w: &World) -> bool {
    w.rx.token == 0 || process_dead(c, w, w.rx.token as usize - 1)
}

/// Thread `i` has got `k` bytes.
fn got(n: &mut World, i: usize, k: u8) {
    n.r[i].left = match n.r[i].left {
        0 => 0,
        left if left == k => STOPS,
        left => left - k,
    };
}

/// In `left`: it has got all that it wants.
const STOPS: u8 = 0xff;

fn again(n: &mut World, i: usize, seen_end: bool) {
    n.r[i].rest();
    n.r[i].then = u8::from(seen_end);
    n.r[i].pc = Pc::Bound;
}

fn end(n: &mut World, i: usize, pc: Pc) {
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

/// What a native receive of at most `max` bytes brings.
fn native(n: &mut World, i: usize, max: u8) {
    let k = n.kernel_recv(max);
    let pc = if k > 0 {
        got(n, i, k);
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
            let polls = c.polls | c.epolls;
            n.r[i].pc = if w.rx.filed {
                Pc::File
            } else if w.rx.raw {
                Pc::Raw
            } else if polls & (1 << i) != 0 && t.then == 0 && (w.rx.word == FLAG || phase == RxPhase::Down) {
                Pc::PollAdvance
            } else if phase == RxPhase::Down && w.rx.skip == 0 {
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
                if w.slot().rx == 0 {
                    n.slot_mut().rx = READY as u8;
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
            n.r[i].pc = if (c.polls | c.epolls) & (1 << i) != 0 && t.then == 0 { Pc::PollAdvance } else { Pc::Take };
            "make_ready: notifies"
        }
        Pc::Take => {
            if !token_free(c, w) {
                return;
            }
            n.rx.token = 1 + i as u8;
            again(&mut n, i, false);
            "takes the token"
        }

        Pc::Bound => {
            if c.eager && all_echoed(c, w) {
                let mut o = *w;
                end(&mut o, i, Pc::Come);
                o.r[i].then = t.then;
                out.push((o, "attempt: all is echoed", me));
            }
            n.r[i].c = if !c.rules.bounded_native || w.k.ended() { ENDED } else { w.k.queue.len };
            n.r[i].pc = Pc::LoadEnd;
            "attempt: FIONREAD"
        }
        Pc::LoadEnd => {
            n.r[i].a = ring_end(c, w) as u8;
            n.r[i].pc = Pc::LoadTail;
            "attempt: end"
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
                up: u64::from(w.slot().up),
                down: u64::from(t.a),
                head: u64::from(w.rx.head),
                available: u64::from(t.b),
            };
            decide(c, &mut n, i, switch::rx(view));
            "attempt: up, decides"
        }
        Pc::Skip => {
            if skip(&mut n) {
                n.r[i].pc = Pc::Native;
            } else {
                end(&mut n, i, Pc::GotNothing);
            }
            "lifeline: drops the echo"
        }
        Pc::Come => {
            note_skip(c, &mut n);
            n.r[i].pc = Pc::ComePhase;
            "come_down: what the lifeline repeats"
        }
        Pc::ComePhase => {
            come_down(c, &mut n);
            again(&mut n, i, t.then == 1);
            "come_down: phase"
        }
        Pc::Native => {
            let bound = if phase != RxPhase::Native || t.c == ENDED { want(c, w, i) } else { t.c.min(want(c, w, i)) };
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
            if w.slot().up != 0 {
                again(&mut n, i, false);
            } else {
                end(&mut n, i, if t.c == 1 { Pc::GotEof } else { Pc::GotNothing });
            }
            "lifeline: up again"
        }
        Pc::TransitRecv => {
            native(&mut n, i, t.b.min(want(c, w, i)));
            if n.k.consumed == w.k.consumed + t.b && c.rules.tell_on_ring {
                go_up(c, &mut n, i, w.k.consumed + t.b);
            }
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
                let (at, _) = g.spans(u64::from(w.slot().base), u64::from(w.rx.head) + k as u64, 1)[0];
                *id = w.slot().cells[at];
            }
            n.r[i].a = ids[0];
            n.r[i].b = ids[1];
            n.r[i].then = c.ring - (w.slot().tail - w.rx.head).min(c.ring);
            n.r[i].pc = Pc::Head;
            "ring: copies"
        }
        Pc::Head => {
            n.rx.head += t.c;
            for id in [t.a, t.b].into_iter().take(t.c as usize) {
                n.deliver(if id == RAW { u8::MAX } else { id });
            }
            got(&mut n, i, t.c);
            n.r[i].a = 0;
            n.r[i].b = 0;
            n.r[i].pc = Pc::Consume;
            "ring: own head"
        }
        Pc::Consume => {
            n.slot_mut().head = w.rx.head;
            n.r[i].pc = Pc::Space;
            "ring: gives back"
        }
        Pc::Space => {
            let third = (c.ring / 3).max(1);
            if w.rx.image {
                end(&mut n, i, Pc::GotBytes);
                out.push((n, "ring: nobody waits for space", me));
                return;
            }
            let (before, after) =
                if c.rules.space_after_consume { (0, c.ring - (w.m.tail - w.rx.head)) } else { (t.then, t.then + t.c) };
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
                if c.rules.heal && !w.rx.image && (w.m.head != w.rx.head || w.m.want != 0) && t.c != 1 {
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
                native(&mut n, i, want(c, w, i));
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
                n.end_of_stream()
            } else {
                n.connection_reset()
            }
            n.r[i].act = 0;
            n.r[i].left = 0;
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
        Pc::GotNothing => {
            n.rx.token = 0;
            n.r[i].armed = true;
            n.r[i].b = u8::from(c.rules.transit_in_steps && in_transit(w));
            n.r[i].pc = Pc::Stirred;
            "nothing: arms"
        }
        Pc::Stirred => {
            let stirred = match phase {
                RxPhase::Native => w.slot().up != 0,
                RxPhase::Ring => w.slot().tail != w.rx.head || ring_end(c, w) == u64::from(w.rx.head) + 1,
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
            // An edge is consumed before anything is looked at.
            n.k.edge = false;
            let up = w.slot().up;
            if phase == RxPhase::Ring && ring_end(c, w) == u64::from(w.rx.head) + 1 {
                note_skip(c, &mut n);
                come_down(c, &mut n);
            } else if up != 0 && matches!(phase, RxPhase::Native | RxPhase::Transit) {
                if w.k.consumed == up - 1 {
                    go_up(c, &mut n, i, up - 1);
                } else {
                    n.rx.phase = RxPhase::Transit as u8;
                }
            }
            if n.rx.skip != 0 {
                skip(&mut n);
            }
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
            n.r[i].pc = if w.k.readable() && w.rx.skip == 0 && (w.k.ended() || !doubled(c, w)) {
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
            n.r[i].b = u8::from(c.rules.transit_in_steps && in_transit(w));
            n.r[i].pc = Pc::PollNews;
            "poll: arms"
        }
        Pc::PollNews => {
            let news = match phase {
                RxPhase::Native => w.slot().up != 0,
                RxPhase::Ring => on_ring(c, w) > 0 || ring_end(c, w) == u64::from(w.rx.head) + 1,
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
            native(&mut n, i, want(c, w, i));
            n.r[i].pc = match (n.r[i].pc, counted) {
                (Pc::GotBytes, true) => Pc::CountedEnd,
                (Pc::GotBytes, false) => Pc::Idle,
                (got, counted) => {
                    if got == Pc::GotEof {
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

        Pc::LeaveTake => {
            if !token_free(c, w) {
                return;
            }
            n.rx.token = 1 + i as u8;
            n.r[i].pc = if phase == RxPhase::Down { Pc::LeaveDrop } else { Pc::Refuse };
            "quit: takes the token"
        }
        Pc::Refuse => {
            n.slot_mut().rx = REFUSED as u8;
            n.r[i].pc = Pc::LeaveUp;
            "quit: REFUSED"
        }
        Pc::LeaveUp => {
            n.r[i].pc = if w.slot().up == 0 { Pc::LeaveCome } else { Pc::LeaveAt };
            "quit: up"
        }
        Pc::LeaveAt => {
            let kept =
                if matches!(act(c, w, i), Act::Cut | Act::Exec) { available(c, w).unwrap_or(0) as u8 } else { 0 };
            n.r[i].b = w.rx.head + kept;
            n.r[i].pc = Pc::LeaveArbiter;
            "quit: how much lies there"
        }
        Pc::LeaveArbiter => {
            n.r[i].c = w.slot().rewind;
            if w.slot().rewind == 0 || !c.rules.arbiter && w.slot().rewind == SHUT {
                n.slot_mut().rewind = t.b + 1;
                n.r[i].c = 0;
            }
            n.r[i].pc = Pc::LeaveNotify;
            "quit: arbiter"
        }
        Pc::LeaveNotify => {
            tell(&mut n);
            n.r[i].pc = Pc::LeaveLeft;
            "quit: notifies"
        }
        Pc::LeaveLeft => {
            let keep = matches!(act(c, w, i), Act::Cut | Act::Exec);
            let there = available(c, w).unwrap_or(0);
            let left = match t.c {
                0 => there,
                _ if phase != RxPhase::Ring && !c.rules.cut_in_transit => 0,
                _ => switch::left(there, u64::from(w.rx.head), ring_end(c, w)),
            };
            let kept = u64::from(t.b - w.rx.head);
            let left = if keep && t.c == 0 && !c.rules.behind_the_cut { kept } else { left };
            n.r[i].rest();
            n.r[i].pc = match switch::leave(rewind_word(t.c), u64::from(w.rx.head), kept, left, u64::from(w.rx.cut)) {
                Leave::Down => Pc::LeaveCome,
                Leave::Cut(to) => {
                    n.rx.cut = to as u8;
                    Pc::LeaveStays
                }
                Leave::Rewound => Pc::BackDown,
                Leave::Closed if c.rules.down_before_leaving => Pc::ClosedDown,
                Leave::Closed => Pc::ClosedLeft,
            };
            "quit: what is left"
        }

        Pc::BackDown => {
            n.r[i].pc = if w.m.down == w.m.rewind { taken_back(&mut n) } else { Pc::BackLook };
            "taken_back: down"
        }
        Pc::BackLook => {
            if w.k.ended() {
                n.r[i].b = u8::from(!c.rules.look_after_rewind);
                n.r[i].pc = Pc::BackLast;
            } else {
                let mut o = *w;
                o.r[i].pc = taken_back(&mut o);
                // Dead already, and not even the kernel has said so.
                o.g.owed |= w.k.fin == 1 && w.m.down == 0;
                out.push((o, "taken_back: enough patience", me));
                n.r[i].pc = Pc::BackDown;
            }
            "taken_back: looks at the lifeline"
        }
        Pc::BackLast => {
            n.r[i].b = 0;
            n.r[i].pc = if t.b == 0 && w.m.down == w.m.rewind || !c.rules.take_back {
                taken_back(&mut n)
            } else if switch::killed_over_it(u64::from(w.m.up), u64::from(w.k.consumed + w.k.queue.len))
                && c.rules.killed_over_it
            {
                n.g.excused |= w.m.down != w.m.rewind;
                n.r[i].c = 1;
                Pc::LeaveReset
            } else {
                n.rx.cut = w.rx.head + available(c, w).unwrap_or(0) as u8 + 1;
                Pc::LeaveStays
            };
            "taken_back: the sender is dead"
        }

        Pc::ClosedDown => {
            if w.slot().down != 0 || w.k.ended() {
                n.r[i].pc = Pc::ClosedLeft;
            } else if crate::sender::outside(c, w) {
                // The sender stopped on its way down, or a holder of several died there.
                n.g.excused = true;
                n.r[i].c = 1;
                n.r[i].pc = Pc::LeaveReset;
            } else {
                return;
            }
            "quit: down"
        }
        Pc::ClosedLeft => {
            n.r[i].pc = if available(c, w) == Ok(0) { Pc::LeaveCome } else { Pc::EchoLook };
            "quit: what is left, or echoed"
        }
        Pc::EchoLook => {
            if w.k.ended() {
                n.r[i].pc = Pc::EchoLast;
            } else if all_there(c, w) {
                n.r[i].pc = Pc::EchoEnded;
            } else if w.kernel_room(c) == 0 || w.k.queue.len >= c.window || w.rx.image || crate::sender::outside(c, w) {
                n.g.excused |= w.slot().echo != 0;
                n.r[i].pc = Pc::LeaveStays;
            } else {
                return;
            }
            "echoed: looks"
        }
        Pc::EchoLast => {
            n.r[i].pc = if all_there(c, w) {
                Pc::EchoEnded
            } else {
                n.g.excused |= w.slot().echo != 0;
                Pc::LeaveStays
            };
            "echoed: looks again"
        }
        Pc::EchoEnded => {
            n.r[i].c = u8::from(w.k.ended());
            n.r[i].pc = Pc::EchoArrived;
            "echoed: has the peer ended"
        }
        Pc::EchoArrived => {
            n.r[i].c = 0;
            if arrived(c, w) {
                n.r[i].pc = Pc::LeaveCome;
            } else if t.c == 1 {
                n.r[i].pc = Pc::LeaveStays;
            } else if w.k.queue.len >= c.window {
                // The rest waits for the next reader to make room; a RST drops it.
                n.g.late = true;
                n.g.due = 0;
                n.r[i].pc = Pc::LeaveCome;
            } else if !w.k.ended() && w.k.wire.len > 0 {
                return;
            } else {
                n.r[i].pc = Pc::EchoEnded;
            }
            "echoed: has all come"
        }

        Pc::LeaveCome => {
            note_skip(c, &mut n);
            n.r[i].pc = Pc::LeavePhase;
            "quit: what the lifeline repeats"
        }
        Pc::LeavePhase => {
            come_down(c, &mut n);
            n.r[i].pc = Pc::LeaveWord;
            "quit: phase"
        }
        Pc::LeaveWord => {
            n.rx.word = w.rx.word & !FLAG;
            n.r[i].pc = Pc::LeaveDrop;
            "quit: word"
        }
        Pc::LeaveDrop => {
            if w.rx.skip == 0 || !c.rules.drop_echo || skip(&mut n) {
                n.r[i].pc = Pc::LeaveRelease;
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
            "quit: drops the echo"
        }
        Pc::LeaveReset => {
            n.reset();
            n.k.queue.clear();
            n.r[i].c = 0;
            n.r[i].pc = if t.c == 1 { Pc::LeaveCome } else { Pc::LeaveRelease };
            "quit: resets"
        }
        Pc::LeaveStays => {
            n.rx.token = 0;
            tell(&mut n);
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
            "quit: something is left"
        }
        Pc::LeaveRelease => {
            n.rx.token = 0;
            tell(&mut n);
            end(&mut n, i, Pc::Idle);
            match act(c, w, i) {
                Act::Cut | Act::Rewind => {}
                Act::Retire => n.rx.raw = true,
                Act::Exec | Act::Foreign | Act::Stdin => n.r[i].pc = Pc::PassOn,
            }
            "quit: all done"
        }

        Pc::PassOn => {
            end(&mut n, i, Pc::Idle);
            pass_on(c, &mut n, act(c, w, i));
            "exec: hands on"
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

/// What is unread comes over the lifeline, up to what is kept on the ring.
fn taken_back(n: &mut World) -> Pc {
    if n.m.rewind == n.rx.head + 1 {
        return Pc::LeaveCome;
    }
    n.rx.cut = n.m.rewind;
    Pc::LeaveStays
}

/// Whether the sender says that all that is unread is on the lifeline.
fn all_there(c: &Config, w: &World) -> bool {
    let echo = echo_word(w.slot().echo);
    echo & shmring::layout::ECHOED != 0 || !c.rules.echo_complete && echo != 0
}

/// `handoff::pass_on`, one step: the process has one thread by then, and the sender writes nothing to what it reads.
fn pass_on(c: &Config, n: &mut World, act: Act) {
    let (m, rx) = (*n.slot(), n.rx);
    let there = available(c, n).unwrap_or(0);
    let left = switch::left(there, u64::from(rx.head), ring_end(c, n)) as u8;
    if rx.phase == RxPhase::Down as u8 || left == 0 {
        n.rx.raw = true;
        return;
    }
    let mut ids = [0; 4];
    for (k, id) in ids.iter_mut().enumerate().take(left as usize) {
        *id = m.cells[c.geometry().spans(u64::from(m.base), u64::from(rx.head) + k as u64, 1)[0].0];
    }
    let received = n.k.consumed + n.k.queue.len;
    let all = match c.rules.file_is_all {
        true => {
            switch::is_all(rewind_word(m.rewind), u64::from(m.up), echo_word(m.echo), n.k.ended(), u64::from(received))
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
            let (up, echo) = switch::hand_on(
                rewind_word(m.rewind),
                u64::from(m.up),
                echo_word(m.echo),
                u64::from(rx.head),
                u64::from(c.ring),
            );
            let up = if c.rules.hand_on_behind { up as u8 } else { m.up };
            let mut cells = [0; 4];
            for (k, id) in ids.iter().enumerate().take(left as usize) {
                cells[c.geometry().spans(0, k as u64, 1)[0].0] = *id;
            }
            n.h = Slot { up, down: left + 1, rewind: SHUT, echo: echo as u8, tail: left, cells, ..Slot::default() };
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

fn decide(c: &Config, n: &mut World, i: usize, step: RxStep) {
    let seen_end = n.r[i].then == 1;
    match step {
        RxStep::Lifeline if n.rx.phase == RxPhase::Down as u8 && n.rx.skip != 0 => n.r[i].pc = Pc::Skip,
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
                    go_up(c, n, i, x as u8);
                    again(n, i, seen_end);
                }
                Transit::Corrupt => n.g.verdict = Verdict::Accused,
            }
        }
        RxStep::Ring(k) => {
            end(n, i, Pc::Copy);
            n.r[i].c = (k as u8).min(want(c, n, i));
        }
        RxStep::Empty => {
            end(n, i, Pc::Empty);
            n.r[i].then = u8::from(seen_end);
        }
        RxStep::Ended => {
            end(n, i, Pc::Come);
            n.r[i].then = u8::from(seen_end);
        }
        RxStep::Corrupt => n.g.verdict = Verdict::Accused,
    }
}
