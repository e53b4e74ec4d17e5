//! zstackd: gives the unmodified programs of a network namespace the TCP/IP engine for their connections to other hosts.
//!
//! It owns a port to the wire, with the engine on it, and a tun in the programs' namespace that their packets leave through. A
//! connection that it takes is one of the engine's on the wire and one of the kernel's with the same addresses here, between the
//! program's socket and one of zstackd's. So names, errors, ports, backlog, fork, exec and death of the program's socket stay the
//! kernel's; and since zstackd runs under libculvert, the bytes go to the program over shared memory as between any two processes.
//! Everything else goes through it unchanged.

#![deny(unsafe_code)]

pub mod answer;
pub mod cgroups;
pub mod common;
pub mod config;
pub mod conn;
pub mod counters;
pub mod daemon;
pub mod division;
pub mod flow;
pub mod front;
pub mod handed;
pub mod lending;
pub mod membership;
pub mod memory;
pub mod packet;
pub mod policy;
pub mod poller;
pub mod quotas;
pub mod relay;
pub mod syn;
pub mod sysctl;
pub mod wire;
mod worker;
