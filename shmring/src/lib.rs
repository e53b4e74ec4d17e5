//! culvert's shared memory: what two processes share (a [`channel`](layout)), what a process and its
//! forks share (the [`family`]), the byte [`ring`]s, and the [`switch`] protocol that moves a TCP stream
//! between the kernel and a ring without losing a byte.
//!
//! Nothing here knows about libc's socket API. Everything another process can write is a claim: it is
//! loaded once, checked, and only then used.
#![cfg_attr(not(any(test, loom)), no_std)]
#![deny(unsafe_code)]

pub mod chunks;
pub mod common;
pub mod driver;
pub mod family;
pub mod holders;
pub mod hole;
pub mod journal;
pub mod layout;
pub mod lnx;
pub mod owner;
pub mod position;
pub mod restless;
pub mod ring;
pub mod switch;
pub mod sync;
pub mod sys;
pub mod word;
