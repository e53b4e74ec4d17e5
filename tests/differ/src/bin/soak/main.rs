//! `soak`: checksummed streams both ways over many connections, while processes fork, exec, hand connections over, share
//! them, half-close, are stopped and die, some of them in namespaces of their own.
//!
//! A director starts pairs of *workers*: one listens, one connects, and each serves its connections with
//! threads. Every connection's first 16 bytes name the stream in each direction (seed, length); every later
//! byte must be the pattern's at that position, and the end of the stream must come exactly after the last
//! byte. Only a worker that was killed may end a stream early, and then nothing wrong may have been read.

macro_rules! call {
    ($f:ident ( $($arg:expr),* $(,)? )) => {
        // SAFETY: buffers passed are live and of the stated length; descriptors are this program's own.
        unsafe { libc::$f($($arg),*) }
    };
}

mod director;
mod end;
mod look;
mod worker;

use director::{Cli, direct};
use worker::{connector, go_on, listener, within};

const USAGE: &str = "\
usage: soak [--seconds T] [--seed S] [--lib PATH] [--pairs N] [--connections N] [--largest BYTES]
            [--eager 0|1] [--spin V] [--spaces S] [--without dup,fork,exec,scm,hold,turns,dies,split,kill,stop,spaces]
  --seconds T       how long (default 60)
  --lib PATH        library to preload into all workers but every fourth (default: none, the kernel alone)
  --pairs N         pairs of worker processes at once (default 3)
  --connections N   connections that a pair has open at once (default 24)
  --largest BYTES   longest stream (default 3000000)
  --eager V         CULVERT_EAGER (default: mixed)
  --spin V          CULVERT_SPIN (default: mixed)
  --spaces S        namespaces of every worker, such as root or user,pid,mnt; -: none (default: mixed)
  --without LIST    nothing of these kinds. In mid-stream a connection may go on in a duplicate (dup), in a child (fork), in a
                    new image (exec), after a way through a Unix socket (scm), beside a child that holds it and does
                    nothing (hold), in a child and here by turns (turns), here when the child that used it was killed
                    in the act (dies), in two threads (split). Children that share a connection are stopped and go on at
                    random. Workers are killed (kill), stopped for a moment (stop), and in namespaces (spaces; root only)
exit status: 0 clean, 1 a wrong byte, a wrong end or a stall, or something of the list that never happened in two
minutes or more, 2 wrong usage";

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let code = match args.first().map(String::as_str) {
        Some("listen") => listener(&args[1..]),
        Some("connect") => connector(&args[1..]),
        Some("go-on") => go_on(&args[1..]),
        Some("within") => within(&args[1..]),
        _ => match Cli::parse(&args) {
            Ok(cli) => direct(&cli),
            Err(e) => {
                eprintln!("soak: {e}\n{USAGE}");
                2
            }
        },
    };
    std::process::exit(code);
}
