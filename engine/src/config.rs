//! `CULVERT_*`, read once, in the constructor: programs overwrite their environment later.
//!
//! A wrong value is reported in one line that names it and says what is accepted; the program then runs
//! on the kernel path.
// Unsafe here: the environment is libc's, as C strings.
#![allow(unsafe_code)]

use crate::log::{self, Level};
use core::ffi::{CStr, c_char};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering::Relaxed};
use shmring::family::ConfiguredPath;
use shmring::layout::{RING_MAX, RING_MIN};
use shmring::lnx;

/// Bytes of one ring unless `CULVERT_RING` says otherwise. The kernel buffers about as much on a loopback
/// connection before a sender blocks (tcp_wmem and tcp_rmem grow to 4 and 6 MiB), and programs have come
/// to rely on it.
const RING_DEFAULT: u32 = 4 << 20;

/// `CULVERT_SPIN=auto`.
pub const SPIN_AUTO: u64 = u64::MAX;

static PATH: AtomicU32 = AtomicU32::new(ConfiguredPath::Kernel as u32);
static RING: AtomicU32 = AtomicU32::new(RING_DEFAULT);
static SPIN: AtomicU64 = AtomicU64::new(SPIN_AUTO);
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

/// `CULVERT_PATH` as a number for the family header.
pub fn path() -> u32 {
    PATH.load(Relaxed)
}

/// Bytes of one ring in channels this process makes.
pub fn ring() -> usize {
    RING.load(Relaxed) as usize
}

/// The largest ring that is accepted of another user.
pub fn ring_limit() -> usize {
    ring().max(RING_DEFAULT as usize)
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

/// The strings of an environment, or, for null, of this process's own.
///
/// # Safety
/// `env` is null or a null-terminated array of C strings, which is not changed meanwhile; its strings live as long as used.
pub unsafe fn environment(env: *const *const c_char) -> impl Iterator<Item = &'static [u8]> {
    unsafe extern "C" {
        static environ: *const *const c_char;
    }
    // SAFETY: libc's variable.
    let mut at = if env.is_null() { unsafe { environ } } else { env };
    core::iter::from_fn(move || {
        // SAFETY: the caller's obligation; not beyond the end, which is null.
        let p = unsafe { at.as_ref() }.filter(|p| !p.is_null())?;
        at = at.wrapping_add(1);
        // SAFETY: the caller's obligation.
        Some(unsafe { CStr::from_ptr(*p) }.to_bytes())
    })
}

/// The value of a variable. Not by `getenv`: shells and others have one of their own, which may not be ready yet. Called
/// from the constructor only, before the program can change its environment.
fn var(name: &CStr) -> Option<&'static [u8]> {
    // SAFETY: libc's variable is null or points to the environment of this image.
    unsafe { environment(core::ptr::null()) }.find_map(|v| v.strip_prefix(name.to_bytes())?.strip_prefix(b"="))
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

/// Reads the environment.
pub fn init() {
    let mut ok = true;
    if let Some(v) = var(c"CULVERT_LOG") {
        match v {
            b"off" => log::silence(),
            b"error" => log::set_level(Level::Error),
            b"warn" => log::set_level(Level::Warn),
            b"info" => log::set_level(Level::Info),
            b"debug" => log::set_level(Level::Debug),
            b"trace" => log::set_level(Level::Trace),
            _ => {
                ok = false;
                crate::log!(
                    Error,
                    "CULVERT_LOG={} is not one of off, error, warn, info, debug, trace; staying on the kernel path",
                    text(v)
                );
            }
        }
    }
    if let Some(v) = var(c"CULVERT_LOG_FILE") {
        ok &= open_log(v);
    }
    if let Some(v) = var(c"CULVERT_SPIN") {
        match v {
            b"auto" => {}
            b"off" => SPIN.store(0, Relaxed),
            _ => match number(v) {
                Some(us) if us <= 1_000_000 => SPIN.store(us, Relaxed),
                _ => {
                    ok = false;
                    crate::log!(
                        Error,
                        "CULVERT_SPIN={} is not auto, off, or microseconds up to 1000000; staying on the kernel path",
                        text(v)
                    );
                }
            },
        }
    }
    if let Some(v) = var(c"CULVERT_RING") {
        match number(v) {
            Some(n) if n.is_power_of_two() && (RING_MIN as u64..=RING_MAX as u64).contains(&n) => {
                RING.store(n as u32, Relaxed)
            }
            _ => {
                ok = false;
                crate::log!(
                    Error,
                    "CULVERT_RING={} is not a power of two from {RING_MIN} to {RING_MAX} bytes; staying on the kernel path",
                    text(v)
                );
            }
        }
    }
    match var(c"CULVERT_EAGER") {
        None | Some(b"0") => {}
        Some(b"1") => EAGER.store(1, Relaxed),
        Some(v) => {
            ok = false;
            crate::log!(Error, "CULVERT_EAGER={} is not 0 or 1; staying on the kernel path", text(v));
        }
    }
    match var(c"CULVERT_PEERS") {
        None | Some(b"any") => {}
        Some(b"own") => OWN_PEERS.store(1, Relaxed),
        Some(v) => {
            ok = false;
            crate::log!(Error, "CULVERT_PEERS={} is not any or own; staying on the kernel path", text(v));
        }
    }
    if let Some(v) = var(c"CULVERT_DIR") {
        ok &= keep_dir(v);
    }
    let path = match var(c"CULVERT_PATH") {
        None | Some(b"auto") => ConfiguredPath::Auto,
        Some(b"shm") => ConfiguredPath::Shm,
        Some(b"kernel") => ConfiguredPath::Kernel,
        Some(b"zstack") => {
            crate::log!(Error, "CULVERT_PATH=zstack is reserved and not built yet; staying on the kernel path");
            ConfiguredPath::Kernel
        }
        Some(v) => {
            crate::log!(Error, "CULVERT_PATH={} is not one of auto, shm, kernel; staying on the kernel path", text(v));
            ConfiguredPath::Kernel
        }
    };
    PATH.store(if ok { path as u32 } else { ConfiguredPath::Kernel as u32 }, Relaxed);
}

fn keep_dir(v: &[u8]) -> bool {
    static mut BUF: [u8; 200] = [0; 200];
    if v.first() != Some(&b'/') || v.len() >= 200 {
        crate::log!(
            Error,
            "CULVERT_DIR={} is not an absolute path shorter than 200 bytes; staying on the kernel path",
            text(v)
        );
        return false;
    }
    let b = &raw mut BUF;
    // SAFETY: written once, in the constructor, before any reader; the length was checked and the last
    // byte stays 0.
    unsafe { core::ptr::copy_nonoverlapping(v.as_ptr(), b.cast(), v.len()) };
    DIR.store(b.cast(), Relaxed);
    true
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
