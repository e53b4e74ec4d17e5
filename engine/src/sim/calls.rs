//! The calls that the engine, and programs, make of the simulated kernel.
// Unsafe here: it is the kernel: it reads and writes what pointers name.
#![allow(unsafe_code)]

use super::Simulated;
use super::faults::Want;
use super::state::{Object, state, unseen};
use crate::kernel::{Kernel, Rung};
use core::ffi::CStr;
use core::ops::Range;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;
use host::signals::Runs;
use host::usercopy::Fault;
use libc::{iovec, pollfd, sigset_t};
use rendezvous::Tuple;
use rendezvous::bell::Bell;
use rendezvous::diag::Cache;
use shmring::lnx::Plain;

/// Runs what the test has left for a sleeper. False: there is nothing for this one.
fn meanwhile() -> bool {
    let next = state().meanwhile.pop_front();
    match next.flatten() {
        Some(f) => {
            f();
            true
        }
        None => false,
    }
}

fn code<T>(r: Result<T, i32>, ok: impl FnOnce(T) -> isize) -> isize {
    match r {
        Ok(v) => ok(v),
        Err(e) => -e as isize,
    }
}

/// The connection and the end of it that these addresses are.
fn named(socket: &Tuple) -> (usize, usize) {
    ((socket.sport.max(socket.dport) - 10_000) as usize, usize::from(socket.sport == 80))
}

impl Kernel for Simulated {
    fn poll(fds: &mut [pollfd], ns: u64) -> isize {
        let n = state().poll(fds);
        if n == 0 && ns > 0 {
            if !meanwhile() {
                state().now += ns;
            }
            return state().poll(fds);
        }
        n
    }
    fn queued(fd: i32, request: u64) -> Option<u64> {
        let mut s = state();
        let (tcp, end) = s.socket(fd)?;
        match request {
            libc::FIONREAD => Some(tcp.unread(end)),
            libc::TIOCOUTQ => Some(tcp.unsent(end)),
            _ => Some(0),
        }
    }
    fn get_option<T: Plain>(fd: i32, level: i32, name: i32, v: &mut T) -> isize {
        let mut s = state();
        let id = s.descriptors.get(&fd).copied().unwrap_or(usize::MAX);
        let set = s.sockets.get(&id).and_then(|socket| socket.options.get(&(level, name)).cloned());
        let Some((tcp, end)) = s.socket(fd) else { return -libc::ENOTSOCK as isize };
        let int = |n: i32| n.to_ne_bytes().to_vec();
        let bytes = match (level, name) {
            (libc::SOL_SOCKET, libc::SO_COOKIE) => (id as u64 + 1).to_ne_bytes().to_vec(),
            (libc::SOL_SOCKET, libc::SO_ERROR) => int(tcp.take_error(end)),
            (libc::SOL_SOCKET, libc::SO_RCVLOWAT) => int(tcp.end(end).lowat as i32),
            (libc::SOL_SOCKET, libc::SO_RCVBUF) => int(tcp.end(end).room as i32),
            (libc::SOL_SOCKET, libc::SO_SNDBUF) => int(tcp.end(end).sndbuf as i32),
            (libc::IPPROTO_TCP, libc::TCP_INFO) => {
                let mut b = vec![0u8; 136];
                let (state, acked, received) = tcp.info(end);
                b[0] = state;
                b[120..128].copy_from_slice(&acked.to_ne_bytes());
                b[128..136].copy_from_slice(&received.to_ne_bytes());
                b
            }
            _ => set.unwrap_or_else(|| vec![0; size_of::<T>()]),
        };
        let n = bytes.len().min(size_of::<T>());
        // SAFETY: any bytes are a `T`, and no more are written than it has.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), core::ptr::from_mut(v).cast::<u8>(), n) };
        n as isize
    }
    fn set_option<T: Plain>(fd: i32, level: i32, name: i32, v: T) -> isize {
        let mut s = state();
        let Some(&id) = s.descriptors.get(&fd) else { return -libc::EBADF as isize };
        // SAFETY: a value is its bytes; there are no options with padding.
        let bytes = unsafe { core::slice::from_raw_parts((&raw const v).cast::<u8>(), size_of::<T>()) }.to_vec();
        if (level, name) == (libc::SOL_SOCKET, libc::SO_RCVLOWAT)
            && let Some((tcp, end)) = s.socket(fd)
        {
            tcp.end(end).lowat = i32::from_ne_bytes(bytes[..4].try_into().expect("an int")) as usize;
        }
        s.sockets.entry(id).or_default().options.insert((level, name), bytes);
        0
    }
    fn local_address(_: i32) -> Option<[u8; 28]> {
        None
    }
    fn ends(fd: i32, peer_first: bool) -> Result<Tuple, i32> {
        let mut s = state();
        let connection = match s.object(fd) {
            Some(Object::Socket(connection, _)) => *connection as u16,
            _ => return Err(libc::ENOTSOCK),
        };
        let (tcp, end) = s.socket(fd).ok_or(libc::ENOTSOCK)?;
        if !tcp.is_connected(end) {
            return Err(libc::ENOTCONN);
        }
        let local = [127, 0, 0, 1];
        let port = |end: usize| if end == 0 { 10_000 + connection } else { 80 };
        let own = if peer_first { 1 - end } else { end };
        let address = rendezvous::tuple::mapped(local);
        Ok(Tuple { src: address, dst: address, sport: port(own), dport: port(1 - own), scope: 0 })
    }
    fn has_no_holder(_: &Cache, socket: &Tuple, cookie: u64) -> bool {
        let s = state();
        let (connection, end) = named(socket);
        let is_it = |o: &Object| matches!(o, Object::Socket(c, e) if (*c, *e) == (connection, end));
        let id = s.objects.iter().find(|(_, o)| is_it(o)).map(|(id, _)| *id);
        s.connections[connection].is_orphan(end) || id.is_none_or(|id| id as u64 + 1 != cookie)
    }
    fn is_orphan(_: &Cache, socket: &Tuple, _: u64) -> bool {
        let (connection, end) = named(socket);
        let tcp = &state().connections[connection];
        // The kernel forgets one that is closed.
        tcp.is_orphan(end) && tcp.is_connected(end)
    }
    fn unread(_: &Cache, socket: &Tuple, _: u64) -> Option<u64> {
        let (connection, end) = named(socket);
        Some(state().connections[connection].unread(end))
    }

    unsafe fn send(fd: i32, from: *const u8, len: usize, flags: i32) -> isize {
        // SAFETY: the caller's obligation.
        let bytes = unsafe { core::slice::from_raw_parts(from, len) };
        let signal = flags & libc::MSG_NOSIGNAL == 0 && !state().no_sigpipe;
        Self::tcp(fd, |tcp, end| code(tcp.send(end, bytes, signal), |n| n as isize))
    }
    unsafe fn receive(fd: i32, into: &mut [iovec], flags: i32) -> isize {
        let r = Self::fill(fd, into, flags);
        state().vain += u32::from(r == -libc::EAGAIN as isize);
        r
    }
    fn discard(fd: i32, n: u64) -> isize {
        code(Self::recv(fd, n as usize, false), |bytes| bytes.len() as isize)
    }
    fn disconnect(fd: i32) -> isize {
        Self::tcp(fd, |tcp, end| tcp.disconnect(end));
        0
    }
    fn shutdown(fd: i32, how: i32) -> isize {
        Self::tcp(fd, |tcp, end| code(tcp.shutdown(end, how), |()| 0))
    }
    unsafe fn send_as_program(fd: i32, from: *const u8, len: usize, flags: i32) -> isize {
        // SAFETY: the caller's obligation.
        host::real::ret(unsafe { Self::send(fd, from, len, flags) })
    }
    fn sendfile_as_program(out: i32, inp: i32, at: Option<&mut i64>, len: usize) -> isize {
        let Some(file) = state().file(inp) else { return host::real::ret(-libc::EBADF as isize) };
        let from = at.as_deref().map_or(0, |at| *at as usize);
        let n = len.min(file.len.saturating_sub(from));
        // SAFETY: inside the file.
        let r = unsafe { Self::send(out, file.at.wrapping_add(from), n, 0) };
        if let Some(at) = at {
            *at += r.max(0) as i64;
        }
        host::real::ret(r)
    }

    fn descriptor_flags(_: i32) -> isize {
        libc::FD_CLOEXEC as isize
    }
    fn file_flags(fd: i32) -> isize {
        let s = state();
        match s.descriptors.get(&fd) {
            Some(id) if s.sockets.get(id).is_some_and(|x| x.nonblocking) => libc::O_NONBLOCK as isize,
            Some(_) => 0,
            None => -libc::EBADF as isize,
        }
    }
    fn duplicate(fd: i32, least: i32) -> i32 {
        let mut s = state();
        if s.faults.is_refused(Want::Descriptors) {
            return -libc::EMFILE;
        }
        let Some(&id) = s.descriptors.get(&fd) else { return -libc::EBADF };
        let new = s.free(least);
        s.descriptors.insert(new, id);
        new
    }
    fn duplicate_to(fd: i32, to: i32) -> i32 {
        Self::close(to);
        let mut s = state();
        let Some(&id) = s.descriptors.get(&fd) else { return -libc::EBADF };
        s.descriptors.insert(to, id);
        to
    }
    fn close(fd: i32) {
        let mut s = state();
        let Some(id) = s.descriptors.remove(&fd) else { return };
        // Any descriptor of a file takes the process's locks with it (fcntl(2)).
        let process = s.process;
        s.locks.retain(|(file, _), by| (*file, *by) != (id, process));
        s.closed(id);
    }
    fn open(_: &CStr, _: i32) -> i32 {
        -libc::ENOENT
    }
    fn read(_: i32, _: &mut [u8]) -> isize {
        -libc::EBADF as isize
    }
    unsafe fn read_vector(fd: i32, into: &[iovec], at: Option<i64>) -> isize {
        let Some(file) = state().file(fd) else { return -libc::EBADF as isize };
        let mut from = at.unwrap_or(0) as usize;
        let mut done = 0;
        for v in into {
            let n = v.iov_len.min(file.len.saturating_sub(from));
            // SAFETY: inside the file; memory that the caller names.
            unsafe { core::ptr::copy_nonoverlapping(file.at.wrapping_add(from), v.iov_base.cast(), n) };
            (from, done) = (from + n, done + n);
        }
        done as isize
    }
    fn step(_: i32, _: i64) {}
    fn stat(fd: i32) -> Option<libc::stat> {
        let s = state();
        // SAFETY: all-zero bytes are a valid stat.
        let mut st: libc::stat = unsafe { core::mem::zeroed() };
        st.st_ino = *s.descriptors.get(&fd)? as u64 + 1;
        st.st_mode = libc::S_IFSOCK;
        st.st_uid = rendezvous::uid::own();
        if let Some(file) = s.file(fd) {
            st.st_size = file.len as i64;
            st.st_mode = libc::S_IFREG;
        }
        Some(st)
    }
    fn pipe() -> Option<[i32; 2]> {
        let mut s = state();
        if s.faults.is_refused(Want::Descriptors) {
            return None;
        }
        let writer = s.open(Object::Writer);
        let id = s.descriptors[&writer];
        Some([s.open(Object::Reader(id)), writer])
    }
    fn lock_byte(fd: i32, at: usize) -> bool {
        let mut s = state();
        let (Some(&id), process) = (s.descriptors.get(&fd), s.process) else { return false };
        *s.locks.entry((id, at)).or_insert(process) == process
    }
    fn is_byte_locked(fd: i32, at: usize) -> bool {
        let s = state();
        let Some(id) = s.descriptors.get(&fd) else { return false };
        let opening = s.file(fd).and_then(|file| s.opening_locks.get(&(file.at.addr(), at as u64)));
        s.locks.get(&(*id, at)).is_some_and(|process| *process != s.process) || opening.is_some_and(|by| by != id)
    }
    /// Of one byte, of a file in memory; sockets are not locked.
    fn lock_file(fd: i32, kind: i32, at: u64, len: u64) -> isize {
        let mut s = state();
        let Some(file) = s.file(fd) else { return 0 };
        assert_eq!(len, 1);
        let (id, key) = (s.descriptors[&fd], (file.at.addr(), at));
        if kind == libc::F_UNLCK {
            s.opening_locks.retain(|k, by| (*k, *by) != (key, id));
            return 0;
        }
        if *s.opening_locks.entry(key).or_insert(id) == id { 0 } else { -libc::EAGAIN as isize }
    }
    fn first_lock(fd: i32, at: u64, _: u64) -> Option<u64> {
        let s = state();
        s.opening_locks.contains_key(&(s.file(fd)?.at.addr(), at)).then_some(at)
    }
    fn limit(resource: u32) -> Option<u64> {
        Some(if resource == libc::RLIMIT_NOFILE { 256 } else { libc::RLIM_INFINITY })
    }

    fn memory_file(_: &CStr, len: usize) -> Option<i32> {
        let mut s = state();
        if s.faults.is_refused(Want::Descriptors) || s.faults.is_refused(Want::Memory) {
            return None;
        }
        Some(s.open_file(len))
    }
    fn seal(fd: i32, seals: i32) -> isize {
        let mut s = state();
        if seals & libc::F_SEAL_FUTURE_WRITE != 0 && s.faults.is_refused(Want::Seal) {
            return -libc::EINVAL as isize;
        }
        match s.object_mut(fd) {
            Some(Object::File(_, there)) => {
                *there |= seals;
                0
            }
            _ => -libc::EBADF as isize,
        }
    }
    fn seals(fd: i32) -> isize {
        match state().object(fd) {
            Some(Object::File(_, seals)) => *seals as isize,
            _ => -libc::EBADF as isize,
        }
    }
    fn reopen(fd: i32) -> i32 {
        let mut s = state();
        if s.faults.is_refused(Want::Descriptors) {
            return -libc::EMFILE;
        }
        match s.object(fd) {
            Some(&Object::File(memory, seals)) => s.open(Object::File(memory, seals)),
            _ => -libc::EBADF,
        }
    }
    fn keep_private(_: i32) -> isize {
        0
    }
    /// The other process is this one: both ends of a connection are.
    fn open_memory_of(_: u32, number: u32, _: &CStr, _: i32) -> Option<i32> {
        let mut s = state();
        let &Object::File(memory, seals) = s.object(number as i32)? else { return None };
        Some(s.open(Object::File(memory, seals)))
    }
    fn is_open_once(fd: i32) -> bool {
        let s = state();
        let memory = s.file(fd);
        let same = |o: &&Object| matches!(o, Object::File(m, _) if memory.is_some_and(|memory| memory.at == m.at));
        s.objects.values().filter(same).count() == 1
    }
    fn is_mailbox_gone(_: i32, name: u64) -> bool {
        state().gone.contains(&name)
    }
    fn write_at(fd: i32, bytes: &[u8], at: usize) -> isize {
        let Some(file) = state().file(fd) else { return -libc::EBADF as isize };
        assert!(at + bytes.len() <= file.len);
        // SAFETY: inside the file.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), file.at.add(at), bytes.len()) };
        bytes.len() as isize
    }
    unsafe fn read_at(fd: i32, into: *mut u8, len: usize, at: usize) -> isize {
        let Some(file) = state().file(fd) else { return -libc::EBADF as isize };
        let n = len.min(file.len.saturating_sub(at));
        // SAFETY: inside the file; memory that the caller names.
        unsafe { core::ptr::copy_nonoverlapping(file.at.wrapping_add(at), into, n) };
        n as isize
    }
    fn thread_usage() -> (u64, u64) {
        (0, 0)
    }
    fn thread_time() -> u64 {
        0
    }
    fn punch_hole(fd: i32, part: Range<usize>) {
        if let Some(file) = state().file(fd) {
            assert!(part.end <= file.len);
            // SAFETY: inside the file.
            unsafe { core::ptr::write_bytes(file.at.add(part.start), 0, part.len()) };
        }
    }
    fn zeros(len: usize) -> Option<*mut u8> {
        let mut s = state();
        (!s.faults.is_refused(Want::Memory)).then(|| s.zeros(len))
    }
    fn map(fd: i32, offset: usize, len: usize) -> Option<*mut u8> {
        let mut s = state();
        let file = s.file(fd)?;
        assert!(offset + len <= file.len, "a mapping that ends beyond the file");
        if s.faults.is_refused(Want::Memory) {
            return None;
        }
        Some(file.at.wrapping_add(offset))
    }
    fn map_to_read(fd: i32, len: usize) -> Option<*mut u8> {
        Self::map(fd, 0, len)
    }
    unsafe fn replace(at: *mut u8, len: usize, fd: i32) -> Option<*mut u8> {
        if fd >= 0 {
            return Self::map(fd, 0, len);
        }
        let mut s = state();
        (!s.faults.is_refused(Want::Memory)).then(|| s.lay_zeros(at, len))
    }
    unsafe fn remap(at: *mut u8, _: usize, _: usize) -> Option<*mut u8> {
        // A file's bytes lie one behind the other.
        (!state().faults.is_refused(Want::Memory)).then_some(at)
    }
    unsafe fn relocate(at: *mut u8, _: usize, _: *mut u8) -> Option<*mut u8> {
        // As `replace`.
        Some(at)
    }
    fn inherit(_: *mut u8, _: usize, _: bool) -> isize {
        0
    }
    unsafe fn unmap(at: *mut u8, _: usize) {
        unseen().unmap(at);
    }
    fn populate(_: *mut u8, len: usize) -> isize {
        let mut s = state();
        if s.faults.is_refused(Want::Memory) {
            return -libc::ENOMEM as isize;
        }
        let pages = len.div_ceil(4096);
        match &mut s.pages {
            Some(left) if *left < pages => -libc::ENOMEM as isize,
            Some(left) => {
                *left -= pages;
                0
            }
            None => 0,
        }
    }

    unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) -> Result<(), Fault> {
        let bad = |at: usize| state().bad.iter().any(|b| at < b.end && at + len > b.start);
        if len > 0 && (bad(dst.addr()) || bad(src.addr())) {
            return Err(Fault);
        }
        let stopped = state().in_copy.take();
        let half = stopped.as_ref().map_or(len, |_| len / 2);
        // SAFETY: the caller's obligation.
        unsafe { core::ptr::copy_nonoverlapping(src, dst, half) };
        stopped.into_iter().for_each(|f| f());
        // SAFETY: as above.
        unsafe { core::ptr::copy_nonoverlapping(src.wrapping_add(half), dst.wrapping_add(half), len - half) };
        Ok(())
    }
    fn arm_faults() {}

    unsafe fn sleep(fds: &mut [pollfd], timeout: Option<u64>, _: *const sigset_t, since: Runs) -> isize {
        loop {
            let n = state().poll(fds);
            if n > 0 {
                return n;
            }
            if host::signals::runs() != since {
                return -libc::EINTR as isize;
            }
            if !meanwhile() {
                let Some(ns) = timeout else { panic!("a sleep that nobody ends") };
                let mut s = state();
                s.now += ns;
                s.timeouts += 1;
                return 0;
            }
        }
    }
    fn sleep_on(word: &AtomicU32, value: u32, timeout: u64, since: Runs) -> isize {
        while word.load(Relaxed) == value {
            if host::signals::runs() != since {
                return -libc::EINTR as isize;
            }
            if !meanwhile() {
                let mut s = state();
                s.now += timeout;
                s.timeouts += 1;
                return -libc::ETIMEDOUT as isize;
            }
        }
        0
    }
    fn wake(_: &AtomicU32) {}
    unsafe fn cancellation_point() {}
    fn nap(ns: u64) {
        if !meanwhile() {
            let mut s = state();
            s.now += ns.max(1);
            s.naps += 1;
            assert!(s.naps < 200_000, "a wait that nobody ends");
        }
    }
    fn yield_cpu() {
        Self::nap(0);
    }
    fn barrier_everywhere() -> bool {
        true
    }
    fn affinity(_: &mut [u64]) -> isize {
        -libc::ENOSYS as isize
    }
    fn open_bell() -> Result<Bell, i32> {
        if state().faults.is_refused(Want::Descriptors) {
            return Err(libc::EMFILE);
        }
        let (name, key) = (Self::random(), Self::random());
        Ok(Bell { fd: state().open(Object::Bell(name, key, false)), name, key })
    }
    fn ringer(place: fn(i32) -> i32) -> Result<i32, i32> {
        let mut s = state();
        if s.faults.is_refused(Want::Descriptors) {
            return Err(libc::EMFILE);
        }
        let fd = s.open(Object::Ringer);
        drop(s);
        Ok(place(fd))
    }
    fn ring(ringer: i32, name: u64, key: u64, _: &mut dyn Iterator<Item = i32>) -> Rung {
        let mut s = state();
        assert!(matches!(s.object(ringer), Some(Object::Ringer)));
        let mut heard = false;
        for o in s.objects.values_mut() {
            if let Object::Bell(n, k, rung) = o
                && *n == name
            {
                heard = true;
                *rung |= *k == key;
            }
        }
        if heard { Rung::Heard } else { Rung::Unheard }
    }
    fn drain(fd: i32) {
        if let Some(Object::Bell(_, _, rung)) = state().object_mut(fd) {
            *rung = false;
        }
    }

    fn pid() -> u32 {
        Self::process()
    }
    fn has_thread(_: u32) -> bool {
        true
    }
    fn raise(signal: i32) {
        state().raised.push(signal);
    }
    fn without_sigpipe(call: impl FnOnce() -> isize) -> isize {
        state().no_sigpipe = true;
        let r = call();
        state().no_sigpipe = false;
        r
    }
    fn random() -> u64 {
        let mut s = state();
        // Any that do not repeat.
        s.random = s.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        s.random | 1
    }
    fn now() -> u64 {
        let mut s = state();
        s.now += 1;
        s.now
    }
    fn cycles() -> u64 {
        // Three in a nanosecond.
        3 * Self::now()
    }
    fn cycles_in_order() -> u64 {
        Self::cycles()
    }
    fn cycles_per_us() -> u64 {
        3_000
    }
}

impl Simulated {
    /// What a program's own call on the kernel comes to: it waits until `want` bytes are moved (sk_wait_data, sk_stream_wait_memory).
    /// `call` gets how many are; `option`: that of its timeout.
    pub fn wait_for(fd: i32, flags: i32, option: i32, want: usize, call: impl Fn(usize) -> isize) -> isize {
        let mut begun = host::signals::runs();
        let timeout = {
            let s = state();
            let set = s.descriptors.get(&fd).and_then(|id| s.sockets.get(id)?.options.get(&(libc::SOL_SOCKET, option)));
            set.is_some_and(|v| v.iter().any(|b| *b != 0))
        };
        let mut done = 0;
        loop {
            let r = call(done);
            done += r.max(0) as usize;
            if r >= 0 && done < want.max(1) && r != 0 {
                continue;
            }
            let or_done = |r| if done > 0 { done as isize } else { r };
            let nonblocking = flags & libc::MSG_DONTWAIT != 0 || Self::file_flags(fd) & libc::O_NONBLOCK as isize != 0;
            if r != -libc::EAGAIN as isize || nonblocking {
                return or_done(r);
            }
            if host::signals::interrupted(begun, !timeout && done == 0) {
                return or_done(-libc::EINTR as isize);
            }
            // Made again, if a handler has run (SA_RESTART).
            begun = host::signals::runs();
            if !meanwhile() {
                assert!(timeout, "a call that nobody ends");
                return or_done(r);
            }
        }
    }

    fn fill(fd: i32, into: &[iovec], flags: i32) -> isize {
        let n = into.iter().map(|v| v.iov_len).sum();
        let peek = flags & libc::MSG_PEEK != 0;
        code(Self::recv(fd, n, peek), |bytes| {
            if flags & libc::MSG_TRUNC == 0 {
                let mut rest = &bytes[..];
                for v in into {
                    let (now, later) = rest.split_at(rest.len().min(v.iov_len));
                    // SAFETY: memory that the caller names.
                    if unsafe { Self::copy(v.iov_base.cast(), now.as_ptr(), now.len()) }.is_err() {
                        return -libc::EFAULT as isize;
                    }
                    rest = later;
                }
            }
            bytes.len() as isize
        })
    }
}
