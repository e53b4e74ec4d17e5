//! The engine in virtual time: two hosts, or a host and a script, joined by a network that loses, reorders, duplicates, delays,
//! corrupts, shrinks and dies, with cards that read payload late.
//!
//! A [`scenario`] is plain data made from a seed; a [`world`] runs it, and a [`verdict`] says whether every byte came once and in
//! order, or a clean error told why not, and nothing is left behind. Somebody may know every number of a connection and lie
//! ([`scenario::Lie`]); a host's [`clock`] makes its numbers come round. A scenario that fails [`shrink`]s. A [`trace`] is a script
//! against one host. [`mutants`] shows that mistakes in the engine are noticed.

#![deny(unsafe_code)]

pub mod card;
pub mod clock;
pub mod endpoint;
pub mod facts;
pub mod host;
pub mod memory;
pub mod mutants;
pub mod network;
pub mod notation;
pub mod packet;
pub mod programs;
pub mod rng;
pub mod scenario;
pub mod shrink;
pub mod trace;
pub mod verdict;
pub mod world;
