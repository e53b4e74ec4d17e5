//! A server whose children lock themselves up, as sshd's do before anybody has logged in: from then on every call but
//! a few kills them.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

/// Serves until killed: each connection in a child that echoes `free` reads, locks itself up, and echoes on. Prints how
/// each child ended. With `keep`, the parent holds the connection until then.
pub fn serve(port: u16, free: usize, keep: bool) -> io::Result<()> {
    for conn in TcpListener::bind(("127.0.0.1", port))?.incoming() {
        let mut conn = Some(conn?);
        // SAFETY: this program has one thread, so the child may go on as an ordinary program.
        match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error()),
            0 => {
                let ended = echo(conn.as_mut().expect("the connection"), free);
                drop(conn);
                // SAFETY: ends the process; no memory is touched.
                unsafe { libc::_exit(i32::from(ended.is_err())) }
            }
            child => {
                if !keep {
                    conn = None;
                }
                let mut status = 0;
                // SAFETY: writes one int.
                unsafe { libc::waitpid(child, &raw mut status, 0) };
                println!("child: status {status:#x}");
                drop(conn);
            }
        }
    }
    Ok(())
}

fn echo(conn: &mut TcpStream, free: usize) -> io::Result<()> {
    let mut buf = vec![0; 65536];
    for i in 0.. {
        if i == free {
            lock_up()?;
        }
        match conn.read(&mut buf)? {
            0 => break,
            n => conn.write_all(&buf[..n])?,
        }
    }
    Ok(())
}

/// The calls of this loop stay allowed, with `poll` as in OpenSSH's sandbox-seccomp-filter.c; any other is fatal.
fn lock_up() -> io::Result<()> {
    const ALLOWED: &[i64] = &[
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_recvfrom,
        libc::SYS_sendto,
        libc::SYS_poll,
        libc::SYS_ppoll,
        libc::SYS_close,
        libc::SYS_fcntl,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_rt_sigreturn,
        libc::SYS_futex,
        libc::SYS_clock_gettime,
        libc::SYS_munmap,
    ];
    let op = |code: u32, k: u32, jt: u8| libc::sock_filter { code: code as u16, jt, jf: 0, k };
    // The call's number lies at offset 0 of struct seccomp_data.
    let mut filter = vec![op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    for (i, nr) in ALLOWED.iter().enumerate() {
        filter.push(op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, *nr as u32, (ALLOWED.len() - i) as u8));
    }
    filter.push(op(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_KILL_PROCESS, 0));
    filter.push(op(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0));
    let prog = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: `prog` names a filter that lives until the call returns; the kernel copies it.
    unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const prog) != 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
