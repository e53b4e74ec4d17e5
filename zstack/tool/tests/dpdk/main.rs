//! The program over DPDK's virtual devices, in namespaces of its own, and the kernel or another engine at the other end.

#[path = "../../../port/tests/lab/mod.rs"]
mod lab;
mod packet;
mod pairs;
mod place;
mod tap;
mod xdp;
