//! What zstackds tell of the connections that they carry.
// Unsafe here: libc's call to enter a network namespace.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rendezvous::registry::Served;
use zstack_control::{Connection, Error};

use super::Outer;
use crate::serving;

/// The two ends, as the program sees them: its own first.
type Ends = (SocketAddr, SocketAddr);

/// What the zstackds of the namespaces tell that were asked for.
#[derive(Default)]
pub struct Carriers {
    known: HashMap<(PathBuf, u64), HashMap<Ends, Outer>>,
}

impl Carriers {
    /// The connections that are carried for the process behind `proc`, a directory of /proc. `directory`: its CULVERT_DIR.
    pub fn of(&mut self, proc: &Path, directory: Option<&str>) -> &HashMap<Ends, Outer> {
        let namespace = proc.join("ns/net");
        let inode = std::fs::metadata(&namespace).map_or(0, |m| m.ino());
        // As the process sees it: a container has a /dev/shm of its own.
        let directory = proc.join("root").join(directory.unwrap_or(serving::DIRECTORY).trim_start_matches('/'));
        let directory = std::fs::canonicalize(&directory).unwrap_or(directory);
        self.known.entry((directory.clone(), inode)).or_insert_with(|| {
            let served = serving::of(&directory, inode);
            let all = served.ok().and_then(|served| told(&served, &namespace).ok());
            all.unwrap_or_default().into_iter().map(outer).collect()
        })
    }
}

/// What it answers. An abstract name is one of its network namespace; who may not go there is told nothing.
fn told(served: &Served, namespace: &Path) -> Result<Vec<Connection>, Error> {
    let name = served.control().ok_or(Error::Name)?;
    let own = std::fs::metadata("/proc/self/ns/net").map(|m| (m.dev(), m.ino()));
    let there = std::fs::metadata(namespace).map(|m| (m.dev(), m.ino()));
    if !name.starts_with('@') || own.ok() == there.ok() {
        return zstack_control::ask(name, served.owner);
    }
    let ask = || {
        let file = File::open(namespace).map_err(Error::Connect)?;
        // SAFETY: plain numbers. The thread's own namespace; the thread ends.
        if unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
            return Err(Error::Connect(std::io::Error::last_os_error()));
        }
        zstack_control::ask(name, served.owner)
    };
    std::thread::scope(|s| s.spawn(ask).join()).unwrap_or(Err(Error::Nonsense))
}

fn outer(c: Connection) -> (Ends, Outer) {
    let told = Outer {
        state: c.state,
        cwnd: c.cwnd,
        srtt_us: c.srtt_us,
        retransmits: c.retransmits,
        copied_in: c.copied_in,
        copied_out: c.copied_out,
        port: c.port,
    };
    (ends(c.local, c.remote), told)
}

/// Two ends in one form: v4-mapped addresses are IPv4, and no address has a scope.
pub fn ends(local: SocketAddr, remote: SocketAddr) -> Ends {
    let plain = |a: SocketAddr| match a.ip() {
        IpAddr::V6(six) => SocketAddr::new(six.to_ipv4_mapped().map_or(IpAddr::V6(six), IpAddr::V4), a.port()),
        _ => a,
    };
    (plain(local), plain(remote))
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use rendezvous::registry::{Notice, Serving, serve};
    use std::ffi::CString;
    use std::io::{Read, Write};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{self, UnixListener};

    /// A zstackd that carries these connections, in a registry's directory of its own.
    pub struct Fake {
        pub dir: PathBuf,
        _serving: Serving,
    }

    impl Fake {
        pub fn new(name: &str, answer: String) -> Fake {
            let name = format!("culvert-stat-{}-{name}", std::process::id());
            let dir = std::env::temp_dir().join(&name);
            std::fs::create_dir_all(&dir).unwrap();
            let listener = UnixListener::bind_addr(&net::SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
            std::thread::spawn(move || {
                while let Ok((mut s, _)) = listener.accept() {
                    let mut asked = [0; 12];
                    if s.read_exact(&mut asked).is_ok() && asked == *b"connections\n" {
                        let _ = s.write_all(answer.as_bytes());
                    }
                }
            });
            let path = CString::new(dir.to_str().unwrap()).unwrap();
            let serving = serve(&path, &Notice { control: &format!("@{name}"), serves: &[] }).unwrap();
            Fake { dir, _serving: serving }
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }

    pub fn carried(local: SocketAddr, remote: SocketAddr) -> Connection {
        Connection {
            local,
            remote,
            state: "fin-wait-1".into(),
            cwnd: 14_600,
            srtt_us: 250,
            retransmits: 3,
            copied_in: 1000,
            copied_out: 2000,
            port: "af_packet".into(),
        }
    }

    #[test]
    fn what_is_told_is_found_by_both_ends_whatever_the_family() {
        let (local, remote) = ("10.0.0.1:4000".parse().unwrap(), "10.9.0.2:80".parse().unwrap());
        let fake = Fake::new("both", zstack_control::line(&carried(local, remote)));
        let mut carriers = Carriers::default();
        let all = carriers.of(Path::new("/proc/self"), fake.dir.to_str());
        let six = ("[::ffff:10.0.0.1]:4000".parse().unwrap(), "[::ffff:10.9.0.2]:80".parse().unwrap());
        for (a, b) in [(local, remote), six] {
            assert_eq!(all.get(&ends(a, b)).unwrap().state, "fin-wait-1");
        }
        assert!(!all.contains_key(&ends(remote, local)));
    }

    #[test]
    fn nonsense_and_nobody_are_nothing() {
        let fake = Fake::new("nonsense", "nonsense\n".into());
        let mut carriers = Carriers::default();
        assert!(carriers.of(Path::new("/proc/self"), fake.dir.to_str()).is_empty());
        assert!(carriers.of(Path::new("/proc/self"), Some("/nonexistent")).is_empty());
        assert!(carriers.of(Path::new("/proc/nonexistent"), None).is_empty());
    }
}
