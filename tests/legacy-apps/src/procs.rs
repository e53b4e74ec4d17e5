//! What `/proc` says about processes and sockets.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Process ids of this machine that have a readable working directory (no zombies, no kernel threads).
fn pids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok())
}

/// Living processes whose working directory is `dir` or lies below it.
pub fn working_in(dir: &Path) -> Vec<u32> {
    pids().filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir))).collect()
}

/// Living children of `pid`.
pub fn children(pid: u32) -> Vec<u32> {
    pids().filter(|p| *p != pid && status(*p).is_some_and(|s| s.parent == pid && s.state != 'Z')).collect()
}

/// What `/proc/PID/stat` says.
pub struct Status {
    /// `R`, `S`, `T`, `Z`...
    pub state: char,
    /// Parent's process id.
    pub parent: u32,
    /// CPU time used so far, clock ticks.
    pub ticks: u64,
}

/// The state of `pid`; `None` if there is no such process.
pub fn status(pid: u32) -> Option<Status> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name stands in parentheses and may contain any byte: the fields begin after the last ')'.
    let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
    Some(Status {
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        ticks: fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?,
    })
}

/// Is `pid` a living process (not a zombie)?
pub fn alive(pid: u32) -> bool {
    status(pid).is_some_and(|s| s.state != 'Z')
}

/// The command line of `pid`, for messages.
pub fn command_line(pid: u32) -> String {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&raw).replace('\0', " ").trim().to_owned()
}

/// Sends `signal` to `pid`; false if there is no such process.
pub fn signal(pid: u32, signal: i32) -> bool {
    assert!(pid > 1, "refusing to signal process {pid}");
    // SAFETY: kill touches no memory of ours.
    unsafe { libc::kill(pid as i32, signal) == 0 }
}

/// Does some socket of this network namespace listen on TCP `port`?
pub fn listening(port: u16) -> bool {
    const LISTEN: &str = "0A";
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().any(|table| {
        fs::read_to_string(table).unwrap_or_default().lines().skip(1).any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let local =
                fields.next().and_then(|l| l.rsplit_once(':')).and_then(|(_, p)| u16::from_str_radix(p, 16).ok());
            local == Some(port) && fields.nth(1) == Some(LISTEN)
        })
    })
}

/// Distinct memfds of culvert mapped by `pid`.
pub fn culvert_mappings(pid: u32) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let mut inodes: Vec<&str> =
        maps.lines().filter(|l| l.contains("memfd:culvert")).filter_map(|l| l.split_whitespace().nth(4)).collect();
    inodes.sort_unstable();
    inodes.dedup();
    inodes.len()
}

/// What the open descriptors of `pid` are, and how many of each kind.
pub fn descriptor_kinds(pid: u32) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for fd in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        let target = fs::read_link(fd.path()).unwrap_or_default().to_string_lossy().into_owned();
        // socket:[4711] and socket:[4712] are the same kind.
        *kinds.entry(target.split(":[").next().unwrap_or("").to_owned()).or_insert(0) += 1;
    }
    kinds
}

/// Open descriptors of `pid`.
pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Names and sizes of culvert's registries in `/dev/shm`.
pub fn registries() -> Vec<(String, u64)> {
    let mut found: Vec<_> = fs::read_dir("/dev/shm")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with("culvert"))
        .map(|e| (e.file_name().to_string_lossy().into_owned(), e.metadata().map_or(0, |m| m.len())))
        .collect();
    found.sort();
    found
}
