//! Connections from other hosts, brought to a middlebox as long as somebody has the descriptors.

use crate::group::Opened;
use crate::set::{change, failed};
use crate::sys;
use libbpf_rs::libbpf_sys::{BPF_CGROUP_SOCK_OPS, BPF_SK_LOOKUP};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapHandle, OpenObject};
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use steering::{Diversion, Group};

#[allow(unsafe_code, missing_docs, clippy::all, clippy::undocumented_unsafe_blocks)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/receive.skel.rs"));
}

/// For connections that come by this interface of the caller's network namespace: rules whose `to` is where the middlebox listens. It must
/// begin to listen after this call, in its group.
pub fn receive(interface: &str, middlebox: &Group, rules: &[Diversion]) -> Result<Vec<OwnedFd>, String> {
    let group = Opened::new(middlebox)?.ok_or_else(|| format!("there is no control group {middlebox}"))?;
    let index = nix::net::if_::if_nametoindex(interface).map_err(|e| format!("{interface}: {e}"))?;
    let network =
        File::open("/proc/thread-self/ns/net").map_err(|e| format!("the network namespace: {e}: mount /proc"))?;
    let lacks = failed("the eBPF programs (they take Linux 5.16 or later with CONFIG_CGROUP_BPF)");
    let mut storage = MaybeUninit::<OpenObject>::uninit();
    let mut open = skeleton::ReceiveSkelBuilder::default().open(&mut storage).map_err(&lacks)?;
    let data = open.maps.rodata_data.as_deref_mut().ok_or("the eBPF programs have no constants")?;
    let own =
        sys::network().map_err(|e| format!("the network namespace's number: {e}: it takes Linux 5.16 or later"))?;
    (data.interface, data.network) = (index, own);
    let loaded = open.load().map_err(&lacks)?;
    let table = MapHandle::from_map_id(loaded.maps.rules.info().map_err(&lacks)?.info.id).map_err(&lacks)?;
    change(&table, rules)?;
    let attached = |what: &str, e: std::io::Error| format!("{what}: {e}: it takes root (CAP_BPF and CAP_NET_ADMIN)");
    let listens = sys::hold(loaded.progs.listens.as_fd(), group.as_fd(), BPF_CGROUP_SOCK_OPS);
    let receive = sys::hold(loaded.progs.receive.as_fd(), network.as_fd(), BPF_SK_LOOKUP);
    Ok(vec![
        listens.map_err(|e| attached(&group.path().display().to_string(), e))?,
        receive.map_err(|e| attached(interface, e))?,
    ])
}
