//! What some programs do before they get to their work.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// What careful daemons do first: close every descriptor they did not open.
pub fn close_all() {
    // SAFETY: this program holds no descriptor above 2 yet, so none is closed under anybody's feet.
    let ret = unsafe { libc::close_range(3, u32::MAX, 0) };
    assert_eq!(ret, 0, "close_range: {}", io::Error::last_os_error());
}

/// What programs with fixed descriptor numbers do: dup2 over whatever is there, here over every
/// descriptor that /proc/self/fd names, and close it again.
pub fn dup_over() {
    let names = std::fs::read_dir("/proc/self/fd").expect("/proc/self/fd");
    let numbers: Vec<i32> =
        names.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).filter(|n| *n > 2).collect();
    for n in numbers {
        // SAFETY: this program uses no descriptor above 2 yet (that of read_dir is closed by now).
        unsafe {
            assert_eq!(libc::dup2(0, n), n, "dup2 over {n}: {}", io::Error::last_os_error());
            libc::close(n);
        }
    }
}

/// What programs with an optional sandbox do at their start (libseccomp): ask the kernel, by a
/// filter that has no address, whether it knows filters.
pub fn ask_for_filters() {
    let action: u32 = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the kernel refuses a null address, and reads one action; nothing is installed.
    let answers = unsafe {
        [
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, 0usize, 0usize, 0usize) as i64,
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0usize, 0usize),
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0usize, &raw const action),
        ]
    };
    assert_eq!(answers, [-1, -1, 0], "{}", io::Error::last_os_error());
}

/// The classic double fork; the working directory and standard streams stay.
pub fn daemon() {
    for step in 0..2 {
        // SAFETY: the program has one thread here; the child goes on as the parent would have.
        match unsafe { libc::fork() } {
            -1 => panic!("fork: {}", io::Error::last_os_error()),
            0 if step == 0 => {
                // SAFETY: setsid takes no arguments and touches no memory.
                assert!(unsafe { libc::setsid() } > 0, "setsid");
            }
            0 => {}
            _ => std::process::exit(0),
        }
    }
}

/// Replaces this program by `program`, for which `calls` fail with EPERM. "netlink" stands for
/// socket(AF_NETLINK); the others are system calls' names.
pub fn forbid(calls: &str, program: &[&str]) -> io::Result<()> {
    let filter = filter(calls);
    let prog = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: `prog` names a filter that lives until the call returns; the kernel copies it. Without
    // privileges it is accepted because no_new_privs is set first.
    unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const prog) != 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Err(Command::new(program[0]).args(&program[1..]).exec())
}

fn filter(calls: &str) -> Vec<libc::sock_filter> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    // Offsets in struct seccomp_data: the call's number, and the low half of its first argument.
    const NUMBER: u32 = 0;
    const FIRST: u32 = 16;
    let op = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let refuse = op(RETURN, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, 0, 0);
    let mut out = vec![];
    for call in calls.split(',') {
        let number = match call {
            "memfd_create" => libc::SYS_memfd_create,
            "eventfd2" => libc::SYS_eventfd2,
            "ppoll" => libc::SYS_ppoll,
            "recvmsg" => libc::SYS_recvmsg,
            "sendmsg" => libc::SYS_sendmsg,
            "netlink" => libc::SYS_socket,
            other => panic!("{other}: not one of the calls that can be forbidden"),
        };
        out.push(op(LOAD, NUMBER, 0, 0));
        if call == "netlink" {
            out.push(op(EQUAL, number as u32, 0, 3));
            out.push(op(LOAD, FIRST, 0, 0));
            out.push(op(EQUAL, libc::AF_NETLINK as u32, 0, 1));
        } else {
            out.push(op(EQUAL, number as u32, 0, 1));
        }
        out.push(refuse);
    }
    out.push(op(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0));
    out
}
