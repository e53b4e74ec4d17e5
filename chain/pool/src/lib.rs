//! What the functions of a chain share with its manager.
//!
//! ```text
//! pool   one memfd, sealed: chunks of one size, which hold packets or messages
//! edge   one memfd for each function: two rings of descriptors, to the function and back
//! ```
//! A [`Descriptor`] names bytes of a chunk; whoever has been sent it has the chunk until he sends it on. That is noted by the manager
//! alone, in its own memory ([`Owners`]): what comes back on an edge is a claim, and each field of it is checked. A function can
//! write what it likes into the pool and its edge: it harms the packets that it was given, and no other.
//!
//! An edge's ring belongs to one sender and one receiver. No call here blocks or makes a system call, but for [`Pool::new`], [`Pool::open`] and
//! the same of [`Edge`]; who is to be woken, and how, is the caller's business ([`Sender::publish`]).

#![deny(unsafe_code)]

mod descriptor;
mod edge;
mod memory;
mod owners;
mod pool;
mod ring;

pub use descriptor::Descriptor;
pub use edge::{Edge, End};
pub use memory::Error;
pub use owners::{MANAGER, Owners, Party, Refused};
pub use pool::{Access, Pool};
pub use ring::{Corrupt, Receiver, Sender, Words};
