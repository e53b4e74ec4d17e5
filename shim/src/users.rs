//! A process that gives up its user: it leaves its family.

use crate::epoll;
use engine::{config, family, parting};
use host::tls::tls;
use libc::c_int;
use rendezvous::uid;
use shmring::lnx;

/// Runs a call that may change the user ids of this process. What a process is trusted with goes by the best of its three:
/// a server that takes on a client's for a moment (`seteuid`) stays who it is.
pub fn watch(call: impl FnOnce() -> c_int) -> c_int {
    // A child of vfork runs on its parent's memory, until it runs another program.
    if !config::enabled() || !family::exists() || tls().vfork.get() != 0 || engine::members::is_filtered() {
        return call();
    }
    let before = lnx::users();
    let r = call();
    if let (Some(before), Some(now)) = (before, lnx::users())
        && uid::has_lost(before, now)
        && !family::alone()
    {
        epoll::part();
        parting::part();
    }
    r
}
