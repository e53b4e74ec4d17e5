//! The sending side, one shared access or system call a step, in the order of `shim/src/tx/phase.rs` (`turn`,
//! `go_up`, `go_down`, `resend`, `put`, `commit`, `leave`) and `io.rs` (`send`, `shutdown`).

use crate::search::Next;
use crate::world::{Config, End, FLAG, RAW, SHUT, Thread, Verdict, World, rewind_word};
use shmring::layout::{Consumer, RING_MIN};
use shmring::ring;
use shmring::switch::{self, Again, TxPhase, TxStep, TxView};
use shmring::sync::AtomicU64;

/// Bytes of the model's home: so few that both ways past it occur.
const HOME: u8 = 2;
const _: () = assert!(RING_MIN > HOME as usize);

/// What a thread that took the token is about.
const SEND: u8 = 0;
const LEAVE: u8 = 1;
const SHUTDOWN: u8 = 2;
const CLOSE: u8 = 3;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Pc {
    Idle,
    Take,
    // turn
    LookRx,
    LookRewind,
    LookEnd,
    // go_up
    UpClaim,
    UpAsk,
    UpPublish,
    UpPhase,
    UpNotify,
    // go_down
    DownTail,
    DownClaim,
    DownHead,
    DownEcho,
    DownPublish,
    DownPhase,
    DownNotify,
    // rewind
    RewindHead,
    RewindPhase,
    Resend,
    ResendCount,
    ResendEnd,
    ResendPhase,
    // put, commit
    Put,
    PutBase,
    PutFill,
    PutTail,
    PutPublishBase,
    PutPublish,
    PutNotify,
    PutRelease,
    // native
    Enter,
    Back,
    Send,
    Exit,
    Real,
    // waiting
    Want,
    WantToo,
    Stirred,
    Sleep,
    // leave, flush, shutdown, close
    Leave,
    Flush,
    ShutFlag,
    Settle,
    Fin,
    FinPhase,
    Done,
}

enum Turn {
    Lifeline,
    Ring,
    Blocked,
    Error,
}

fn process_dead(c: &Config, w: &World, i: usize) -> bool {
    w.dead & (1 << c.senders[i].0) != 0
}

/// A process that exits or dies now: does it owe bytes of a rewind?
pub fn owes(w: &mut World) {
    if w.m.rewind == SHUT && w.m.echo & FLAG == 0 {
        w.g.excused = true;
    }
    let pending = w.m.rewind != 0 && w.m.rewind != SHUT && TxPhase::from_u32(u32::from(w.tx.phase)) != TxPhase::Down;
    if w.k.fin == 0 && pending && w.m.rewind - 1 + (w.k.sent - w.tx.up) != w.m.tail {
        w.g.owed = true;
    }
}

fn owes_at_exit(c: &Config, n: &mut World) {
    if c.end == End::Exit {
        owes(n);
    }
}

/// Whether no sender is about to take a step of the protocol: they do something else, for as long as they please.
pub fn outside(c: &Config, w: &World) -> bool {
    let inside = |t: &Thread<Pc>| {
        !matches!(
            t.pc,
            Pc::Idle | Pc::Enter | Pc::Back | Pc::Send | Pc::Exit | Pc::Real | Pc::Fin | Pc::FinPhase | Pc::Done
        )
    };
    !w.s[..c.senders.len()].iter().any(inside)
}

fn cell(c: &Config, base: u8, pos: u8) -> usize {
    c.geometry().spans(u64::from(base), u64::from(pos), 1)[0].0
}

fn head_of(w: &mut World) -> u8 {
    let claim = Consumer { head: AtomicU64::new(u64::from(w.m.head)) };
    match ring::refresh(&claim, u64::from(w.tx.head), u64::from(w.tx.tail)) {
        Ok(h) => h as u8,
        Err(_) => {
            w.g.verdict = Verdict::Accused;
            w.tx.head
        }
    }
}

/// Everything thread `i` can do next.
pub fn step(c: &Config, w: &World, i: usize, out: &mut Vec<Next>) {
    let t = w.s[i];
    let mut n = *w;
    let me = 1 + i as u8;
    let phase = TxPhase::from_u32(u32::from(w.tx.phase));
    let label: &'static str = match t.pc {
        Pc::Done => return,
        Pc::Idle => {
            if t.act > 0 {
                let mut o = *w;
                o.s[i].act = 0;
                o.s[i].then = LEAVE;
                o.s[i].pc = Pc::Take;
                out.push((o, "begins to leave", me));
            }
            if t.left > 0 {
                n.s[i].then = SEND;
                n.s[i].pc = Pc::Take;
                "sends"
            } else {
                let answered = w.g.delivered == w.g.stream || w.k.deaf || w.k.rst || w.g.owed;
                if c.polite && !answered {
                    return;
                }
                finish(c, &mut n, i);
                "has sent all"
            }
        }
        Pc::Take => {
            if w.tx.token != 0 && !process_dead(c, w, w.tx.token as usize - 1) {
                return;
            }
            n.tx.token = me;
            n.s[i].pc = match t.then {
                SEND => Pc::LookRx,
                SHUTDOWN => Pc::ShutFlag,
                _ => Pc::Leave,
            };
            "takes the token"
        }

        Pc::LookRx => {
            if w.tx.latched {
                outcome(c, &mut n, i, Turn::Error);
            } else if phase == TxPhase::Down {
                outcome(c, &mut n, i, Turn::Lifeline);
            } else if phase == TxPhase::Rewind {
                n.s[i].pc = Pc::Resend;
            } else if c.rules.heal && phase == TxPhase::Native && w.tx.word & FLAG != 0 {
                // A holder died on its way up: nobody has sent natively since.
                n.s[i].pc = Pc::UpAsk;
            } else {
                n.s[i].a = w.m.rx;
                n.s[i].pc = Pc::LookRewind;
            }
            "turn: phase, rx"
        }
        Pc::LookRewind => {
            n.s[i].b = w.m.rewind;
            n.s[i].pc = Pc::LookEnd;
            "turn: rewind"
        }
        Pc::LookEnd => {
            if (w.k.deaf || w.k.half) && !w.tx.fin {
                // The look at the lifeline is due, or it is not.
                let mut o = *w;
                o.tx.fin = true;
                decide(c, &mut o, i);
                out.push((o, "turn: sees the end", me));
            }
            decide(c, &mut n, i);
            "turn: decides"
        }

        Pc::UpClaim => {
            let free = if c.rules.count_senders { w.tx.word == 0 } else { w.tx.word & FLAG == 0 };
            if free {
                n.tx.word |= FLAG;
                n.s[i].pc = Pc::UpAsk;
            } else {
                outcome(c, &mut n, i, Turn::Lifeline);
            }
            "go_up: claims"
        }
        Pc::UpAsk => {
            n.s[i].c = w.k.sent;
            n.s[i].pc = Pc::UpPublish;
            "go_up: asks for X"
        }
        Pc::UpPublish => {
            n.m.base = 0;
            n.m.up = t.c + 1;
            n.s[i].pc = Pc::UpPhase;
            "go_up: publishes X"
        }
        Pc::UpPhase => {
            n.tx.up = t.c;
            n.tx.phase = TxPhase::Ring as u8;
            n.s[i].pc = Pc::UpNotify;
            "go_up: phase"
        }
        Pc::UpNotify => {
            n.notify_receivers();
            look(&mut n, i);
            if !c.rules.look_after_up {
                n.s[i].pc = Pc::Put;
            }
            "go_up: notifies"
        }

        Pc::DownTail => {
            publish(c, &mut n);
            n.s[i].pc = Pc::DownClaim;
            "go_down: publishes the tail again"
        }
        Pc::DownClaim => {
            let won = w.m.rewind == 0 || (c.rules.heal && w.m.rewind == SHUT) || !c.rules.arbiter;
            if won {
                n.m.rewind = SHUT;
                n.s[i].pc = Pc::DownHead;
            } else {
                look(&mut n, i);
            }
            "go_down: arbiter"
        }
        Pc::DownHead => {
            let head = head_of(&mut n);
            // The receiver was killed: these bytes are lost.
            n.s[i].a = u8::from(w.tx.fin && w.k.deaf && head != w.tx.tail);
            let decided = Again::from_word(u64::from(w.tx.again));
            // The decision of a holder that died stands.
            if !matches!(decided, Again::Nothing | Again::Echo(_)) {
                let unread = head != w.tx.tail && c.rules.echo && n.s[i].a == 0;
                n.tx.again = if unread { Again::Echo(u64::from(head)) } else { Again::Nothing }.to_word() as u8;
            }
            n.s[i].pc = if c.rules.echo_before_down { Pc::DownEcho } else { Pc::DownPublish };
            "go_down: what is unread"
        }
        Pc::DownEcho => {
            n.m.echo = Again::from_word(u64::from(w.tx.again)).from().map_or(0, |from| from as u8 + 1);
            n.s[i].pc = if c.rules.echo_before_down { Pc::DownPublish } else { Pc::DownPhase };
            "go_down: publishes the echo"
        }
        Pc::DownPublish => {
            n.m.down = w.tx.tail + 1;
            n.s[i].pc = if c.rules.echo_before_down { Pc::DownPhase } else { Pc::DownEcho };
            "go_down: publishes Y"
        }
        Pc::DownPhase => {
            let again = Again::from_word(u64::from(w.tx.again));
            n.tx.phase = if again == Again::Nothing { TxPhase::Down } else { TxPhase::Rewind } as u8;
            if let (false, Some(from)) = (c.rules.heal, again.from()) {
                n.tx.head = from as u8;
            }
            n.s[i].pc = Pc::DownNotify;
            "go_down: phase"
        }
        Pc::DownNotify => {
            n.notify_receivers();
            n.tx.latched |= t.a == 1;
            look(&mut n, i);
            "go_down: notifies"
        }

        Pc::RewindHead => {
            n.tx.again = Again::Rewind(u64::from(t.c)).to_word() as u8;
            n.tx.head = t.c;
            n.s[i].pc = Pc::RewindPhase;
            "rewind: head"
        }
        Pc::RewindPhase => {
            n.tx.phase = TxPhase::Rewind as u8;
            n.s[i].pc = Pc::Resend;
            "rewind: phase"
        }
        Pc::Resend => {
            let again = Again::from_word(u64::from(w.tx.again));
            let from = match again.resume(u64::from(w.tx.tail), u64::from(w.k.sent - w.tx.up)) {
                Ok(at) if c.rules.heal => at as u8,
                Err(_) if c.rules.heal => {
                    n.g.verdict = Verdict::Accused;
                    w.tx.tail
                }
                _ => w.tx.head,
            };
            if from == w.tx.tail {
                n.s[i].pc = Pc::ResendEnd;
            } else if w.k.deaf || w.k.fin != 0 {
                n.tx.phase = TxPhase::Down as u8;
                outcome(c, &mut n, i, Turn::Error);
            } else if w.kernel_room(c) == 0 {
                outcome(c, &mut n, i, Turn::Blocked);
            } else {
                let at = cell(c, w.tx.base, from);
                if n.m.cells[at] == RAW {
                    n.m.cells[at] = n.g.stream;
                    n.g.stream += 1;
                }
                let id = n.m.cells[at];
                n.kernel_put(c, id);
                n.s[i].c = from + 1;
                n.s[i].pc = Pc::ResendCount;
            }
            "resend: sendto"
        }
        Pc::ResendCount => {
            n.tx.head = t.c;
            n.s[i].pc = Pc::Resend;
            "resend: counts"
        }
        Pc::ResendEnd => {
            match Again::from_word(u64::from(w.tx.again)) {
                Again::Rewind(from) => n.m.down = from as u8 + 1,
                Again::Echo(from) => n.m.echo = (from as u8 + 1) | FLAG,
                Again::Undecided | Again::Nothing => {}
            }
            n.s[i].pc = Pc::ResendPhase;
            "resend: publishes Y, or that all is echoed"
        }
        Pc::ResendPhase => {
            n.tx.phase = TxPhase::Down as u8;
            n.notify_receivers();
            look(&mut n, i);
            "resend: phase, notifies"
        }

        Pc::Put => {
            let want = t.left.min(c.chunk);
            let (tail, base) = (w.tx.tail, w.tx.base);
            n.s[i].pc = Pc::PutFill;
            if c.ring - (tail - w.tx.head) < want || tail - base + want > HOME {
                n.tx.head = head_of(&mut n);
                if n.tx.head == tail && tail != base {
                    n.tx.base = tail;
                    n.s[i].pc = Pc::PutBase;
                }
            }
            "put: head"
        }
        Pc::PutBase => {
            n.m.base = w.tx.base;
            n.s[i].pc = Pc::PutFill;
            "put: base"
        }
        Pc::PutFill => {
            let room = (c.ring - (w.tx.tail - w.tx.head)).min(t.left.min(c.chunk));
            if room == 0 {
                outcome(c, &mut n, i, Turn::Blocked);
            } else {
                if !c.rules.reader_clears_want {
                    n.m.want = 0;
                }
                for k in 0..room {
                    n.m.cells[cell(c, w.tx.base, w.tx.tail + k)] = RAW;
                }
                n.s[i].c = room;
                n.s[i].pc = Pc::PutTail;
            }
            "put: copies"
        }
        Pc::PutTail => {
            n.tx.tail += t.c;
            n.s[i].pc = if c.rules.heal { Pc::PutPublishBase } else { Pc::PutPublish };
            "commit: own tail"
        }
        Pc::PutPublishBase => {
            n.m.base = w.tx.base;
            n.s[i].pc = Pc::PutPublish;
            "commit: base"
        }
        Pc::PutPublish => {
            publish(c, &mut n);
            n.s[i].pc = Pc::PutNotify;
            "commit: publishes"
        }
        Pc::PutNotify => {
            n.notify_receivers();
            n.s[i].pc = Pc::PutRelease;
            "commit: notifies"
        }
        Pc::PutRelease => {
            n.tx.token = 0;
            n.s[i].left -= t.c;
            n.s[i].rest();
            n.s[i].pc = Pc::Idle;
            "sent on the ring"
        }

        Pc::Enter => {
            n.tx.word = w.tx.word.wrapping_add(1);
            n.s[i].pc = if w.tx.word & FLAG != 0 { Pc::Back } else { Pc::Send };
            "counted: enters"
        }
        Pc::Back => {
            n.tx.word = w.tx.word.wrapping_sub(1);
            n.s[i].pc = if phase == TxPhase::Down { Pc::Real } else { Pc::Idle };
            "counted: steps back"
        }
        Pc::Send | Pc::Real => {
            let counted = t.pc == Pc::Send;
            if w.k.deaf || w.k.fin != 0 {
                n.s[i].left = 0;
                n.s[i].act = 0;
            } else {
                let k = t.left.min(c.chunk).min(w.kernel_room(c));
                if k == 0 {
                    return;
                }
                n.kernel_send(c, k);
                n.s[i].left -= k;
            }
            n.s[i].pc = if counted { Pc::Exit } else { Pc::Idle };
            "sends natively"
        }
        Pc::Exit => {
            n.tx.word = w.tx.word.wrapping_sub(1);
            n.s[i].pc = Pc::Idle;
            "counted: leaves"
        }

        Pc::Want => {
            n.s[i].c = u8::from(phase == TxPhase::Rewind);
            if c.rules.reader_clears_want {
                n.s[i].armed = true
            } else {
                n.m.want = 1
            }
            n.s[i].pc = Pc::WantToo;
            "arms (or wants space)"
        }
        Pc::WantToo => {
            if c.rules.reader_clears_want {
                n.m.want = w.m.want % 15 + 1
            } else {
                n.s[i].armed = true
            }
            n.s[i].pc = Pc::Stirred;
            "wants space (or arms)"
        }
        Pc::Stirred => {
            let stirred = match phase {
                TxPhase::Ring => c.ring - (w.tx.tail - head_of(&mut n)) > 0 || w.m.rewind != 0,
                // Whoever sleeps for POLLOUT is woken by it; whoever chose before the rewind began is not.
                TxPhase::Rewind => t.c == 0 && c.rules.stir_on_rewind,
                _ => true,
            };
            if stirred {
                n.s[i].wipe();
                n.s[i].pc = Pc::Idle;
            } else {
                n.s[i].pc = Pc::Sleep;
            }
            "looks again"
        }
        Pc::Sleep => {
            if !(t.bell || w.k.deaf || w.k.half || (t.c == 1 && (w.kernel_room(c) > 0 || w.k.fin != 0))) {
                return;
            }
            n.s[i].wipe();
            n.s[i].pc = Pc::Idle;
            "wakes"
        }

        Pc::Leave => {
            match phase {
                TxPhase::Native => {
                    n.tx.phase = TxPhase::Down as u8;
                    outcome(c, &mut n, i, Turn::Lifeline);
                }
                TxPhase::Ring => n.s[i].pc = go_down(c),
                TxPhase::Rewind if c.rules.down_before_fin || t.then == LEAVE => n.s[i].pc = Pc::Resend,
                _ => outcome(c, &mut n, i, Turn::Lifeline),
            }
            "leave: phase"
        }
        Pc::ShutFlag => {
            n.m.wr_shut = true;
            n.s[i].pc = Pc::Leave;
            if !c.rules.down_before_fin {
                n.kernel_fin(c);
            }
            "shutdown: flag"
        }
        Pc::Flush => {
            if phase == TxPhase::Rewind && w.kernel_room(c) == 0 && !w.k.deaf && w.k.fin == 0 {
                return;
            }
            n.s[i].pc = Pc::Take;
            "flush: the lifeline takes more"
        }
        Pc::Settle => {
            n.tx.phase = TxPhase::Down as u8;
            n.s[i].pc = Pc::Fin;
            "flush: phase"
        }
        Pc::Fin => {
            if c.end == End::Reset {
                n.kernel_rst();
            } else {
                n.kernel_fin(c);
            }
            n.s[i].pc = Pc::FinPhase;
            "FIN, or RST"
        }
        Pc::FinPhase => {
            if phase == TxPhase::Rewind {
                n.tx.phase = TxPhase::Down as u8;
            }
            n.s[i].wipe();
            n.s[i].pc = Pc::Done;
            "FIN: phase"
        }
    };
    out.push((n, label, me));
}

/// What a holder that died had counted as sent is published before the arbiter moves: it belongs to Y.
fn go_down(c: &Config) -> Pc {
    if c.rules.heal { Pc::DownTail } else { Pc::DownClaim }
}

fn look(n: &mut World, i: usize) {
    n.s[i].a = 0;
    n.s[i].b = 0;
    n.s[i].c = 0;
    n.s[i].pc = Pc::LookRx;
}

/// Makes what lies before the family's tail part of the stream.
fn publish(c: &Config, n: &mut World) {
    for pos in n.m.tail..n.tx.tail {
        let at = cell(c, n.tx.base, pos);
        if n.m.cells[at] == RAW {
            n.m.cells[at] = n.g.stream;
            n.g.stream += 1;
        }
    }
    n.m.tail = n.tx.tail;
}

fn decide(c: &Config, n: &mut World, i: usize) {
    let t = n.s[i];
    let view = TxView {
        phase: TxPhase::from_u32(u32::from(n.tx.phase)),
        rx: u32::from(t.a),
        rewind: rewind_word(t.b),
        head: u64::from(n.tx.head),
        tail: u64::from(n.tx.tail),
        fin: n.tx.fin,
    };
    n.s[i].a = 0;
    n.s[i].b = 0;
    match switch::tx(view) {
        TxStep::Lifeline => outcome(c, n, i, Turn::Lifeline),
        TxStep::GoUp => n.s[i].pc = Pc::UpClaim,
        TxStep::Ring => outcome(c, n, i, Turn::Ring),
        TxStep::GoDown => n.s[i].pc = go_down(c),
        TxStep::Rewind { from } => {
            n.s[i].c = from as u8;
            n.s[i].pc = Pc::RewindHead;
        }
        TxStep::Corrupt => n.g.verdict = Verdict::Accused,
    }
}

/// What the holder of the token does once it knows where the next byte goes.
fn outcome(c: &Config, n: &mut World, i: usize, turn: Turn) {
    let then = n.s[i].then;
    n.s[i].rest();
    if then == SEND {
        match turn {
            Turn::Ring => {
                n.s[i].pc = Pc::Put;
                return;
            }
            Turn::Lifeline if c.rules.count_senders => n.s[i].pc = Pc::Enter,
            Turn::Lifeline => {
                n.s[i].pc = if n.tx.word & FLAG != 0 && n.tx.phase != TxPhase::Down as u8 { Pc::Idle } else { Pc::Real }
            }
            Turn::Blocked => n.s[i].pc = Pc::Want,
            Turn::Error => {
                n.s[i].left = 0;
                n.s[i].act = 0;
                n.s[i].pc = Pc::Idle;
            }
        }
        n.tx.token = 0;
        return;
    }
    n.tx.token = 0;
    let blocked = matches!(turn, Turn::Blocked);
    n.s[i].pc = if blocked && then != LEAVE && n.m.rewind == SHUT {
        // Nothing comes behind: an echo may stay incomplete.
        n.g.excused = true;
        if c.rules.fin_before_down { Pc::Fin } else { Pc::Settle }
    } else if blocked {
        n.s[i].then = then;
        Pc::Flush
    } else if then == LEAVE {
        Pc::Idle
    } else {
        Pc::Fin
    };
}

/// A thread has nothing left to do; the last one ends the stream.
fn finish(c: &Config, n: &mut World, i: usize) {
    n.s[i].act = 0;
    n.s[i].rest();
    let last = (0..c.senders.len()).all(|j| j == i || n.s[j].pc == Pc::Done);
    let hasty = c.hasty && i == 0;
    if !last && !hasty {
        n.s[i].pc = Pc::Done;
        return;
    }
    n.s[i].pc = Pc::Take;
    match c.end {
        End::Close | End::Reset if c.rules.down_before_fin => n.s[i].then = CLOSE,
        End::Shutdown => n.s[i].then = SHUTDOWN,
        End::Close | End::Reset | End::Exit => {
            owes_at_exit(c, n);
            // To the receiver it is as good as killed.
            n.g.excused |= c.end == End::Exit;
            n.kernel_fin(c);
            n.s[i].wipe();
            n.s[i].pc = Pc::Done;
        }
    }
}
