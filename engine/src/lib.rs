//! How the bytes of a TCP connection leave the kernel, and come back: without a word about how a program's calls get here.
//!
//! ```text
//! io             which way a call goes          kernel, or attached
//! rx, tx         one stream each                lifeline | ring | lifeline, by shmring::switch (turn, advance)
//! sleep          spin, arm, sleep (spin, poller, sleepers)
//! attach         how a connection gets its slot in a channel (peer, mail, slots); leave: how it goes back
//! closing        how it ends; handoff: unread bytes that cross an exec
//! readiness      what a wait reports of it
//! ```
//! Safety of the whole: the library has no allocator, no threads, no unwinding, and exports no name of libc's. Its state is
//! static atomics; what other processes share is reached through `channel` and `family` only.
#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]
#![allow(clippy::missing_safety_doc)]

pub mod acts;
pub mod attach;
pub mod buffers;
pub mod bulk;
pub mod channel;
pub mod chunks;
pub mod closing;
pub mod config;
pub mod conn;
pub mod custody;
pub mod endpoint;
pub mod family;
pub mod fds;
pub mod handoff;
pub mod headroom;
pub mod inplace;
pub mod intents;
pub mod io;
pub mod kernel;
pub mod leave;
pub mod lifeline;
pub mod lock;
pub mod mail;
pub mod members;
pub mod memory;
pub mod notify;
pub mod own;
pub mod pages;
pub mod parting;
pub mod path;
pub mod peer;
pub mod poller;
pub mod readiness;
pub mod restless;
pub mod ruin;
pub mod rx;
pub mod sealed;
pub mod sleep;
pub mod sleepers;
pub mod slots;
pub mod slow;
pub mod spin;
pub mod table;
pub mod turns;
pub mod tx;
pub mod upkeep;
pub mod watchers;

#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

use host::{log, real, signals, tls};
