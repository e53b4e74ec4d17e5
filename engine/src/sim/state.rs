//! What the simulated kernel remembers: processes, descriptors and what is behind them, files in memory, the clock.
// Unsafe here: memory of files is mapped and unmapped.
#![allow(unsafe_code)]

use super::faults::Faults;
use super::process;
use super::tcp::Tcp;
use core::ops::Range;
use libc::pollfd;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard};

/// Memory that stays where it is until nobody has it ([`State::forget_memory`]).
#[derive(Clone, Copy)]
pub(super) struct Memory {
    pub(super) at: *mut u8,
    pub(super) len: usize,
}

// SAFETY: plain memory; tests are one thread each, one at a time.
unsafe impl Send for Memory {}

impl Memory {
    /// Zeros.
    fn new(len: usize) -> Memory {
        let len = len.max(1);
        let (rights, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh mapping.
        let at = unsafe { libc::mmap(core::ptr::null_mut(), len, rights, kind, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Memory { at: at.cast(), len }
    }

    /// # Safety
    /// Nobody refers to it.
    unsafe fn unmap(self) {
        // SAFETY: as `new` has mapped it, and the caller's obligation.
        assert_eq!(unsafe { libc::munmap(self.at.cast(), self.len) }, 0);
    }

    /// Makes it zeros again.
    fn clear(self) {
        // SAFETY: all of it, which is mapped.
        unsafe { core::ptr::write_bytes(self.at, 0, self.len) };
    }
}

/// What a descriptor may be.
pub(super) enum Object {
    /// An end of a connection.
    Socket(usize, usize),
    /// A file in memory: its bytes and its seals.
    File(Memory, i32),
    /// A doorbell: its name and key, and whether it was rung.
    Bell(u64, u64, bool),
    /// What rings.
    Ringer,
    /// The reading end of a pipe, with the number of the writing end.
    Reader(usize),
    /// The writing end.
    Writer,
}

/// What is a socket's, and not its connection's.
#[derive(Clone, Default)]
pub(super) struct Socket {
    pub(super) nonblocking: bool,
    /// Options that were set, by level and name.
    pub(super) options: BTreeMap<(i32, i32), Vec<u8>>,
}

pub(super) type Meanwhile = Box<dyn FnOnce() + Send>;

#[derive(Default)]
pub(super) struct State {
    /// The process that runs, and the last that was made.
    pub(super) process: u32,
    pub(super) processes: u32,
    /// Its descriptors.
    pub(super) descriptors: BTreeMap<i32, usize>,
    /// Those of others.
    pub(super) others: BTreeMap<u32, BTreeMap<i32, usize>>,
    /// Bytes of files that are locked: file and byte, and by which process.
    pub(super) locks: BTreeMap<(usize, usize), u32>,
    /// Bytes of files that openings have locked: where the file is, and byte, and by which opening.
    pub(super) opening_locks: BTreeMap<(usize, u64), usize>,
    /// What is open, by numbers that are not used again: a socket's cookie is its number and one.
    pub(super) objects: BTreeMap<usize, Object>,
    /// How many there have been.
    pub(super) opened: usize,
    /// Memory of files, and of those that are closed.
    files: Vec<Memory>,
    /// Memory that is no file's, by where it is.
    zeros: BTreeMap<usize, Memory>,
    /// What of it the first process has unmapped.
    unmapped: Vec<Memory>,
    /// Memory that a process has laid in place of a file's, by the process and the place.
    laid: BTreeMap<(u32, usize), Memory>,
    /// A test has failed, and may have left anything behind: memory stays from now on.
    pub(super) keeps_memory: bool,
    pub(super) sockets: BTreeMap<usize, Socket>,
    pub(super) connections: Vec<Tcp>,
    pub(super) now: u64,
    pub(super) random: u64,
    /// What happens while somebody sleeps, in turn.
    pub(super) meanwhile: VecDeque<Option<Meanwhile>>,
    /// Signals that were raised.
    pub(super) raised: Vec<i32>,
    /// SIGPIPE does not reach the thread.
    pub(super) no_sigpipe: bool,
    /// What happens in the middle of the next copy.
    pub(super) in_copy: Option<Meanwhile>,
    /// What happens when the next hole is open, or about to be.
    pub(super) at_hole: Option<(bool, Meanwhile)>,
    /// Memory of the program that faults.
    pub(super) bad: Vec<Range<usize>>,
    /// Pages that can still be had.
    pub(super) pages: Option<usize>,
    /// Sleeps that lasted until their deadline.
    pub(super) timeouts: u32,
    /// Naps in which nothing happened.
    pub(super) naps: u32,
    /// Receives that found nothing.
    pub(super) vain: u32,
    pub(super) faults: Faults,
    /// Mailboxes of processes that have ended.
    pub(super) gone: BTreeSet<u64>,
}

pub(super) static STATE: Mutex<Option<State>> = Mutex::new(None);

/// The state, for one call: no other is made while it is held.
pub(super) struct Held(MutexGuard<'static, Option<State>>);

impl core::ops::Deref for Held {
    type Target = State;
    fn deref(&self) -> &State {
        self.0.as_ref().expect("a state")
    }
}

impl core::ops::DerefMut for Held {
    fn deref_mut(&mut self) -> &mut State {
        self.0.as_mut().expect("a state")
    }
}

/// For a call that the process makes that runs.
pub(super) fn state() -> Held {
    process::call();
    unseen()
}

/// For what is no process's call.
pub(super) fn unseen() -> Held {
    let mut held = STATE.lock().unwrap_or_else(|e| e.into_inner());
    held.get_or_insert_with(|| State { now: 1_000_000_000, random: 1, process: 1, processes: 1, ..State::default() });
    Held(held)
}

impl State {
    pub(super) fn object(&self, fd: i32) -> Option<&Object> {
        self.objects.get(self.descriptors.get(&fd)?)
    }
    pub(super) fn object_mut(&mut self, fd: i32) -> Option<&mut Object> {
        self.objects.get_mut(self.descriptors.get(&fd)?)
    }
    /// The connection behind `fd`, and which end it is.
    pub(super) fn socket(&mut self, fd: i32) -> Option<(&mut Tcp, usize)> {
        match *self.object(fd)? {
            Object::Socket(connection, end) => Some((&mut self.connections[connection], end)),
            _ => None,
        }
    }
    pub(super) fn file(&self, fd: i32) -> Option<Memory> {
        match self.object(fd)? {
            Object::File(memory, _) => Some(*memory),
            _ => None,
        }
    }
    pub(super) fn free(&self, least: i32) -> i32 {
        (least..).find(|fd| !self.descriptors.contains_key(fd)).expect("a number")
    }
    pub(super) fn open(&mut self, object: Object) -> i32 {
        let fd = self.free(3);
        self.objects.insert(self.opened, object);
        self.descriptors.insert(fd, self.opened);
        self.opened += 1;
        fd
    }
    /// A new file of zeros.
    pub(super) fn open_file(&mut self, len: usize) -> i32 {
        let memory = Memory::new(len);
        self.files.push(memory);
        self.open(Object::File(memory, 0))
    }
    /// New memory that is no file's.
    pub(super) fn zeros(&mut self, len: usize) -> *mut u8 {
        let memory = Memory::new(len);
        self.zeros.insert(memory.at.addr(), memory);
        memory.at
    }
    /// The memory there is unmapped. It goes later: a child of a fork has it, too.
    pub(super) fn unmap(&mut self, at: *mut u8) {
        if self.process == process::FIRST {
            self.unmapped.extend(self.zeros.remove(&at.addr()));
        }
    }
    /// Zeros in place of what the process that runs has there.
    pub(super) fn lay_zeros(&mut self, place: *mut u8, len: usize) -> *mut u8 {
        let memory = *self.laid.entry((self.process, place.addr())).or_insert_with(|| Memory::new(len));
        assert!(memory.len >= len);
        memory.clear();
        memory.at
    }
    /// Nobody has anything but the first process, which has closed all that it does not keep for ever.
    pub(super) fn forget_memory(&mut self) {
        if self.keeps_memory {
            return;
        }
        let objects = &self.objects;
        let is_open = |m: &Memory| objects.values().any(|o| matches!(o, Object::File(file, _) if file.at == m.at));
        let (files, mut gone): (Vec<_>, Vec<_>) = self.files.drain(..).partition(is_open);
        self.files = files;
        gone.append(&mut self.unmapped);
        self.laid.retain(|(process, _), memory| {
            let stays = *process == process::FIRST;
            gone.extend((!stays).then_some(*memory));
            stays
        });
        for memory in gone {
            // SAFETY: no file is open that it is of, and so no channel and no pool is there; or its process is gone.
            unsafe { memory.unmap() };
        }
    }
    /// A descriptor of an object has been closed.
    pub(super) fn closed(&mut self, id: usize) {
        let tables = self.others.values().chain([&self.descriptors]);
        if tables.flat_map(BTreeMap::values).any(|other| *other == id) {
            return;
        }
        self.opening_locks.retain(|_, by| *by != id);
        let options = self.sockets.remove(&id).unwrap_or_default().options;
        let linger = options.get(&(libc::SOL_SOCKET, libc::SO_LINGER));
        // l_onoff and l_linger.
        let abort = linger.is_some_and(|v| v[..4] != [0; 4] && v[4..8] == [0; 4]);
        if let Some(Object::Socket(connection, end)) = self.objects.remove(&id) {
            self.connections[connection].close(end, abort);
        }
    }
    pub(super) fn revents(&self, fd: i32, events: i16) -> i16 {
        match self.object(fd) {
            Some(&Object::Socket(connection, end)) => {
                self.connections[connection].poll(end) & (events | libc::POLLHUP | libc::POLLERR)
            }
            Some(Object::Bell(_, _, rung)) if *rung => events & libc::POLLIN,
            Some(Object::Reader(writer)) if !self.objects.contains_key(writer) => libc::POLLHUP,
            Some(_) => 0,
            None if fd >= 0 => libc::POLLNVAL,
            None => 0,
        }
    }
    pub(super) fn poll(&self, fds: &mut [pollfd]) -> isize {
        fds.iter_mut().fold(0, |n, p| {
            p.revents = self.revents(p.fd, p.events);
            n + isize::from(p.revents != 0)
        })
    }
}
