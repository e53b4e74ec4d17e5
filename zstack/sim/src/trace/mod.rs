//! Packet traces: one engine, and a peer that does what a script says.

mod host;
mod runner;
pub mod script;

pub use host::Programs;
pub use runner::run;
