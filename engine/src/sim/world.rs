//! Connections of the simulated kernel as the engine sees them: both ends in this process, as two endpoints of its family.
// Unsafe here: it calls what a program calls.
#![allow(unsafe_code)]

use super::Simulated;
use crate::channel;
use crate::endpoint::Ep;
use crate::fds::{self, Kind};
use crate::kernel::Kernel;
use crate::{attach, closing, family, io, lifeline, slots, upkeep};
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
        for ep in family::held() {
            ep.local().refs.store(0, Relaxed);
            ep.holders.iter().for_each(|h| h.store(0, Relaxed));
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
            return;
        }
        assert!(Simulated::is_quiet(), "what was left for a sleeper was not done");
        assert_eq!(family::held().count(), 0, "connections are left");
        assert_eq!(channel::all().count(), 0, "channels are left");
        // The family's memory stays.
        assert_eq!(Simulated::count(), (0, 1), "sockets and files are left");
    }
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

impl Pair {
    /// Does what two processes do when they have found each other (`attach`).
    pub fn attach(&self, ring: usize) {
        let memfd = channel::new_memory(ring, 7, libc::F_SEAL_SEAL).expect("memory");
        let other = Simulated::duplicate(memfd, 3);
        let held = channel::LOCK.lock();
        let accepts = channel::map(memfd, Role::Acceptor, ring, 7).expect("a channel");
        let connects = channel::map(other, Role::Connector, ring, 7).expect("a channel");
        held.release();
        let held = slots::lock();
        assert!(slots::offer(self.b.ep, accepts, 0));
        assert_eq!(connects.offers()[0].slot.swap(None, Relaxed), Some(0));
        attach::attach(self.a.ep, connects, 0);
        attach::attach(self.b.ep, accepts, 0);
        held.release();
        assert!(self.both(|s| s.ep.state() == State::Attached));
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
        let real = self.natively(move || unsafe { Simulated::send(fd, v.iov_base.cast(), v.iov_len, flags) });
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
        let real =
            self.natively(move || unsafe { Simulated::receive(fd, core::slice::from_raw_parts_mut(at, 1), flags) });
        let r = match fds::carried(fd) {
            // SAFETY: as above.
            Some(ep) => result(unsafe { io::recv(ep, fd, at, 1, flags, real) }),
            None => result(real()),
        }?;
        bytes.truncate(r);
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
        l.refs.store(0, Relaxed);
        l.chan.store(None, Relaxed);
        self.ep.holders.iter().for_each(|h| h.store(0, Relaxed));
        family::free(self.ep);
        if let Some(chan) = chan {
            chan.unseat(self.ep.slot.load(Relaxed) as usize, self.ep);
            slots::close_if_empty(chan);
        }
    }
}
