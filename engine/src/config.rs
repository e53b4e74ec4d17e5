//! `CULVERT_*`: settings, which somebody hands over once ([`init`]).
//!
//! A wrong value is reported in one line that names it and says what is accepted; the program then runs
//! on the kernel path.
// Unsafe here: `CULVERT_DIR` is kept in a static buffer.
#![allow(unsafe_code)]

use crate::log::{self, Level};
use core::ffi::{CStr, c_char};
use core::fmt;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering::Relaxed};
use shmring::family::ConfiguredPath;
use shmring::layout::{RING_MAX, RING_MIN};
use shmring::lnx;

/// Bytes of one ring unless `CULVERT_RING` says otherwise. The kernel buffers about as much on a loopback
/// connection before a sender blocks (tcp_wmem and tcp_rmem grow to 4 and 6 MiB), and programs have come
/// to rely on it.
const RING_DEFAULT: u32 = 4 << 20;

/// Room for `CULVERT_DIR`, with the zero behind it.
const DIR_MAX: usize = 200;

/// `CULVERT_SPIN=auto`.
pub const SPIN_AUTO: u64 = u64::MAX;

static PATH: AtomicU32 = AtomicU32::new(ConfiguredPath::Kernel as u32);
static RING: AtomicU32 = AtomicU32::new(RING_DEFAULT);
static SPIN: AtomicU64 = AtomicU64::new(SPIN_AUTO);
static STANDS_IN: AtomicU32 = AtomicU32::new(0);
static OWN_PEERS: AtomicU32 = AtomicU32::new(0);
static DIR: AtomicPtr<c_char> = AtomicPtr::new(core::ptr::null_mut());

/// `CULVERT_EAGER=1`, for tests: connections go up at once where both ends can, not after some exchanges.
static EAGER: AtomicU32 = AtomicU32::new(0);

/// See `EAGER`.
#[inline]
pub fn eager() -> bool {
    EAGER.load(Relaxed) != 0
}

/// Whether connections may leave the kernel.
#[inline]
pub fn enabled() -> bool {
    PATH.load(Relaxed) != ConfiguredPath::Kernel as u32
}

/// Whether connections to other hosts may come to shared memory, with a process that stands in for those.
#[inline]
pub fn goes_out() -> bool {
    [ConfiguredPath::Auto as u32, ConfiguredPath::Zstack as u32].contains(&PATH.load(Relaxed))
}

/// Whether the sockets of this process stand in for other hosts (`CULVERT_STANDIN=1`, which `culvert zstackd` sets).
#[inline]
pub fn stands_in() -> bool {
    STANDS_IN.load(Relaxed) != 0
}

/// For tests: from now on they do, or do not.
#[cfg(test)]
pub fn stand_in(stands_in: bool) {
    STANDS_IN.store(stands_in.into(), Relaxed);
}

/// `CULVERT_PATH` as a number for the family header.
pub fn path() -> u32 {
    PATH.load(Relaxed)
}

/// Bytes of one ring in channels this process makes.
pub fn ring() -> usize {
    RING.load(Relaxed) as usize
}

/// Whether this process shares memory with processes of user `uid`: not under `CULVERT_PEERS=own`, unless it is its own user,
/// or root, who can do to it what he likes anyway.
pub fn admits(uid: u32) -> bool {
    OWN_PEERS.load(Relaxed) == 0 || uid == 0 || uid == rendezvous::uid::own()
}

/// Microseconds to spin before sleeping, or [`SPIN_AUTO`].
#[inline]
pub fn spin() -> u64 {
    SPIN.load(Relaxed)
}

/// `CULVERT_DIR`, if set.
pub fn dir() -> Option<&'static CStr> {
    let p = DIR.load(Relaxed);
    // SAFETY: points into a static buffer that is NUL-terminated and written once, in `init`.
    (!p.is_null()).then(|| unsafe { CStr::from_ptr(p) })
}

fn text(v: &[u8]) -> &str {
    core::str::from_utf8(v).unwrap_or("(not UTF-8)")
}

fn number(v: &[u8]) -> Option<u64> {
    if v.is_empty() || v.len() > 12 {
        return None;
    }
    v.iter().try_fold(0u64, |n, &c| c.is_ascii_digit().then(|| n * 10 + u64::from(c - b'0')))
}

/// A setting's value by its name, if it is set.
pub trait Variables: Fn(&str) -> Option<&'static [u8]> {}

impl<F: Fn(&str) -> Option<&'static [u8]>> Variables for F {}

/// Takes over the settings. Before anything else here is asked.
pub fn init(variables: impl Variables) {
    // First, since the log's variables say where mistakes in the others are reported, and whether.
    let logs = init_log(&variables);
    let s = Settings::read(&variables);
    RING.store(s.ring, Relaxed);
    SPIN.store(s.spin, Relaxed);
    EAGER.store(s.eager.into(), Relaxed);
    STANDS_IN.store(s.stands_in.into(), Relaxed);
    OWN_PEERS.store(s.own_peers.into(), Relaxed);
    if let Some(dir) = s.dir {
        keep_dir(dir);
    }
    PATH.store(if logs && s.right { s.path as u32 } else { ConfiguredPath::Kernel as u32 }, Relaxed);
}

/// False: a value is wrong.
fn init_log(variables: &impl Variables) -> bool {
    let level = match variables("CULVERT_LOG") {
        None => true,
        Some(b"off") => {
            log::silence();
            true
        }
        Some(v) => match level(v) {
            Some(level) => {
                log::set_level(level);
                true
            }
            None => {
                crate::log!(
                    Error,
                    "CULVERT_LOG={} is not one of off, error, warn, info, debug, trace; staying on the kernel path",
                    text(v)
                );
                false
            }
        },
    };
    variables("CULVERT_LOG_FILE").is_none_or(open_log) && level
}

fn level(v: &[u8]) -> Option<Level> {
    Some(match v {
        b"error" => Level::Error,
        b"warn" => Level::Warn,
        b"info" => Level::Info,
        b"debug" => Level::Debug,
        b"trace" => Level::Trace,
        _ => return None,
    })
}

/// What the variables say, but for the log's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Settings {
    path: ConfiguredPath,
    ring: u32,
    spin: u64,
    eager: bool,
    stands_in: bool,
    own_peers: bool,
    dir: Option<&'static [u8]>,
    /// False: a variable has a value that it cannot have. The setting is then as if the variable were not set.
    right: bool,
}

impl Settings {
    fn read(variables: &impl Variables) -> Settings {
        let mut s = Settings {
            path: ConfiguredPath::Auto,
            ring: RING_DEFAULT,
            spin: SPIN_AUTO,
            eager: false,
            stands_in: false,
            own_peers: false,
            dir: None,
            right: true,
        };
        match variables("CULVERT_SPIN") {
            None | Some(b"auto") => {}
            Some(b"off") => s.spin = 0,
            Some(v) => match number(v) {
                Some(us) if us <= 1_000_000 => s.spin = us,
                _ => s.wrong("CULVERT_SPIN", v, format_args!("auto, off, or microseconds up to 1000000")),
            },
        }
        match variables("CULVERT_RING").map(|v| (v, number(v))) {
            None => {}
            Some((_, Some(n))) if n.is_power_of_two() && (RING_MIN as u64..=RING_MAX as u64).contains(&n) => {
                s.ring = n as u32;
            }
            Some((v, _)) => {
                s.wrong("CULVERT_RING", v, format_args!("a power of two from {RING_MIN} to {RING_MAX} bytes"));
            }
        }
        match variables("CULVERT_EAGER") {
            None | Some(b"0") => {}
            Some(b"1") => s.eager = true,
            Some(v) => s.wrong("CULVERT_EAGER", v, format_args!("0 or 1")),
        }
        match variables("CULVERT_STANDIN") {
            None | Some(b"0") => {}
            Some(b"1") => s.stands_in = true,
            Some(v) => s.wrong("CULVERT_STANDIN", v, format_args!("0 or 1")),
        }
        match variables("CULVERT_PEERS") {
            None | Some(b"any") => {}
            Some(b"own") => s.own_peers = true,
            Some(v) => s.wrong("CULVERT_PEERS", v, format_args!("any or own")),
        }
        match variables("CULVERT_DIR") {
            Some(v) if v.first() != Some(&b'/') || v.len() >= DIR_MAX => {
                s.wrong("CULVERT_DIR", v, format_args!("an absolute path shorter than {DIR_MAX} bytes"));
            }
            dir => s.dir = dir,
        }
        match variables("CULVERT_PATH") {
            None | Some(b"auto") => {}
            Some(b"shm") => s.path = ConfiguredPath::Shm,
            Some(b"kernel") => s.path = ConfiguredPath::Kernel,
            Some(b"zstack") => s.path = ConfiguredPath::Zstack,
            Some(v) => s.wrong("CULVERT_PATH", v, format_args!("one of auto, zstack, shm, kernel")),
        }
        s
    }

    #[cold]
    fn wrong(&mut self, name: &str, v: &[u8], accepted: fmt::Arguments) {
        self.right = false;
        crate::log!(Error, "{name}={} is not {accepted}; staying on the kernel path", text(v));
    }
}

/// Keeps a copy: programs overwrite their environment.
fn keep_dir(v: &[u8]) {
    static mut BUF: [u8; DIR_MAX] = [0; DIR_MAX];
    let b = &raw mut BUF;
    // SAFETY: written once, in `init`, before any reader; `Settings::read` has checked the length, and the last byte stays 0.
    unsafe { core::ptr::copy_nonoverlapping(v.as_ptr(), b.cast(), v.len().min(DIR_MAX - 1)) };
    DIR.store(b.cast(), Relaxed);
}

fn open_log(v: &[u8]) -> bool {
    let mut path = [0u8; 512];
    if v.is_empty() || v.len() >= path.len() {
        crate::log!(Error, "CULVERT_LOG_FILE is empty or longer than 511 bytes; staying on the kernel path");
        return false;
    }
    path[..v.len()].copy_from_slice(v);
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND | libc::O_NOFOLLOW;
    let Ok(path) = CStr::from_bytes_until_nul(&path) else { return false };
    let fd = lnx::open(path, flags, 0o600);
    if fd < 0 {
        crate::log!(
            Error,
            "CULVERT_LOG_FILE={}: cannot be opened (errno {}); staying on the kernel path",
            text(v),
            -fd
        );
        return false;
    }
    log::FD.store(fd, Relaxed);
    crate::own::adopt(&log::FD);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(set: &'static [(&str, &str)]) -> Settings {
        let find = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_bytes());
        Settings::read(&find)
    }

    #[test]
    fn what_is_not_set_is_as_documented() {
        let s = read(&[]);
        assert_eq!((s.path, s.ring, s.spin, s.eager), (ConfiguredPath::Auto, RING_DEFAULT, SPIN_AUTO, false));
        assert_eq!((s.own_peers, s.stands_in, s.dir, s.right), (false, false, None, true));
    }

    #[test]
    fn each_setting_is_taken_over() {
        assert_eq!(read(&[("CULVERT_PATH", "shm")]).path, ConfiguredPath::Shm);
        assert_eq!(read(&[("CULVERT_PATH", "kernel")]).path, ConfiguredPath::Kernel);
        assert_eq!(read(&[("CULVERT_PATH", "zstack")]).path, ConfiguredPath::Zstack);
        assert_eq!(read(&[("CULVERT_RING", "65536")]).ring, 65536);
        assert_eq!(read(&[("CULVERT_SPIN", "off")]).spin, 0);
        assert_eq!(read(&[("CULVERT_SPIN", "auto")]).spin, SPIN_AUTO);
        assert_eq!(read(&[("CULVERT_SPIN", "1000000")]).spin, 1_000_000);
        assert!(read(&[("CULVERT_EAGER", "1")]).eager);
        assert!(read(&[("CULVERT_STANDIN", "1")]).stands_in);
        assert!(read(&[("CULVERT_PEERS", "own")]).own_peers);
        assert_eq!(read(&[("CULVERT_DIR", "/run/culvert")]).dir, Some(&b"/run/culvert"[..]));
    }

    #[test]
    fn a_value_that_cannot_be_is_wrong_and_changes_nothing() {
        static LONG: std::sync::OnceLock<std::string::String> = std::sync::OnceLock::new();
        let long = LONG.get_or_init(|| "/23456789".repeat(23));
        let cases: &[(&str, &[&str])] = &[
            ("CULVERT_PATH", &["", "Shm", "tcp", "auto ", "zstackd"]),
            ("CULVERT_RING", &["", "0", "4095", "4097", "65537", "-65536", "1e6", "0x10000", "18446744073709551616"]),
            ("CULVERT_SPIN", &["", "on", "1000001", "-1", "1.5", "+1", "9999999999999"]),
            ("CULVERT_EAGER", &["", "2", "yes"]),
            ("CULVERT_STANDIN", &["", "2", "yes"]),
            ("CULVERT_PEERS", &["", "root", "OWN"]),
            ("CULVERT_DIR", &["", "run", "./run", long]),
        ];
        for (name, values) in cases {
            for value in *values {
                let s = Settings::read(&|n: &str| (n == *name).then_some(value.as_bytes()));
                assert_eq!(s, Settings { right: false, ..read(&[]) }, "{name}={value}");
            }
        }
    }
}
