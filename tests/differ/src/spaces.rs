//! Namespaces: what containers are made of. A process goes into them by itself; into a pid namespace go its children.

use std::fs;
use std::os::fd::AsRawFd;

/// A list of `pid`, `mnt`, `ipc`, `uts`, `net` and of `user` (in which no user has a number) or `root` (a user namespace
/// in which its user is root).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spaces(Vec<String>);

impl Spaces {
    /// The list in words, separated by commas.
    pub fn new(words: &str) -> Spaces {
        Spaces(words.split(',').filter(|w| !matches!(*w, "" | "-")).map(str::to_owned).collect())
    }

    /// Whether `word` is in the list.
    pub fn has(&self, word: &str) -> bool {
        self.0.iter().any(|w| w == word)
    }

    /// The flags of unshare(2), without the pid namespace.
    fn flags(&self) -> i32 {
        let flag = |word: &str| match word {
            "mnt" => libc::CLONE_NEWNS,
            "ipc" => libc::CLONE_NEWIPC,
            "uts" => libc::CLONE_NEWUTS,
            "net" => libc::CLONE_NEWNET,
            "user" | "root" => libc::CLONE_NEWUSER,
            _ => 0,
        };
        self.0.iter().map(|w| flag(w)).fold(0, |a, b| a | b)
    }

    /// Takes the calling process, which has one thread, into all of the list but a pid namespace.
    pub fn enter(&self) -> std::io::Result<()> {
        // SAFETY: plain calls.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        // SAFETY: as above.
        if self.flags() != 0 && unsafe { libc::unshare(self.flags()) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        if self.has("root") {
            // user_namespaces(7): a process may map its own user, and its group once setgroups is denied.
            fs::write("/proc/self/setgroups", "deny")?;
            fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
            fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
        }
        Ok(())
    }

    /// Runs `f`, which makes a process: in a new pid namespace if the list has one. The caller stays where it is.
    pub fn around_fork<T>(&self, f: impl FnOnce() -> T) -> std::io::Result<T> {
        if !self.has("pid") {
            return Ok(f());
        }
        // SAFETY: plain calls; the descriptor is closed below, and by an exec.
        unsafe {
            let own = libc::open(c"/proc/self/ns/pid".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
            if own < 0 || libc::unshare(libc::CLONE_NEWPID) != 0 {
                let e = std::io::Error::last_os_error();
                libc::close(own);
                return Err(e);
            }
            let made = f();
            // pid_namespaces(7): a process may go back to its own one, for the children to come.
            let back = libc::setns(own, libc::CLONE_NEWPID);
            let e = std::io::Error::last_os_error();
            libc::close(own);
            if back == 0 { Ok(made) } else { Err(e) }
        }
    }
}

/// Whether this user may make every kind of namespace.
pub fn allowed() -> bool {
    // SAFETY: a plain call.
    unsafe { libc::geteuid() == 0 }
}

/// Enters the network namespace of process `pid`.
pub fn join_net(pid: i32) -> std::io::Result<()> {
    let file = fs::File::open(format!("/proc/{pid}/ns/net"))?;
    // SAFETY: a plain call on a live descriptor.
    match unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Brings up the loopback interface of a network namespace that has just been made.
pub fn loopback_up() -> std::io::Result<()> {
    // SAFETY: zero is a valid ifreq; the call reads it only.
    let r = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
        let fd = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        let r = libc::ioctl(fd, libc::SIOCSIFFLAGS, &raw mut request);
        libc::close(fd);
        r
    };
    if r == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
