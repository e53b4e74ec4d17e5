//! The eBPF programs: loading, attaching, counting.

use super::error::Error;
use super::owners::Owners;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, MapCore, MapFlags, MapHandle, OpenObject, PrintLevel, TC_EGRESS, TcHookBuilder};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

#[allow(unsafe_code, missing_docs, clippy::all, clippy::undocumented_unsafe_blocks)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/turn.skel.rs"));
}

/// How many addresses of its own zstackd can have: the size of `own` in bpf/turn.bpf.c.
pub(crate) const OWN: usize = 64;

/// Packets that programs have sent by the tun, by what became of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Turns {
    /// Turned round to zstackd's sockets, without being seen by it. A packet may be many segments.
    pub turned: u64,
    /// TCP that zstackd reads.
    pub out: u64,
    /// The rest, which zstackd reads.
    pub other: u64,
}

/// The programs, attached: `turn` to the tun, with which it vanishes, `assign` to the network namespace, until this is dropped or
/// the process dies.
pub(crate) struct Filter {
    _assign: Link,
    counters: MapHandle,
    /// See [`Owners::new`].
    owners: Option<Arc<Owners>>,
    /// None: there is one lane.
    lanes: Option<Arc<MapHandle>>,
}

/// Sends connections to a lane's listeners.
pub(crate) struct Signpost {
    lanes: Arc<MapHandle>,
    lane: u32,
}

impl Signpost {
    /// The connection between these ends comes to the lane.
    pub(crate) fn set(&self, program: SocketAddr, remote: SocketAddr) -> io::Result<()> {
        let set = self.lanes.update(&ends(program, remote), &self.lane.to_ne_bytes(), MapFlags::ANY);
        set.map_err(|e| io::Error::other(format!("bpf: {e}")))
    }

    /// It does not matter any more where it comes to.
    pub(crate) fn remove(&self, program: SocketAddr, remote: SocketAddr) {
        // It may be missing.
        let _ = self.lanes.delete(&ends(program, remote));
    }
}

/// `struct ends` of bpf/turn.bpf.c.
fn ends(program: SocketAddr, remote: SocketAddr) -> [u8; 36] {
    let mut key = [0; 36];
    key[..16].copy_from_slice(&octets(program.ip()));
    key[16..32].copy_from_slice(&octets(remote.ip()));
    key[32..34].copy_from_slice(&program.port().to_be_bytes());
    key[34..].copy_from_slice(&remote.port().to_be_bytes());
    key
}

fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
    .octets()
}

/// What libbpf last complained of.
static COMPLAINT: Mutex<String> = Mutex::new(String::new());

fn complain(_: PrintLevel, text: String) {
    let text = text.trim().trim_start_matches("libbpf: ");
    // Of the verifier's log only the beginning: an error has one line.
    let line = text.lines().next().unwrap_or("");
    *COMPLAINT.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = line.to_string();
}

impl Filter {
    /// Loads the programs and attaches them, in the network namespace of the calling thread. `listeners` are IPv4's and IPv6's of each
    /// lane; `held`: how many connections are expected at most, where there are several.
    pub(crate) fn attach(
        index: u32,
        own: impl Iterator<Item = IpAddr>,
        listeners: &[[Option<OwnedFd>; 2]],
        held: u32,
    ) -> Result<Filter, Error> {
        let before = libbpf_rs::set_print(Some((PrintLevel::Warn, complain)));
        let result = Filter::try_attach(index, own, listeners, held);
        libbpf_rs::set_print(before);
        result.map_err(|(what, remedy, error)| {
            let complaint = COMPLAINT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            // EACCES is the verifier's, EPERM the lack of rights; libbpf_rs calls both by one name.
            if error.to_string().contains("os error 1)") {
                return Error::NoBpf { error: error.to_string() };
            }
            let text = match complaint.as_str() {
                "" => error.to_string(),
                complaint => format!("{error}; {complaint}"),
            };
            Error::Lacks { what, error: text, remedy }
        })
    }

    #[allow(clippy::type_complexity)]
    fn try_attach(
        index: u32,
        own: impl Iterator<Item = IpAddr>,
        listeners: &[[Option<OwnedFd>; 2]],
        held: u32,
    ) -> Result<Filter, (&'static str, &'static str, libbpf_rs::Error)> {
        const LOAD: (&str, &str) = (
            "the eBPF that zstackd needs",
            "it takes Linux 5.17 or later with CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_BPF and CONFIG_BPF_STREAM_PARSER",
        );
        let load = |e| (LOAD.0, LOAD.1, e);
        let mut storage = MaybeUninit::<OpenObject>::uninit();
        let mut open = skeleton::TurnSkelBuilder::default().open(&mut storage).map_err(load)?;
        if let Some(data) = open.maps.rodata_data.as_deref_mut() {
            data.interface = index;
            data.lanes = listeners.len() as u32;
        }
        let several = listeners.len() > 1;
        open.maps.listeners.set_max_entries(2 * listeners.len() as u32).map_err(load)?;
        open.maps.lane_of.set_max_entries(if several { held } else { 1 }).map_err(load)?;
        let loaded = open.load().map_err(load)?;
        for (key, listener) in (0u32..).zip(listeners.iter().flatten()) {
            if let Some(listener) = listener {
                let socket = (listener.as_raw_fd() as u64).to_ne_bytes();
                loaded.maps.listeners.update(&key.to_ne_bytes(), &socket, MapFlags::ANY).map_err(load)?;
            }
        }
        for address in own {
            loaded.maps.own.update(&octets(address), &[1], MapFlags::ANY).map_err(load)?;
        }
        let lanes = several.then(|| MapHandle::try_from(&loaded.maps.lane_of)).transpose().map_err(load)?;
        let counters = MapHandle::try_from(&loaded.maps.counters).map_err(load)?;
        let owners = Owners::new(&loaded.maps.owners).map_err(load)?;

        let lookup = |e| {
            (
                "sk_lookup",
                "at most 64 such programs can be attached to a network namespace (bpftool net, bpftool link)",
                e,
            )
        };
        let namespace = File::open("/proc/thread-self/ns/net")
            .map_err(|e| ("/proc", "mount it where zstackd runs", libbpf_rs::Error::from(e)))?;
        let assign = loaded.progs.assign.attach_netns(namespace.as_raw_fd()).map_err(lookup)?;

        let class =
            |e| ("clsact with eBPF", "it takes CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF (modprobe cls_bpf)", e);
        let mut hook =
            TcHookBuilder::new(loaded.progs.turn.as_fd()).ifindex(index as i32).handle(1).priority(1).hook(TC_EGRESS);
        hook.create().map_err(class)?;
        hook.attach().map_err(class)?;
        Ok(Filter { _assign: assign, counters, owners: owners.map(Arc::new), lanes: lanes.map(Arc::new) })
    }

    /// Whose SYNs are read.
    pub(crate) fn owners(&self) -> Option<Arc<Owners>> {
        self.owners.clone()
    }

    /// Where there are several lanes, that to one of them.
    pub(crate) fn signpost(&self, lane: usize) -> Option<Signpost> {
        self.lanes.clone().map(|lanes| Signpost { lanes, lane: lane as u32 })
    }

    /// What has become of the packets so far.
    pub(crate) fn turns(&self) -> Turns {
        let sum = |key: u32| {
            let each = self.counters.lookup_percpu(&key.to_ne_bytes(), MapFlags::ANY).ok().flatten();
            let number = |bytes: &Vec<u8>| bytes.get(..8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes);
            each.unwrap_or_default().iter().map(number).sum()
        };
        Turns { turned: sum(0), out: sum(1), other: sum(2) }
    }
}
