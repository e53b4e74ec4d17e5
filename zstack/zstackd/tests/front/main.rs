//! The front in network namespaces that the tests make, with unmodified programs' calls on one side and a gate in miniature on the
//! other. Needs root and /dev/net/tun.
//!
//! One test at a time: a child process that another test starts has copies of this one's sockets between its fork and its exec, so
//! that they are not closed when they are dropped.

#![allow(dead_code)]

mod gate;
mod inward;
#[path = "../../../port/tests/lab/mod.rs"]
mod lab;
mod life;
mod outward;
mod owners;
mod packets;
mod watch;
