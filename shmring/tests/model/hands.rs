//! Room and bytes of a ring in the hands of a thread's program, whatever others do meanwhile: reservations and commits
//! (`engine/src/tx/reserve.rs`), looks and releases (`engine/src/rx/view.rs`).

use crate::port::{self, Of, Run, Stopped, cell};
use crate::receiver;
use crate::search::Next;
use crate::sender::{self, SEND, outcome};
use crate::world::{Config, Verdict, World};
use shmring::driver::{self, Brought, Conn, Native, Place, Stage, Turn};
use shmring::position::RingPos;
use shmring::switch::RxPhase;

/// What a thread has in its hands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Hand {
    /// Where on the ring it begins.
    pub at: u8,
    /// Bytes of it; 0: nothing.
    pub n: u8,
    /// Of a view: the byte that lies there.
    first: u8,
    /// Of room: bytes that are to be committed.
    commits: u8,
    /// Of room: the direction has left the ring, and what is committed goes by a copy.
    pub is_copied: bool,
}

/// A sender with room.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Room {
    Reserve,
    Fill,
    /// Before anything else is sent on the ring.
    Look,
    Commit,
    GiveBack,
}

/// A receiver that looks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum View {
    Take,
    Look,
    ReleaseTake(Release),
    Count(Release),
    Read(Release, Place, u8),
    Drop(Release, u8),
    End(Release),
}

/// How many bytes of its view a release reads; and whether the thread is done then.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Release {
    n: u8,
    last: bool,
}

/// In a cell: a byte that sender `i` has laid into its room.
fn laid(i: usize) -> u8 {
    LAID + i as u8
}

/// See [`laid`].
pub const LAID: u8 = 240;

/// Whether what is in hands is as it was: nobody writes into a sender's room, nor where a receiver looks.
pub fn intact(c: &Config, w: &World) -> bool {
    let rooms = c.senders.iter().enumerate().all(|(i, _)| {
        let Hand { at, n, .. } = w.s[i].hand;
        let stands = !matches!(w.s[i].pc, sender::Pc::Room(Room::Fill | Room::Commit));
        !stands || (0..n).all(|k| w.m.cells[cell(c, w.tx.base, at + k)] == laid(i))
    });
    let views = c.receivers.iter().enumerate().all(|(i, _)| {
        let Hand { at, n, first, .. } = w.r[i].hand;
        (0..n).all(|k| w.m.cells[cell(c, w.m.base, at + k)] == first + k)
    });
    rooms && views
}

/// What a sender can do with room when it does nothing else. True: it does nothing else.
pub fn fills(c: &Config, w: &World, i: usize, out: &mut Vec<Next>) -> bool {
    let (t, me) = (w.s[i], 1 + i as u8);
    if c.rooms & (1 << i) == 0 || t.hand.is_copied {
        return false;
    }
    let mut next = |pc, then, commits, label| {
        let mut n = *w;
        n.s[i].pc = pc;
        n.s[i].then = then;
        n.s[i].hand.commits = commits;
        out.push((n, label, me));
    };
    if t.hand.n == 0 {
        if t.left > 0 {
            next(sender::Pc::Take, sender::RESERVE, 0, "is about to reserve");
        }
        return false;
    }
    next(sender::Pc::Room(Room::GiveBack), SEND, 0, "commits nothing");
    for n in 1..=t.hand.n.min(t.left) {
        next(sender::Pc::Take, sender::COMMIT, n, "is about to commit");
    }
    t.left == 0
}

/// Where the next byte goes, for a sender that is about to reserve, or to commit.
pub fn turned(c: &Config, n: &mut World, i: usize, commits: bool, turn: Turn) {
    match turn {
        Turn::Ring => n.s[i].pc = sender::Pc::Room(if commits { Room::Commit } else { Room::Reserve }),
        // Memory of its own, which it sends as anything else.
        _ if !commits => outcome(c, n, i, turn),
        turn => {
            if matches!(turn, Turn::Latched | Turn::Failed(_)) {
                n.s[i].left = 0;
                n.s[i].act = 0;
                n.s[i].hand.commits = 0;
            }
            n.tx.token = 0;
            n.s[i].pc = sender::Pc::Room(Room::GiveBack);
        }
    }
}

/// A step of a sender with room.
pub fn room(c: &Config, w: &World, i: usize, at: Room, out: &mut Vec<Next>) {
    let (t, me) = (w.s[i], 1 + i as u8);
    let mut take = |label, n: World| out.push((n, label, me));
    match at {
        Room::Reserve => {
            let step = |p: &mut Run, conn: &Conn| {
                if driver::is_reserved(p, conn)? {
                    return Ok(Some(None));
                }
                let Ok((_, room)) = driver::room(p, conn, t.left.min(c.chunk).into())? else { return Ok(None) };
                if room > 0 {
                    driver::reserve(p, conn, me.into())?;
                }
                Ok(Some(Some(room as u8)))
            };
            port::advance(c, w, Of::Sender, i, 0, step, |mut n, r| {
                match r {
                    None => {}
                    Some(None) => n.g.verdict = Verdict::Accused,
                    Some(Some(Some(0))) => outcome(c, &mut n, i, Turn::Blocked),
                    Some(Some(Some(room))) => {
                        n.tx.token = 0;
                        n.s[i].hand = Hand { at: n.tx.tail, n: room, ..Hand::default() };
                        n.s[i].pc = sender::Pc::Room(Room::Fill);
                    }
                    // Memory of its own.
                    Some(Some(None)) => {
                        n.tx.token = 0;
                        n.s[i].pc = sender::Pc::Idle;
                    }
                }
                take("reserves", n);
            });
        }
        Room::Fill => {
            let mut n = *w;
            for k in 0..t.hand.n {
                n.m.cells[cell(c, w.tx.base, t.hand.at + k)] = laid(i);
            }
            n.s[i].pc = sender::Pc::Idle;
            take("fills its room", n);
        }
        Room::Look => {
            port::advance(
                c,
                w,
                Of::Sender,
                i,
                0,
                |p, conn| driver::is_reserved(p, conn),
                |mut n, r| {
                    match r {
                        None => {}
                        Some(false) => n.s[i].pc = sender::Pc::Put,
                        Some(true) => {
                            if n.tx.reserved != me {
                                let mut o = n;
                                o.tx.token = 0;
                                o.s[i].pc = sender::Pc::Idle;
                                take("gives the other one time to commit", o);
                            }
                            n.s[i].then = sender::LEAVE;
                            n.s[i].pc = sender::Pc::Turn(Stage::Look);
                        }
                    }
                    take("looks for room of others", n);
                },
            );
        }
        Room::Commit => {
            port::advance(
                c,
                w,
                Of::Sender,
                i,
                0,
                |p, conn| driver::commit(p, conn, t.hand.commits.into()),
                |mut n, r| {
                    if r.is_some() {
                        n.s[i].left -= t.hand.commits;
                        n.s[i].hand = Hand::default();
                        sender::published(c, &mut n, i);
                    }
                    take("commits", n);
                },
            );
        }
        Room::GiveBack => {
            port::advance(
                c,
                w,
                Of::Sender,
                i,
                0,
                |p, conn| driver::give_back(p, conn.ep, me.into()),
                |mut n, r| {
                    if r.is_some() {
                        let Hand { at, commits, .. } = n.s[i].hand;
                        n.s[i].hand = match commits {
                            0 => Hand::default(),
                            _ => Hand { at, n: commits, is_copied: true, ..Hand::default() },
                        };
                        n.s[i].rest();
                        n.s[i].pc = sender::Pc::Idle;
                    }
                    take("gives its room back", n);
                },
            );
        }
    }
}

/// Of what a sender sends natively, so many bytes are those of its room.
pub fn sends(n: &mut World, i: usize, k: u8) {
    let hand = &mut n.s[i].hand;
    if hand.is_copied {
        hand.at += k;
        hand.n -= k;
        if hand.n == 0 {
            *hand = Hand::default();
        }
    }
}

fn pc(view: View) -> receiver::Pc {
    receiver::Pc::View(view)
}

/// What a receiver can do about looks when it does nothing else.
pub fn looks(c: &Config, w: &World, i: usize, out: &mut Vec<Next>) {
    if w.r[i].hand.n > 0 {
        releases(w, i, false, out);
    } else if c.looks & (1 << i) != 0 && w.rx.phase == RxPhase::Ring as u8 && !w.rx.image {
        let mut n = *w;
        n.r[i].pc = pc(View::Take);
        out.push((n, "is about to look", 5 + i as u8));
    }
}

/// A thread ends its look.
pub fn releases(w: &World, i: usize, last: bool, out: &mut Vec<Next>) {
    for k in 0..=w.r[i].hand.n {
        let mut n = *w;
        n.r[i].pc = pc(View::ReleaseTake(Release { n: k, last }));
        out.push((n, "is about to release", 5 + i as u8));
    }
}

/// What a thread's process says in `rx_viewed`.
fn viewer(c: &Config, i: usize) -> u8 {
    c.receivers[i] + 1
}

/// Whether another process looks at what lies on the ring, so that whoever sleeps does so in steps.
pub fn another_looks(c: &Config, w: &World, i: usize) -> bool {
    w.rx.viewed != 0 && w.rx.viewed != viewer(c, i)
}

/// `rx::is_looked_at`: whose process was killed looks no more. With the token.
pub fn forget_the_dead(p: &mut Run, conn: &Conn, limit: u64) -> Result<(), Stopped> {
    if p.looker_is_dead() { driver::end_view(p, conn, limit) } else { Ok(()) }
}

/// A step of a receiver that looks.
pub fn view(c: &Config, w: &World, i: usize, at: View, out: &mut Vec<Next>) {
    let (t, me) = (w.r[i], 5 + i as u8);
    let mut take = |label, n: World| out.push((n, label, me));
    let (hand, limit) = (t.hand, u64::from(c.ring));
    match at {
        View::Take | View::ReleaseTake(_) => {
            if !receiver::token_free(c, w) {
                return;
            }
            let mut n = *w;
            n.rx.token = 1 + i as u8;
            n.r[i].pc = pc(match at {
                View::ReleaseTake(release) => View::Count(release),
                _ => View::Look,
            });
            take("takes the token", n);
        }
        View::Look => {
            let step = |p: &mut Run, conn: &Conn| driver::view(p, conn, viewer(c, i).into());
            port::advance(c, w, Of::Receiver, i, 0, step, |mut n, r| {
                if let Some(found) = r {
                    n.rx.token = 0;
                    if let Some(found) = found {
                        n.r[i].hand = Hand { at: n.rx.head, n: found as u8, first: n.g.delivered, ..Hand::default() };
                    }
                    receiver::end(&mut n, i, receiver::Pc::Idle);
                }
                take("looks", n);
            });
        }
        View::Count(release) => {
            let step = |p: &mut Run, conn: &Conn| {
                if !c.rules.end_last {
                    driver::end_view(p, conn, limit)?;
                }
                driver::unread_of(p, conn, RingPos::new(hand.at.into()), release.n.into())
            };
            port::advance(c, w, Of::Receiver, i, 0, step, |mut n, r| {
                if let Some(left) = r {
                    n.r[i].pc = pc(match left as u8 {
                        0 => View::End(release),
                        left if n.rx.phase == RxPhase::Ring as u8 => View::Read(release, receiver::place(&n), left),
                        left => View::Drop(release, left),
                    });
                }
                take("release: counts", n);
            });
        }
        View::Read(release, place, left) => {
            let step = |p: &mut Run, conn: &Conn| {
                let mut place = place;
                driver::bring(p, conn, &mut place, left.into()).map(|brought| (brought, place))
            };
            port::advance(c, w, Of::Receiver, i, left, step, |mut n, r| {
                n.r[i].pc = match r {
                    None => n.r[i].pc,
                    Some((Brought::Again, place)) => pc(View::Read(release, place, left)),
                    Some((Brought::Bytes(_) | Brought::Last(_), _)) => pc(View::Count(release)),
                    Some((Brought::Nothing, _)) if n.rx.leaving != 0 => {
                        n.rx.token = 0;
                        pc(View::ReleaseTake(release))
                    }
                    Some((Brought::Corrupt, _)) => {
                        n.g.verdict = Verdict::Accused;
                        receiver::Pc::Done
                    }
                    Some((
                        Brought::Nothing | Brought::Lifeline(Native::Nothing) | Brought::Behind(Native::Nothing),
                        _,
                    )) => {
                        n.g.verdict = Verdict::Lied;
                        receiver::Pc::Done
                    }
                    // The next call reports it.
                    Some(_) => pc(View::End(release)),
                };
                take("release: reads", n);
            });
        }
        View::Drop(release, left) => {
            let step = |p: &mut Run, conn: &Conn| {
                p.drops(left);
                driver::pass_over(p, conn, left.into())
            };
            port::advance(c, w, Of::Receiver, i, 0, step, |mut n, r| {
                if r.is_some() {
                    n.r[i].pc = pc(View::End(release));
                }
                take("release: drops", n);
            });
        }
        View::End(release) => {
            let is_broken = w.g.excused || w.g.owed || w.k.rst || w.dead & 3 != 0;
            let step = |p: &mut Run, conn: &Conn| {
                if conn.ep.rx_viewed.load(shmring::sync::Ordering::Relaxed) == viewer(c, i).into() {
                    driver::end_view(p, conn, limit)?;
                }
                Ok(())
            };
            port::advance(c, w, Of::Receiver, i, 0, step, |mut n, r| {
                if r.is_some() {
                    if n.g.delivered < hand.first + release.n && !is_broken {
                        n.g.verdict = Verdict::Order;
                    }
                    n.rx.token = 0;
                    n.r[i].hand = Hand::default();
                    receiver::end(&mut n, i, if release.last { receiver::Pc::Done } else { receiver::Pc::Idle });
                }
                take("release: ends the look", n);
            });
        }
    }
}
