//! Ports for the engine that need no DPDK: [`Device`] (tun and tap), [`Wire`] (a pair of ports in memory), and [`Captured`],
//! which writes what crosses any of them to a pcapng file. A [`Spec`] is what a user writes on a command line.
//!
//! Everything here but [`Post`] belongs to one thread, and no call blocks but [`wait`].

#![deny(unsafe_code)]

mod capture;
mod device;
mod error;
mod link;
mod pcapng;
mod post;
mod raw;
mod spec;
mod virtio;
mod wait;
mod wire;

pub use capture::Captured;
pub use device::{Counters, Device, Unbound, set_up_peer};
pub use error::OpenError;
pub use post::Post;
pub use raw::pool::{Packet, Pool};
pub use spec::{Address, Kind, Offload, Spec, SpecError};
pub use wait::{Clock, Interest, wait, wait_any};
pub use wire::{Settings, Wire, pair};
