//! Connections from other hosts, brought to a middlebox: as long as somebody has the descriptors, or until it is taken away.
//!
//! A program of the middlebox's group (`listens`) is there first, and alone does nothing; the `sk_lookup` program by which connections come is the last,
//! and is taken away before it. A pin in a bpf file system keeps it: the kernel has no other way.

use crate::group::Opened;
use crate::set::{Presence, Set, change, failed};
use crate::sys;
use libbpf_rs::libbpf_sys::{BPF_CGROUP_SOCK_OPS, BPF_SK_LOOKUP};
use libbpf_rs::query::{LinkInfoIter, LinkTypeInfo};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapHandle, OpenObject, Program};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use steering::{Diversion, Group, Name};

#[allow(unsafe_code, missing_docs, clippy::all, clippy::undocumented_unsafe_blocks)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/receive.skel.rs"));
}

/// Connections that come by an interface of the caller's network namespace and are for this host.
pub struct Receive {
    interface: Name,
    network: u64,
}

/// A program of ours, and the number of the map by which sets are told apart.
struct Own {
    program: OwnedFd,
    maps: Vec<u32>,
    set: u32,
    /// Its interface's number.
    index: u32,
}

fn rights(what: &str, e: &std::io::Error) -> String {
    format!("{what}: {e}: it takes root (CAP_BPF and CAP_NET_ADMIN)")
}

/// The bpf file systems that are not mounted over, as /sys is by ip-netns(8). The one that was mounted last comes first.
fn pins() -> Result<Vec<PathBuf>, String> {
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(|e| format!("/proc/self/mounts: {e}: mount /proc"))?;
    let points = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let point = fields.nth(1)?;
        (fields.next() == Some("bpf")).then(|| PathBuf::from(point))
    });
    let there = |point: &PathBuf| statfs(point).is_ok_and(|of| of.filesystem_type() == BPF_FS_MAGIC);
    let points: Vec<_> = points.rev().filter(there).collect();
    if !points.is_empty() {
        return Ok(points);
    }
    Err("no bpf file system can be seen here: mount one (mount -t bpf none /sys/fs/bpf); where `ip netns exec` hides it, use `nsenter --net=/run/netns/NAME`"
        .to_string())
}

impl Receive {
    /// Those that come by this interface.
    pub fn new(interface: Name) -> Result<Receive, String> {
        let network =
            sys::network().map_err(|e| format!("the network namespace's number: {e}: it takes Linux 5.16 or later"))?;
        Ok(Receive { interface, network })
    }

    /// The interface's number, if there is one.
    fn index(&self) -> Option<u32> {
        nix::net::if_::if_nametoindex(&self.interface.to_string()[..]).ok()
    }

    /// Where the pin is, or would be made.
    fn pin(&self) -> Result<PathBuf, String> {
        let name = format!("culvert-received-{}-{}", self.network, self.interface);
        let all: Vec<_> = pins()?.into_iter().map(|point| point.join(&name)).collect();
        Ok(all.iter().find(|pin| pin.exists()).unwrap_or(&all[0]).clone())
    }

    /// The program, if it is ours, of this name and of this network namespace.
    fn own(&self, number: u32, name: &str) -> Result<Option<Own>, String> {
        // It may be taken away meanwhile.
        let Ok(program) = Program::fd_from_id(number) else { return Ok(None) };
        let (its, maps) = sys::information(&program).map_err(|e| format!("a program: {e}"))?;
        if its != name {
            return Ok(None);
        }
        let map =
            |name: &str| maps.iter().filter_map(|id| MapHandle::from_map_id(*id).ok()).find(|map| map.name() == name);
        let (Some(listeners), Some(place)) = (map("listeners"), map("place")) else { return Ok(None) };
        let place = place.lookup(&[0; 4], MapFlags::ANY).map_err(failed("a program's place"))?.unwrap_or_default();
        let [network @ .., i0, i1, i2, i3, _, _, _, _] = &place[..] else { return Ok(None) };
        if *network != self.network.to_ne_bytes() {
            return Ok(None);
        }
        let set = listeners.info().map_err(failed("a map"))?.info.id;
        Ok(Some(Own { program, maps, set, index: u32::from_ne_bytes([*i0, *i1, *i2, *i3]) }))
    }

    /// The `sk_lookup` program by which this interface's connections are brought.
    fn bringing(&self) -> Result<Option<Own>, String> {
        for link in LinkInfoIter::default() {
            if matches!(link.info, LinkTypeInfo::NetNs(_))
                && let Some(own) = self.own(link.prog_id, "receive")?
                && Some(own.index) == self.index()
            {
                return Ok(Some(own));
            }
        }
        Ok(None)
    }

    /// The programs of a group that tell of its listeners, of this interface, or of one that there is no more.
    fn listening(&self, group: &Opened) -> Result<Vec<Own>, String> {
        let ids = sys::attached(group.as_fd(), BPF_CGROUP_SOCK_OPS, false)
            .map_err(|e| rights(&group.path().display().to_string(), &e))?;
        let mut all = Vec::new();
        for id in ids {
            all.extend(self.own(id, "listens")?);
        }
        all.retain(|own| Some(own.index) == self.index() || nix::net::if_::if_indextoname(own.index).is_err());
        Ok(all)
    }

    /// What is there of it; `Another`: it is another group's, or a process holds it.
    pub fn presence(&self, middlebox: &Group) -> Result<Presence, String> {
        let (Some(group), true) = (Opened::new(middlebox)?, self.index().is_some()) else { return Ok(Presence::Gone) };
        let listening = self.listening(&group)?;
        let bringing = self.bringing()?;
        let pinned = match self.pin() {
            Ok(pin) => pin.exists(),
            // Whether it is ours or a process's nobody can tell.
            Err(e) if bringing.is_some() => return Err(e),
            Err(_) => false,
        };
        Ok(match bringing {
            Some(own) if pinned && listening.len() == 1 && listening[0].set == own.set => Presence::Present,
            // What told of listeners went with its group, if that was removed and made anew.
            Some(_) if pinned => Presence::Part,
            Some(_) => Presence::Another,
            None if listening.is_empty() && !pinned => Presence::Absent,
            None => Presence::Part,
        })
    }

    /// Loads the programs, with these rules.
    fn load(
        &self,
        rules: &[Diversion],
        attach: &mut dyn FnMut(&skeleton::ReceiveSkel<'_>) -> Result<(), String>,
    ) -> Result<(), String> {
        let index = self.index().ok_or_else(|| format!("there is no interface {} here", self.interface))?;
        let lacks = failed("the eBPF programs (they take Linux 5.16 or later with CONFIG_CGROUP_BPF)");
        let mut storage = MaybeUninit::<OpenObject>::uninit();
        let loaded =
            skeleton::ReceiveSkelBuilder::default().open(&mut storage).map_err(&lacks)?.load().map_err(&lacks)?;
        let place = [&self.network.to_ne_bytes()[..], &index.to_ne_bytes(), &[0; 4]].concat();
        loaded.maps.place.update(&[0; 4], &place, MapFlags::ANY).map_err(&lacks)?;
        let table = MapHandle::from_map_id(loaded.maps.rules.info().map_err(&lacks)?.info.id).map_err(&lacks)?;
        change(&table, rules)?;
        attach(&loaded)
    }

    /// Brings connections there as long as somebody has the descriptors, by rules whose `to` is where the middlebox listens. It must begin to listen after this
    /// call, in its group.
    pub fn hold(&self, middlebox: &Group, rules: &[Diversion]) -> Result<Vec<OwnedFd>, String> {
        let group = opened(middlebox)?;
        if self.bringing()?.is_some() {
            return Err(format!("what comes by {} is brought to a middlebox already", self.interface));
        }
        let (network, mut held) = (namespace()?, Vec::new());
        self.load(rules, &mut |loaded| {
            let listens = sys::hold(loaded.progs.listens.as_fd(), group.as_fd(), BPF_CGROUP_SOCK_OPS);
            held.push(listens.map_err(|e| rights(&group.path().display().to_string(), &e))?);
            let receive = sys::hold(loaded.progs.receive.as_fd(), network.as_fd(), BPF_SK_LOOKUP);
            held.push(receive.map_err(|e| rights(&self.interface.to_string(), &e))?);
            Ok(())
        })?;
        Ok(held)
    }

    /// The same without rules, until it is taken away or the network namespace ends.
    pub fn attach(&self, middlebox: &Group) -> Result<(), String> {
        let (group, pin) = (opened(middlebox)?, self.pin()?);
        if !matches!(self.presence(middlebox)?, Presence::Absent | Presence::Part) {
            return Err(format!("what comes by {} is brought to a middlebox already", self.interface));
        }
        // What somebody has left who was killed; it does nothing.
        self.detach(middlebox)?;
        let network = namespace()?;
        self.load(&[], &mut |loaded| {
            sys::attach(loaded.progs.listens.as_fd(), group.as_fd(), BPF_CGROUP_SOCK_OPS)
                .map_err(|e| rights(&group.path().display().to_string(), &e))?;
            let mut link =
                loaded.progs.receive.attach_netns(network.as_raw_fd()).map_err(failed("an sk_lookup program"))?;
            link.pin(&pin).map_err(|e| format!("{}: {e}", pin.display()))
        })
    }

    /// Takes all of it away, also where it is only a part. Connections that were brought go on.
    pub fn detach(&self, middlebox: &Group) -> Result<(), String> {
        if pins().is_ok() {
            let pin = self.pin()?;
            match fs::remove_file(&pin) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(rights(&pin.display().to_string(), &e)),
                _ => {}
            }
        }
        let Some(group) = Opened::new(middlebox)? else { return Ok(()) };
        for own in self.listening(&group)? {
            match sys::detach(own.program.as_fd(), group.as_fd(), BPF_CGROUP_SOCK_OPS) {
                // Another's link: it goes with its process.
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(rights("listens", &e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// The programs with their rules, if they are there.
    pub fn set(&self) -> Result<Option<Set>, String> {
        self.bringing()?.map(|own| Set::with(&own.maps)).transpose()
    }
}

fn opened(group: &Group) -> Result<Opened, String> {
    Opened::new(group)?.ok_or_else(|| format!("there is no control group {group}"))
}

fn namespace() -> Result<File, String> {
    File::open("/proc/thread-self/ns/net").map_err(|e| format!("the network namespace: {e}: mount /proc"))
}
