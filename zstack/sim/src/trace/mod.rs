//! Packet traces: one engine, and a peer that does what a script says.

mod runner;
pub mod script;

pub use crate::host::Programs;
pub use runner::run;
