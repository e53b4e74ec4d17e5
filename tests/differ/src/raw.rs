//! Bare system calls for the control channel between conductor and actors.
//!
//! Nothing here passes through libc, so a preloaded library neither sees nor delays it.

use std::arch::asm;
use std::os::fd::AsRawFd;

/// Makes system call `nr`; the result is the kernel's: `>= 0`, or `-errno`.
///
/// # Safety
/// The arguments must satisfy the kernel's contract for `nr`.
pub unsafe fn syscall(nr: i64, args: [usize; 6]) -> isize {
    let ret: isize;
    // SAFETY: the x86-64 Linux convention; rcx and r11 are clobbered by the instruction.
    unsafe {
        asm!("syscall", inlateout("rax") nr as isize => ret, in("rdi") args[0], in("rsi") args[1],
            in("rdx") args[2], in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    ret
}

/// Where control descriptors live: above every number that a script's own descriptors reach.
pub const CONTROL_FDS: std::ops::Range<i32> = 900..1000;

fn retry(nr: i64, args: [usize; 6]) -> isize {
    loop {
        // SAFETY: forwarded from this module's callers, which pass live buffers and descriptors.
        let r = unsafe { syscall(nr, args) };
        if r != -(libc::EINTR as isize) {
            return r;
        }
    }
}

/// The state of a TCP socket (net/tcp_states.h).
pub fn tcp_state(fd: i32) -> Option<u8> {
    // The first byte of struct tcp_info.
    let (mut state, mut len) = (0u8, 1u32);
    let [level, name] = [libc::IPPROTO_TCP, libc::TCP_INFO].map(|n| n as usize);
    let r = retry(libc::SYS_getsockopt, [fd as usize, level, name, &raw mut state as usize, &raw mut len as usize, 0]);
    (r == 0).then_some(state)
}

/// Whether a TCP socket has something that it has not sent yet, be it a FIN.
pub fn has_unsent(fd: i32) -> bool {
    const SIOCOUTQNSD: usize = 0x894b;
    let mut n = 0i32;
    retry(libc::SYS_ioctl, [fd as usize, SIOCOUTQNSD, &raw mut n as usize, 0, 0, 0]) == 0 && n > 0
}

/// An abstract Unix address and its length.
pub fn address(name: &str) -> (libc::sockaddr_un, u32) {
    // SAFETY: sockaddr_un is plain data for which zero is valid.
    let mut sa: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    sa.sun_family = libc::AF_UNIX as u16;
    for (to, from) in sa.sun_path[1..].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    (sa, (2 + 1 + name.len()) as u32)
}

/// Connects to the conductor's abstract socket and moves the descriptor into [`CONTROL_FDS`].
pub fn connect(name: &str) -> i32 {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    let low = retry(libc::SYS_socket, [libc::AF_UNIX as usize, kind as usize, 0, 0, 0, 0]);
    assert!(low >= 0, "control socket: {low}");
    let (sa, len) = address(name);
    let r = retry(libc::SYS_connect, [low as usize, &raw const sa as usize, len as usize, 0, 0, 0]);
    assert!(r == 0, "control connect to {name}: {r}");
    let min = CONTROL_FDS.start as usize;
    let high = retry(libc::SYS_fcntl, [low as usize, libc::F_DUPFD_CLOEXEC as usize, min, 0, 0, 0]);
    assert!(CONTROL_FDS.contains(&(high as i32)), "control descriptor: {high}");
    close(low as i32);
    high as i32
}

/// Closes a descriptor of the control channel.
pub fn close(fd: i32) {
    retry(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0]);
}

/// Sends one message; a conductor that is gone ends the process.
pub fn send(fd: i32, text: &str) {
    let flags = libc::MSG_NOSIGNAL as usize;
    let r = retry(libc::SYS_sendto, [fd as usize, text.as_ptr() as usize, text.len(), flags, 0, 0]);
    if r < 0 {
        exit(3);
    }
}

/// Receives one message (blocks); a conductor that is gone ends the process.
pub fn recv(fd: i32) -> String {
    let mut buf = vec![0u8; 8192];
    let r = retry(libc::SYS_recvfrom, [fd as usize, buf.as_mut_ptr() as usize, buf.len(), 0, 0, 0]);
    if r <= 0 {
        exit(0);
    }
    buf.truncate(r as usize);
    String::from_utf8(buf).expect("control messages are text")
}

/// Ends the process without running anything of libc's.
pub fn exit(code: i32) -> ! {
    retry(libc::SYS_exit_group, [code as usize, 0, 0, 0, 0, 0]);
    unreachable!("exit_group returned")
}

/// The calling thread's kernel id.
pub fn gettid() -> i32 {
    retry(libc::SYS_gettid, [0; 6]) as i32
}

/// The calling process's id.
pub fn getpid() -> i32 {
    retry(libc::SYS_getpid, [0; 6]) as i32
}

/// The process at the other end of a connected Unix socket, as this process's namespace calls it.
pub fn peer(fd: &impl AsRawFd) -> i32 {
    let mut cred = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as u32;
    let (at, size) = (&raw mut cred as usize, &raw mut len as usize);
    let (level, name) = (libc::SOL_SOCKET as usize, libc::SO_PEERCRED as usize);
    retry(libc::SYS_getsockopt, [fd.as_raw_fd() as usize, level, name, at, size, 0]);
    cred.pid
}
