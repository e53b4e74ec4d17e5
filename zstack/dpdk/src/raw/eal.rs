//! DPDK's environment (EAL), once per process, as a guest.

use super::{calls, log, signals};
use crate::error::OpenError;
use crate::memory::{self, Memory};
use std::cell::Cell;
use std::ffi::{CString, c_char, c_void};
use std::path::Path;
use std::sync::{Mutex, OnceLock, mpsc};
use std::time::Duration;
use zstack_dpdk_sys as sys;

/// DPDK, running.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Eal {
    /// Whether its memory is hugepages.
    pub huge: bool,
}

static EAL: OnceLock<Result<Eal, OpenError>> = OnceLock::new();

/// Devices come and go one at a time: DPDK's own lists are not made for more, and what a driver opens meanwhile is found by comparison.
pub(crate) static ONE: Mutex<()> = Mutex::new(());

/// Starts DPDK, or finds it running. `needed`: the bytes that the caller's pools will take; `echo`: what it says goes to standard error
/// too, from now on.
pub(crate) fn start(wanted: Memory, needed: u64, echo: bool) -> Result<Eal, OpenError> {
    let eal = EAL.get_or_init(|| {
        log::begin();
        log::echo(echo);
        init(wanted, needed)
    });
    let eal = eal.clone()?;
    if echo {
        log::echo(true);
    }
    let other = match wanted {
        Memory::Huge if !eal.huge => {
            "memory=huge: this process runs DPDK without hugepages already: give all its devices the same memory="
        }
        Memory::None if eal.huge => {
            "memory=none: this process runs DPDK with hugepages already: give all its devices the same memory="
        }
        _ => return Ok(eal),
    };
    Err(OpenError::Memory { text: other.into() })
}

fn init(wanted: Memory, needed: u64) -> Result<Eal, OpenError> {
    let needed = needed + memory::BASE;
    let free = memory::free_hugepages();
    let huge = match wanted {
        Memory::None => false,
        Memory::Auto => free >= needed,
        Memory::Huge if free >= needed => true,
        Memory::Huge => {
            let (free, mib) = (free >> 20, needed.div_ceil(1 << 20));
            let remedy = memory::remedy(needed);
            return Err(OpenError::Memory {
                text: format!(
                    "memory=huge: {mib} MiB of hugepages are needed and {free} are free: {remedy}, or write memory=none"
                ),
            });
        }
    };
    let prefix = format!("zstack-{}", std::process::id());
    // One lcore, which nobody uses: threads of ours register themselves.
    let cpu = calls::cpus().first().copied().unwrap_or(0);
    let mut words = vec![
        "zstack".to_owned(),
        format!("--lcores=0@{cpu}"),
        "--no-telemetry".into(),
        "--iova-mode=va".into(),
        format!("--file-prefix={prefix}"),
        // No device of the machine is taken but the one that a spec names: the list of those allowed begins with one that there is not.
        "--allow=ffff:ff:1f.7".into(),
        "--log-level=lib.eal:5".into(),
        "--no-shconf".into(),
    ];
    if huge {
        // One file for all segments: virtio_user hands its memory to the other end by descriptors, of which eight are possible.
        words.extend(["--in-memory".into(), "--single-file-segments".into()]);
    } else {
        // Pages are taken from the machine as they are written.
        let mib = (needed * 2).div_ceil(1 << 20).max(512);
        words.extend(["--no-huge".into(), "-m".into(), mib.to_string()]);
    }
    let before = signals::Dispositions::now();
    // The thread that starts DPDK is bound to a CPU and counted as DPDK's: it is none of the caller's.
    let run = || {
        let mut words: Vec<CString> =
            words.into_iter().map(|w| CString::new(w).expect("no word has a zero byte")).collect();
        let mut pointers: Vec<*mut c_char> = words.iter_mut().map(|w| w.as_ptr().cast_mut()).collect();
        let count = pointers.len() as i32;
        pointers.push(std::ptr::null_mut());
        // SAFETY: `pointers` are `count` strings and a null pointer, all alive through the call; DPDK copies what it keeps. getopt permutes
        // the pointers, not the strings.
        let result = unsafe { sys::rte_eal_init(count, pointers.as_mut_ptr()) };
        (result, error())
    };
    let start = || std::thread::scope(|scope| scope.spawn(run).join()).unwrap_or((-1, 0));
    let (result, errno) = signals::with_all_blocked(start);
    before.restore();
    for base in ["/var/run/dpdk", "/tmp/dpdk"] {
        // It is empty: without shared configuration nothing is kept there.
        let _ = std::fs::remove_dir(Path::new(base).join(&prefix));
    }
    if result < 0 {
        return Err(failure(errno, huge));
    }
    calls::quiet_libraries();
    Ok(Eal { huge })
}

fn failure(errno: i32, huge: bool) -> OpenError {
    let said = log::said();
    let cause = first_complaint(&said).unwrap_or_else(|| text_of(errno));
    let remedy = if said.contains("hugepage") || huge {
        "write memory=none, or have root set more hugepages aside (/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages)"
    } else if said.contains("unsupported cpu") || said.contains("not supported") {
        "DPDK's package is made for newer processors: take tun: or tap: instead"
    } else if said.contains("memory") || said.contains("allocate") {
        "the process may not have so much memory (ulimit -v, ulimit -l, the cgroup's memory.max): give it more, or write a smaller mbufs="
    } else {
        "add log=on to see all that it says"
    };
    OpenError::Dpdk { cause, remedy: remedy.into() }
}

/// The first line that tells of a failure, without what DPDK puts before it.
pub(crate) fn first_complaint(said: &str) -> Option<String> {
    let bad = |l: &&str| {
        let l = l.to_lowercase();
        // net_memif says so, and goes on, where DPDK serves one process only, as here.
        if l.contains("mp action callback") {
            return false;
        }
        ["cannot", "fail", "error", "unable", "invalid", "no such", "not ", "could not", "denied"]
            .iter()
            .any(|w| l.contains(w))
    };
    let line = said.lines().find(bad).or_else(|| said.lines().rfind(|l| !l.trim().is_empty()))?;
    let line = line.trim().trim_end_matches(['.', '!']);
    let line = line.split_once(": ").map_or(line, |(who, rest)| if who.contains(' ') { line } else { rest });
    Some(line.trim().to_owned())
}

/// DPDK's own errno.
pub(crate) fn error() -> i32 {
    // SAFETY: it reads a variable of this thread.
    unsafe { sys::z_errno() }
}

/// Returns when DPDK's thread for interrupts has done all that it had to do when this was called, and what that has led to: a device that is closed
/// while the thread is at it is used after its end (net_virtio_user, whose other end has just gone: its callback cannot be taken back then).
/// It makes that unlikely, and no more: an other end that goes between this and the close still meets it, which the driver alone could prevent.
pub(crate) fn settle() {
    extern "C" fn done(opaque: *mut c_void) {
        // SAFETY: `opaque` is a sender of ours, given up for this call, which comes once.
        let sender = unsafe { Box::from_raw(opaque.cast::<mpsc::Sender<()>>()) };
        // Fails where nobody waits any more.
        let _ = sender.send(());
    }
    // What is ready together is done in any order, the alarm among it; and an interrupt may set an alarm itself, which comes before the next one.
    for _ in 0..3 {
        let (sender, receiver) = mpsc::channel::<()>();
        let opaque = Box::into_raw(Box::new(sender)).cast();
        // SAFETY: DPDK runs; `done` gets `opaque`, which is its own from now on.
        if unsafe { sys::rte_eal_alarm_set(1, Some(done), opaque) } != 0 {
            // SAFETY: DPDK has not taken it.
            drop(unsafe { Box::from_raw(opaque.cast::<mpsc::Sender<()>>()) });
            return;
        }
        if receiver.recv_timeout(Duration::from_secs(1)).is_err() {
            return;
        }
    }
}

/// What an errno, positive or negative, means.
pub(crate) fn text_of(errno: i32) -> String {
    std::io::Error::from_raw_os_error(errno.abs()).to_string()
}

/// The calling thread's place among DPDK's threads: pools keep a cache for each. It is given back with the end of the thread.
struct Member;

impl Drop for Member {
    fn drop(&mut self) {
        // SAFETY: this thread has registered itself.
        unsafe { sys::rte_thread_unregister() };
    }
}

thread_local! {
    static MEMBER: Cell<Option<Member>> = const { Cell::new(None) };
}

/// Makes the calling thread one of DPDK's, if it is none. Without, everything works, and pools are slower.
pub(crate) fn join() {
    MEMBER.with(|member| {
        let found = member.take();
        member.set(found.or_else(|| {
            // SAFETY: DPDK runs (whoever calls has a device), and this thread is not registered.
            (unsafe { sys::rte_thread_register() } == 0).then_some(Member)
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_complaint_is_the_cause() {
        let said = "EAL: Detected CPU lcores: 2\nEAL: Cannot get hugepage information.\nEAL: Error - exiting\n";
        assert_eq!(first_complaint(said).as_deref(), Some("Cannot get hugepage information"));
        assert_eq!(first_complaint("EAL: so it is\n").as_deref(), Some("so it is"));
        assert_eq!(first_complaint(""), None);
        let said = "open_packet_iface(): Could not open AF_PACKET socket\n";
        assert_eq!(first_complaint(said).as_deref(), Some("Could not open AF_PACKET socket"));
    }
}
