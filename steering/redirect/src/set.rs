//! The programs of a control group: attached, found again, given other rules, taken away. Nothing of it is in a file: the group has
//! its programs, and these have their maps.

use crate::group::Opened;
use crate::rules::{self, SIZE};
use crate::sys::{self, Kind};
use libbpf_rs::libbpf_sys::{
    BPF_CGROUP_GETSOCKOPT, BPF_CGROUP_INET4_CONNECT, BPF_CGROUP_INET4_GETPEERNAME, BPF_CGROUP_INET6_CONNECT,
    BPF_CGROUP_INET6_GETPEERNAME, BPF_CGROUP_SOCK_OPS, bpf_map_create_opts,
};
use libbpf_rs::query::{ProgInfoIter, ProgInfoQueryOptions};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType, OpenObject, Program};
use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use steering::{Diversion, Group, MOST_DIVERSIONS};

#[allow(unsafe_code, missing_docs, clippy::all, clippy::undocumented_unsafe_blocks)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/redirect.skel.rs"));
}

/// A client's programs, and where each is attached. The first is there before the middlebox's, and longer: by it those are found that
/// somebody has left who was killed. What turns connections is the last.
const OF_CLIENTS: [(&str, Kind); 5] = [
    ("opens", BPF_CGROUP_SOCK_OPS),
    ("getpeername4", BPF_CGROUP_INET4_GETPEERNAME),
    ("getpeername6", BPF_CGROUP_INET6_GETPEERNAME),
    ("connect4", BPF_CGROUP_INET4_CONNECT),
    ("connect6", BPF_CGROUP_INET6_CONNECT),
];

/// A middlebox's.
const OF_MIDDLEBOXES: [(&str, Kind); 2] = [("tells", BPF_CGROUP_GETSOCKOPT), ("accepts", BPF_CGROUP_SOCK_OPS)];

/// What is in a control group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    /// All programs of a set, with those of this middlebox.
    Present,
    /// None.
    Absent,
    /// Not all: somebody was killed, or has taken some away.
    Part,
    /// All of a set that has another middlebox.
    Another,
    /// There is no such group.
    Gone,
}

/// A program of ours in a group. Those of one set have the same maps.
#[derive(Debug)]
struct Own {
    program: OwnedFd,
    name: &'static str,
    kind: Kind,
    maps: Vec<u32>,
    /// The number of the map by which the sets are told apart.
    set: u32,
}

/// The programs of a group.
pub struct Set {
    maps: Vec<MapHandle>,
}

fn rights(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => ": it takes root (CAP_BPF and CAP_NET_ADMIN)",
        io::ErrorKind::InvalidInput => ": does this Linux have CONFIG_CGROUP_BPF?",
        _ => "",
    }
}

pub(crate) fn failed(what: &str) -> impl Fn(libbpf_rs::Error) -> String + '_ {
    // EPERM; EACCES is what the verifier says.
    move |error| match error.to_string() {
        text if text.contains("os error 1)") => format!("{what}: {text}: it takes root (CAP_BPF and CAP_NET_ADMIN)"),
        text => format!("{what}: {text}"),
    }
}

/// The map of a program that has this name.
fn map(ids: &[u32], name: &str) -> Option<MapHandle> {
    ids.iter().filter_map(|id| MapHandle::from_map_id(*id).ok()).find(|map| map.name() == name)
}

fn id_of(map: &MapHandle) -> Result<u32, String> {
    Ok(map.info().map_err(failed("a map"))?.info.id)
}

/// Our programs among those of a group.
fn own(group: &Opened, programs: &[(&'static str, Kind)], effective: bool) -> Result<Vec<Own>, String> {
    let mut all = Vec::new();
    for (name, kind) in programs {
        let ids = sys::attached(group.as_fd(), *kind, effective)
            .map_err(|e| format!("{}: its programs: {e}{}", group.path().display(), rights(&e)))?;
        for id in ids {
            // It may be taken away meanwhile.
            let Ok(program) = Program::fd_from_id(id) else { continue };
            let (its, maps) = sys::information(&program).map_err(|e| format!("a program: {e}"))?;
            if its != *name {
                continue;
            }
            if let Some(opening) = map(&maps, "opening") {
                all.push(Own { program, name, kind: *kind, set: id_of(&opening)?, maps });
            }
        }
    }
    Ok(all)
}

/// The set whose programs are all there.
fn whole(found: &[Own], programs: &[(&'static str, Kind)]) -> Option<u32> {
    let sets: BTreeSet<u32> = found.iter().map(|own| own.set).collect();
    sets.into_iter()
        .find(|set| programs.iter().all(|(name, _)| found.iter().any(|own| own.set == *set && own.name == *name)))
}

fn take_away(group: &Opened, programs: &[Own]) -> Result<(), String> {
    // What turns connections first.
    for own in programs.iter().rev() {
        match sys::detach(own.program.as_fd(), group.as_fd(), own.kind) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(format!("{}: {e}{}", own.name, rights(&e))),
            _ => {}
        }
    }
    Ok(())
}

impl Set {
    /// What is in a group, with these programs in the middlebox's.
    pub fn presence(clients: &Group, middlebox: Option<&Group>) -> Result<Presence, String> {
        let Some(clients) = Opened::new(clients)? else { return Ok(Presence::Gone) };
        let middlebox = match middlebox.map(Opened::new).transpose()? {
            Some(None) => return Ok(Presence::Gone),
            Some(Some(group)) => Some(group),
            None => None,
        };
        let found = own(&clients, &OF_CLIENTS, false)?;
        let Some(set) = whole(&found, &OF_CLIENTS) else {
            let told = middlebox.map(|group| own(&group, &OF_MIDDLEBOXES, false)).transpose()?.unwrap_or_default();
            let none = found.is_empty() && told.iter().all(|own| is_used(own.set));
            return Ok(if none { Presence::Absent } else { Presence::Part });
        };
        // Programs that are loaded with those of the clients are attached nowhere, or to the middlebox's group.
        let told = match &middlebox {
            None => true,
            Some(group) => {
                let found: Vec<Own> =
                    own(group, &OF_MIDDLEBOXES, false)?.into_iter().filter(|own| own.set == set).collect();
                whole(&found, &OF_MIDDLEBOXES).is_some()
            }
        };
        Ok(if told { Presence::Present } else { Presence::Another })
    }

    /// The programs of a group; `None`: there are none, or not all.
    pub fn of(clients: &Group) -> Result<Option<Set>, String> {
        let Some(clients) = Opened::new(clients)? else { return Ok(None) };
        let found = own(&clients, &OF_CLIENTS, false)?;
        let Some(set) = whole(&found, &OF_CLIENTS) else { return Ok(None) };
        let Some(connect) = found.iter().find(|own| own.set == set && own.name == "connect4") else { return Ok(None) };
        Set::with(&connect.maps).map(Some)
    }

    /// The programs that have these maps.
    pub(crate) fn with(maps: &[u32]) -> Result<Set, String> {
        let maps: Result<Vec<_>, _> = maps.iter().map(|id| MapHandle::from_map_id(*id)).collect();
        Ok(Set { maps: maps.map_err(failed("its maps"))? })
    }

    /// Attaches the programs to a group, without rules, and to the middlebox's, until they are detached or the groups end.
    pub fn attach(clients: &Group, middlebox: Option<&Group>) -> Result<(), String> {
        Set::place(clients, middlebox, &mut sys::attach)
    }

    /// The same for as long as some process has these descriptors.
    pub fn hold(clients: &Group, middlebox: Option<&Group>) -> Result<Vec<OwnedFd>, String> {
        let mut held = Vec::new();
        Set::place(clients, middlebox, &mut |program, group, kind| {
            sys::hold(program, group, kind).map(|link| held.push(link))
        })?;
        Ok(held)
    }

    fn place(
        clients: &Group,
        middlebox: Option<&Group>,
        attach: &mut dyn FnMut(BorrowedFd<'_>, BorrowedFd<'_>, Kind) -> io::Result<()>,
    ) -> Result<(), String> {
        let missing = |group: &Group| format!("there is no control group {group}");
        let opened = Opened::new(clients)?.ok_or_else(|| missing(clients))?;
        let told = middlebox.map(|group| Opened::new(group)?.ok_or_else(|| missing(group))).transpose()?;
        if !matches!(Set::presence(clients, middlebox)?, Presence::Absent | Presence::Part) {
            return Err(format!("{clients} has redirects: culvert-redirect detach {clients}"));
        }
        // What somebody has left who was killed; it does nothing.
        Set::detach(clients, middlebox)?;
        let connect = &OF_CLIENTS[3..4];
        if !own(&opened, connect, true)?.is_empty() {
            return Err(format!(
                "a control group around {clients} has redirects: two would change what the other decides"
            ));
        }
        for inner in opened.inner()? {
            if !own(&inner, connect, false)?.is_empty() {
                let path = inner.path().display();
                return Err(format!("{path} in {clients} has redirects: two would change what the other decides"));
            }
        }
        let lacks = failed("the eBPF programs (they take Linux 5.16 or later with CONFIG_CGROUP_BPF)");
        let mut storage = MaybeUninit::<OpenObject>::uninit();
        let mut open = skeleton::RedirectSkelBuilder::default().open(&mut storage).map_err(&lacks)?;
        if let (Some(told), Some(group)) = (&told, middlebox) {
            let data = open.maps.rodata_data.as_deref_mut().ok_or("the eBPF programs have no constants")?;
            (data.middlebox, data.level) = (told.number, group.level());
        }
        let loaded = open.load().map_err(&lacks)?;
        let programs = &loaded.progs;
        let (first, turning) = OF_CLIENTS.split_at(1);
        let of_clients = |part: &(&'static str, Kind)| (&opened, *part);
        let of_middlebox = told.iter().flat_map(|group| OF_MIDDLEBOXES.map(|part| (group, part)));
        let parts = first.iter().map(of_clients).chain(of_middlebox).chain(turning.iter().map(of_clients));
        for (group, (name, kind)) in parts {
            let program = match name {
                "opens" => programs.opens.as_fd(),
                "getpeername4" => programs.getpeername4.as_fd(),
                "getpeername6" => programs.getpeername6.as_fd(),
                "connect4" => programs.connect4.as_fd(),
                "connect6" => programs.connect6.as_fd(),
                "tells" => programs.tells.as_fd(),
                _ => programs.accepts.as_fd(),
            };
            attach(program, group.as_fd(), kind).map_err(|e| {
                let path = group.path().display();
                match e.kind() {
                    io::ErrorKind::PermissionDenied => {
                        format!("{path}: {name}: {e}: a group around it has a program that allows no other; or it takes root")
                    }
                    _ => format!("{path}: {name}: {e}{}", rights(&e)),
                }
            })?;
        }
        Ok(())
    }

    /// Takes away all of the programs that are there, also where they are not all. Connections that were redirected go on.
    pub fn detach(clients: &Group, middlebox: Option<&Group>) -> Result<(), String> {
        let mut sets = BTreeSet::new();
        let opened = Opened::new(clients)?;
        let of_clients = opened.as_ref().map(|group| own(group, &OF_CLIENTS, false)).transpose()?.unwrap_or_default();
        let (first, turning): (Vec<Own>, Vec<Own>) =
            of_clients.into_iter().partition(|own| own.name == OF_CLIENTS[0].0);
        sets.extend(first.iter().map(|own| own.set));
        if let Some(group) = &opened {
            take_away(group, &turning)?;
        }
        if let Some(group) = middlebox.map(Opened::new).transpose()?.flatten() {
            let mut found = own(&group, &OF_MIDDLEBOXES, false)?;
            // Those of a group that has ended, too: nobody sends them anything any more.
            found.retain(|own| sets.contains(&own.set) || !is_used(own.set));
            take_away(&group, &found)?;
        }
        let Some(group) = opened else { return Ok(()) };
        take_away(&group, &first)?;
        match own(&group, &OF_CLIENTS, false)?.is_empty() {
            true => Ok(()),
            false => Err(format!("{clients}: a process holds the programs (culvert-redirect hold): they go with it")),
        }
    }

    /// How many programs there are in the two groups, of one set or of several.
    pub fn left(clients: &Group, middlebox: Option<&Group>) -> Result<usize, String> {
        let count = |group: &Group, programs: &[_]| {
            Opened::new(group)?.map_or(Ok(0), |group| own(&group, programs, false).map(|found| found.len()))
        };
        let of_middlebox = middlebox.map_or(Ok(0), |group| count(group, &OF_MIDDLEBOXES))?;
        Ok(count(clients, &OF_CLIENTS)? + of_middlebox)
    }

    fn map(&self, name: &str) -> Result<&MapHandle, String> {
        self.maps.iter().find(|map| map.name() == name).ok_or_else(|| format!("the programs have no map {name}"))
    }

    /// The rules, in their order.
    pub fn rules(&self) -> Result<Vec<Diversion>, String> {
        let id = self.map("rules")?.lookup(&[0; 4], MapFlags::ANY).map_err(failed("the rules"))?;
        let id = id.and_then(|id| id.try_into().ok()).map(u32::from_ne_bytes).ok_or("the rules are missing")?;
        let table = MapHandle::from_map_id(id).map_err(failed("the rules"))?;
        let mut all = Vec::new();
        for at in 0..MOST_DIVERSIONS as u32 {
            let rule = table.lookup(&at.to_ne_bytes(), MapFlags::ANY).map_err(failed("the rules"))?;
            match rule.and_then(|bytes| rules::read(&bytes)) {
                Some(rule) => all.push(rule),
                None => break,
            }
        }
        Ok(all)
    }

    /// Gives other rules: from one connection to the next. Connections that have begun stay where they are.
    pub fn change(&self, all: &[Diversion]) -> Result<(), String> {
        change(self.map("rules")?, all)
    }
}

/// Puts a table with these rules into their map.
pub(crate) fn change(map: &MapHandle, all: &[Diversion]) -> Result<(), String> {
    let options = bpf_map_create_opts { sz: size_of::<bpf_map_create_opts>() as _, ..Default::default() };
    let table = MapHandle::create(MapType::Array, Some("table"), 4, SIZE as u32, MOST_DIVERSIONS as u32, &options)
        .map_err(failed("a table of rules"))?;
    for (at, rule) in (0_u32..).zip(all) {
        table.update(&at.to_ne_bytes(), &rules::bytes(rule), MapFlags::ANY).map_err(failed("a rule"))?;
    }
    let number = table.as_fd().as_raw_fd().to_ne_bytes();
    map.update(&[0; 4], &number, MapFlags::ANY).map_err(failed("the rules"))
}

/// Whether a set has a client's program.
fn is_used(set: u32) -> bool {
    let infos = ProgInfoIter::with_query_opts(ProgInfoQueryOptions::default().include_map_ids(true));
    infos.into_iter().any(|info| info.name == "opens" && info.map_ids.contains(&set))
}
