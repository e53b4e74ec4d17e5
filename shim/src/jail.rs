//! A system-call filter that this program image was started under (seccomp(2): it survives exec). A call that it forbids may
//! fail, or end the process, or wait for ever for somebody's answer, so culvert must know of it before it makes any call
//! that the program would not have made without it.
//!
//! The dynamic linker has opened and read files a moment ago, so that much is allowed. What else is, nobody tells. But the
//! filter of a container, under which its first process runs as well, was made for programs that it does not know, and
//! answers with errors, as those of container engines do. Another one was made for this program, or for its kind.
#![forbid(unsafe_code)]

use shmring::{lnx, sys};

/// What `/proc` says of a process: its mode, and how many filters it has (since Linux 5.9).
#[derive(Clone, Copy, PartialEq, Eq)]
struct Filters {
    mode: u64,
    count: Option<u64>,
}

/// Whether culvert stays off here: under a filter that the container's first process has not got, or that refuses what culvert
/// cannot do without, and where nobody can tell whether there is one.
pub fn forbids() -> bool {
    match read(c"/proc/self/status") {
        Some(Filters { mode: 0, .. }) => false,
        Some(own) => own.count.is_none() || read(c"/proc/1/status") != Some(own) || lnx::refuses_waiting(),
        None => true,
    }
}

fn read(path: &core::ffi::CStr) -> Option<Filters> {
    let fd = lnx::open(path, libc::O_RDONLY, 0);
    if fd < 0 {
        return None;
    }
    let mut buf = [0u8; 4096];
    let mut len = 0;
    while let Some(rest) = buf.get_mut(len..).filter(|rest| !rest.is_empty()) {
        let n = lnx::read(fd, rest);
        if n <= 0 {
            break;
        }
        len += n as usize;
    }
    sys::close(fd);
    parse(&buf[..len])
}

fn parse(status: &[u8]) -> Option<Filters> {
    let field = |name: &[u8]| {
        let value = status.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(name))?;
        let digits = value.trim_ascii();
        core::str::from_utf8(digits).ok()?.parse().ok()
    };
    Some(Filters { mode: field(b"Seccomp:")?, count: field(b"Seccomp_filters:") })
}
