//! Many connections on which nothing happens.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::procs::Side;
use super::super::row::{Sample, Setup, workload};
use super::lab::{Device, NEAR, World, with_descriptors};
use crate::stat;

/// Connections.
const CONNECTIONS: u32 = 10_000;
/// Exchanges on each: enough for many to come to their rings. The details say how many did.
const EXCHANGES: &str = "30";
/// zstackd looks at each connection once or twice in its first seconds: so long they are over.
const SETTLING: Duration = Duration::from_secs(8);
/// Nothing happens for so long.
const LOOK: Duration = Duration::from_secs(2);

/// Bytes of zstackd and of the kernel for zstackd, for a connection of a server here with a far client: on the kernel's side, of the
/// server and of the kernel for it. The CPU is that of the same in a second.
pub fn idle(s: &Setup, side: Side) -> io::Result<Sample> {
    let world = World::new(s, side, Device::AfPacket)?;
    let at = SocketAddrV4::new(NEAR, 7).to_string();
    let mut server = world.start(s, with_descriptors(workload(&["remote", "echo-server", &at])))?;
    server.first_line()?;
    let owner = world.zstackd().unwrap_or(&server);
    let group = Group::new(owner.pid())?;
    let (memory, kernel) = (owner.pss(), group.kernel()?);
    let count = CONNECTIONS.to_string();
    let words = ["remote", "idle-client", &at, "--connections", &count, "--exchanges", EXCHANGES];
    let mut client = world.wire.far.start(s, with_descriptors(workload(&words)))?;
    // Some minutes, where others want the processors too.
    client.wait_longer(Duration::from_secs(180), |job| job.output().contains('\n').then_some(()))?;
    let before = owner.cpu();
    std::thread::sleep(SETTLING);
    let settling = owner.cpu() - before;
    let before = owner.cpu();
    // The measurement itself: nothing happens for this long.
    std::thread::sleep(LOOK);
    let cpu = owner.cpu() - before;
    let seen = stat::collect(Some(server.pid()))?;
    let on_rings = seen.processes.iter().flat_map(|p| &p.connections).filter(|c| c.path != "kernel").count();
    let each = |bytes: u64| bytes as f64 / f64::from(CONNECTIONS);
    let (memory, kernel) = (each(owner.pss().saturating_sub(memory)), each(group.kernel()?.saturating_sub(kernel)));
    Ok(Sample {
        value: memory + kernel,
        cpu: cpu.as_secs_f64() * 1e6 / LOOK.as_secs_f64(),
        details: BTreeMap::from([
            ("resident", memory),
            ("kernel", kernel),
            ("on_rings", on_rings as f64),
            ("settling_us", settling.as_secs_f64() * 1e6 / f64::from(CONNECTIONS)),
        ]),
    })
}

/// A control group of memory's own, for a process: what the kernel keeps for it.
struct Group {
    path: PathBuf,
    version: Version,
}

#[derive(Clone, Copy)]
enum Version {
    One,
    Two,
}

const NAME: &str = "culvert-bench-";

impl Group {
    fn new(pid: u32) -> io::Result<Group> {
        let (root, version) = [("/sys/fs/cgroup/memory", Version::One), ("/sys/fs/cgroup", Version::Two)]
            .into_iter()
            .find(|(root, version)| match version {
                Version::One => Path::new(root).join("memory.kmem.usage_in_bytes").exists(),
                Version::Two => {
                    let on = fs::read_to_string(format!("{root}/cgroup.subtree_control")).unwrap_or_default();
                    on.split_whitespace().any(|c| c == "memory")
                }
            })
            .ok_or_else(|| io::Error::other("no control group tells what memory the kernel keeps for a process"))?;
        sweep(Path::new(root));
        let group = Group { path: Path::new(root).join(format!("{NAME}{}", std::process::id())), version };
        let _ = fs::create_dir(&group.path);
        fs::write(group.path.join("cgroup.procs"), pid.to_string())?;
        Ok(group)
    }

    /// Bytes.
    fn kernel(&self) -> io::Result<u64> {
        let odd = || io::Error::other(format!("{}: not understood", self.path.display()));
        match self.version {
            Version::One => {
                fs::read_to_string(self.path.join("memory.kmem.usage_in_bytes"))?.trim().parse().map_err(|_| odd())
            }
            Version::Two => {
                let text = fs::read_to_string(self.path.join("memory.stat"))?;
                text.lines().find_map(|l| l.strip_prefix("kernel ")?.parse().ok()).ok_or_else(odd)
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Whoever is in it goes back up first: a group with processes stays.
        let root = self.path.parent().unwrap_or(Path::new("/"));
        for pid in fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = fs::write(root.join("cgroup.procs"), pid);
        }
        let _ = fs::remove_dir(&self.path);
    }
}

/// Removes the groups of benchmarks that were killed.
fn sweep(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|n| n.strip_prefix(NAME)).and_then(|p| p.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}
