//! Whether rings may take more memory.
//!
//! A ring's pages are charged to the control group of the sender, who touches them first, and cannot be reclaimed without swap. The
//! kernel's socket buffers stop growing when memory is short (tcp_under_memory_pressure, mem_cgroup_charge_skmem); so do
//! rings: where a group of this process has less than a quarter of its limit left, or the machine less than an eighth of
//! its memory. What file pages take can be had, so it counts as left.

use crate::kernel::{K, Kernel as _};
use crate::members;
use core::ffi::CStr;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicI64, AtomicU64};

/// Bytes that may be taken without another look, until [`UNTIL`] (monotonic, nanoseconds).
static BUDGET: AtomicI64 = AtomicI64::new(0);
static UNTIL: AtomicU64 = AtomicU64::new(0);

/// How long a look counts, nanoseconds, and which part of what is spare one process takes by it: others look, too.
const LOOK_NS: u64 = 100_000_000;
const PART: u64 = 16;

/// Whether `bytes` more may be taken.
pub fn allows(bytes: usize) -> bool {
    if members::is_filtered() {
        // It may not be asked any more.
        return true;
    }
    let wanted = bytes as i64;
    let now = K::now();
    if now < UNTIL.load(Relaxed) && BUDGET.fetch_sub(wanted, Relaxed) >= wanted {
        return true;
    }
    let spare = spare();
    if spare < bytes as u64 {
        UNTIL.store(0, Relaxed);
        return false;
    }
    BUDGET.store((spare / PART).min(i64::MAX as u64) as i64 - wanted, Relaxed);
    UNTIL.store(now + LOOK_NS, Relaxed);
    true
}

/// Whether closed connections may leave `bytes` in all on their rings, for peers that have not read them yet: a quarter of
/// what rings may take.
pub fn allows_left(bytes: u64) -> bool {
    const PART_LEFT: u64 = 4;
    members::is_filtered() || bytes <= spare() / PART_LEFT
}

/// Whether channels with other users may keep `bytes` in all, whatever becomes of their connections: half of what rings may take.
pub fn allows_kept(bytes: u64) -> bool {
    const PART_KEPT: u64 = 2;
    members::is_filtered() || bytes <= spare() / PART_KEPT
}

/// Bytes that rings may take, by the machine's memory and by the limit of each group that this process is in.
fn spare() -> u64 {
    let (mut total, mut available) = (None, None);
    lines(&[b"/proc/meminfo"], |line| {
        total = total.or(field(line, b"MemTotal:"));
        available = available.or(field(line, b"MemAvailable:"));
    });
    let (mut least, mut machine) = (u64::MAX, u64::MAX);
    if let (Some(total), Some(left)) = (total, available) {
        machine = total << 10;
        least = (left << 10).saturating_sub(machine / 8);
    }
    lines(&[b"/proc/self/cgroup"], |line| {
        // cgroups(7): hierarchy, controllers, path.
        let mut parts = line.splitn(3, |b| *b == b':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { return };
        if controllers.is_empty() {
            for mount in [&b"/sys/fs/cgroup"[..], b"/sys/fs/cgroup/unified"] {
                least = least.min(in_groups(&V2, mount, path, machine));
            }
        } else if controllers.split(|b| *b == b',').any(|c| c == b"memory") {
            least = least.min(in_groups(&V1, b"/sys/fs/cgroup/memory", path, machine));
        }
    });
    least
}

/// The files in which a version of control groups tells of memory (the kernel's documentation: cgroup-v2.rst, memory.rst
/// of cgroup-v1).
struct Version {
    limits: [&'static [u8]; 2],
    usage: &'static [u8],
    files: [&'static [u8]; 2],
}

const V2: Version = Version {
    limits: [b"/memory.max", b"/memory.high"],
    usage: b"/memory.current",
    files: [b"inactive_file", b"active_file"],
};

const V1: Version = Version {
    limits: [b"/memory.limit_in_bytes", b"/memory.limit_in_bytes"],
    usage: b"/memory.usage_in_bytes",
    files: [b"total_inactive_file", b"total_active_file"],
};

/// The least that any group on the way from `path` to the root of its hierarchy has to spare.
fn in_groups(v: &Version, mount: &[u8], path: &[u8], machine: u64) -> u64 {
    let mut least = u64::MAX;
    let mut path = path;
    // A container sees its own group as the root of the mount, whatever its path is called outside.
    loop {
        let dir = if path == b"/" { &b""[..] } else { path };
        if let Some(n) = in_group(v, mount, dir, machine) {
            least = least.min(n);
        }
        if dir.is_empty() {
            return least;
        }
        path = &path[..path.iter().rposition(|b| *b == b'/').unwrap_or(0)];
    }
}

fn in_group(v: &Version, mount: &[u8], dir: &[u8], machine: u64) -> Option<u64> {
    let mut limit = u64::MAX;
    for name in v.limits {
        // "max" is no number: no limit.
        if let Some(n) = figure(&[mount, dir, name]) {
            limit = limit.min(n);
        }
    }
    if limit >= machine {
        return None;
    }
    let usage = figure(&[mount, dir, v.usage])?;
    let mut files = 0;
    lines(&[mount, dir, b"/memory.stat"], |line| {
        files += v.files.iter().filter_map(|name| field(line, name)).sum::<u64>();
    });
    Some(left(limit, usage, files))
}

/// What a group may give to rings.
fn left(limit: u64, usage: u64, files: u64) -> u64 {
    limit.saturating_sub(usage.saturating_sub(files)).saturating_sub(limit / 4)
}

/// The number at the beginning of `text`, after blanks.
fn number(text: &[u8]) -> Option<u64> {
    let digits = text.trim_ascii_start();
    let n = digits.iter().take_while(|b| b.is_ascii_digit()).count();
    (n > 0).then(|| digits[..n].iter().fold(0u64, |v, d| v.saturating_mul(10).saturating_add(u64::from(d - b'0'))))
}

/// The number in a line that begins with `name`.
fn field(line: &[u8], name: &[u8]) -> Option<u64> {
    let rest = line.strip_prefix(name)?;
    if rest.first().is_none_or(|b| *b != b' ') {
        return None;
    }
    number(rest)
}

/// The number at the beginning of a file.
pub fn figure(parts: &[&[u8]]) -> Option<u64> {
    let fd = open(parts)?;
    let mut text = [0u8; 24];
    let r = K::read(fd, &mut text);
    K::close(fd);
    text.get(..r.max(0) as usize).and_then(number)
}

/// Shows each line of a file to `f`, in pieces of the file that need little room: the stack of whoever sends may be short. A line
/// that is longer than [`LINE`] is passed over.
fn lines(parts: &[&[u8]], f: impl FnMut(&[u8])) {
    let Some(fd) = open(parts) else { return };
    each_line(|text| K::read(fd, text), f);
    K::close(fd);
}

fn each_line(mut read: impl FnMut(&mut [u8]) -> isize, mut f: impl FnMut(&[u8])) {
    let mut text = [0u8; LINE];
    let (mut held, mut within) = (0, false);
    loop {
        let r = read(&mut text[held..]);
        if r <= 0 {
            break;
        }
        held += r as usize;
        let mut from = 0;
        while let Some(n) = text[from..held].iter().position(|b| *b == b'\n') {
            if !within {
                f(&text[from..from + n]);
            }
            within = false;
            from += n + 1;
        }
        if from == 0 && held == LINE {
            (within, from) = (true, held);
        }
        text.copy_within(from..held, 0);
        held -= from;
    }
}

/// A path of [`open`]'s and what stands before it in /proc/self/cgroup.
const LINE: usize = 640;

/// Opens the file whose name is made of `parts`.
fn open(parts: &[&[u8]]) -> Option<i32> {
    let mut path = [0u8; 512];
    let mut n = 0;
    for part in parts {
        // The last byte stays 0.
        path.get_mut(n..n + part.len()).filter(|_| n + part.len() < 512)?.copy_from_slice(part);
        n += part.len();
    }
    let fd = K::open(CStr::from_bytes_until_nul(&path).ok()?, libc::O_RDONLY);
    (fd >= 0).then_some(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_however_the_file_comes() {
        let long = "x".repeat(LINE);
        let text = std::format!("first 1\n{}\n\n{long}yy\nbehind 2\nno end", "z".repeat(LINE - 1));
        for most in [1, 7, LINE, 2 * LINE] {
            let (mut seen, mut rest) = (std::vec::Vec::new(), text.as_bytes());
            let read = |into: &mut [u8]| {
                let n = rest.len().min(into.len()).min(most);
                into[..n].copy_from_slice(&rest[..n]);
                rest = &rest[n..];
                n as isize
            };
            each_line(read, |line| seen.push((line.len(), field(line, b"behind"))));
            assert_eq!(seen, [(7, None), (LINE - 1, None), (0, None), (8, Some(2))]);
        }
    }
}
