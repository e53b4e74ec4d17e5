//! Packet formats as views over bytes: a file for each header. Parsing checks lengths once and copies no payload; nothing here
//! keeps state.

#![deny(unsafe_code)]

pub mod seq;
pub mod tcp;

pub use seq::Seq;
