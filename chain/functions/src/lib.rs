//! Packet functions for chains: each a file, with its configuration (a table of the chain's TOML file, which knows all its keys), and
//! compared in its tests with something simpler that says the same. Each has bounded memory, which its configuration says.

#![forbid(unsafe_code)]

pub mod firewall;
mod intervals;
pub mod net;
pub mod router;
mod trie;

pub use net::Unusable;
