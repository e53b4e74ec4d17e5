//! The eBPF programs that lead connections to oneself over the wire: loading and attaching.

use crate::lab::Namespace;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, OpenObject, TC_INGRESS, TcHookBuilder};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

#[allow(unsafe_code, missing_docs, clippy::all, clippy::undocumented_unsafe_blocks)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/away.skel.rs"));
}

/// A control group whose programs' connections to themselves go to the other host, and the mirror there. It ends with this.
pub struct Away {
    group: PathBuf,
    _links: Vec<Link>,
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

impl Away {
    /// For programs in `here`, whose addresses on the wire are `own`; `there` has `other`, and the wire's end `w0`.
    pub fn lead(
        here: &Namespace,
        there: &Namespace,
        own: (Ipv4Addr, Ipv6Addr),
        other: (Ipv4Addr, Ipv6Addr),
    ) -> Result<Away> {
        let mut storage = MaybeUninit::<OpenObject>::uninit();
        let mut open = skeleton::AwaySkelBuilder::default().open(&mut storage)?;
        let data = open.maps.rodata_data.as_deref_mut().ok_or("the programs have no constants")?;
        data.home = here.within(cookie)?;
        (data.own4, data.own6) = (words(own.0.to_ipv6_mapped()), words(own.1));
        (data.other4, data.other6) = (words(other.0.to_ipv6_mapped()), words(other.1));
        let loaded = open.load()?;

        let mirror = loaded.progs.mirror.as_fd();
        there.within(|| {
            // SAFETY: the name ends in a zero byte.
            let index = unsafe { libc::if_nametoindex(c"w0".as_ptr()) };
            let mut hook = TcHookBuilder::new(mirror).ifindex(index as i32).handle(1).priority(1).hook(TC_INGRESS);
            hook.create().and_then(|_| hook.attach()).map(|_| ()).map_err(|e| e.to_string())
        })?;

        let group = mount()?.join(format!("culvert-remote-{}", std::process::id()));
        std::fs::create_dir(&group)?;
        // Removed also if what follows fails.
        let mut away = Away { group, _links: vec![] };
        let directory = File::open(&away.group)?;
        let programs = &loaded.progs;
        let binds = [&programs.bind4, &programs.bind6, &programs.name4, &programs.name6];
        for program in binds.into_iter().chain([&programs.connect4, &programs.connect6]) {
            away._links.push(program.attach_cgroup(directory.as_raw_fd())?);
        }
        Ok(away)
    }

    /// Has a program run in the control group.
    pub fn admit(&self, command: &mut Command) {
        let procs = File::options().write(true).open(self.group.join("cgroup.procs")).expect("the control group");
        // SAFETY: write is a system call with memory that the closure owns, and may be called between fork and exec.
        unsafe {
            command.pre_exec(move || match libc::write(procs.as_raw_fd(), b"0".as_ptr().cast(), 1) {
                1 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        // What the command has left behind, or a directory that stays.
        let _ = std::fs::write(self.group.join("cgroup.kill"), "1");
        for _ in 0..500 {
            match std::fs::remove_dir(&self.group) {
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                _ => break,
            }
        }
    }
}

/// An address as the programs have it.
fn words(ip: Ipv6Addr) -> [u32; 4] {
    let bytes = ip.octets();
    std::array::from_fn(|i| u32::from_ne_bytes(bytes[4 * i..4 * i + 4].try_into().expect("four bytes")))
}

/// The calling thread's network namespace, as eBPF names it.
fn cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: i32 = 71;
    let (mut cookie, mut len) = (0u64, size_of::<u64>() as u32);
    // SAFETY: socket touches no memory; OwnedFd owns the result. getsockopt gets a live u64 and its length.
    let result = unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(socket);
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut len)
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Where control groups of version 2 are.
fn mount() -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let is = |line: &&str| line.split(' ').nth(2) == Some("cgroup2");
    let line =
        mounts.lines().find(is).ok_or("control groups of version 2 are mounted nowhere: mount -t cgroup2 none DIR")?;
    Ok(Path::new(line.split(' ').nth(1).unwrap_or("/")).to_owned())
}
