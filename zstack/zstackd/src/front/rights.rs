//! The capabilities that zstackd needs, and giving up the others.

use super::error::Error;
use super::raw;
use caps::{CapSet, Capability, CapsHashSet};

/// What a front needs (capabilities(7)): for routes, rules, filters and transparent sockets; for eBPF programs; for sockets with
/// remote hosts' ports below 1024.
const NEEDED: [Capability; 3] = [Capability::CAP_NET_ADMIN, Capability::CAP_BPF, Capability::CAP_NET_BIND_SERVICE];
/// What a port needs beside: packet sockets.
const PORT: Capability = Capability::CAP_NET_RAW;

/// Whether the thread has what is needed.
///
/// # Errors
/// [`Error::NoRights`] with the missing ones.
pub(crate) fn check() -> Result<(), Error> {
    let has = |c: &Capability| caps::has_cap(None, CapSet::Effective, *c).unwrap_or(true);
    let missing: Vec<String> = NEEDED.iter().filter(|c| !has(c)).map(ToString::to_string).collect();
    if missing.is_empty() { Ok(()) } else { Err(Error::NoRights { missing: missing.join(" ") }) }
}

/// Gives up all capabilities of the calling thread, and of threads that it starts later, but CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and
/// CAP_NET_BIND_SERVICE (remote hosts have ports below 1024 too), and forbids that an exec gains any. A [`Front`](super::Front) works
/// on, and can be made again. To be called before other threads start: they would keep theirs.
///
/// # Errors
/// Those of capset(2) and prctl(2).
pub fn drop_rights() -> Result<(), Error> {
    let refused = |e: caps::errors::CapsError| Error::Refused {
        doing: "capabilities cannot be dropped".to_string(),
        error: e.to_string(),
        remedy: "",
    };
    let keep: CapsHashSet = NEEDED.into_iter().chain([PORT]).collect();
    let held = |set| caps::read(None, set).map_err(refused);
    // Taking one out of the bounding set needs CAP_SETPCAP; without it, what follows leaves nothing that an exec could give.
    if held(CapSet::Effective)?.contains(&Capability::CAP_SETPCAP) {
        for other in held(CapSet::Bounding)?.difference(&keep) {
            caps::drop(None, CapSet::Bounding, *other).map_err(refused)?;
        }
    }
    caps::clear(None, CapSet::Ambient).map_err(refused)?;
    caps::clear(None, CapSet::Inheritable).map_err(refused)?;
    for set in [CapSet::Effective, CapSet::Permitted] {
        let kept = held(set)?.intersection(&keep).copied().collect();
        caps::set(None, set, &kept).map_err(refused)?;
    }
    raw::no_new_privileges().map_err(|e| Error::refused("no_new_privs cannot be set", &e))
}
