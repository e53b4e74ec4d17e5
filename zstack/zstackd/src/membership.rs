//! What zstackd tells programs, and they tell it: that it serves their namespace, and which sockets are theirs.

use crate::config::Config;
use rendezvous::registry::{DEFAULT_DIRECTORY, End, Kind, Registry, Timeout};
use rendezvous::serving::{self, Notice, Serving};
use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStringExt;

static REGISTRY: Registry = Registry::new(|fd| fd);

/// Whether a process of this user has said that the socket with this cookie is one of a program under culvert.
pub fn intends(user: u32, cookie: u64, kind: Kind) -> bool {
    REGISTRY.has_intent(user, cookie, kind).unwrap_or(false)
}

/// After how many milliseconds without an acknowledgement the connection of the socket with this cookie is to end, as its user's process has
/// said; 0: never. `None`: it has not, or that was lost.
pub fn timeout(user: u32, cookie: u64) -> Option<u32> {
    REGISTRY.timeout(user, cookie).ok().flatten().map(Timeout::milliseconds)
}

/// Says how the connection of the program's socket with this cookie has ended on the wire. Where that is not possible its program is told
/// of a reset.
pub fn say_end(cookie: u64, end: End) {
    if let Err(e) = REGISTRY.publish_intent(cookie, Kind::Ended(end)) {
        log::debug!("the registry: {}: a program is told of a reset instead of error {}", e.text(), end.errno());
    }
}

/// Says nothing any more: the file in which it was said goes, unless others use it.
pub fn retire() {
    REGISTRY.retire();
}

/// Says that this process serves its network namespace, for as long as what is returned lives. Call once.
///
/// # Errors
/// A line for the user.
pub fn serve(config: &Config, control: &str) -> Result<Serving, String> {
    let named = std::env::var_os("CULVERT_DIR").filter(|dir| !dir.is_empty());
    let shared = named.is_some();
    let directory = match named {
        Some(dir) => {
            CString::new(OsString::into_vec(dir)).map_err(|_| "CULVERT_DIR: a zero byte is in it".to_string())?
        }
        None => DEFAULT_DIRECTORY.to_owned(),
    };
    let path = directory.to_string_lossy().into_owned();
    REGISTRY.configure(&directory, shared).map_err(|e| format!("{path}: {}", e.text()))?;
    let serves: Vec<_> = config.served().iter().map(|prefix| (prefix.ip, prefix.len)).collect();
    serving::serve(&directory, &Notice { control, serves: &serves }).map_err(|e| format!("{path}: {}", e.text()))
}
