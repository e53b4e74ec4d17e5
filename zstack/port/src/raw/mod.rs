//! All of this crate that is unsafe: system calls, and memory that is reached by address.

#![allow(unsafe_code)]

pub(crate) mod calls;
pub(crate) mod memory;
pub(crate) mod pool;
