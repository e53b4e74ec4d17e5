//! The engine in virtual time: two hosts, or a host and a script, joined by a network that loses, reorders, duplicates, delays,
//! corrupts, shrinks and dies, with cards that read payload late.

#![deny(unsafe_code)]

pub mod card;
pub mod memory;
pub mod network;
pub mod packet;
pub mod rng;
pub mod scenario;
