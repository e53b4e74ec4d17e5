//! Virtual functions and flows of network cards, and connections that a middlebox gets: what is wanted is compared with what is there, done in steps of a single change
//! each, noted before it is done, read back, and undone exactly.
//!
//! [`plan()`] makes the steps, [`apply()`] does them, [`verify()`] names what is not as wanted, [`undo()`] restores what was found.
#![deny(unsafe_code)]

mod act;
mod address;
mod change;
mod config;
mod diverting;
mod ethtool;
mod filter;
mod flow;
mod imagined;
mod item;
mod journal;
mod linux;
mod macs;
mod netlink;
mod places;
mod plan;
mod possible;
mod redirect;
mod rule;
mod step;
mod system;
mod trouble;
mod usage;
mod wish;

pub use act::{Undone, apply, undo};
pub use address::{Device, Mac, Name, Pci};
pub use config::{Config, Flow, Function, Port, WantedDriver, WantedMac};
pub use filter::{Filter, Ntuple};
pub use flow::{Backend, Family, Match, Ports, Prefix, Protocol, Target};
pub use imagined::{Card, Fault, Imagined};
pub use item::{Item, split_words};
pub use journal::Journal;
pub use linux::{Linux, program};
pub use plan::{Difference, plan, verify, verify_held};
pub use redirect::{Dead, Diversion, Group, MOST_DIVERSIONS, Onward, diversions_text, parse_diversions};
pub use rule::{Likeness, Rule};
pub use step::{State, Step};
pub use system::{Ran, System, Vf, VfChange};
pub use trouble::Trouble;
pub use wish::{Redirect, Way, Whose};
