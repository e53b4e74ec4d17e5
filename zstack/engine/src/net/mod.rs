//! Below TCP: Ethernet with or without a VLAN tag, ARP and NDP, routes, IP's checks of what arrives, ICMP both ways, and the
//! path MTU. [`Interface`] is all of it for one port.
//!
//! It queues no packet. Who wants to send and is told [`Unsent::Unresolved`] asks again when [`Interface::event`] names that
//! neighbour. Left out: duplicate address detection, MLD reports, router advertisements and redirects (routes are static),
//! and the reassembly of fragments (they are dropped and counted, or passed on: [`Config::bridge`]).

mod address;
mod bridge;
mod discovery;
#[doc(hidden)]
pub mod fuzzing;
mod icmp;
mod input;
mod interface;
mod lists;
mod neighbour;
mod output;
mod own;
mod pmtu;
mod quick;
mod report;
mod route;
mod segment;
#[cfg(test)]
mod testing;
mod unsent;

pub(crate) use pmtu::LEAST_PORT;

pub use address::Address;
pub use bridge::{Onward, Unforwarded};
pub use interface::{Config, ConfigError, Interface, Path, Verdict, check_routes};
pub use quick::Packet;
pub use report::{Kind, Quoted, Report};
pub use route::Route;
pub use segment::{Carried, Ends, Segment};
pub use unsent::{Event, NeighbourId, Unsent};
