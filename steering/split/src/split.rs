//! The XDP program on an interface: one instance for each set of rules, put in the place of the one before at once.

use crate::detach;
use crate::rules::{self, RULES, Rules, Tables};
use libbpf_rs::query::{ProgInfoIter, ProgInfoQueryOptions};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapHandle, OpenObject, Program, ProgramInput, ProgramMut, Xdp, XdpFlags};
use nix::time::{ClockId, clock_gettime};
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

#[allow(unsafe_code, missing_docs, clippy::all, clippy::undocumented_unsafe_blocks)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/split.skel.rs"));
}

/// The program for whoever loads it himself, as DPDK's net_af_xdp (`xdp_prog=`).
pub const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/split.bpf.o"));

/// Its name, by which it is known again.
const NAME: &str = "split";

/// What no rule decides, in the order of bpf/split.bpf.c.
pub const OTHERS: [&str; 5] =
    ["under no rule", "as their connection began", "of the kernel's connections", "fragments", "neither IP nor ARP"];

/// The program of an interface.
pub struct Split {
    index: i32,
    program: OwnedFd,
    maps: Vec<MapHandle>,
}

/// Packets and bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Maps that pass from one instance to the next.
const KEPT: [&str; 4] = ["xsks_map", "pins", "pins4", "counters"];

fn failed(what: &str) -> impl Fn(libbpf_rs::Error) -> String + '_ {
    move |error| {
        let text = error.to_string();
        match text.contains("os error 1)") {
            true => format!("{what}: {text}: it takes root (CAP_BPF and CAP_NET_ADMIN)"),
            false => format!("{what}: {text}"),
        }
    }
}

fn index_of(interface: &str) -> Result<i32, String> {
    let index = nix::net::if_::if_nametoindex(interface).map_err(|e| format!("{interface}: {e}"))?;
    i32::try_from(index).map_err(|e| e.to_string())
}

/// The program's number on an interface; 0: none.
fn attached_id(index: i32) -> Result<u32, String> {
    // A question needs no program.
    let none = File::open("/dev/null").map_err(|e| format!("/dev/null: {e}"))?;
    Xdp::new(none.as_fd()).query_id(index, XdpFlags::NONE).map_err(failed("the interface's XDP program"))
}

impl Split {
    /// The program on an interface; `None`: there is none, or another.
    pub fn on(interface: &str) -> Result<Option<Split>, String> {
        let index = index_of(interface)?;
        let id = attached_id(index)?;
        if id == 0 {
            return Ok(None);
        }
        let all = ProgInfoIter::with_query_opts(ProgInfoQueryOptions::default().include_map_ids(true));
        let Some(info) = all.into_iter().find(|info| info.id == id) else { return Ok(None) };
        if info.name.to_string_lossy() != NAME {
            return Ok(None);
        }
        let maps: Result<Vec<_>, _> = info.map_ids.iter().map(|id| MapHandle::from_map_id(*id)).collect();
        let maps = maps.map_err(failed("its maps"))?;
        let program = Program::fd_from_id(id).map_err(failed("the program"))?;
        let split = Split { index, program, maps };
        let whole = KEPT.iter().chain(&["told"]).all(|name| split.map(name).is_ok());
        Ok(whole.then_some(split))
    }

    /// Puts it on an interface, where it lets all packets pass.
    pub fn attach(interface: &str) -> Result<Split, String> {
        let index = index_of(interface)?;
        load(None, &Rules::new(), false, |program| {
            Xdp::new(program.as_fd()).attach(index, XdpFlags::UPDATE_IF_NOEXIST).map_err(|e| match e.to_string() {
                text if text.contains("os error 16)") => {
                    format!("{interface} has another XDP program: ip link show {interface}")
                }
                text => format!("{interface} takes no XDP program: {text}"),
            })
        })?;
        Split::on(interface)?.ok_or_else(|| format!("{interface}: the program is gone again"))
    }

    /// Takes it away, if it is still the one there. Its pins and counters end.
    pub fn detach(self) -> Result<(), String> {
        let changed = |e| format!("the program was changed meanwhile, or taken away: {e}");
        detach::detach(self.index, self.program.as_fd()).map_err(changed)
    }

    fn map(&self, name: &str) -> Result<&MapHandle, String> {
        self.maps.iter().find(|map| map.name() == name).ok_or_else(|| format!("the program has no map {name}"))
    }

    /// The AF_XDP sockets by queue, to which a socket's descriptor is written.
    pub fn sockets(&self) -> Result<&MapHandle, String> {
        self.map("xsks_map")
    }

    /// Its rules.
    pub fn rules(&self) -> Result<Rules, String> {
        let told = self.map("told")?;
        let mut all = Rules::new();
        for at in 0..RULES as u32 {
            let text = told.lookup(&at.to_ne_bytes(), MapFlags::ANY).map_err(failed("its rules"))?.unwrap_or_default();
            let text: Vec<u8> = text.into_iter().take_while(|b| *b != 0).collect();
            if !text.is_empty() {
                let words: Vec<String> = String::from_utf8_lossy(&text).split(' ').map(str::to_owned).collect();
                all.insert(at, rules::parse(&words)?);
            }
        }
        Ok(all)
    }

    /// Gives it other rules: from one packet to the next.
    pub fn change(&self, rules: &Rules) -> Result<(), String> {
        let before = self.rules()?;
        // A rule's counter begins with it.
        let counters = self.map("counters")?;
        for at in rules.iter().filter(|(at, rule)| before.get(at) != Some(rule)).map(|(at, _)| at) {
            let each = counters.lookup_percpu(&at.to_ne_bytes(), MapFlags::ANY).map_err(failed("its counters"))?;
            let zeros: Vec<Vec<u8>> = each.unwrap_or_default().iter().map(|value| vec![0; value.len()]).collect();
            counters.update_percpu(&at.to_ne_bytes(), &zeros, MapFlags::ANY).map_err(failed("its counters"))?;
        }
        load(Some(self), rules, true, |program| {
            Xdp::new(program.as_fd())
                .replace(self.index, self.program.as_fd())
                .map_err(|e| format!("the program was changed meanwhile, or taken away: {e}"))
        })
    }

    /// What has come: under each rule, and under none ([`OTHERS`]).
    pub fn counts(&self) -> Result<(Vec<Count>, Vec<Count>), String> {
        let counters = self.map("counters")?;
        let number = |bytes: &[u8], at: usize| {
            bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes)
        };
        let count = |at: u32| {
            let each = counters
                .lookup_percpu(&at.to_ne_bytes(), MapFlags::ANY)
                .map_err(failed("its counters"))?
                .unwrap_or_default();
            let add = |sum: Count, value: &Vec<u8>| Count {
                packets: sum.packets + number(value, 0),
                bytes: sum.bytes + number(value, 8),
            };
            Ok::<_, String>(each.iter().fold(Count::default(), add))
        };
        let rules = RULES as u32;
        let of_rules = (0..rules).map(count).collect::<Result<_, _>>()?;
        Ok((of_rules, (rules..rules + OTHERS.len() as u32).map(count).collect::<Result<_, _>>()?))
    }

    /// The program.
    pub fn program(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }
}

/// What a packet costs under these rules: so many runs of the program on it, on no interface. The median of several times so many.
pub fn cost(rules: &Rules, packet: &[u8], repeat: u32) -> Result<Duration, String> {
    let mut median = Duration::ZERO;
    load(None, rules, true, |program| {
        let run = |_| {
            let input = ProgramInput { data_in: Some(packet), repeat, ..ProgramInput::default() };
            program.test_run(input).map(|output| output.duration).map_err(failed("BPF_PROG_TEST_RUN"))
        };
        let mut runs = (0..9).map(run).collect::<Result<Vec<_>, _>>()?;
        runs.sort_unstable();
        median = runs[runs.len() / 2];
        Ok(())
    })?;
    Ok(median)
}

/// How long an ACK may be owed to the kernel that brings back a cookie of its: it has come, or been sent again, long before, and cookies
/// of another minute count for little longer.
const COOKIES: Duration = Duration::from_secs(60);

/// Until when that is so, in nanoseconds of the kernel's clock; 0: the kernel has sent no cookie here.
fn cookies_until() -> Result<u64, String> {
    let text =
        std::fs::read_to_string("/proc/thread-self/net/netstat").map_err(|e| format!("/proc/net/netstat: {e}"))?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let sent = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "SyncookiesSent");
    if sent.is_none_or(|(_, count)| count == "0") {
        return Ok(0);
    }
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(|e| format!("the time: {e}"))?;
    Ok((Duration::from(now) + COOKIES).as_nanos() as u64)
}

/// Loads an instance with these rules, and has it put in its place.
fn load(
    before: Option<&Split>,
    rules: &Rules,
    pinned: bool,
    place: impl FnOnce(&ProgramMut<'_>) -> Result<(), String>,
) -> Result<(), String> {
    let lacks = failed("the XDP program (it takes Linux 5.10 or later with CONFIG_BPF_SYSCALL and CONFIG_XDP_SOCKETS)");
    let tables = Tables::of(rules);
    let mut storage = MaybeUninit::<OpenObject>::uninit();
    let mut open = skeleton::SplitSkelBuilder::default().open(&mut storage).map_err(&lacks)?;
    let data = open.maps.rodata_data.as_deref_mut().ok_or("the XDP program has no constants")?;
    for (to, from) in data.kinds.iter_mut().zip(tables.kinds) {
        to.word = from;
    }
    (data.any_source.word, data.any_destination.word) = (tables.any_source, tables.any_destination);
    data.verdicts.copy_from_slice(&tables.verdicts);
    (data.by_source, data.by_destination) =
        ((!tables.sources.is_empty()).into(), (!tables.destinations.is_empty()).into());
    data.by_source_port = (!tables.source_ports.is_empty()).into();
    data.by_destination_port = (!tables.destination_ports.is_empty()).into();
    data.untagged.word = tables.vlans.first().copied().unwrap_or_default();
    data.by_vlan = (!tables.vlans.is_empty()).into();
    data.cookies_until = if before.is_some() { cookies_until()? } else { 0 };
    data.stateless = rules.values().any(|rule| rule.stateless).into();
    (data.rules, data.pinned) = ((!rules.is_empty()).into(), pinned.into());
    for (map, table) in [
        (&mut open.maps.source_ports, &tables.source_ports),
        (&mut open.maps.destination_ports, &tables.destination_ports),
        (&mut open.maps.vlans, &tables.vlans),
    ] {
        map.set_max_entries(table.len().max(1) as u32).map_err(&lacks)?;
    }
    if let Some(before) = before {
        for map in [&mut open.maps.xsks_map, &mut open.maps.pins, &mut open.maps.pins4, &mut open.maps.counters] {
            let name = map.name().to_string_lossy().into_owned();
            map.reuse_fd(before.map(&name)?.as_fd()).map_err(&lacks)?;
        }
    }
    let loaded = open.load().map_err(&lacks)?;
    let bytes = |table: &[rules::Bits]| {
        let mut all = Vec::with_capacity(size_of_val(table));
        table.as_flattened().iter().for_each(|word| all.extend_from_slice(&word.to_ne_bytes()));
        all
    };
    for (map, of_ipv4, table) in [
        (&loaded.maps.sources, &loaded.maps.sources4, &tables.sources),
        (&loaded.maps.destinations, &loaded.maps.destinations4, &tables.destinations),
    ] {
        for ((len, ip), bits) in table {
            let key = [&len.to_ne_bytes()[..], ip].concat();
            map.update(&key, &bytes(&[*bits]), MapFlags::ANY).map_err(&lacks)?;
            // A mapped one. Whether it was told as IPv6's or as IPv4's, the kinds of rules keep apart.
            if let Some(len) = len.checked_sub(96).filter(|_| ip[..12] == rules::MAPPED) {
                let key = [&len.to_ne_bytes()[..], &ip[12..]].concat();
                of_ipv4.update(&key, &bytes(&[*bits]), MapFlags::ANY).map_err(&lacks)?;
            }
        }
    }
    for (map, table) in [
        (&loaded.maps.source_ports, &tables.source_ports),
        (&loaded.maps.destination_ports, &tables.destination_ports),
        (&loaded.maps.vlans, &tables.vlans),
    ] {
        if !table.is_empty() {
            let mut keys = Vec::with_capacity(table.len() * 4);
            (0..table.len() as u32).for_each(|key| keys.extend_from_slice(&key.to_ne_bytes()));
            let values = bytes(table);
            map.update_batch(&keys, &values, table.len() as u32, MapFlags::ANY, MapFlags::ANY).map_err(&lacks)?;
        }
    }
    for (at, rule) in rules {
        let mut text = rules::text(rule).into_bytes();
        text.resize(256, 0);
        loaded.maps.told.update(&at.to_ne_bytes(), &text, MapFlags::ANY).map_err(&lacks)?;
    }
    place(&loaded.progs.split)
}
