//! A process that gives up its user: it leaves its family.

use crate::epoll;
use engine::{config, family, parting};
use host::tls::tls;
use libc::c_int;
use rendezvous::uid;
use shmring::lnx;

/// Runs a call that may change the user ids of this process. The strongest of its three user ids says what it is trusted
/// with: a server that takes on a client's effective id for a moment (`seteuid`) has given up nothing.
pub fn watch(call: impl FnOnce() -> c_int) -> c_int {
    // A child of vfork runs on its parent's memory until it executes a program: leaving the family there would take the
    // parent out of it.
    if !config::enabled() || !family::exists() || tls().vfork.get() != 0 || engine::members::is_filtered() {
        return call();
    }
    let before = lnx::users();
    let r = call();
    if let (Some(before), Some(now)) = (before, lnx::users())
        && uid::has_lost(before, now)
        && parting::is_due()
    {
        epoll::part();
        parting::part();
    }
    r
}
