//! The front in network namespaces that the tests make, with unmodified programs' calls on one side and a gate in miniature on the
//! other. Needs root and /dev/net/tun.

#![allow(dead_code)]

mod gate;
mod inward;
#[path = "../../../port/tests/lab/mod.rs"]
mod lab;
mod life;
mod outward;
mod packets;
mod watch;
