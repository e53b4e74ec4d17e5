//! Control groups (cgroups(7), version 2) and their directories.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use steering::Group;

/// A group's directory, open.
#[derive(Debug)]
pub struct Opened {
    directory: File,
    path: PathBuf,
    /// The kernel's number of it.
    pub(crate) number: u64,
}

impl Opened {
    /// Opens it; `None`: there is no such group.
    pub fn new(group: &Group) -> Result<Option<Opened>, String> {
        Opened::at(&root()?.join(group.below_root()))
    }

    fn at(path: &Path) -> Result<Option<Opened>, String> {
        let failed = |e: std::io::Error| format!("{}: {e}", path.display());
        match File::open(path) {
            Ok(directory) => {
                let number = directory.metadata().map_err(failed)?.ino();
                Ok(Some(Opened { directory, path: path.to_owned(), number }))
            }
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed(e)),
        }
    }

    /// The groups in it, at every depth.
    pub(crate) fn inner(&self) -> Result<Vec<Opened>, String> {
        let mut all = Vec::new();
        // A group may end meanwhile, with all that was attached to it.
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir())
                && let Some(group) = Opened::at(&entry.path())?
            {
                let deeper = group.inner()?;
                all.push(group);
                all.extend(deeper);
            }
        }
        Ok(all)
    }

    /// Brings the calling process into it.
    pub fn enter(&self) -> Result<(), String> {
        let list = self.path.join("cgroup.procs");
        fs::write(&list, "0").map_err(|e| format!("{}: {e}", list.display()))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Opened {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// Where the groups are: the last of their file systems that is not mounted over, as /sys is by ip-netns(8).
pub fn root() -> Result<PathBuf, String> {
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(|e| format!("/proc/self/mounts: {e}: mount /proc"))?;
    let mut points = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let point = fields.nth(1)?;
        (fields.next() == Some("cgroup2")).then(|| PathBuf::from(point))
    });
    points.rfind(|point| point.join("cgroup.procs").exists()).ok_or_else(|| {
        "no cgroup2 file system can be seen here: mount one (mount -t cgroup2 none DIRECTORY); where `ip netns exec` hides it, \
         use `nsenter --net=/run/netns/NAME`"
            .to_string()
    })
}
