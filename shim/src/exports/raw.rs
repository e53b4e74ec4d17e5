//! `syscall()`: what a program asks of the kernel by number goes the way of the named function.
//!
//! Results are the same, as `syscall()` reports errors as libc does. Where the kernel's call differs from
//! libc's function of that name (the size of a signal set, time left written back), the difference is kept
//! here. A number that is none of ours goes to libc untouched.

use super::{KERNEL_SIGSET, addr, arm, bytes, create, fd, idle, msg, nanos, peek, poke, waits};
use crate::{descriptors, options, poll, processes, select, users};
use core::ffi::{c_int, c_long, c_uint};
use core::mem::offset_of;
use core::ptr::null;
use engine::{fds, leave};
use host::{clock, real};
use libc::{clone_args, sigset_t, timespec, timeval};
use shmring::family::Reason;
use shmring::syscall;

/// `clone3` arguments that we look at end here (its first published size).
const CLONE_ARGS_MIN: usize = 64;

/// The signal set and its size, as `pselect6` takes them: behind one pointer.
#[repr(C)]
#[derive(Clone, Copy)]
struct SigsetArg {
    set: *const sigset_t,
    size: usize,
}

/// Whether the kernel takes a signal set of this address and size (`set_user_sigmask`).
///
/// # Safety
/// `m` is a pointer that the program passed in.
unsafe fn mask_ok(m: *const sigset_t, size: usize) -> bool {
    // SAFETY: the caller's obligation.
    m.is_null() || (size == KERNEL_SIGSET && unsafe { waits::mask_readable(m) })
}

/// A `timeval` as the kernel takes it (`kern_select`), in nanoseconds; `None`: it does not.
fn micros(t: &timeval) -> Option<u64> {
    let s = u64::try_from(t.tv_sec.checked_add(t.tv_usec / 1_000_000)?).ok()?;
    let us = u64::try_from(t.tv_usec % 1_000_000).ok()?;
    Some(s.saturating_mul(1_000_000_000).saturating_add(us * 1000))
}

/// Writes the time left back, as the raw calls do (`poll_select_finish`): not for a timeout of zero, and
/// without complaint where the memory is read-only.
///
/// # Safety
/// `t` is a pointer that the program passed in.
unsafe fn write_left(t: *mut timespec, timeout: Option<u64>, left: u64) {
    let Some(timeout) = timeout else { return };
    if timeout == 0 || timeout == u64::MAX {
        return;
    }
    let left = timespec { tv_sec: (left / 1_000_000_000) as i64, tv_nsec: (left % 1_000_000_000) as i64 };
    // SAFETY: the program's memory, or a fault, which the kernel ignores too.
    let _ = unsafe { poke(t, left) };
}

/// A system call that makes a process. Without `CLONE_VM` and on the same stack it is a fork, and the
/// child returns from here in memory of its own; anything else is left alone.
///
/// # Safety
/// As the system call's.
unsafe fn forking(nr: c_long, a: usize, b: usize, c: usize, d: usize, e: usize) -> c_long {
    processes::fork_prepare();
    // SAFETY: the caller's obligation.
    let r = unsafe { syscall!(nr, a, b, c, d, e) };
    if r == 0 {
        processes::fork_child()
    } else {
        processes::fork_parent()
    }
    real::ret(r) as c_long
}

/// Whether one shares memory with its caller, and the other descriptors.
fn divides(flags: u64) -> bool {
    (flags & libc::CLONE_VM as u64 != 0) != (flags & libc::CLONE_FILES as u64 != 0)
}

/// Whether `clone3` with these arguments is a fork.
///
/// # Safety
/// `args` is a pointer that the program passed in.
unsafe fn clone3_forks(args: *const clone_args, size: usize) -> bool {
    if size < CLONE_ARGS_MIN {
        return false;
    }
    // SAFETY: the program's structure, or a fault; both members lie within its first published size.
    match unsafe { (peek(&raw const (*args).flags), peek(&raw const (*args).stack)) } {
        (Ok(flags), Ok(stack)) => flags & libc::CLONE_VM as u64 == 0 && stack == 0,
        _ => false,
    }
}

/// `union bpf_attr` of BPF_MAP_UPDATE_ELEM (include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Clone, Copy)]
struct Update {
    map: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The connection that bpf(2) is about to put into a map of sockets, if it is one of ours: from then on a program in the kernel gets the bytes
/// that come on it, and those that are sent.
///
/// # Safety
/// `attributes` is a pointer that the program passed in.
unsafe fn into_sockmap(cmd: usize, attributes: *const Update, len: usize) -> Option<c_int> {
    const UPDATE_ELEM: usize = 2;
    const GET_INFO: c_int = 15;
    const SOCKMAP: u32 = 15;
    const SOCKHASH: u32 = 18;
    // The last field may be missing.
    if idle() || cmd as u32 as usize != UPDATE_ELEM || len < offset_of!(Update, flags) {
        return None;
    }
    // SAFETY: the program's structure, or a fault; `flags` is not read.
    let (map, value) =
        unsafe { (peek(&raw const (*attributes).map).ok()?, peek(&raw const (*attributes).value).ok()?) };
    // SAFETY: as above. A value of 8 bytes is a descriptor, too (sock_map_update_elem_sys).
    let fd = unsafe { peek(value as usize as *const c_int) }.ok()?;
    if !fds::tracked(fd) {
        return None;
    }
    let mut kind = 0u32;
    // bpf_fd, info_len, info; of `struct bpf_map_info` the type comes first.
    let mut info = [u64::from(map) | (size_of::<u32>() as u64) << 32, &raw mut kind as u64];
    // SAFETY: the kernel reads `info`, writes how long what it tells is there, and four bytes to `kind`.
    let r = unsafe { syscall!(libc::SYS_bpf, GET_INFO, info.as_mut_ptr(), size_of_val(&info)) };
    (r == 0 && [SOCKMAP, SOCKHASH].contains(&kind)).then_some(fd)
}

/// Variadic in C: six words, the last on the stack, wherever fixed arguments would be. What is not
/// passed is not looked at.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn syscall(
    nr: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    // SAFETY: each function gets the arguments that the program would have passed to it by name.
    unsafe {
        let native = || real::syscall(nr, a, b, c, d, e, f);
        // The kernel takes an int from the low half of the register.
        let (ai, bi, ci, di) = (a as c_int, b as c_int, c as c_int, d as c_int);
        match nr {
            libc::SYS_read => bytes::read(ai, b as _, c) as c_long,
            libc::SYS_write => bytes::write(ai, b as _, c) as c_long,
            libc::SYS_readv => bytes::readv(ai, b as _, ci) as c_long,
            libc::SYS_writev => bytes::writev(ai, b as _, ci) as c_long,
            // The offset's high half is only used by 32-bit processes.
            libc::SYS_preadv2 => bytes::preadv2(ai, b as _, ci, d as i64, f as c_int) as c_long,
            libc::SYS_pwritev2 => bytes::pwritev2(ai, b as _, ci, d as i64, f as c_int) as c_long,
            libc::SYS_recvfrom => bytes::recvfrom(ai, b as _, c, di, e as _, f as _) as c_long,
            libc::SYS_sendto => bytes::sendto(ai, b as _, c, di, e as _, f as u32) as c_long,
            libc::SYS_recvmsg => msg::recvmsg(ai, b as _, ci) as c_long,
            libc::SYS_sendmsg => msg::sendmsg(ai, b as _, ci) as c_long,
            libc::SYS_recvmmsg => msg::recvmmsg(ai, b as _, c as c_uint, di, e as _) as c_long,
            libc::SYS_sendmmsg => msg::sendmmsg(ai, b as _, c as c_uint, di) as c_long,
            libc::SYS_sendfile => bytes::sendfile(ai, bi, c as _, d) as c_long,
            libc::SYS_splice => bytes::splice(ai, b as _, ci, d as _, e, f as c_uint) as c_long,

            libc::SYS_socket => addr::socket(ai, bi, ci) as c_long,
            libc::SYS_socketpair => addr::socketpair(ai, bi, ci, d as _) as c_long,
            libc::SYS_accept => addr::accept(ai, b as _, c as _) as c_long,
            libc::SYS_accept4 => addr::accept4(ai, b as _, c as _, di) as c_long,
            libc::SYS_connect => addr::connect(ai, b as _, c as u32) as c_long,
            libc::SYS_getpeername => addr::getpeername(ai, b as _, c as _) as c_long,
            libc::SYS_shutdown => addr::shutdown(ai, bi) as c_long,
            libc::SYS_setsockopt if fds::tracked(ai) => options::setsockopt(ai, bi, ci, d as _, e as u32) as c_long,
            libc::SYS_getsockopt if fds::tracked(ai) => options::getsockopt(ai, bi, ci, d as _, e as _) as c_long,
            libc::SYS_ioctl if fds::tracked(ai) => options::ioctl(ai, b as c_uint as u64, c) as c_long,
            // Only where ours: libc's fcntl differs from the kernel's in F_GETOWN.
            libc::SYS_fcntl if fds::tracked(ai) || bi == libc::F_DUPFD || bi == libc::F_DUPFD_CLOEXEC => {
                options::fcntl(ai, bi, c) as c_long
            }

            libc::SYS_close => fd::close(ai) as c_long,
            libc::SYS_dup => fd::dup(ai) as c_long,
            libc::SYS_dup2 => fd::dup2(ai, bi) as c_long,
            libc::SYS_dup3 => fd::dup3(ai, bi, ci) as c_long,
            libc::SYS_close_range => fd::close_range(a as c_uint, b as c_uint, ci) as c_long,
            libc::SYS_pidfd_getfd => fd::pidfd_getfd(ai, bi, c as c_uint) as c_long,

            libc::SYS_epoll_create => waits::epoll_create(ai) as c_long,
            libc::SYS_epoll_create1 => descriptors::epoll_create1(ai) as c_long,
            libc::SYS_epoll_ctl => waits::epoll_ctl(ai, bi, ci, d as _) as c_long,
            libc::SYS_epoll_wait => waits::epoll_wait(ai, b as _, ci, di) as c_long,
            libc::SYS_epoll_pwait if !idle() && mask_ok(e as _, f) => {
                waits::epoll_pwait(ai, b as _, ci, di, e as _) as c_long
            }
            libc::SYS_epoll_pwait2 if !idle() && mask_ok(e as _, f) => {
                waits::epoll_pwait2(ai, b as _, ci, d as _, e as _) as c_long
            }
            libc::SYS_poll => waits::poll(a as _, b as u64, ci) as c_long,
            libc::SYS_ppoll => {
                if idle() || b == 0 {
                    return native();
                }
                let Ok(timeout) = nanos(c as *const timespec) else { return native() };
                if !mask_ok(d as _, e) {
                    return native();
                }
                arm();
                let start = clock::now();
                let mut by_kernel = false;
                let r = poll::poll(a as _, b as u64, timeout, d as _, || {
                    by_kernel = true;
                    native() as c_int
                });
                if !by_kernel {
                    write_left(c as _, timeout, timeout.unwrap_or(0).saturating_sub(clock::now() - start));
                }
                r as c_long
            }
            // libc's function reads and writes the time itself, and would fault.
            libc::SYS_select => {
                if ai <= 0 || [b, c, d] == [0; 3] || idle() {
                    return native();
                }
                arm();
                let timeout = match (e, peek(e as *const timeval)) {
                    (0, _) => None,
                    (_, Ok(t)) => match micros(&t) {
                        Some(ns) => Some(ns),
                        None => return native(),
                    },
                    (_, Err(_)) => return native(),
                };
                let mut left = timeout.unwrap_or(0);
                let mut by_kernel = false;
                let r = select::select(ai, b as _, c as _, d as _, timeout, null(), Some(&mut left), || {
                    by_kernel = true;
                    native() as c_int
                });
                if !by_kernel && timeout.is_some_and(|t| t != 0 && t != u64::MAX) {
                    let (s, us) = ((left / 1_000_000_000) as i64, (left % 1_000_000_000 / 1000) as i64);
                    // The kernel does not mind memory that is read-only.
                    let _ = poke(e as *mut timeval, timeval { tv_sec: s, tv_usec: us });
                }
                r as c_long
            }
            libc::SYS_pselect6 => {
                if ai <= 0 || [b, c, d] == [0; 3] || idle() {
                    return native();
                }
                arm();
                let mask = f as *const SigsetArg;
                let mask = match (mask.is_null(), peek(mask)) {
                    (true, _) => SigsetArg { set: null(), size: 0 },
                    (false, Ok(mask)) => mask,
                    (false, Err(_)) => return native(),
                };
                let Ok(timeout) = nanos(e as *const timespec) else { return native() };
                if !mask_ok(mask.set, mask.size) {
                    return native();
                }
                let mut left = timeout.unwrap_or(0);
                let mut by_kernel = false;
                let r = select::select(ai, b as _, c as _, d as _, timeout, mask.set, Some(&mut left), || {
                    by_kernel = true;
                    native() as c_int
                });
                if !by_kernel {
                    write_left(e as _, timeout, left);
                }
                r as c_long
            }

            libc::SYS_execve => super::process::execve(a as _, b as _, c as _) as c_long,
            libc::SYS_execveat => super::process::execveat(ai, b as _, c as _, d as _, e as c_int) as c_long,
            libc::SYS_fork => forking(nr, 0, 0, 0, 0, 0),
            // Whose child runs on this memory, and is not seen to come or go.
            libc::SYS_vfork => {
                processes::divide();
                native()
            }
            libc::SYS_clone if divides(a as u64) => {
                processes::divide();
                native()
            }
            libc::SYS_clone3 if peek(&raw const (*(a as *const clone_args)).flags).is_ok_and(divides) => {
                processes::divide();
                native()
            }
            libc::SYS_unshare => super::process::unshare(ai) as c_long,
            libc::SYS_setns => super::process::setns(ai, b as _) as c_long,
            libc::SYS_chroot => super::process::chroot(a as _) as c_long,
            libc::SYS_pivot_root => super::process::pivot_root(a as _, b as _) as c_long,
            libc::SYS_clone if a & libc::CLONE_VM as usize == 0 && b == 0 => forking(nr, a, b, c, d, e),
            libc::SYS_clone3 if clone3_forks(a as _, b) => forking(nr, a, b, 0, 0, 0),
            libc::SYS_exit_group => {
                processes::leaving();
                native()
            }
            // A domain may forbid abstract Unix sockets (LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET), and with them doorbells.
            libc::SYS_landlock_restrict_self => {
                processes::seccomp();
                native()
            }
            libc::SYS_seccomp => {
                // As for prctl; the other operations ask what filters can do.
                if ai as u32 == libc::SECCOMP_SET_MODE_STRICT || ai as u32 == libc::SECCOMP_SET_MODE_FILTER && c != 0 {
                    processes::seccomp();
                }
                native()
            }
            // These change the ids of the calling thread alone; in a process with one thread those are the process's ids.
            libc::SYS_setuid | libc::SYS_setreuid | libc::SYS_setresuid => users::watch(|| native() as c_int) as c_long,
            libc::SYS_mlockall => super::process::mlockall(ai) as c_long,
            libc::SYS_munlockall => super::process::munlockall() as c_long,
            libc::SYS_prctl => super::process::prctl(ai, b as u64, c as u64, d as u64, e as u64) as c_long,

            // An io_uring would read and write sockets where nobody sees it. Its users fall back to other
            // calls, as they must on kernels without it or with it switched off (io_uring_disabled).
            libc::SYS_io_uring_setup => {
                real::set_errno(libc::ENOSYS);
                -1
            }

            libc::SYS_io_submit => {
                super::aio::submitting(b as isize, c as _);
                native()
            }

            libc::SYS_bpf => {
                if let Some(fd) = into_sockmap(a, b as _, c) {
                    leave::surrender(fd, Reason::Splice);
                }
                native()
            }

            libc::SYS_pipe => create::pipe(a as _) as c_long,
            libc::SYS_pipe2 => create::pipe2(a as _, bi) as c_long,
            libc::SYS_open
            | libc::SYS_openat
            | libc::SYS_openat2
            | libc::SYS_creat
            | libc::SYS_open_by_handle_at
            | libc::SYS_open_tree
            | libc::SYS_fsopen
            | libc::SYS_fsmount
            | libc::SYS_fspick
            | libc::SYS_eventfd
            | libc::SYS_eventfd2
            | libc::SYS_timerfd_create
            | libc::SYS_inotify_init
            | libc::SYS_inotify_init1
            | libc::SYS_fanotify_init
            | libc::SYS_memfd_create
            | libc::SYS_memfd_secret
            | libc::SYS_pidfd_open
            | libc::SYS_userfaultfd
            | libc::SYS_perf_event_open
            | libc::SYS_mq_open => {
                let r = native();
                descriptors::created(r as c_int);
                r
            }
            libc::SYS_signalfd | libc::SYS_signalfd4 => {
                let r = native();
                if ai == -1 {
                    descriptors::created(r as c_int);
                }
                r
            }
            _ => native(),
        }
    }
}
