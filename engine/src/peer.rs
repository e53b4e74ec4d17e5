//! What the registry and the kernel know about the other end of a connection. See `rendezvous`.
#![forbid(unsafe_code)]

use crate::endpoint::Ep;
use crate::kernel::{HOME, K, Kernel as _};
use crate::lifeline::DIAG;
use crate::{config, lifeline, members, own};
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::Relaxed;
use rendezvous::registry::{DEFAULT_DIRECTORY, Registry};

/// Who takes part, as their users' processes have published it.
pub static REGISTRY: Registry = Registry::new(own::place);

/// Opens the registry's directory, before the program can `chroot`. False: there is none.
pub fn open() -> bool {
    let (dir, shared) = match config::dir() {
        Some(d) => (d, true),
        None => (DEFAULT_DIRECTORY, false),
    };
    let opened = REGISTRY.configure(dir, shared);
    if let Err(e) = &opened {
        crate::log!(Warn, "registry in {}: {}; connections stay on the kernel", dir.to_str().unwrap_or("?"), e.text());
    }
    OPENED.store(opened.is_ok(), Relaxed);
    opened.is_ok()
}

/// The registry is the one at home from now on. A connection that lives there was seen; the directory may have been opened by a
/// thread that was elsewhere, for its socket.
pub fn come_home() {
    static DONE: AtomicBool = AtomicBool::new(false);
    if !DONE.load(Relaxed) && HOME.is_here() == Ok(true) {
        REGISTRY.come_home();
        DONE.store(true, Relaxed);
    }
}

/// The registry is in use.
static OPENED: AtomicBool = AtomicBool::new(false);

/// This process publishes nothing any more: it ends, or becomes another program.
pub fn retire() {
    // A process under a system-call filter makes no call here that its program does not make, nor does one in which culvert is
    // off.
    if OPENED.load(Relaxed) && !crate::members::is_filtered() {
        REGISTRY.retire();
    }
}

/// The child of a fork is another user of the registry than its parent.
pub fn after_fork_child() {
    if !crate::members::is_filtered() {
        REGISTRY.forget();
    }
}

/// This process has another user from now on, and publishes as that one.
pub fn forget_user() {
    REGISTRY.forget();
}

/// Whether the kernel says that the socket at the other end has no owner any more.
pub fn gone(ep: Ep, fd: i32) -> bool {
    match K::ends(fd, true) {
        Ok(t) => match ep.local().peer_cookie.load(Relaxed) {
            0 => true,
            cookie => K::has_no_holder(&DIAG, &t, cookie),
        },
        // Not connected any more: reset.
        Err(_) => true,
    }
}

/// Whether the kernel knows the socket at the other end, and that no process holds it: nobody will ever read what lies on the
/// ring for it. Where the kernel knows the connection no more, since it was reset or both ends have finished, that is not
/// known: a process may hold the other socket, and read the ring.
pub fn was_killed(ep: Ep, fd: i32) -> bool {
    let cookie = ep.local().peer_cookie.load(Relaxed);
    cookie != 0 && K::ends(fd, true).is_ok_and(|t| K::is_orphan(&DIAG, &t, cookie))
}

/// Whether `fd` is a descriptor of this connection. The program may have closed that by a call that did not pass here, and
/// the number be another file's by now: what would be sent, read or set there concerns that. The kernel has ended the
/// connection then, and the peer takes it for that of a process that was killed.
pub fn is_ours(ep: Ep, fd: i32) -> bool {
    members::is_filtered() || lifeline::cookie(fd) == Some(ep.cookie.load(Relaxed))
}
