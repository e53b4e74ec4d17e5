//! Whether a zstackd serves a network namespace: carries connections from there to other hosts.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rendezvous::registry::{Served, Unserved};
use rendezvous::serving;

/// Where registries are unless CULVERT_DIR says otherwise.
pub const DIRECTORY: &str = "/dev/shm";

/// Who serves the network namespace of this process.
pub fn here() -> Result<Served, Unserved> {
    let directory = std::env::var_os("CULVERT_DIR").unwrap_or(DIRECTORY.into());
    let namespace = std::fs::metadata("/proc/self/ns/net").map_err(|_| Unserved::Unknown)?.ino();
    of(Path::new(&directory), namespace)
}

/// The same where programs are about to need its addresses and routes: of one that has just begun they are waited for, and one that was started
/// a moment ago, in the line before, is given the time to say that it is there.
pub fn ready() -> Result<Served, Unserved> {
    const STARTS: Duration = Duration::from_secs(2);
    const PATIENCE: Duration = Duration::from_secs(10);
    let begin = Instant::now();
    loop {
        let seen = here();
        match seen {
            Ok(served) if !served.is_ready() => {
                if begin.elapsed() > PATIENCE {
                    return Err(Unserved::Begins);
                }
            }
            // `Gone`: the namespace may have the number of an earlier one.
            Err(Unserved::Nobody | Unserved::Gone) if begin.elapsed() < STARTS => {}
            _ => return seen,
        }
        // Nothing tells when it is.
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Who serves a network namespace, by the registry in `directory`.
pub fn of(directory: &Path, namespace: u64) -> Result<Served, Unserved> {
    let directory = CString::new(directory.as_os_str().as_bytes()).map_err(|_| Unserved::Unknown)?;
    serving::look_at(&directory, namespace)
}

/// Why nobody serves.
pub fn text(why: Unserved) -> String {
    match why {
        Unserved::Stranger(uid) => format!("{}: user {uid}", why.text()),
        Unserved::Other(errno) => format!("{}: {}", why.text(), std::io::Error::from_raw_os_error(errno)),
        _ => why.text().into(),
    }
}

/// What to do about it.
pub fn remedy(why: Unserved) -> &'static str {
    match why {
        Unserved::Nobody => "start one, as root: `culvert zstackd --config FILE`",
        Unserved::Gone => "start it again, as root: `culvert zstackd --config FILE` (its log says why it has ended)",
        Unserved::Begins => "wait for it (its log says what keeps it)",
        Unserved::Stranger(_) => "let root, or the user of the programs, run it",
        Unserved::NotAFile => "remove that, as root, and start a zstackd",
        Unserved::Unknown => "mount /proc and /dev/shm, or name a directory that exists in CULVERT_DIR",
        Unserved::Other(_) => "make the registry's directory (/dev/shm, CULVERT_DIR) accessible",
    }
}

/// The prefixes that it serves, as text; "no prefix".
pub fn prefixes(served: &Served) -> String {
    const SHOWN: usize = 8;
    let all: Vec<_> = served.serves().map(|(address, bits)| format!("{address}/{bits}")).collect();
    match all.len() {
        0 => "no prefix".into(),
        n if n > SHOWN => format!("{} and {} more", all[..SHOWN].join(" "), n - SHOWN),
        _ => all.join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rendezvous::registry::{Notice, serve};

    #[test]
    fn who_serves_is_seen_by_directory_and_namespace() {
        let dir = std::env::temp_dir().join(format!("culvert-serving-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let namespace = std::fs::metadata("/proc/self/ns/net").unwrap().ino();
        assert_eq!(of(&dir, namespace).unwrap_err(), Unserved::Nobody);
        let prefixes_of = |n: u8| (0..n).map(|i| ([10, i, 0, 0].into(), 16)).collect::<Vec<_>>();
        for (n, said) in [(0, "no prefix"), (2, "10.0.0.0/16 10.1.0.0/16"), (10, "10.7.0.0/16 and 2 more")] {
            let path = CString::new(dir.as_os_str().as_bytes()).unwrap();
            let serving = serve(&path, &Notice { control: "@x", serves: &prefixes_of(n) }).unwrap();
            let served = of(&dir, namespace).unwrap();
            assert!(prefixes(&served).ends_with(said), "{}", prefixes(&served));
            drop(serving);
        }
        assert_eq!(of(&dir.join("nowhere"), namespace).unwrap_err(), Unserved::Unknown);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn every_reason_has_a_remedy() {
        for why in [
            Unserved::Nobody,
            Unserved::Gone,
            Unserved::Begins,
            Unserved::Stranger(7),
            Unserved::NotAFile,
            Unserved::Unknown,
        ] {
            assert!(!text(why).is_empty() && !remedy(why).is_empty());
        }
        assert!(text(Unserved::Stranger(7)).ends_with("user 7"));
        assert!(text(Unserved::Other(libc::EACCES)).contains("ermission denied"));
    }
}
