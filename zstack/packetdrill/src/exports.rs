//! The shared object that packetdrill loads (`--so_filename`): a table of functions, filled by `packetdrill_interface_init`.
//!
//! packetdrill calls from two threads: one injects and sniffs packets, the other makes the calls that wait. One lock guards
//! the engine; whoever has moved it wakes the others, and whoever waits sleeps until then or until the engine's own deadline.
//! Time is the monotonic clock's, told in the terms of gettimeofday(2), as packetdrill compares it with the moments of packets.
//!
//! `--so_flags` is a list of `NAME=VALUE` with commas between: `mtu`, `tso` (the longest payload that is shown uncut; 0: none),
//! `local`, `local6` (what connect(2) takes without bind(2)), `sack`, `timestamps`, `scaling` (0 or 1), `cc` (`reno`, `cubic`).

use crate::face::{Face, Outcome, Setup};
use crate::port::Sent;
use libc::{self as c, c_char, c_int, c_long, c_longlong, c_uint, c_ulong, c_void, size_t, socklen_t, ssize_t};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use zstack::time::Time;

/// What packetdrill keeps of us; functions that are missing stay null. The order and the types are those of its interface.
#[repr(C)]
pub struct Interface {
    userdata: *mut c_void,
    free: Option<unsafe extern "C" fn(*mut c_void)>,
    socket: Option<unsafe extern "C" fn(*mut c_void, c_int, c_int, c_int) -> c_int>,
    bind: Option<unsafe extern "C" fn(*mut c_void, c_int, *const c::sockaddr, socklen_t) -> c_int>,
    listen: Option<unsafe extern "C" fn(*mut c_void, c_int, c_int) -> c_int>,
    accept: Option<unsafe extern "C" fn(*mut c_void, c_int, *mut c::sockaddr, *mut socklen_t) -> c_int>,
    connect: Option<unsafe extern "C" fn(*mut c_void, c_int, *const c::sockaddr, socklen_t) -> c_int>,
    read: Option<unsafe extern "C" fn(*mut c_void, c_int, *mut c_void, size_t) -> ssize_t>,
    readv: Option<unsafe extern "C" fn(*mut c_void, c_int, *const c::iovec, c_int) -> ssize_t>,
    recv: Option<unsafe extern "C" fn(*mut c_void, c_int, *mut c_void, size_t, c_int) -> ssize_t>,
    recvfrom: Option<
        unsafe extern "C" fn(
            *mut c_void,
            c_int,
            *mut c_void,
            size_t,
            c_int,
            *mut c::sockaddr,
            *mut socklen_t,
        ) -> ssize_t,
    >,
    recvmsg: Option<unsafe extern "C" fn(*mut c_void, c_int, *mut c::msghdr, c_int) -> ssize_t>,
    write: Option<unsafe extern "C" fn(*mut c_void, c_int, *const c_void, size_t) -> ssize_t>,
    writev: Option<unsafe extern "C" fn(*mut c_void, c_int, *const c::iovec, c_int) -> ssize_t>,
    send: Option<unsafe extern "C" fn(*mut c_void, c_int, *const c_void, size_t, c_int) -> ssize_t>,
    sendto: Option<
        unsafe extern "C" fn(
            *mut c_void,
            c_int,
            *const c_void,
            size_t,
            c_int,
            *const c::sockaddr,
            socklen_t,
        ) -> ssize_t,
    >,
    sendmsg: Option<unsafe extern "C" fn(*mut c_void, c_int, *const c::msghdr, c_int) -> ssize_t>,
    // Variadic in packetdrill: on the platforms of Rust's tier 1 for Linux a third argument is passed in the same place.
    fcntl: Option<unsafe extern "C" fn(*mut c_void, c_int, c_int, c_long) -> c_int>,
    ioctl: Option<unsafe extern "C" fn(*mut c_void, c_int, c_ulong, *mut c_int) -> c_int>,
    close: Option<unsafe extern "C" fn(*mut c_void, c_int) -> c_int>,
    shutdown: Option<unsafe extern "C" fn(*mut c_void, c_int, c_int) -> c_int>,
    getsockopt: Option<unsafe extern "C" fn(*mut c_void, c_int, c_int, c_int, *mut c_void, *mut socklen_t) -> c_int>,
    setsockopt: Option<unsafe extern "C" fn(*mut c_void, c_int, c_int, c_int, *const c_void, socklen_t) -> c_int>,
    poll: Option<unsafe extern "C" fn(*mut c_void, *mut c::pollfd, c::nfds_t, c_int) -> c_int>,
    netdev_send: Option<unsafe extern "C" fn(*mut c_void, *const c_void, size_t) -> c_int>,
    netdev_receive: Option<unsafe extern "C" fn(*mut c_void, *mut c_void, *mut size_t, *mut c_longlong) -> c_int>,
    usleep: Option<unsafe extern "C" fn(*mut c_void, c_uint) -> c_int>,
    gettimeofday: Option<unsafe extern "C" fn(*mut c_void, *mut c::timeval, *mut c_void) -> c_int>,
    epoll_create: Option<unsafe extern "C" fn(*mut c_void, c_int) -> c_int>,
    epoll_ctl: Option<unsafe extern "C" fn(*mut c_void, c_int, c_int, c_int, *mut c_void) -> c_int>,
    epoll_wait: Option<unsafe extern "C" fn(*mut c_void, c_int, *mut c_void, c_int, c_int) -> c_int>,
    pipe: Option<unsafe extern "C" fn(*mut c_void, *mut c_int) -> c_int>,
    splice: Option<unsafe extern "C" fn(*mut c_void, c_int, *mut i64, c_int, *mut i64, size_t, c_uint) -> c_int>,
}

struct Held(Face);

// SAFETY: a face holds memory of its own (rings, packets, tables) and addresses into it, none of which is bound to a thread; it
// is used by one thread at a time, under the lock.
unsafe impl Send for Held {}

/// The engine, shared by packetdrill's threads.
struct Shared {
    face: Mutex<Held>,
    moved: Condvar,
    start: Instant,
    /// Microseconds since the epoch at `start`.
    epoch: u64,
}

impl Shared {
    fn new(setup: Setup) -> Result<Shared, String> {
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64);
        let face = Face::new(setup, Time(epoch))?;
        Ok(Shared { face: Mutex::new(Held(face)), moved: Condvar::new(), start: Instant::now(), epoch })
    }

    fn now(&self) -> Time {
        Time(self.epoch + self.start.elapsed().as_micros() as u64)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.face.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call that does not wait.
    fn call<T>(&self, call: impl FnOnce(&mut Face) -> Outcome<T>) -> Outcome<T> {
        let mut held = self.lock();
        held.0.turn(self.now());
        let outcome = call(&mut held.0);
        held.0.turn(self.now());
        drop(held);
        self.moved.notify_all();
        outcome
    }

    /// Tries until `attempt` returns something, or the time is over. Between attempts it sleeps until the engine has moved or
    /// must.
    fn until<T>(&self, most: Option<Duration>, mut attempt: impl FnMut(&mut Face, Time) -> Option<T>) -> Option<T> {
        let end = most.map(|m| Instant::now() + m);
        let mut held = self.lock();
        loop {
            held.0.turn(self.now());
            let outcome = attempt(&mut held.0, self.now());
            let deadline = held.0.turn(self.now());
            self.moved.notify_all();
            if outcome.is_some() {
                return outcome;
            }
            let due = deadline.map_or(Duration::from_secs(1), |d| Duration::from_micros(d.since(self.now()).0.into()));
            let mut wait = due.max(Duration::from_micros(50)).min(Duration::from_secs(1));
            if let Some(end) = end {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return None;
                }
                wait = wait.min(left);
            }
            held = self.moved.wait_timeout(held, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A call that waits if its descriptor does.
    fn wait<T>(&self, fd: c_int, flags: c_int, mut call: impl FnMut(&mut Face, Time) -> Outcome<T>) -> Outcome<T> {
        let ends = |face: &Face, outcome: &Outcome<T>| {
            let waits = matches!(outcome, Err(c::EAGAIN | c::EINPROGRESS | c::EALREADY));
            !waits || flags & c::MSG_DONTWAIT != 0 || !face.blocking(fd)
        };
        self.until(None, |face, now| {
            let outcome = call(face, now);
            ends(face, &outcome).then_some(outcome)
        })
        .unwrap_or(Err(c::EINTR))
    }

    fn receive(&self, fd: c_int, into: &mut [u8], flags: c_int) -> Outcome {
        self.wait(fd, flags, |face, _| face.recv(fd, into, flags))
    }

    fn transmit(&self, fd: c_int, bytes: &[u8], flags: c_int) -> Outcome {
        let mut done = 0;
        self.wait(fd, flags, |face, _| match face.send(fd, &bytes[done..], flags) {
            Ok(n) => {
                done += n as usize;
                let waits = done < bytes.len() && face.blocking(fd) && flags & c::MSG_DONTWAIT == 0;
                if waits { Err(c::EAGAIN) } else { Ok(done as i64) }
            }
            Err(_) if done > 0 && !face.blocking(fd) => Ok(done as i64),
            error => error,
        })
    }
}

/// The number for C; -1 and errno(3) for an error.
fn told(outcome: Outcome) -> i64 {
    outcome.unwrap_or_else(|error| {
        // SAFETY: the address is this thread's errno.
        unsafe { *c::__errno_location() = error };
        -1
    })
}

/// # Safety
/// `userdata` must be what `packetdrill_interface_init` stored and `free` was not called with.
unsafe fn shared<'a>(userdata: *mut c_void) -> &'a Shared {
    // SAFETY: a leaked box, as the caller promises; it is shared by reference alone.
    unsafe { &*userdata.cast::<Shared>() }
}

/// # Safety
/// `count` bytes at `start` must be readable, and stay so, unchanged, for `'a`; `start` may be null where there are none.
unsafe fn bytes<'a>(start: *const c_void, count: usize) -> &'a [u8] {
    if start.is_null() || count == 0 {
        return &[];
    }
    // SAFETY: as the caller promises.
    unsafe { std::slice::from_raw_parts(start.cast(), count) }
}

/// # Safety
/// `count` bytes at `start` must be writable, and nobody else's, for `'a`; `start` may be null where there are none.
unsafe fn bytes_mut<'a>(start: *mut c_void, count: usize) -> &'a mut [u8] {
    if start.is_null() || count == 0 {
        return &mut [];
    }
    // SAFETY: as the caller promises.
    unsafe { std::slice::from_raw_parts_mut(start.cast(), count) }
}

/// # Safety
/// `address` must point to `len` readable bytes, or be null.
unsafe fn address(address: *const c::sockaddr, len: socklen_t) -> Outcome<SocketAddr> {
    // SAFETY: as the caller promises.
    let b = unsafe { bytes(address.cast(), len as usize) };
    let family = b.get(..2).map(|f| c_int::from(u16::from_ne_bytes([f[0], f[1]])));
    let port = b.get(2..4).map_or(0, |p| u16::from_be_bytes([p[0], p[1]]));
    match family {
        Some(c::AF_INET) if b.len() >= 16 => Ok(SocketAddr::new(Ipv4Addr::new(b[4], b[5], b[6], b[7]).into(), port)),
        Some(c::AF_INET6) if b.len() >= 24 => {
            let ip = Ipv6Addr::from(<[u8; 16]>::try_from(&b[8..24]).expect("16 bytes"));
            Ok(SocketAddr::new(ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4), port))
        }
        Some(c::AF_INET | c::AF_INET6) | None => Err(c::EINVAL),
        Some(_) => Err(c::EAFNOSUPPORT),
    }
}

/// Writes an address, as much of it as there is room for.
///
/// # Safety
/// `len` must be null or point to the size of the writable memory at `to`.
unsafe fn tell_address(address: Option<SocketAddr>, to: *mut c::sockaddr, len: *mut socklen_t) {
    let Some(address) = address.filter(|_| !to.is_null() && !len.is_null()) else { return };
    let mut b = [0u8; 28];
    b[2..4].copy_from_slice(&address.port().to_be_bytes());
    let (family, size) = match address.ip() {
        IpAddr::V4(ip) => {
            b[4..8].copy_from_slice(&ip.octets());
            (c::AF_INET, 16)
        }
        IpAddr::V6(ip) => {
            b[8..24].copy_from_slice(&ip.octets());
            (c::AF_INET6, 28)
        }
    };
    b[..2].copy_from_slice(&(family as u16).to_ne_bytes());
    // SAFETY: as the caller promises; no more is written than there is room for.
    unsafe {
        let room = (*len as usize).min(size);
        std::ptr::copy_nonoverlapping(b.as_ptr(), to.cast(), room);
        *len = size as socklen_t;
    }
}

/// # Safety
/// `vector` must point to `count` entries.
unsafe fn pieces<'a>(vector: *const c::iovec, count: usize) -> &'a [c::iovec] {
    if vector.is_null() || count == 0 {
        return &[];
    }
    // SAFETY: as the caller promises.
    unsafe { std::slice::from_raw_parts(vector, count) }
}

/// # Safety
/// The pieces must be writable.
unsafe fn scatter(shared: &Shared, fd: c_int, vector: &[c::iovec], flags: c_int) -> ssize_t {
    let mut whole = vec![0; vector.iter().map(|v| v.iov_len).sum()];
    let outcome = shared.receive(fd, &mut whole, flags);
    let mut rest = &whole[..outcome.unwrap_or(0) as usize];
    for piece in vector {
        let (part, behind) = rest.split_at(piece.iov_len.min(rest.len()));
        // SAFETY: as the caller promises.
        unsafe { bytes_mut(piece.iov_base, part.len()) }.copy_from_slice(part);
        rest = behind;
    }
    told(outcome) as ssize_t
}

/// # Safety
/// The pieces must be readable.
unsafe fn gather(shared: &Shared, fd: c_int, vector: &[c::iovec], flags: c_int) -> ssize_t {
    // SAFETY: as the caller promises.
    let whole: Vec<u8> = vector.iter().flat_map(|v| unsafe { bytes(v.iov_base, v.iov_len) }).copied().collect();
    told(shared.transmit(fd, &whole, flags)) as ssize_t
}

/// Functions of the table. Each takes `userdata` first: what `init` stored there. Their pointers are those of the calls of the
/// same name, under the same conditions.
macro_rules! table {
    ($($name:ident($shared:ident $(, $argument:ident: $kind:ty)*) -> $result:ty $body:block)*) => {
        $(unsafe extern "C" fn $name(userdata: *mut c_void $(, $argument: $kind)*) -> $result {
            // SAFETY: packetdrill passes what `init` stored.
            let $shared = unsafe { shared(userdata) };
            // SAFETY: the pointers are a caller's of the libc function of this name: valid as that asks for.
            #[allow(unused_unsafe)]
            unsafe { $body }
        })*
    };
}

table! {
    socket(s, domain: c_int, kind: c_int, protocol: c_int) -> c_int {
        told(s.call(|f| f.socket(domain, kind, protocol))) as c_int
    }
    bind(s, fd: c_int, to: *const c::sockaddr, len: socklen_t) -> c_int {
        told(address(to, len).and_then(|a| s.call(|f| f.bind(fd, a)))) as c_int
    }
    listen(s, fd: c_int, backlog: c_int) -> c_int { told(s.call(|f| f.listen(fd, backlog))) as c_int }
    accept(s, fd: c_int, peer: *mut c::sockaddr, len: *mut socklen_t) -> c_int {
        let outcome = s.wait(fd, 0, |f, _| f.accept(fd, 0));
        tell_address(outcome.ok().and_then(|(_, peer)| peer), peer, len);
        told(outcome.map(|(fd, _)| fd)) as c_int
    }
    connect(s, fd: c_int, to: *const c::sockaddr, len: socklen_t) -> c_int {
        told(address(to, len).and_then(|a| s.wait(fd, 0, |f, now| f.connect(now, fd, a)))) as c_int
    }
    read(s, fd: c_int, into: *mut c_void, count: size_t) -> ssize_t {
        if into.is_null() && count > 0 {
            return told(Err(c::EFAULT)) as ssize_t;
        }
        told(s.receive(fd, bytes_mut(into, count), 0)) as ssize_t
    }
    readv(s, fd: c_int, vector: *const c::iovec, count: c_int) -> ssize_t {
        scatter(s, fd, pieces(vector, count.max(0) as usize), 0)
    }
    recv(s, fd: c_int, into: *mut c_void, count: size_t, flags: c_int) -> ssize_t {
        if into.is_null() && count > 0 {
            return told(Err(c::EFAULT)) as ssize_t;
        }
        told(s.receive(fd, bytes_mut(into, count), flags)) as ssize_t
    }
    recvfrom(s, fd: c_int, into: *mut c_void, count: size_t, flags: c_int, _peer: *mut c::sockaddr, len: *mut socklen_t) -> ssize_t {
        if into.is_null() && count > 0 {
            return told(Err(c::EFAULT)) as ssize_t;
        }
        if !len.is_null() {
            *len = 0;
        }
        told(s.receive(fd, bytes_mut(into, count), flags)) as ssize_t
    }
    recvmsg(s, fd: c_int, message: *mut c::msghdr, flags: c_int) -> ssize_t {
        let message = &mut *message;
        (message.msg_namelen, message.msg_controllen, message.msg_flags) = (0, 0, 0);
        scatter(s, fd, pieces(message.msg_iov, message.msg_iovlen), flags)
    }
    write(s, fd: c_int, from: *const c_void, count: size_t) -> ssize_t {
        if from.is_null() && count > 0 {
            return told(Err(c::EFAULT)) as ssize_t;
        }
        told(s.transmit(fd, bytes(from, count), 0)) as ssize_t
    }
    writev(s, fd: c_int, vector: *const c::iovec, count: c_int) -> ssize_t {
        gather(s, fd, pieces(vector, count.max(0) as usize), 0)
    }
    send(s, fd: c_int, from: *const c_void, count: size_t, flags: c_int) -> ssize_t {
        if from.is_null() && count > 0 {
            return told(Err(c::EFAULT)) as ssize_t;
        }
        told(s.transmit(fd, bytes(from, count), flags)) as ssize_t
    }
    sendto(s, fd: c_int, from: *const c_void, count: size_t, flags: c_int, _to: *const c::sockaddr, _len: socklen_t) -> ssize_t {
        if from.is_null() && count > 0 {
            return told(Err(c::EFAULT)) as ssize_t;
        }
        told(s.transmit(fd, bytes(from, count), flags)) as ssize_t
    }
    sendmsg(s, fd: c_int, message: *const c::msghdr, flags: c_int) -> ssize_t {
        gather(s, fd, pieces((*message).msg_iov, (*message).msg_iovlen), flags)
    }
    fcntl(s, fd: c_int, command: c_int, argument: c_long) -> c_int {
        told(s.call(|f| match command {
            c::F_GETFL => f.flags(fd),
            c::F_SETFL => f.set_flags(fd, argument as c_int),
            _ => Err(c::EINVAL),
        })) as c_int
    }
    ioctl(s, fd: c_int, request: c_ulong, value: *mut c_int) -> c_int {
        let outcome = s.call(|f| f.queued(fd, request));
        if let Ok(n) = outcome && !value.is_null() {
            *value = n as c_int;
        }
        told(outcome.map(|_| 0)) as c_int
    }
    close(s, fd: c_int) -> c_int { told(s.call(|f| f.close(fd))) as c_int }
    shutdown(s, fd: c_int, how: c_int) -> c_int { told(s.call(|f| f.shutdown(fd, how))) as c_int }
    getsockopt(s, fd: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut socklen_t) -> c_int {
        if value.is_null() || len.is_null() {
            return told(Err(c::EFAULT)) as c_int;
        }
        told(s.call(|f| f.option(fd, level, name)).map(|bytes| {
            let room = bytes.len().min(*len as usize);
            bytes_mut(value, room).copy_from_slice(&bytes[..room]);
            *len = room as socklen_t;
            0
        })) as c_int
    }
    setsockopt(s, fd: c_int, level: c_int, name: c_int, value: *const c_void, len: socklen_t) -> c_int {
        let value = bytes(value, len as usize);
        told(s.call(|f| f.set_option(fd, level, name, value))) as c_int
    }
    poll(s, fds: *mut c::pollfd, count: c::nfds_t, timeout: c_int) -> c_int {
        let most = (timeout >= 0).then(|| Duration::from_millis(timeout as u64));
        let fds: &mut [c::pollfd] =
            if fds.is_null() || count == 0 { &mut [] } else { std::slice::from_raw_parts_mut(fds, count as usize) };
        let ready = s.until(most, |face, _| {
            let mut ready = 0;
            for fd in fds.iter_mut() {
                let asked = fd.events | c::POLLERR | c::POLLHUP | c::POLLNVAL;
                fd.revents = if fd.fd < 0 { 0 } else { face.ready(fd.fd) & asked };
                ready += c_int::from(fd.revents != 0);
            }
            (ready > 0).then_some(ready)
        });
        ready.unwrap_or(0)
    }
    netdev_send(s, packet: *const c_void, count: size_t) -> c_int {
        let packet = bytes(packet, count).to_vec();
        told(s.call(|f| {
            f.port().inject(packet);
            Ok(0)
        })) as c_int
    }
    netdev_receive(s, into: *mut c_void, count: *mut size_t, at: *mut c_longlong) -> c_int {
        let sent = s.until(None, |face, _| face.port().sniff());
        let Some(Sent { at: when, packet, .. }) = sent.filter(|sent| sent.packet.len() <= *count) else {
            *count = 0;
            return -1;
        };
        bytes_mut(into, packet.len()).copy_from_slice(&packet);
        *count = packet.len();
        *at = when.0 as c_longlong;
        0
    }
    usleep(s, micros: c_uint) -> c_int {
        // The engine's timers fire meanwhile.
        let _ = s.until(Some(Duration::from_micros(micros.into())), |_, _| None::<()>);
        0
    }
    gettimeofday(s, to: *mut c::timeval, _zone: *mut c_void) -> c_int {
        if !to.is_null() {
            let now = s.now().0;
            (*to).tv_sec = (now / 1_000_000) as c::time_t;
            (*to).tv_usec = (now % 1_000_000) as c::suseconds_t;
        }
        0
    }
}

unsafe extern "C" fn free(userdata: *mut c_void) {
    if !userdata.is_null() {
        // SAFETY: `init` leaked this box, and packetdrill frees it once, when its threads make no calls any more.
        drop(unsafe { Box::from_raw(userdata.cast::<Shared>()) });
    }
}

fn setup(flags: &str) -> Result<Setup, String> {
    let mut setup = Setup::default();
    for (name, value) in flags.split(',').filter(|f| !f.trim().is_empty()).map(|f| f.split_once('=').unwrap_or((f, "")))
    {
        let (name, value) = (name.trim(), value.trim());
        let wrong = || format!("flag {name}={value}: no such value");
        let on = || match value {
            "0" => Ok(false),
            "1" => Ok(true),
            _ => Err(wrong()),
        };
        match name {
            "mtu" => setup.mtu = value.parse().map_err(|_| wrong())?,
            "tso" => setup.tso = value.parse().map_err(|_| wrong())?,
            "local" => setup.local.0 = value.parse::<Ipv4Addr>().map_err(|_| wrong())?.into(),
            "local6" => setup.local.1 = value.parse::<Ipv6Addr>().map_err(|_| wrong())?.into(),
            "sack" => setup.options.sack = on()?,
            "timestamps" => setup.options.timestamps = on()?,
            "scaling" => setup.options.scaling = on()?,
            "cc" => {
                setup.options.congestion = match value {
                    "reno" => zstack::tcp::recovery::Algorithm::Reno,
                    "cubic" => zstack::tcp::recovery::Algorithm::Cubic,
                    _ => return Err(wrong()),
                }
            }
            _ => {
                let known = "mtu, tso, local, local6, sack, timestamps, scaling, cc";
                return Err(format!("flag {name:?} is none of {known}"));
            }
        }
    }
    Ok(setup)
}

/// Fills packetdrill's table. A flag that cannot be is told on standard error, and the process ends: packetdrill would go on
/// with an empty table.
///
/// # Safety
/// `flags` must be null or a string of C; `interface` must point to packetdrill's table.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn packetdrill_interface_init(flags: *const c_char, interface: *mut Interface) {
    let flags = if flags.is_null() {
        String::new()
    } else {
        // SAFETY: as the caller promises.
        unsafe { std::ffi::CStr::from_ptr(flags) }.to_string_lossy().into_owned()
    };
    let shared = match setup(&flags).and_then(Shared::new) {
        Ok(shared) => shared,
        Err(error) => {
            eprintln!("zstack-packetdrill: --so_flags: {error}");
            std::process::exit(2);
        }
    };
    let table = Interface {
        userdata: Box::into_raw(Box::new(shared)).cast(),
        free: Some(free),
        socket: Some(socket),
        bind: Some(bind),
        listen: Some(listen),
        accept: Some(accept),
        connect: Some(connect),
        read: Some(read),
        readv: Some(readv),
        recv: Some(recv),
        recvfrom: Some(recvfrom),
        recvmsg: Some(recvmsg),
        write: Some(write),
        writev: Some(writev),
        send: Some(send),
        sendto: Some(sendto),
        sendmsg: Some(sendmsg),
        fcntl: Some(fcntl),
        ioctl: Some(ioctl),
        close: Some(close),
        shutdown: Some(shutdown),
        getsockopt: Some(getsockopt),
        setsockopt: Some(setsockopt),
        poll: Some(poll),
        netdev_send: Some(netdev_send),
        netdev_receive: Some(netdev_receive),
        usleep: Some(usleep),
        gettimeofday: Some(gettimeofday),
        epoll_create: None,
        epoll_ctl: None,
        epoll_wait: None,
        pipe: None,
        splice: None,
    };
    // SAFETY: as the caller promises; what was there before needs no drop.
    unsafe { interface.write(table) };
}

#[cfg(test)]
mod tests;
