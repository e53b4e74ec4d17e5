//! A connection that ends here: an inner socket of the kernel's, whose other end is the program's, and an outer one of the
//! engine's, whose other end is on the wire.

use crate::flow::Flow;
use crate::lending::Lending;
use std::net::TcpStream;
use std::sync::Arc;
use zstack::sockets::Socket;
use zstack::time::Time;
use zstack_wire::Seq;

/// How far a connection is.
#[derive(Debug)]
pub enum Stage {
    /// A program has asked for it, and waits: the remote host has not answered yet.
    Asked {
        /// The program's SYN, which is held.
        syn: Vec<u8>,
        /// Its number.
        isn: Seq,
    },
    /// The remote host has taken it. The program's SYN was written back, and its kernel completes the handshake with our listener.
    Released {
        /// The program's SYN.
        syn: Vec<u8>,
        /// Its number.
        isn: Seq,
    },
    /// A remote host has asked for it, and the inner socket is being connected to the server here.
    Inward,
    /// Both ends are there: bytes go both ways.
    Open,
}

/// Whether a server was sent the last ACK of its handshake, without which it does not accept its connection: see
/// [`connect_inward`](crate::front::Lane::connect_inward).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ack {
    /// It is held: the remote host has not completed its own handshake.
    Held,
    /// It goes with the first bytes, or when there is nothing else to do.
    Due,
    /// It was sent.
    Sent,
}

/// A connection.
#[derive(Debug)]
pub struct Conn {
    /// Its addresses.
    pub flow: Flow,
    /// The engine's end.
    pub outer: Socket,
    /// The user whose program has the other end of the inner socket.
    pub user: u32,
    /// How far it is.
    pub stage: Stage,
    /// The inner socket: there is one in the stages [`Stage::Inward`] and [`Stage::Open`].
    pub inner: Option<Arc<TcpStream>>,
    /// What its program has written, and the engine has where it lies.
    pub lending: Lending,
    /// The inner socket may have bytes, or an end, that were not read.
    pub readable: bool,
    /// Behind what the inner socket has comes an end or an error, which it does not tell again.
    pub ending: bool,
    /// Urgent bytes have come, before each of which a read stops (tcp(7)): fewer bytes than there was room for are not the last ones.
    pub urgent: bool,
    /// The inner socket has an error.
    pub failed: bool,
    /// The program has reset the connection, as a write was told: a read is not told so any more, and finds an end behind the last bytes (the
    /// kernel tells an error once).
    pub reset: bool,
    /// The inner socket may take bytes.
    pub writable: bool,
    /// The program has not set TCP_NODELAY, as its ring says: a small segment waits while another one is not acknowledged. Not so of what comes
    /// over the inner socket, which has waited there.
    pub waits: bool,
    /// The program has set TCP_CORK, as its ring says: a segment that is not full waits.
    pub corked: bool,
    /// The last ACK of the inner socket's handshake.
    pub ack: Ack,
    /// The program sends no more.
    pub program_ended: bool,
    /// The remote host sends no more, and the program was told.
    pub remote_ended: bool,
    /// The remote host sends no more, and the program is told when it has read nearly all of what came before.
    pub end_held: bool,
    /// After how many milliseconds the remote host is probed when the connection is idle, since the program's socket asks for that.
    pub keep_alive: Option<u32>,
    /// After how many milliseconds without an acknowledgement it ends, since its program asks for that; 0: as long as TCP tries.
    pub timeout: u32,
    /// How much the remote host had acknowledged when that was last looked at.
    pub acknowledged: u64,
    /// How many looks in turn have found that it had acknowledged nothing of what was sent.
    pub stalls: u8,
    /// When the kernel is asked about its program next.
    pub ask: Time,
    /// For which such time a look has been entered: what comes sooner takes nothing away from it.
    pub entered: Time,
    /// Bytes from the program to the wire.
    pub sent: u64,
    /// Bytes from the wire to the program.
    pub received: u64,
    /// When there were such bytes last.
    pub brought: Time,
    /// It is in the queue of those with work.
    pub queued: bool,
    /// When it is looked at next.
    pub look: Time,
    /// Both directions have ended in order.
    pub ended_in_order: bool,
    /// What had been received when it was last looked at after it broke off.
    pub received_then: Option<u64>,
}

impl Conn {
    /// A connection at its beginning.
    pub fn new(flow: Flow, outer: Socket, user: u32, stage: Stage) -> Conn {
        Conn {
            flow,
            outer,
            user,
            stage,
            inner: None,
            lending: Lending::default(),
            readable: false,
            ending: false,
            urgent: false,
            failed: false,
            reset: false,
            writable: false,
            waits: false,
            corked: false,
            ack: Ack::Sent,
            program_ended: false,
            remote_ended: false,
            end_held: false,
            keep_alive: None,
            timeout: 0,
            acknowledged: 0,
            stalls: 0,
            ask: Time::NEVER,
            entered: Time::NEVER,
            sent: 0,
            received: 0,
            brought: Time(0),
            queued: false,
            look: Time::NEVER,
            ended_in_order: false,
            received_then: None,
        }
    }
}

/// How often it is looked whether a remote host acknowledges what a program sends, in microseconds: one that has acknowledged nothing since
/// may have had all the time that the program gives it (TCP_USER_TIMEOUT). While that goes on the looks, at which the kernel is asked, become
/// rarer: each comes after as long as all have taken before, as Linux's own do, which come with the segments that it sends again.
const ACKNOWLEDGED: u64 = 1_000_000;

/// Looks come at multiples of this, in microseconds: those at many connections that have sent at about the same time wake the worker once.
const TOGETHER: u64 = 250_000;

/// The looks at a connection that is open. A time that is returned is to be entered among those at which connections are looked at.
impl Conn {
    /// Whether the remote host has acknowledged nothing since this was asked last; `None`: nothing waits for it. `acknowledged`: how much it
    /// has by now.
    pub fn is_stalled(&mut self, acknowledged: u64, waits: bool) -> Option<bool> {
        let before = std::mem::replace(&mut self.acknowledged, acknowledged);
        let stalled = waits.then_some(acknowledged == before);
        self.stalls = if stalled == Some(true) { self.stalls.saturating_add(1) } else { 0 };
        stalled
    }

    /// It was looked at: the next look comes when the kernel is to be asked, and before that if something waits for an acknowledgement.
    pub fn look_again(&mut self, now: Time, waits: bool) -> Option<Time> {
        let soon = Time(now.0 + (ACKNOWLEDGED << self.stalls.saturating_sub(1).min(6)));
        if waits && soon < self.ask {
            self.look = soon;
            return Some(soon);
        }
        self.look = self.ask;
        (std::mem::replace(&mut self.entered, self.ask) != self.ask).then_some(self.ask)
    }

    /// The program has sent something, or ended. `acknowledged`: how much the remote host has acknowledged by now, which counts while it stalls.
    pub fn has_sent(&mut self, now: Time, acknowledged: u64) -> Option<Time> {
        if acknowledged != self.acknowledged {
            self.stalls = 0;
        }
        let soon = Time((now.0 + ACKNOWLEDGED).next_multiple_of(TOGETHER));
        // While nothing is acknowledged the next look does not depend on how often the program sends.
        (self.stalls == 0 && self.look > soon).then(|| {
            self.look = soon;
            soon
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    const SECOND: u64 = 1_000_000;
    const ASKS: u64 = 60 * SECOND;

    /// A connection that is open, looked at as the worker does.
    struct Looked {
        conn: Conn,
        looks: BinaryHeap<Reverse<Time>>,
        now: Time,
        /// When the kernel was asked.
        asked: Vec<Time>,
        acknowledged: u64,
        /// Something waits for an acknowledgement.
        waits: bool,
        most: usize,
    }

    impl Looked {
        fn new() -> Looked {
            let at = |port| std::net::SocketAddr::from(([192, 0, 2, 1], port));
            let flow = Flow { local: at(1), remote: at(2) };
            let mut conn = Conn::new(flow, Socket { index: 0, generation: 0 }, 0, Stage::Open);
            conn.ask = Time(ASKS);
            let mut looked = Looked {
                conn,
                looks: BinaryHeap::new(),
                now: Time(0),
                asked: Vec::new(),
                acknowledged: 0,
                waits: false,
                most: 0,
            };
            let first = looked.conn.look_again(Time(0), false);
            looked.enter(first);
            looked
        }

        fn enter(&mut self, at: Option<Time>) {
            self.looks.extend(at.map(Reverse));
            self.most = self.most.max(self.looks.len());
        }

        /// So many microseconds later.
        fn pass(&mut self, micros: u64) {
            self.now = Time(self.now.0 + micros);
            while let Some(&Reverse(at)) = self.looks.peek()
                && at <= self.now
            {
                self.looks.pop();
                if self.conn.look != at {
                    continue;
                }
                let stalled = self.conn.is_stalled(self.acknowledged, self.waits);
                if stalled == Some(true) || self.conn.ask <= at {
                    self.asked.push(at);
                    if self.conn.ask <= at {
                        self.conn.ask = Time(at.0 + ASKS);
                    }
                }
                let next = self.conn.look_again(at, stalled.is_some());
                self.enter(next);
            }
            assert!(self.looks.iter().any(|at| at.0 == self.conn.look), "the next look is entered");
        }

        fn send(&mut self) {
            self.waits = true;
            let next = self.conn.has_sent(self.now, self.acknowledged);
            self.enter(next);
        }
    }

    #[test]
    fn who_asks_and_is_answered_is_entered_a_few_times_and_costs_a_question_a_minute() {
        let mut looked = Looked::new();
        for _ in 0..100 * 600 {
            looked.send();
            looked.pass(1000);
            looked.acknowledged += 1;
            looked.waits = false;
            looked.pass(9000);
        }
        assert!(looked.most <= 3, "{}", looked.most);
        assert_eq!(looked.asked.len(), 10);
    }

    #[test]
    fn a_remote_host_that_acknowledges_nothing_costs_fewer_questions_the_longer_that_lasts() {
        // Whether the program goes on to send or not.
        for sends in [false, true] {
            let mut looked = Looked::new();
            looked.send();
            for _ in 0..6000 {
                if sends {
                    looked.send();
                }
                looked.pass(SECOND / 10);
            }
            let (first, rest) = looked.asked.split_first().expect("a question");
            // The first look finds what was acknowledged, or not, since before it was sent.
            assert!(first.0 <= 2 * SECOND, "{:?}", looked.asked);
            assert!(rest.len() <= 6 + 2 * 10, "{:?}", looked.asked);
            // What the program asks for meanwhile is known after as long again, or after a minute.
            let mut before = first.0;
            for at in rest {
                assert!(at.0 - before <= before.clamp(SECOND, ASKS), "{:?}", looked.asked);
                before = at.0;
            }
        }
    }

    #[test]
    fn an_acknowledgement_has_the_next_stall_looked_at_as_soon_as_the_first() {
        let mut looked = Looked::new();
        looked.send();
        looked.pass(100 * SECOND);
        looked.acknowledged += 1;
        looked.waits = false;
        looked.send();
        let (begun, asked) = (looked.now.0, looked.asked.len());
        (0..25).for_each(|_| looked.pass(SECOND / 10));
        assert!(looked.asked.get(asked).is_some_and(|at| at.0 <= begun + 2 * SECOND), "{:?}", looked.asked);
    }
}
