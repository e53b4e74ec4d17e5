//! Brings connections to a middlebox on this host: those of the programs of a control group, by eBPF programs of that group; those from other hosts; those
//! that this host passes on.
#![deny(unsafe_code)]

mod forward;
mod group;
mod nft;
mod receive;
pub mod relay;
mod rules;
mod set;
mod sys;

pub use forward::Forward;
pub use group::{Opened, root};
pub use receive::Receive;
pub use set::{Presence, Set};
