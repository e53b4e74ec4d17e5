//! Connections of the simulated kernel as the engine sees them: both ends in this process, as two endpoints of its family.
// Unsafe here: it calls what a program calls.
#![allow(unsafe_code)]

use super::{Simulated, process};
use crate::channel::mapping::{self, Whole};
use crate::channel::{self, Chan};
use crate::endpoint::Ep;
use crate::fds::{self, Kind};
use crate::kernel::Kernel;
use crate::leave::{self, Moves};
use crate::{attach, closing, family, io, lifeline, members, own, slots, upkeep};
use core::sync::atomic::AtomicI32;
use core::sync::atomic::Ordering::Relaxed;
use libc::{MSG_DONTWAIT, MSG_PEEK, iovec};
use shmring::family::State;
use shmring::layout::Role;
use std::sync::{Mutex, MutexGuard};

/// The engine's state is the process's: one test at a time.
static ONE: Mutex<()> = Mutex::new(());

/// While it lives, the engine and the kernel are this test's.
pub struct World {
    _one: MutexGuard<'static, ()>,
    abandoned: bool,
}

/// Bytes of a ring, unless a test needs others.
pub const RING: usize = if cfg!(miri) { 8 << 10 } else { 64 << 10 };

impl World {
    pub fn new() -> World {
        let one = ONE.lock().unwrap_or_else(|e| e.into_inner());
        process::forget();
        Simulated::forget();
        if !family::exists() {
            assert!(family::init());
        }
        // What a test that failed has left.
        for fd in 0..fds::high() {
            if fds::get(fd) != Kind::Ours {
                fds::set(fd, Kind::Other);
                Simulated::close(fd);
            }
        }
        Simulated::forget_connections();
        for ep in family::held() {
            ep.local().refs.store(0, Relaxed);
            family::free(ep);
        }
        for chan in channel::all() {
            (0..64).filter_map(|s| chan.endpoint(s).map(|ep| (s, ep))).for_each(|(s, ep)| _ = chan.unseat(s, ep));
            chan.close();
        }
        World { _one: one, abandoned: false }
    }

    /// The test has failed: what it leaves behind is the next one's to clear up.
    pub fn abandon(mut self) {
        self.abandoned = true;
    }

    /// A connection on the kernel.
    pub fn pair(&self) -> Pair {
        let (a, b) = Simulated::connection();
        let side = |fd, role| {
            let ep = family::alloc(fd, State::Eligible, Some(role)).expect("a record");
            ep.cookie.store(lifeline::cookie(fd).expect("a cookie"), Relaxed);
            fds::set(fd, Kind::Endpoint(ep));
            Side { fd, ep }
        };
        let (a, b) = (side(a, Role::Connector), side(b, Role::Acceptor));
        for (one, other) in [(&a, &b), (&b, &a)] {
            one.ep.local().peer_cookie.store(other.ep.cookie.load(Relaxed), Relaxed);
        }
        Pair { a, b }
    }

    /// A channel between two processes, as seen from both. `None`: there was no memory, or no descriptor.
    pub fn lane(&self, ring: usize, neighbour: Neighbour) -> Option<Lane> {
        Lane::new(ring, neighbour)
    }

    /// The processes of other users end, for whom connections that were closed have left something unread. Then a connection is
    /// closed.
    pub fn let_strangers_go(&self) {
        let channels: Vec<_> = channel::all().filter(|chan| chan.is_foreign()).map(mailbox_of).collect();
        for mailbox in &channels {
            Simulated::lose_mailbox(*mailbox);
        }
        // A few are looked for at a time.
        channels.iter().for_each(|_| slots::tidy());
    }

    /// A connection in a channel of its own; nothing has been sent.
    pub fn attached(&self) -> Pair {
        let pair = self.pair();
        pair.attach(RING);
        pair
    }
}

impl Drop for World {
    /// Whatever a test has done: once all is closed, nothing of it is left.
    fn drop(&mut self) {
        if self.abandoned || std::thread::panicking() {
            Simulated::keep_memory();
            return;
        }
        assert!(Simulated::is_quiet(), "what was left for a sleeper was not done");
        assert_eq!(family::held().count(), 0, "connections are left");
        // The last close may have found that the other end was there.
        slots::tidy();
        assert!(!channel::any_pinned(), "channels are looked for that are not there");
        assert_eq!(channel::all().count(), 0, "channels are left");
        // The family's files stay.
        let own = 1 + usize::from(members::has_births());
        assert_eq!(Simulated::count(), (0, own), "sockets and files are left");
        process::forget();
        Simulated::forget_memory();
    }
}

/// The mailbox of the process at the other side.
fn mailbox_of(chan: &Chan) -> u64 {
    chan.peer_mailbox.load(Relaxed)
}

/// One end of a connection.
#[derive(Clone, Copy)]
pub struct Side {
    pub fd: i32,
    pub ep: Ep,
}

/// Both.
#[derive(Clone, Copy)]
pub struct Pair {
    /// Connected.
    pub a: Side,
    /// Was accepted.
    pub b: Side,
}

/// Whose process is at the other end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Neighbour {
    /// Our own user's.
    Own,
    /// Another user's.
    Stranger,
}

/// A channel, as each of its two processes has it.
#[derive(Clone, Copy)]
pub struct Lane {
    id: u64,
    /// Of the process that accepted.
    pub accepts: &'static Chan,
    /// Of the process that connected.
    pub connects: &'static Chan,
}

/// Memory of channels with strangers, on its way.
static MEMORY: [AtomicI32; 2] = [const { AtomicI32::new(-1) }; 2];
static WHOLE: [Whole; 2] = [const { Whole::none() }; 2];

impl Lane {
    fn new(ring: usize, neighbour: Neighbour) -> Option<Lane> {
        let id = Simulated::random();
        let memfd = mapping::new_memory(ring, id, 0)?;
        // As they are sent: what another user gets is opened anew (`sealed::make`).
        let sent = match neighbour {
            Neighbour::Own => Simulated::duplicate(memfd, 3),
            Neighbour::Stranger => Simulated::reopen(memfd),
        };
        let end = |i: usize, fd, role| match neighbour {
            _ if fd < 0 => None,
            Neighbour::Own => {
                let held = channel::MAPPING.lock();
                let chan = mapping::map(fd, role, ring, id);
                held.release();
                chan
            }
            // All of it is mapped before it is used, as in `sealed`.
            Neighbour::Stranger => {
                MEMORY[i].store(fd, Relaxed);
                if !own::adopt(&MEMORY[i]) {
                    return None;
                }
                if !WHOLE[i].map(MEMORY[i].load(Relaxed), ring) {
                    own::discard(&MEMORY[i]);
                    return None;
                }
                mapping::enter(&WHOLE[i], &MEMORY[i], role, id)
            }
        };
        let (accepts, connects) = (end(0, memfd, Role::Acceptor), end(1, sent, Role::Connector));
        let both = accepts.zip(connects);
        if both.is_none() {
            let held = channel::MAPPING.lock();
            accepts.iter().chain(&connects).for_each(|chan| chan.close());
            held.release();
        }
        let (accepts, connects) = both?;
        for chan in [accepts, connects] {
            // Who may do anything is as good as our own.
            let user = if neighbour == Neighbour::Own { 0 } else { 54_321 };
            chan.introduce(Simulated::random(), user, 1);
            assert!([chan.is_foreign(), chan.is_sealed()] == [neighbour == Neighbour::Stranger; 2]);
        }
        Some(Lane { id, accepts, connects })
    }

    /// Whether both processes have it still, and connections may be added.
    pub fn is_open(&self) -> bool {
        let there = |chan: &Chan| channel::all().any(|c| c.place() == chan.place() && c.id.load(Relaxed) == self.id);
        there(self.accepts) && there(self.connects)
    }
}

impl Pair {
    /// Does what two processes do when they have found each other, in a channel of its own.
    pub fn attach(&self, ring: usize) {
        let lane = Lane::new(ring, Neighbour::Own).expect("a channel");
        assert!(self.attach_in(lane));
    }

    /// Does what two processes do when they have a channel (`attach::acceptor`, `attach::connector`). False: the channel is full, or
    /// there was no memory for it; the connection stays on the kernel.
    pub fn attach_in(&self, lane: Lane) -> bool {
        let Lane { accepts, connects, .. } = lane;
        let held = slots::lock();
        // One that a connector has taken up, and could not use, is not made again.
        let offered = self.b.ep.local().offered.load(Relaxed).is_some();
        if !offered
            && let Some(slot) = slots::free_slot(accepts)
            && slots::offer(self.b.ep, accepts, slot)
        {
            assert!(slots::take(connects, slot));
            if connects.endpoint(slot).is_none() && connects.have_page(slot) {
                attach::attach(self.a.ep, connects, slot);
                attach::attach(self.b.ep, accepts, slot);
            } else {
                slots::refuse(connects, slot);
            }
        }
        held.release();
        let attached = |s: Side| s.ep.state() == State::Attached;
        assert_eq!(attached(self.a), attached(self.b));
        attached(self.a)
    }

    /// The slot that it has.
    pub fn slot(&self) -> usize {
        assert_eq!(self.a.ep.slot.load(Relaxed), self.b.ep.slot.load(Relaxed));
        self.a.ep.slot.load(Relaxed) as usize
    }

    pub fn both(&self, f: impl Fn(Side) -> bool) -> bool {
        f(self.a) && f(self.b)
    }

    /// Closes both ends.
    pub fn close(self) {
        self.a.close();
        self.b.close();
    }
}

/// libc's convention as Rust's.
fn result(r: isize) -> Result<usize, i32> {
    usize::try_from(r).map_err(|_| host::real::errno())
}

impl Side {
    fn natively(&self, r: impl Fn() -> isize) -> impl Fn() -> isize {
        move || host::real::ret(r())
    }

    pub fn send_with(&self, bytes: &[u8], flags: i32) -> Result<usize, i32> {
        let v = iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let fd = self.fd;
        // SAFETY: a local slice.
        let send = move |done| unsafe {
            Simulated::send(fd, v.iov_base.cast::<u8>().wrapping_add(done), v.iov_len - done, flags)
        };
        let real = self.natively(move || Simulated::wait_for(fd, flags, libc::SO_SNDTIMEO, v.iov_len, send));
        match fds::carried(fd) {
            // SAFETY: one iovec, of a local slice.
            Some(ep) => result(unsafe { io::send(ep, fd, &raw const v, 1, flags, real) }),
            None => result(real()),
        }
    }

    /// `send` without waiting.
    pub fn send(&self, bytes: &[u8]) -> Result<usize, i32> {
        self.send_with(bytes, MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    }

    pub fn recv_with(&self, n: usize, flags: i32) -> Result<Vec<u8>, i32> {
        let mut bytes = vec![0u8; n];
        let mut v = iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: n };
        let (fd, at) = (self.fd, &raw mut v);
        // SAFETY: one iovec, of a local vector.
        let receive = move |done| unsafe {
            let iovec { iov_base, iov_len } = *at;
            let rest = iovec { iov_base: iov_base.cast::<u8>().wrapping_add(done).cast(), iov_len: iov_len - done };
            Simulated::receive(fd, &mut [rest], flags)
        };
        let want = if flags & libc::MSG_WAITALL != 0 && flags & MSG_PEEK == 0 { n } else { 1 };
        let real = self.natively(move || Simulated::wait_for(fd, flags, libc::SO_RCVTIMEO, want, receive));
        let r = match fds::carried(fd) {
            // SAFETY: as above.
            Some(ep) => result(unsafe { io::recv(ep, fd, at, 1, flags, real) }),
            None => result(real()),
        }?;
        bytes.truncate(r);
        Ok(bytes)
    }

    /// A send that is the kernel's alone, such as a splice, once the connection has left.
    pub fn send_by_kernel(&self, bytes: &[u8]) -> Result<usize, i32> {
        // SAFETY: a slice.
        let send = || host::real::ret(unsafe { Simulated::send(self.fd, bytes.as_ptr(), bytes.len(), 0) });
        result(leave::natively(self.fd, Moves::Out(0), send))
    }

    /// A receive of that kind.
    pub fn recv_by_kernel(&self, n: usize) -> Result<Vec<u8>, i32> {
        let mut bytes = Vec::new();
        let receive = || match Simulated::recv(self.fd, n, false) {
            Ok(got) => {
                bytes = got;
                bytes.len() as isize
            }
            Err(e) => host::real::ret(-e as isize),
        };
        result(leave::natively(self.fd, Moves::In, receive))?;
        Ok(bytes)
    }

    /// `recv` without waiting.
    pub fn recv(&self, n: usize) -> Result<Vec<u8>, i32> {
        self.recv_with(n, MSG_DONTWAIT)
    }

    pub fn peek(&self, n: usize) -> Result<Vec<u8>, i32> {
        self.recv_with(n, MSG_DONTWAIT | MSG_PEEK)
    }

    pub fn shutdown(&self, how: i32) -> Result<(), i32> {
        // SAFETY: a descriptor of the test's.
        let r = unsafe { io::shutdown(self.fd, how, || host::real::ret(Simulated::shutdown(self.fd, how)) as i32) };
        result(r as isize).map(|_| ())
    }

    /// What `poll` says.
    pub fn poll(&self, events: i16) -> i16 {
        match self.ep.chan() {
            Some(chan) if self.ep.state() == State::Attached => {
                upkeep::now(self.ep, chan, self.fd, events) & (events | libc::POLLHUP | libc::POLLERR)
            }
            _ => lifeline::look(self.fd, events),
        }
    }

    pub fn close(&self) {
        let ep = fds::endpoint(self.fd).expect("a connection");
        fds::set(self.fd, Kind::Other);
        closing::drop_descriptor(ep, self.fd);
        Simulated::close(self.fd);
    }

    /// Its process is killed: the kernel closes the socket, and nobody says anything in shared memory. This process's part,
    /// which would have gone with it, is given up behind the engine's back.
    pub fn die(&self) {
        Simulated::close(self.fd);
        fds::set(self.fd, Kind::Other);
        let (l, chan) = (self.ep.local(), self.ep.chan());
        let slot = l.offered.swap(None, Relaxed).unwrap_or(self.ep.slot.load(Relaxed));
        l.refs.store(0, Relaxed);
        l.chan.store(None, Relaxed);
        family::free(self.ep);
        if let Some(chan) = chan {
            chan.unseat(slot as usize, self.ep);
            slots::close_if_empty(chan);
        }
    }
}
