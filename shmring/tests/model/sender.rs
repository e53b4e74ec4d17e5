//! The sending side: the driver's steps (`shmring::driver`), one effect at a time, and what a thread of a program does
//! around them: native sends, waiting, `shutdown` and `close`, as in `engine/src/io.rs` and `engine/src/tx/`.

use crate::hands::{self, Hand, Room};
use crate::port::{self, Of, is_down};
use crate::search::Next as Successor;
use crate::world::{Config, End, FLAG, SHUT, Thread, Verdict, World};
use shmring::driver::{self, Aim, Failure, Next, Put, Stage, Turn};
use shmring::family::UP;
use shmring::switch::TxPhase;

/// What a thread that took the token is about.
pub const SEND: u8 = 0;
pub const LEAVE: u8 = 1;
const SHUTDOWN: u8 = 2;
const CLOSE: u8 = 3;
pub const RESERVE: u8 = 4;
pub const COMMIT: u8 = 5;
/// `tx::service`: to do what the receiver asks.
const SERVE: u8 = 6;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Pc {
    Idle,
    Take,
    // driver::turn, driver::put
    Turn(Stage),
    Put,
    Behind,
    // room that its program fills
    Room(Room),
    // native
    Enter,
    Send,
    Exit,
    Real,
    // waiting
    Want,
    WantToo,
    Stirred,
    Sleep,
    // flush, shutdown, close
    Flush,
    ShutFlag,
    Settle,
    Fin,
    FinPhase,
    Done,
}

fn process_dead(c: &Config, w: &World, i: usize) -> bool {
    w.dead & (1 << c.senders[i].0) != 0
}

/// A process that exits or dies now: does it owe bytes of a rewind?
pub fn owes(w: &mut World) {
    if w.m.rewind == SHUT && w.m.echo & FLAG == 0 {
        w.g.excused = true;
    }
    let pending = w.m.rewind != 0 && w.m.rewind != SHUT && !is_down(w);
    if w.k.fin == 0 && pending && (w.m.rewind & !FLAG) - 1 + (w.k.sent - w.tx.up) != w.m.tail {
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
            Pc::Idle
                | Pc::Room(Room::Fill | Room::GiveBack)
                | Pc::Enter
                | Pc::Send
                | Pc::Exit
                | Pc::Real
                | Pc::Fin
                | Pc::FinPhase
                | Pc::Done
        )
    };
    !w.s[..c.senders.len()].iter().any(inside)
}

fn aim(t: &Thread<Pc>) -> Aim {
    if matches!(t.then, SEND | RESERVE | COMMIT | SERVE) { Aim::Send } else { Aim::Leave }
}

/// Everything thread `i` can do next.
pub fn step(c: &Config, w: &World, i: usize, out: &mut Vec<Successor>) {
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
            if hands::fills(c, w, i, out) {
                return;
            }
            if t.left > 0 {
                n.s[i].then = SEND;
                n.s[i].pc = Pc::Take;
                "sends"
            } else {
                let answered = w.g.delivered == w.g.stream || w.k.deaf || w.k.rst || w.g.owed;
                if c.polite && !answered {
                    // It waits for the answer in the library, or has gone on to the kernel's receive.
                    let serves = match phase {
                        TxPhase::Ring => w.m.rewind != 0 && c.rules.waits_for_both && !c.mute,
                        TxPhase::Rewind => w.kernel_room(c) > 0,
                        _ => false,
                    };
                    if !serves {
                        return;
                    }
                    n.s[i].then = SERVE;
                    n.s[i].pc = Pc::Take;
                    out.push((n, "is woken while it waits for an answer", me));
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
            n.s[i].pc = if t.then == SHUTDOWN { Pc::ShutFlag } else { Pc::Turn(Stage::Look) };
            "takes the token"
        }

        Pc::Turn(at) => {
            let label = match at {
                Stage::Look => "turn: looks",
                Stage::GoUp => "go_up",
                Stage::GoDown => "go_down",
                Stage::TakeBack(_) => "take_back",
                Stage::Resend => "resend",
            };
            port::advance(
                c,
                w,
                Of::Sender,
                i,
                0,
                |p, conn| driver::stage(p, conn, aim(&t), at),
                |mut n, r| {
                    match r {
                        None => {}
                        Some(Next::Then(stage)) => n.s[i].pc = Pc::Turn(stage),
                        Some(Next::Done(turn)) => outcome(c, &mut n, i, turn),
                    }
                    out.push((n, label, me));
                },
            );
            return;
        }
        Pc::Put => {
            let want = t.left.min(c.chunk);
            port::advance(
                c,
                w,
                Of::Sender,
                i,
                0,
                |p, conn| driver::put(p, conn, want.into(), port::Run::lay),
                |mut n, r| {
                    match r {
                        None => {}
                        Some(Put::Full) => outcome(c, &mut n, i, Turn::Blocked),
                        Some(Put::Took(k)) => {
                            n.s[i].left -= k as u8;
                            published(c, &mut n, i);
                        }
                        Some(Put::Nothing | Put::Fault(()) | Put::Corrupt) => n.g.verdict = Verdict::Accused,
                    }
                    out.push((n, "put", me));
                },
            );
            return;
        }

        Pc::Behind => {
            if w.m.rewind != 0 {
                n.s[i].then = SERVE;
                n.s[i].pc = Pc::Turn(Stage::Look);
            } else {
                n.tx.token = 0;
                n.s[i].pc = Pc::Idle;
            }
            "put: looks whether the receiver has left"
        }

        Pc::Room(at) => {
            hands::room(c, w, i, at, out);
            return;
        }
        Pc::Enter => {
            port::advance(
                c,
                w,
                Of::Sender,
                i,
                0,
                |p, conn| driver::enter_native(p, &conn.ep.tx_word, UP),
                |mut n, r| {
                    match r {
                        None => {}
                        Some(true) => n.s[i].pc = Pc::Send,
                        Some(false) => n.s[i].pc = if is_down(&n) { Pc::Real } else { Pc::Idle },
                    }
                    out.push((n, "counted: enters", me));
                },
            );
            return;
        }
        Pc::Send | Pc::Real => {
            let counted = t.pc == Pc::Send;
            if w.k.deaf || w.k.fin != 0 {
                n.s[i].left = 0;
                n.s[i].act = 0;
                if t.hand.is_copied {
                    n.s[i].hand = Hand::default();
                }
            } else {
                let most = if t.hand.is_copied { t.hand.n } else { t.left };
                let k = most.min(c.chunk).min(w.kernel_room(c));
                if k == 0 {
                    return;
                }
                n.kernel_send(c, k);
                n.s[i].left -= k;
                hands::sends(&mut n, i, k);
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
                TxPhase::Ring => c.ring - (w.tx.tail - w.m.head) > 0 || w.m.rewind != 0,
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
            // Else a step would hide that nobody wakes it.
            let step = c.mute && c.rules.room_in_steps;
            if !(t.bell || w.k.deaf || w.k.half || step || (t.c == 1 && (w.kernel_room(c) > 0 || w.k.fin != 0))) {
                return;
            }
            n.s[i].wipe();
            n.s[i].pc = Pc::Idle;
            "wakes"
        }

        Pc::ShutFlag => {
            n.m.wr_shut = true;
            n.s[i].pc = Pc::Turn(Stage::Look);
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
            let (mut n, ()) = port::whole(c, w, Of::Sender, i, |p, conn| driver::finished(p, conn));
            n.s[i].wipe();
            n.s[i].pc = Pc::Done;
            out.push((n, "FIN: phase", me));
            return;
        }
    };
    out.push((n, label, me));
}

/// Bytes are on the ring, and told of.
pub fn published(c: &Config, n: &mut World, i: usize) {
    n.s[i].rest();
    if c.rules.look_after_put {
        n.s[i].pc = Pc::Behind;
    } else {
        n.tx.token = 0;
        n.s[i].pc = Pc::Idle;
    }
}

/// What the holder of the token does once it knows where the next byte goes.
pub fn outcome(c: &Config, n: &mut World, i: usize, turn: Turn) {
    let then = n.s[i].then;
    n.s[i].rest();
    if matches!(turn, Turn::Failed(Failure::Corrupt | Failure::Reset)) {
        n.g.verdict = Verdict::Accused;
    }
    if matches!(then, RESERVE | COMMIT) {
        return hands::turned(c, n, i, then == COMMIT, turn);
    }
    if then == SERVE {
        n.s[i].pc = Pc::Idle;
        n.tx.token = 0;
        return;
    }
    if then == SEND {
        match turn {
            Turn::Ring if c.rooms != 0 => {
                n.s[i].pc = Pc::Room(Room::Look);
                return;
            }
            Turn::Ring => {
                n.s[i].pc = Pc::Put;
                return;
            }
            Turn::Lifeline if c.rules.count_senders => n.s[i].pc = Pc::Enter,
            Turn::Lifeline => n.s[i].pc = if n.tx.word & FLAG != 0 && !is_down(n) { Pc::Idle } else { Pc::Real },
            Turn::Blocked => n.s[i].pc = Pc::Want,
            Turn::Latched | Turn::Failed(_) => {
                n.s[i].left = 0;
                n.s[i].act = 0;
                n.s[i].pc = Pc::Idle;
            }
        }
        n.tx.token = 0;
        return;
    }
    n.tx.token = 0;
    let blocked = turn == Turn::Blocked;
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
