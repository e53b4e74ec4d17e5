//! What zstackd holds: before and after a storm it must be as much.

use crate::lab::soon;
use crate::world::{LIMIT, World};
use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

/// Counts, by what was counted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Census {
    /// Descriptors, by what they are, apart from sockets.
    pub fds: BTreeMap<String, usize>,
    /// TCP sockets.
    pub inner: usize,
    /// Other sockets.
    pub others: usize,
    /// Mappings, and those of memfds among them.
    pub maps: usize,
    pub memfds: usize,
    /// Channels with programs.
    pub channels: usize,
    /// KiB.
    pub resident: usize,
    pub shared: usize,
    /// Connections that it tells of.
    pub connections: usize,
    /// Sockets of the namespace that are neither listeners nor in TIME_WAIT.
    pub sockets: usize,
    /// Users' registries.
    pub files: usize,
}

/// Of a descriptor: without its numbers.
fn kind(link: &str) -> String {
    link.split(['[', '(']).next().unwrap_or("").trim_end().chars().filter(|c| !c.is_ascii_digit()).collect()
}

impl Census {
    pub fn take(world: &World) -> Census {
        let pid = world.zstackd.as_ref().expect("zstackd").0.id();
        let mut census = Census::default();
        let tables = ["tcp", "tcp6"].map(|t| std::fs::read_to_string(format!("/proc/{pid}/net/{t}")).expect("sockets"));
        let inodes = tables.iter().flat_map(|t| t.lines()).filter_map(|l| l.split_whitespace().nth(9));
        let inodes: std::collections::HashSet<_> = inodes.collect();
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors").flatten() {
            let Ok(link) = std::fs::read_link(entry.path()) else { continue };
            let link = link.to_string_lossy();
            match link.strip_prefix("socket:[").and_then(|l| l.strip_suffix(']')) {
                Some(inode) if inodes.contains(inode) => census.inner += 1,
                Some(_) => census.others += 1,
                None if link.starts_with("/memfd:culvert-channel") => census.channels += 1,
                None => *census.fds.entry(kind(&link)).or_default() += 1,
            }
        }
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("mappings");
        census.maps = maps.lines().count();
        census.memfds = maps.lines().filter(|l| l.contains("/memfd:")).count();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        let number = |name: &str| {
            let line = status.lines().find(|l| l.starts_with(name)).expect("a line");
            line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
        };
        (census.resident, census.shared) = (number("VmRSS:"), number("RssShmem:"));
        let control = format!("@culvert-zstackd-{pid}");
        census.connections = world.here.within(|| zstack_control::ask(&control, 0).expect("an answer").len());
        let sockets = world.here.run("ss -Htan state connected exclude time-wait");
        census.sockets = sockets.lines().count();
        let files = std::fs::read_dir(crate::world::registry()).expect("a directory").flatten();
        census.files = files.filter(|f| f.file_name().to_string_lossy().starts_with("culvert-")).count();
        census
    }

    /// What is held when no connection is left, and zstackd has nothing to do.
    pub fn settled(world: &World) -> Census {
        let zstackd = world.zstackd.as_ref().expect("zstackd");
        soon("no connection is left", LIMIT, || {
            let census = Census::take(world);
            (census.connections == 0 && census.sockets == 0).then_some(())
        });
        soon("zstackd has nothing to do", LIMIT, || {
            let before = zstackd.cpu();
            thread::sleep(Duration::from_millis(100));
            (zstackd.cpu() == before).then_some(())
        });
        Census::take(world)
    }

    /// What is held more than before, if anything is.
    pub fn more(&self, before: &Census) -> Option<String> {
        // The registries of the users whom it has met are open.
        let own = |census: &Census| -> Vec<_> {
            let counted = |kind: &&String| !kind.contains("/culvert-");
            census.fds.iter().filter(|(kind, _)| counted(kind)).map(|(k, n)| (k.clone(), *n)).collect()
        };
        let same = own(self) == own(before)
            && self.inner == before.inner
            // Without a connection there is no channel. Before there may have been one that was found free since.
            && self.channels == 0
            && self.memfds <= before.memfds
            && (self.connections, self.sockets) == (0, 0)
            // Boxes for answers of programs that are gone: sixteen at most, and as many lines to programs.
            && self.others <= before.others + 32
            && self.maps <= before.maps + 32
            // A file for each user's registry.
            && self.files <= before.files + 2
            && self.resident <= before.resident + 8192
            && self.shared <= before.shared + 1024;
        (!same).then(|| format!("more is held:\nbefore {before:?}\nafter  {self:?}"))
    }
}
