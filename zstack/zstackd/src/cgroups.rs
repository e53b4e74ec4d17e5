//! Control groups (cgroups(7), version 2): whether a socket's is one that the configuration names, or lies in one of these.
//!
//! The kernel tells a socket's group by its number, which is the inode of the group's directory. No two groups ever have the same
//! number, and none moves: so what was found out once stays true, also of groups that are made later.

use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Groups that are remembered at once.
const REMEMBERED: usize = 4096;

/// The named groups.
#[derive(Debug)]
pub struct Cgroups {
    named: Vec<PathBuf>,
    /// By a group's number: whether it is one of the named, or in one.
    known: HashMap<u64, bool>,
}

impl Cgroups {
    /// Those with these paths, which begin with `/`; they need not be there yet.
    ///
    /// # Errors
    /// A line for the user.
    pub fn new(paths: &[String]) -> Result<Cgroups, String> {
        let root = root()?;
        let named = paths.iter().map(|path| root.join(path.trim_start_matches('/'))).collect();
        Ok(Cgroups { named, known: HashMap::new() })
    }

    /// Whether a group is one of the named, or in one.
    pub fn have(&mut self, number: u64) -> bool {
        if let Some(known) = self.known.get(&number) {
            return *known;
        }
        let has = self.named.iter().any(|group| is_within(group, number));
        if self.known.len() >= REMEMBERED {
            self.known.clear();
        }
        self.known.insert(number, has);
        has
    }
}

/// Whether the group of this directory has the number, or one that lies in it. What goes away meanwhile has nobody's socket in it that
/// asks now.
fn is_within(group: &Path, number: u64) -> bool {
    if !fs::symlink_metadata(group).is_ok_and(|group| group.is_dir()) {
        return false;
    }
    let is_it = fs::metadata(group).is_ok_and(|group| group.ino() == number);
    is_it
        || fs::read_dir(group)
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()) && is_within(&entry.path(), number))
}

/// Where the groups are.
fn root() -> Result<PathBuf, String> {
    let mounts = fs::read("/proc/self/mountinfo").map_err(|e| format!("/proc/self/mountinfo: {e}: mount /proc"))?;
    let mut points = mounts.split(|b| *b == b'\n').filter_map(point);
    // Mounted over, as /sys is by ip-netns(8), it is in the list and cannot be seen.
    points.rfind(|point| point.join("cgroup.procs").exists()).ok_or_else(|| {
        "no cgroup2 file system can be seen here: mount one (mount -t cgroup2 none DIRECTORY); where `ip netns exec` hides it, \
         use `nsenter --net=/run/netns/NAME`"
            .to_string()
    })
}

/// Where the file system of a line of mountinfo (proc_pid_mountinfo(5)) is mounted, if it is that of the groups.
fn point(line: &[u8]) -> Option<PathBuf> {
    let mut fields = line.split(|b| *b == b' ');
    let point = fields.nth(4)?;
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    (kind == b"cgroup2").then(|| PathBuf::from(std::ffi::OsString::from_vec(unescaped(point))))
}

/// Blanks and the like stand there as `\040`.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = field;
    while let [first, after @ ..] = rest {
        let digits =
            after.get(..3).filter(|digits| *first == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        match digits {
            Some(digits) => {
                out.push(digits.iter().fold(0u8, |n, d| n.wrapping_mul(8).wrapping_add(d - b'0')));
                rest = &after[3..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_in_its_line() {
        let line = br"31 23 0:27 / /sys/fs/a\040cgroup rw,relatime shared:9 - cgroup2 none rw";
        assert_eq!(point(line), Some("/sys/fs/a cgroup".into()));
        assert_eq!(point(br"31 23 0:27 / /sys/fs/x rw,relatime - cgroup none rw,cpu"), None);
        assert_eq!(point(b"31 23"), None);
        assert_eq!(unescaped(br"a\04b\"), br"a\04b\");
    }

    #[test]
    fn a_group_has_itself_and_what_lies_in_it() {
        let place = std::env::temp_dir().join(format!("zstackd-cgroups-{}", std::process::id()));
        fs::create_dir_all(place.join("a/b/c")).unwrap();
        fs::create_dir_all(place.join("d")).unwrap();
        let number = |path: &str| fs::metadata(place.join(path)).unwrap().ino();
        let mut groups = Cgroups { named: vec![place.join("a"), place.join("later")], known: HashMap::new() };
        let told = ["a", "a/b", "a/b/c", "d", "."].map(|path| groups.have(number(path)));
        assert_eq!(told, [true, true, true, false, false]);
        fs::create_dir_all(place.join("later/e")).unwrap();
        assert!(groups.have(number("later/e")));
        fs::remove_dir_all(&place).unwrap();
    }
}
