//! The engine's port on DPDK: any device that DPDK has a driver for, at the end of one queue. A [`Spec`] is what a user writes
//! (`dpdk:net_af_packet0,iface=v0,addr=10.9.0.2/24`), [`Device::open`] starts it, and each of its [`Queue`]s is a
//! [`Port`](zstack::port::Port) for one thread and one engine.
//!
//! DPDK is a guest in the process: it is started once, by the first device, in a thread of its own; it changes neither the caller's CPU
//! affinity nor a signal's disposition, writes nothing to the terminal, and what goes wrong is an error, not the end of the process. It
//! needs no hugepages.
//!
//! A device with several queues serves as many engines that share nothing: its hash says which flow is whose. They listen alike; what ARP and NDP
//! say is passed on to all. A connection that an engine opens itself may be answered at another's queue: connect from devices with one.
//!
//! Neither a device nor a queue survives fork(2): the child must not use them.

#![deny(unsafe_code)]

mod driver;
mod error;
mod memory;
mod open;
mod pools;
mod port;
mod raw;
mod sleep;
mod spec;
mod stale;

pub use error::OpenError;
pub use memory::{Buffers, Memory};
pub use open::{Device, Unbound};
pub use port::Queue;
pub use raw::queue::{Counters, Packet};
pub use sleep::Sleep;
pub use spec::Spec;
pub use zstack_port::SpecError;
