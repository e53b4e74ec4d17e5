//! Packet formats as views over bytes: a file for each header. Parsing checks lengths once and copies no payload; nothing here
//! keeps state.

#![deny(unsafe_code)]

pub mod checksum;
mod foreign;
pub mod ipv4;
pub mod ipv6;
pub mod protocol;
pub mod seq;
pub mod tcp;

pub use seq::Seq;
