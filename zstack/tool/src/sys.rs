//! System calls that std has no face for. The only unsafe code of the tool.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;
use zstack::payload::Spans;
use zstack::port::{Checksum, Frame, Port, Refused};
use zstack::sockets::Still;

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_len(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: called right after the system call that made the descriptor; nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// An epoll instance.
pub struct Epoll(OwnedFd);

/// What epoll tells.
pub use libc::epoll_event;

impl Epoll {
    pub fn new() -> io::Result<Epoll> {
        // SAFETY: no memory is passed.
        check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map(|fd| Epoll(owned(fd)))
    }

    /// Watches `fd` for `events`, and tells of it under the name `data`.
    pub fn add(&self, fd: RawFd, events: i32, data: u64) -> io::Result<()> {
        let mut event = epoll_event { events: events as u32, u64: data };
        // SAFETY: `event` outlives the call.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event) }).map(drop)
    }

    /// Watches `fd`, which was added, for other events.
    pub fn change(&self, fd: RawFd, events: i32, data: u64) -> io::Result<()> {
        let mut event = epoll_event { events: events as u32, u64: data };
        // SAFETY: `event` outlives the call.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_MOD, fd, &mut event) }).map(drop)
    }

    /// Waits; a handled signal ends the wait with none.
    pub fn wait<'a>(
        &self,
        events: &'a mut [epoll_event],
        limit: Option<Duration>,
    ) -> io::Result<&'a mut [epoll_event]> {
        let timeout = limit.map(timespec);
        let timeout = timeout.as_ref().map_or(std::ptr::null(), |t| &raw const *t);
        let max = events.len() as i32;
        // SAFETY: the kernel writes at most `max` events; `timeout` is null or outlives the call.
        let n = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.0.as_raw_fd(),
                events.as_mut_ptr(),
                max,
                timeout,
                std::ptr::null::<libc::sigset_t>(),
                0usize,
            )
        };
        match check(n as i32) {
            Ok(n) => Ok(&mut events[..n as usize]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(&mut []),
            Err(e) => Err(e),
        }
    }
}

fn timespec(duration: Duration) -> libc::timespec {
    // SAFETY: all zeroes are a timespec.
    let mut t: libc::timespec = unsafe { std::mem::zeroed() };
    t.tv_sec = duration.as_secs().min(1 << 30) as _;
    t.tv_nsec = duration.subsec_nanos() as _;
    t
}

/// Bytes that nobody can foresee.
pub fn random() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    // SAFETY: the kernel writes at most as many bytes as are told. So few come whole (getrandom(2)).
    check_len(unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) }).map(|_| bytes)
}

/// A descriptor that its owner keeps open for as long as the tool runs (signals, the control socket).
pub fn borrowed<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: `Transport::watch` is told of such descriptors alone.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// SIGINT and SIGTERM as a descriptor; they do not end the process any more.
pub fn signals() -> io::Result<OwnedFd> {
    // SAFETY: a signal set is written before it is read; the calls get pointers to it that outlive them.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGINT);
        libc::sigaddset(&mut set, libc::SIGTERM);
        check(libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()))?;
        check(libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)).map(owned)
    }
}

/// Sends a frame that is whole in `bytes`.
///
/// # Errors
/// As of [`Port::send`].
pub fn send_whole<P: Port>(port: &mut P, bytes: &[u8]) -> Result<(), Refused> {
    let frame = Frame { head: bytes, payload: Spans::EMPTY, checksum: Checksum::Complete, cut: 0 };
    // SAFETY: there is no payload.
    unsafe { port.send(&frame) }
}

/// The moment, on a clock that all processes of the machine share (CLOCK_MONOTONIC).
pub fn now() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes to `time`, which is of this frame.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Time that the machine's CPUs have spent in softirqs, for whomever (proc_stat(5)): where interrupts' time is counted apart, it is in no
/// process's.
pub fn softirq() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let ticks: u64 = stat.lines().next()?.split_whitespace().nth(7)?.parse().ok()?;
    // SAFETY: it only asks.
    let hertz = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).ok().filter(|hertz| *hertz > 0)?;
    Some(Duration::from_millis(ticks * 1000 / hertz))
}

/// CPU time of this process: of its own code, and of the kernel's for it.
pub fn cpu() -> (Duration, Duration) {
    // SAFETY: the kernel fills the structure, for which zeroes are valid too.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let duration = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    (duration(usage.ru_utime), duration(usage.ru_stime))
}

fn sockaddr(address: SocketAddr) -> (libc::sockaddr_storage, u32) {
    // SAFETY: all zeroes are a sockaddr_storage, which has room for, and the alignment of, every sockaddr.
    unsafe {
        let mut storage: libc::sockaddr_storage = std::mem::zeroed();
        match address {
            SocketAddr::V4(v4) => {
                let to = &mut *(&raw mut storage).cast::<libc::sockaddr_in>();
                to.sin_family = libc::AF_INET as u16;
                to.sin_port = v4.port().to_be();
                to.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
                (storage, size_of::<libc::sockaddr_in>() as u32)
            }
            SocketAddr::V6(v6) => {
                let to = &mut *(&raw mut storage).cast::<libc::sockaddr_in6>();
                to.sin6_family = libc::AF_INET6 as u16;
                to.sin6_port = v6.port().to_be();
                to.sin6_addr.s6_addr = v6.ip().octets();
                to.sin6_scope_id = v6.scope_id();
                (storage, size_of::<libc::sockaddr_in6>() as u32)
            }
        }
    }
}

fn family(ip: IpAddr) -> i32 {
    if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

/// A socket that does not block.
pub fn socket(ip: IpAddr, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::socket(family(ip), kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, protocol) }).map(owned)
}

/// Sets an option whose value is an int.
pub fn set_option(fd: &OwnedFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let size = size_of::<i32>() as u32;
    // SAFETY: `value` outlives the call, and has the size that is told.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), size) }).map(drop)
}

/// SO_ERROR: what has happened to the socket; 0: nothing.
pub fn take_error(fd: &OwnedFd) -> i32 {
    let (mut value, mut size) = (0i32, size_of::<i32>() as u32);
    // SAFETY: both outlive the call, and have the sizes that are told.
    unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ERROR, (&raw mut value).cast(), &mut size);
    }
    value
}

/// A listening socket.
pub fn listen(at: SocketAddr, backlog: i32) -> io::Result<OwnedFd> {
    let fd = socket(at.ip(), libc::SOCK_STREAM, 0)?;
    set_option(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    if at.is_ipv6() {
        // [::] is for both families.
        set_option(&fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0)?;
    }
    let (address, len) = sockaddr(at);
    // SAFETY: `address` outlives the call, and has at least `len` bytes.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) })?;
    // SAFETY: no memory is passed.
    check(unsafe { libc::listen(fd.as_raw_fd(), backlog) })?;
    Ok(fd)
}

/// Begins to connect; EINPROGRESS is no error.
pub fn connect(fd: &OwnedFd, to: SocketAddr) -> io::Result<()> {
    let (address, len) = sockaddr(to);
    // SAFETY: `address` outlives the call, and has at least `len` bytes.
    match check(unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), len) }) {
        Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => Err(e),
        _ => Ok(()),
    }
}

/// The next connection of a listening socket; it does not block.
pub fn accept(fd: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: null: the peer's address is not wanted.
    check(unsafe { libc::accept4(fd.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags) }).map(owned)
}

/// recv(2).
pub fn receive(fd: &OwnedFd, into: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most `into.len()` bytes.
    check_len(unsafe { libc::recv(fd.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), 0) })
}

fn send_raw(fd: &OwnedFd, start: *const u8, len: usize, more: bool) -> io::Result<usize> {
    let flags = libc::MSG_NOSIGNAL | if more { libc::MSG_MORE } else { 0 };
    // SAFETY: the callers say that `len` bytes can be read at `start`.
    check_len(unsafe { libc::send(fd.as_raw_fd(), start.cast(), len, flags) })
}

/// send(2), without SIGPIPE.
pub fn send(fd: &OwnedFd, bytes: &[u8], more: bool) -> io::Result<usize> {
    send_raw(fd, bytes.as_ptr(), bytes.len(), more)
}

/// The same with a piece of anybody's memory.
pub fn send_still(fd: &OwnedFd, piece: &Still, more: bool) -> io::Result<usize> {
    send_raw(fd, piece.address(), piece.len(), more)
}

/// Sends a datagram.
pub fn send_to(fd: &OwnedFd, bytes: &[u8], to: SocketAddr) -> io::Result<usize> {
    let (address, len) = sockaddr(to);
    // SAFETY: both memories outlive the call, and have the sizes that are told.
    check_len(unsafe {
        libc::sendto(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0, (&raw const address).cast(), len)
    })
}

/// recvfrom(2): how many bytes, and from whom.
pub fn receive_from(fd: &OwnedFd, into: &mut [u8]) -> io::Result<(usize, IpAddr)> {
    // SAFETY: all zeroes are a sockaddr_storage; the kernel writes at most `len` bytes of it, and `into.len()` of the other.
    unsafe {
        let mut from: libc::sockaddr_storage = std::mem::zeroed();
        let mut len = size_of::<libc::sockaddr_storage>() as u32;
        let (memory, room) = (into.as_mut_ptr().cast(), into.len());
        let n = check_len(libc::recvfrom(fd.as_raw_fd(), memory, room, 0, (&raw mut from).cast(), &mut len))?;
        let ip = if i32::from(from.ss_family) == libc::AF_INET6 {
            IpAddr::from((*(&raw const from).cast::<libc::sockaddr_in6>()).sin6_addr.s6_addr)
        } else {
            IpAddr::from((*(&raw const from).cast::<libc::sockaddr_in>()).sin_addr.s_addr.to_ne_bytes())
        };
        Ok((n, ip))
    }
}

/// shutdown(2) of the outgoing direction.
pub fn shutdown(fd: &OwnedFd) {
    // SAFETY: no memory is passed. A connection that has ended already needs none.
    unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_WR) };
}

/// Lets the close of the socket reset the connection.
pub fn reset_on_close(fd: &OwnedFd) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: `linger` outlives the call, and has the size that is told.
    unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as u32,
        );
    }
}

/// What the kernel says of a connection (TCP_INFO); `None`: nothing.
pub fn tcp_info(fd: &OwnedFd) -> Option<libc::tcp_info> {
    // SAFETY: all zeroes are a tcp_info; the kernel writes at most as many bytes as it has.
    unsafe {
        let mut info: libc::tcp_info = std::mem::zeroed();
        let mut size = size_of::<libc::tcp_info>() as u32;
        let to = (&raw mut info).cast();
        let result = libc::getsockopt(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, to, &mut size);
        if result == 0 { Some(info) } else { None }
    }
}

/// Raises the limit of open files to what is allowed.
pub fn raise_file_limit() {
    // SAFETY: the structure outlives both calls.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

/// Opens what lies beneath a directory, for reading; nothing in `path`, symbolic links included, leads out of it (openat2(2), RESOLVE_BENEATH).
/// A FIFO or a device does not block.
pub fn open_beneath(directory: BorrowedFd<'_>, path: &Path) -> io::Result<std::fs::File> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: all zeroes are an open_how; both memories outlive the call, with the size that is told.
    let fd = unsafe {
        let mut how: libc::open_how = std::mem::zeroed();
        how.flags = (libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY) as u64;
        how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS;
        let size = size_of::<libc::open_how>();
        libc::syscall(libc::SYS_openat2, directory.as_raw_fd(), path.as_ptr(), &raw const how, size)
    };
    check(fd as i32).map(|fd| owned(fd).into())
}
