//! Brings connections of the programs of a control group to a middlebox on this host, by eBPF programs of that group.
#![deny(unsafe_code)]

mod group;
mod receive;
pub mod relay;
mod rules;
mod set;
mod sys;

pub use group::{Opened, root};
pub use receive::receive;
pub use set::{Presence, Set};
