//! All of this crate that is unsafe: DPDK's calls and the memory that it hands over.

#![allow(unsafe_code)]

pub(crate) mod calls;
pub(crate) mod eal;
pub(crate) mod ethdev;
pub(crate) mod log;
pub(crate) mod memif;
pub(crate) mod pool;
pub(crate) mod queue;
pub(crate) mod region;
pub(crate) mod signals;
pub(crate) mod slots;
