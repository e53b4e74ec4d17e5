//! A TCP/IP engine that copies no payload. Packets and time go in, packets and events come out; it has no clock, no thread, no
//! socket, and allocates nothing per packet.
//!
//! [`endpoint::Endpoint`] is the easy way in: sockets over a port, with [`inplace`] as the calls that copy nothing, of the types that the crate `culvert` has. Beneath it [`stack::Stack`] is the engine's face,
//! [`payload::Host`] whoever owns the streams' memory (ready-made: [`sockets::Sockets`]), [`port::Port`] the device.

#![deny(unsafe_code)]

pub mod counters;
pub mod endpoint;
mod event;
mod fold;
pub mod inplace;
mod isn;
pub mod net;
#[allow(unsafe_code)]
pub mod payload;
#[allow(unsafe_code)]
pub mod port;
mod queue;
mod rate;
mod sip;
mod slab;
pub mod sockets;
pub mod stack;
mod table;
pub mod tcp;
pub mod time;
mod time_wait;
pub mod tuple;
mod wheel;
