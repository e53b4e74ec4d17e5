//! System calls.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A descriptor of our own for what `fd` names, which somebody else may close.
pub(crate) fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl(2) touches no memory of ours; a number that is no descriptor is an error.
    let fd = check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: the kernel has just given us this descriptor; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a descriptor of another owner close on exec.
pub(crate) fn close_on_exec(fd: RawFd) {
    // SAFETY: fcntl(2) touches no memory of ours.
    unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
}

/// Whether there is a descriptor of this number.
pub(crate) fn is_open(fd: RawFd) -> bool {
    // SAFETY: fcntl(2) touches no memory of ours.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// A socket of the network namespace that the thread is in.
pub(crate) fn socket() -> io::Result<OwnedFd> {
    // SAFETY: socket(2) touches no memory of ours.
    let fd = check(unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the kernel has just given us this descriptor; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn option(fd: RawFd, name: i32) -> Option<i32> {
    let mut value: i32 = 0;
    let mut len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `value`, both of this frame; a number that is no socket is an error.
    let result = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut len) };
    (result == 0).then_some(value)
}

/// The address family of a socket.
pub(crate) fn family(fd: RawFd) -> Option<i32> {
    option(fd, libc::SO_DOMAIN)
}

/// The error that waits at a socket, which is none afterwards.
pub(crate) fn take_error(fd: BorrowedFd<'_>) -> i32 {
    option(fd.as_raw_fd(), libc::SO_ERROR).unwrap_or(0)
}

/// Whether a device reads and writes the packets of an XDP socket itself (xdp(7), XDP_OPTIONS); that copies are made is the other way.
pub(crate) fn is_zero_copy(fd: RawFd) -> bool {
    let (mut flags, mut len) = (0u32, size_of::<u32>() as libc::socklen_t);
    // SAFETY: the kernel writes at most `len` bytes to `flags`, both of this frame; a number that is no socket is an error.
    let result =
        unsafe { libc::getsockopt(fd, libc::SOL_XDP, libc::XDP_OPTIONS, (&raw mut flags).cast(), &raw mut len) };
    result == 0 && flags & libc::XDP_OPTIONS_ZEROCOPY != 0
}

/// The interface that a packet(7) socket is bound to.
pub(crate) fn bound_interface(fd: RawFd) -> Option<u32> {
    let mut address = libc::sockaddr_ll {
        sll_family: 0,
        sll_protocol: 0,
        sll_ifindex: 0,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let mut len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `address`, both of this frame.
    let result = unsafe { libc::getsockname(fd, (&raw mut address).cast(), &raw mut len) };
    (result == 0 && i32::from(address.sll_family) == libc::AF_PACKET).then_some(address.sll_ifindex as u32)
}

fn ifreq(name: &str) -> libc::ifreq {
    // SAFETY: all zeroes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // A longer name cannot be an interface's: it stays without its zero byte, and the kernel finds none.
    for (to, from) in request.ifr_name.iter_mut().take(15).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

/// The index of an interface in the socket's namespace.
pub(crate) fn index(socket: BorrowedFd<'_>, name: &str) -> io::Result<u32> {
    let mut request = ifreq(name);
    // SAFETY: SIOCGIFINDEX reads and writes one ifreq, which lives through the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFINDEX, &raw mut request) })?;
    // SAFETY: the call has succeeded and has filled in this member of the union.
    Ok(unsafe { request.ifr_ifru.ifru_ifindex } as u32)
}

/// The MTU of an interface in the socket's namespace.
pub(crate) fn mtu(socket: BorrowedFd<'_>, name: &str) -> io::Result<u32> {
    let mut request = ifreq(name);
    // SAFETY: SIOCGIFMTU reads and writes one ifreq, which lives through the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) })?;
    // SAFETY: the call has succeeded and has filled in this member of the union.
    Ok(unsafe { request.ifr_ifru.ifru_mtu } as u32)
}

/// What drives an interface in the socket's namespace (ethtool(8), `-i`).
pub(crate) fn driver(socket: BorrowedFd<'_>, name: &str) -> io::Result<String> {
    const ETHTOOL_GDRVINFO: u32 = 3;
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    /// linux/ethtool.h.
    #[repr(C)]
    struct DriverInfo {
        command: u32,
        driver: [u8; 32],
        others: [u32; 40],
    }
    const { assert!(size_of::<DriverInfo>() == 196) };
    let mut info = DriverInfo { command: ETHTOOL_GDRVINFO, driver: [0; 32], others: [0; 40] };
    let mut request = ifreq(name);
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    // SAFETY: SIOCETHTOOL reads one ifreq, and this command of it reads and writes a struct of that layout, both of this frame.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) })?;
    let name = info.driver.split(|byte| *byte == 0).next().unwrap_or(&[]);
    Ok(String::from_utf8_lossy(name).into_owned())
}

/// Whether the interface exists in the socket's namespace.
pub(crate) fn exists(socket: BorrowedFd<'_>, index: u32) -> bool {
    let mut request = ifreq("");
    request.ifr_ifru.ifru_ifindex = index as i32;
    // SAFETY: SIOCGIFNAME reads and writes one ifreq, which lives through the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFNAME, &raw mut request) };
    result == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ENODEV)
}

/// Takes what an eventfd(2), or the like of vfio's, has counted.
pub(crate) fn drain(fd: BorrowedFd<'_>) {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry of this frame.
    if unsafe { libc::poll(&raw mut entry, 1, 0) } == 1 && entry.revents == libc::POLLIN {
        let mut count = [0u8; 8];
        // SAFETY: the kernel writes at most 8 bytes to memory of this frame; there is something to be read, so it does not block.
        unsafe { libc::read(fd.as_raw_fd(), count.as_mut_ptr().cast(), 8) };
    }
}

/// Takes what the descriptors have counted that an epoll(7) descriptor watches (net_vhost's: the driver never reads the other end's kicks).
pub(crate) fn drain_watched(epoll: BorrowedFd<'_>) {
    let Ok(info) = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", epoll.as_raw_fd())) else { return };
    for line in info.lines().filter_map(|l| l.strip_prefix("tfd:")) {
        let Some(number) = line.split_whitespace().next().and_then(|n| n.parse::<RawFd>().ok()) else { continue };
        // The driver may have closed it, which the other end still has open: then it is watched on, and its number may be anything of the
        // process's by now, such as a connection. What is looked at is what is read: the number may change its meaning in between.
        let Ok(own) = duplicate(number) else { continue };
        let name = std::fs::read_link(format!("/proc/self/fd/{}", own.as_raw_fd()));
        let counts = name.is_ok_and(|name| name.as_os_str() == "anon_inode:[eventfd]");
        if counts && is_watched(epoll, number, own.as_fd()) != Some(false) {
            drain(own.as_fd());
        }
    }
}

/// Whether it is this that an epoll(7) descriptor watches under the number; `None`: kcmp(2) is refused, as in some containers.
fn is_watched(epoll: BorrowedFd<'_>, number: RawFd, fd: BorrowedFd<'_>) -> Option<bool> {
    const KCMP_EPOLL_TFD: i32 = 7;
    let (process, number_of_fd) = (libc::c_long::from(std::process::id()), libc::c_long::from(fd.as_raw_fd()));
    // Of several that have had the number, each may be watched.
    for nth in 0.. {
        let slot = [epoll.as_raw_fd() as u32, number as u32, nth];
        // SAFETY: the kernel reads a kcmp_epoll_slot, which is three u32, of this frame.
        let result =
            unsafe { libc::syscall(libc::SYS_kcmp, process, process, KCMP_EPOLL_TFD, number_of_fd, slot.as_ptr()) };
        match result {
            0 => return Some(true),
            -1 if io::Error::last_os_error().raw_os_error() == Some(libc::ENOENT) => return Some(false),
            -1 => return None,
            _ => {}
        }
    }
    None
}

/// A descriptor that [`ring`] makes readable.
#[cfg(test)]
pub(crate) fn bell() -> io::Result<OwnedFd> {
    // SAFETY: eventfd(2) touches no memory of ours.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: the kernel has just given us this descriptor; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a [`bell`] readable.
#[cfg(test)]
pub(crate) fn ring(bell: BorrowedFd<'_>) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: the kernel reads 8 bytes of this frame.
    unsafe { libc::write(bell.as_raw_fd(), one.as_ptr().cast(), 8) };
}

/// The CPUs that the thread may run on.
pub(crate) fn cpus() -> Vec<usize> {
    // SAFETY: all zeroes are an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most the size of the set to it.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) } != 0 {
        return vec![0];
    }
    // SAFETY: CPU_ISSET reads a bit of the set, below its size.
    (0..8 * size_of::<libc::cpu_set_t>()).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect()
}

/// Has libbpf and libxdp, which net_af_xdp is made of, write nothing to standard error.
pub(crate) fn quiet_libraries() {
    for (library, function) in [(c"libbpf.so.1", c"libbpf_set_print"), (c"libxdp.so.1", c"libxdp_set_print")] {
        // SAFETY: both names are strings of C. RTLD_NOLOAD: the library is found only if a driver has loaded it.
        let handle = unsafe { libc::dlopen(library.as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD) };
        if handle.is_null() {
            continue;
        }
        // SAFETY: the handle is open.
        let found = unsafe { libc::dlsym(handle, function.as_ptr()) };
        if !found.is_null() {
            type SetPrint = unsafe extern "C" fn(*const std::ffi::c_void) -> *const std::ffi::c_void;
            // SAFETY: the function of this name takes a function or null, and returns the function that it had (bpf/libbpf.h, xdp/libxdp.h).
            let set: SetPrint = unsafe { std::mem::transmute(found) };
            // SAFETY: null: it prints nothing.
            unsafe { set(std::ptr::null()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn epoll() -> OwnedFd {
        // SAFETY: epoll_create1(2) touches no memory of ours.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).unwrap();
        // SAFETY: the kernel has just given us this descriptor; nobody else has it.
        unsafe { OwnedFd::from_raw_fd(fd) }
    }

    fn watch(epoll: &OwnedFd, fd: BorrowedFd<'_>) {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
        // SAFETY: the kernel reads an event of this frame.
        let result = unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &raw mut event) };
        check(result).unwrap();
    }

    /// Puts something else under the number.
    fn replace(number: RawFd, by: BorrowedFd<'_>) {
        // SAFETY: dup2(2) touches no memory of ours; the number is that of a descriptor of the test's.
        check(unsafe { libc::dup2(by.as_raw_fd(), number) }).unwrap();
    }

    fn is_readable(fd: BorrowedFd<'_>) -> bool {
        let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry of this frame.
        unsafe { libc::poll(&raw mut entry, 1, 0) == 1 }
    }

    #[test]
    fn what_is_watched_is_drained_and_nothing_that_has_its_number_since() {
        let (epoll, bell) = (epoll(), bell().unwrap());
        watch(&epoll, bell.as_fd());
        ring(bell.as_fd());
        drain_watched(epoll.as_fd());
        assert!(!is_readable(bell.as_fd()));

        // Still watched, since the other end has it.
        let others = bell.try_clone().unwrap();
        let (mut here, mut there) = UnixStream::pair().unwrap();
        replace(bell.as_raw_fd(), here.as_fd());
        there.write_all(b"12345678").unwrap();
        drain_watched(epoll.as_fd());
        here.set_nonblocking(true).unwrap();
        let mut bytes = [0; 8];
        here.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"12345678");

        let another = super::bell().unwrap();
        match is_watched(epoll.as_fd(), bell.as_raw_fd(), others.as_fd()) {
            None => return eprintln!("skipped: it needs kcmp(2)"),
            watched => assert_eq!(watched, Some(true)),
        }
        replace(bell.as_raw_fd(), another.as_fd());
        ring(another.as_fd());
        drain_watched(epoll.as_fd());
        assert!(is_readable(another.as_fd()));
    }
}
