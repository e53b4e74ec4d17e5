//! Packet formats as views over bytes: a file for each header. Parsing checks lengths once and copies no payload; nothing here
//! keeps state.

#![deny(unsafe_code)]

pub mod arp;
pub mod checksum;
pub mod ethernet;
mod foreign;
pub mod fuzzing;
pub mod icmpv4;
pub mod icmpv6;
pub mod ipv4;
pub mod ipv6;
pub mod ndp;
pub mod protocol;
pub mod seq;
pub mod tcp;
pub mod udp;

pub use seq::Seq;
