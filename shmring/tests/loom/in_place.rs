//! Room that a program fills where its peer will read it, and bytes that it looks at where they arrived, beside others that send and
//! receive: the driver's own steps, with the token where the library has it.

use super::check;
use loom::cell::UnsafeCell;
use loom::sync::{Arc, Mutex};
use loom::thread;
use shmring::driver::{self, Brought, Conn, Failure, Given, Guard, Incoming, Native, Outgoing, Place, Port, Put, Seen};
use shmring::family::{Endpoint, Reason};
use shmring::layout::{Role, SlotHeader};
use shmring::position::{RingPos, StreamPos};
use shmring::ring::{self, Geometry};
use shmring::switch::{RxPhase, TxPhase};
use shmring::sync::{AtomicU32, Ordering};
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};

const GEO: Geometry = Geometry { size: 2, home: 1 };

/// A connection that is on the ring in one direction, with what each family knows of it.
struct World {
    tx: Endpoint,
    rx: Endpoint,
    slot: SlotHeader,
    cells: Vec<UnsafeCell<u8>>,
    /// The tokens of the two directions; the receivers' has what they have got.
    sending: Mutex<()>,
    receiving: Mutex<Vec<u8>>,
    /// Not 0: the process that looks has been killed.
    dead: AtomicU32,
    lacks: Option<Guard>,
}

impl World {
    fn new(lacks: Option<Guard>) -> Arc<World> {
        let w = World {
            tx: Endpoint::default(),
            rx: Endpoint::default(),
            slot: SlotHeader::default(),
            cells: (0..GEO.size).map(|_| UnsafeCell::new(0)).collect(),
            sending: Mutex::new(()),
            receiving: Mutex::new(Vec::new()),
            dead: AtomicU32::new(0),
            lacks,
        };
        w.tx.tx_phase.set(TxPhase::Ring);
        w.rx.rx_phase.set(RxPhase::Ring);
        Arc::new(w)
    }
    fn conn(&self, role: Role) -> Conn<'_> {
        let ep = if role == Role::Connector { &self.tx } else { &self.rx };
        Conn { ep, slot: &self.slot, role, size: GEO.size }
    }
    fn places(&self, base: RingPos, at: RingPos, len: u64) -> impl Iterator<Item = &UnsafeCell<u8>> {
        GEO.spans(base, at, len).into_iter().flat_map(|(off, len)| &self.cells[off..off + len])
    }
    /// Lays `bytes` behind the tail; loom fails the test if anybody else is there now.
    fn lay(&self, base: RingPos, at: RingPos, bytes: &[u8]) {
        for (cell, b) in self.places(base, at, bytes.len() as u64).zip(bytes) {
            // SAFETY: loom watches.
            cell.with_mut(|c| unsafe { *c = *b });
        }
    }
    /// What lies there; loom fails the test if anybody writes there now.
    fn read(&self, at: RingPos, len: u64) -> Vec<u8> {
        let base = ring::base(&self.slot.producer[0]);
        // SAFETY: loom watches.
        self.places(base, at, len).map(|cell| cell.with(|c| unsafe { *c })).collect()
    }

    /// One attempt of a POSIX call to send `bytes`, which leaves room that is reserved to whoever has it. What is left of them.
    fn send<'b>(&self, bytes: &'b [u8]) -> &'b [u8] {
        let (mut p, c) = (Ends { w: self, got: Vec::new() }, self.conn(Role::Connector));
        let _token = self.sending.lock().unwrap();
        if is(driver::is_reserved(&mut p, &c)) {
            return bytes;
        }
        let put = is(driver::put(&mut p, &c, bytes.len() as u64, |_, base, tail, room| {
            self.lay(base, tail, &bytes[..room as usize]);
            Ok(Ok::<u64, ()>(room))
        }));
        match put {
            Put::Took(n) => &bytes[n as usize..],
            _ => bytes,
        }
    }

    /// Reserves room for two bytes, fills it, and commits up to `commits` of them. How many.
    fn reserve(&self, commits: u64) -> u64 {
        const ME: u64 = 7;
        let (mut p, c) = (Ends { w: self, got: Vec::new() }, self.conn(Role::Connector));
        let token = self.sending.lock().unwrap();
        let (base, room) = is(driver::room(&mut p, &c, 2)).unwrap();
        if room == 0 {
            return 0;
        }
        is(driver::reserve(&mut p, &c, ME));
        let tail = self.tx.tx_tail.load(Ordering::Relaxed);
        drop(token);
        self.lay(base, tail, &[1, 2][..room as usize]);
        if commits == 0 {
            is(driver::give_back(&mut p, c.ep, ME));
            return 0;
        }
        let _token = self.sending.lock().unwrap();
        is(driver::commit(&mut p, &c, commits.min(room)));
        commits.min(room)
    }

    /// One receive of up to `want` bytes, of a thread that has the direction.
    fn take(&self, all: &mut Vec<u8>, want: u64) -> u64 {
        let (mut p, c) = (Ends { w: self, got: Vec::new() }, self.conn(Role::Acceptor));
        let mut place = Place::of(&mut p, &c);
        let n = match is(driver::bring(&mut p, &c, &mut place, want)) {
            Brought::Bytes(n) => n,
            Brought::Nothing => 0,
            _ => panic!("neither bytes nor none"),
        };
        all.extend(&p.got);
        n
    }

    /// One attempt to receive a byte.
    fn receive(&self) -> bool {
        self.take(&mut self.receiving.lock().unwrap(), 1) > 0
    }

    /// Looks at what is there, of a stream of 1, 2, 3, and reads `releases` bytes of it unless others have; `None`: it is killed before.
    fn look(&self, releases: Option<u64>) {
        const ME: u64 = 5;
        let (mut p, c) = (Ends { w: self, got: Vec::new() }, self.conn(Role::Acceptor));
        let all = self.receiving.lock().unwrap();
        let (at, before) = (self.rx.rx_head.load(Ordering::Relaxed), all.len());
        let Some(n) = is(driver::view(&mut p, &c, ME)) else { return };
        drop(all);
        let shown: Vec<u8> = (1..=3).skip(before).take(n as usize).collect();
        assert_eq!(self.read(at, n), shown);
        let Some(releases) = releases else { return self.dead.store(1, Ordering::Release) };
        let mut all = self.receiving.lock().unwrap();
        loop {
            match is(driver::unread_of(&mut p, &c, at, releases.min(n))) {
                0 => break,
                left => assert!(self.take(&mut all, left) > 0),
            }
        }
        is(driver::end_view(&mut p, &c, GEO.size));
    }
}

fn is<T>(r: Result<T, Infallible>) -> T {
    let Ok(v) = r;
    v
}

/// Either end of the connection, as the driver reaches it. The kernel has nothing to say.
struct Ends<'a> {
    w: &'a World,
    got: Vec<u8>,
}

impl Port for Ends<'_> {
    type Stop = Infallible;
    const HOME: u64 = 1;

    fn atom<T: Seen>(&mut self, access: impl FnOnce() -> T) -> Result<T, Infallible> {
        Ok(access())
    }
    fn quiet<T: Seen>(&mut self, access: impl FnOnce() -> T) -> T {
        access()
    }
    fn notify(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
    fn tell_own(&mut self) {}
    fn lacks(&self, guard: Guard) -> bool {
        self.w.lacks == Some(guard)
    }
}

impl Outgoing for Ends<'_> {
    fn natively_sent(&mut self) -> Result<Option<StreamPos>, Infallible> {
        Ok(None)
    }
    fn ended(&mut self) -> Result<bool, Infallible> {
        Ok(false)
    }
    fn backlog(&mut self) -> Result<bool, Infallible> {
        Ok(false)
    }
    fn reset(&mut self) -> Result<bool, Infallible> {
        Ok(false)
    }
    fn killed(&mut self) -> Result<bool, Infallible> {
        Ok(false)
    }
    fn give(&mut self, _: RingPos, _: RingPos, _: u64) -> Result<Given, Infallible> {
        unreachable!("the direction stays on the ring")
    }
    fn limit(&mut self) -> u64 {
        GEO.size
    }
    fn tell_cork(&mut self) {}
    fn latch(&mut self, _: Failure) {}
    fn because(&mut self, _: Reason) {}
}

impl Incoming for Ends<'_> {
    type Fault = ();
    type Ending = ();

    fn received(&mut self) -> Result<Option<(StreamPos, u64)>, Infallible> {
        Ok(None)
    }
    fn lying(&mut self) -> Result<(bool, u64), Infallible> {
        Ok((false, 0))
    }
    fn shows(&mut self) -> Result<bool, Infallible> {
        Ok(false)
    }
    fn broken(&mut self) -> Result<bool, Infallible> {
        Ok(false)
    }
    fn peer_ended(&mut self) -> Result<bool, Infallible> {
        Ok(false)
    }
    fn native(&mut self, _: u64) -> Result<Native, Infallible> {
        Ok(Native::Nothing)
    }
    fn discard(&mut self, _: u64) -> Result<u64, Infallible> {
        Ok(0)
    }
    fn copy(&mut self, at: RingPos, n: u64) -> Result<Result<u64, ()>, Infallible> {
        let bytes = self.w.read(at, n);
        self.got.extend(bytes);
        Ok(Ok(n))
    }
    fn end_sending(&mut self) -> Result<Option<()>, Infallible> {
        Ok(None)
    }
    fn peeks(&self) -> bool {
        false
    }
    fn limit(&mut self) -> u64 {
        GEO.size
    }
    fn leaves(&mut self, _: u64) -> bool {
        true
    }
    fn views(&mut self, _: u64) -> bool {
        self.w.dead.load(Ordering::Acquire) == 0
    }
    fn handed_on(&self) -> bool {
        false
    }
    fn break_off(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// One thread fills room while another one of its family sends.
fn reserved(commits: u64, lacks: Option<Guard>) {
    check(move || {
        let w = World::new(lacks);
        let (x, y) = (w.clone(), w.clone());
        let fills = thread::spawn(move || x.reserve(commits));
        let sends = thread::spawn(move || y.send(&[9]).len());
        w.receive();
        let committed = fills.join().unwrap();
        if sends.join().unwrap() > 0 {
            while w.receive() {}
            assert!(w.send(&[9]).is_empty());
        }
        while w.receive() {}
        let got = w.receiving.lock().unwrap();
        let others: Vec<u8> = got.iter().copied().filter(|b| *b != 9).collect();
        assert_eq!((got.len() as u64, others), (committed + 1, (1..=committed as u8).collect()));
    });
}

#[test]
fn what_is_committed_is_sent_beside_what_others_send() {
    reserved(2, None);
}

/// It needs no token: what lies in the room is written before anybody else writes there.
#[test]
fn room_that_is_given_back_is_others() {
    reserved(0, None);
}

#[test]
fn loom_sees_who_sends_where_a_program_fills_its_room() {
    assert!(fails(|| reserved(2, Some(Guard::KeepReserved))));
}

/// One thread looks at bytes while another one of its family receives, and the peer sends more than the ring holds.
fn looked_at(releases: Option<u64>, lacks: Option<Guard>) {
    check(move || {
        let w = World::new(lacks);
        assert!(w.send(&[1, 2]).is_empty());
        let (x, y) = (w.clone(), w.clone());
        let sends = thread::spawn(move || x.send(&[3]).len());
        let looks = thread::spawn(move || y.look(releases));
        w.receive();
        w.receive();
        looks.join().unwrap();
        if sends.join().unwrap() > 0 {
            while w.receive() {}
            assert!(w.send(&[3]).is_empty());
        }
        while w.receive() {}
        assert_eq!(*w.receiving.lock().unwrap(), [1, 2, 3]);
    });
}

#[test]
fn what_is_looked_at_stays_and_is_read_once() {
    looked_at(Some(1), None);
    looked_at(Some(2), None);
}

#[test]
fn who_is_killed_looks_at_nothing() {
    looked_at(None, None);
}

#[test]
fn loom_sees_who_gives_back_what_is_looked_at() {
    assert!(fails(|| looked_at(Some(1), Some(Guard::KeepViewed))));
}

fn fails(f: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(f)).is_err()
}
