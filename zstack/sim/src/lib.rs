//! The engine in virtual time: two hosts, or a host and a script, joined by a network that loses, reorders, duplicates, delays,
//! corrupts, shrinks and dies, with cards that read payload late.

#![deny(unsafe_code)]

pub mod card;
pub mod clock;
pub mod endpoint;
pub mod facts;
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
