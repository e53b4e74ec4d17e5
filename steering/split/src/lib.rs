//! Divides the packets of an interface between the kernel and AF_XDP, by rules in an XDP program.
#![deny(unsafe_code)]

mod detach;
pub mod rules;
mod split;

pub use split::{Count, OBJECT, OTHERS, Split, cost};
