//! Differential tester and soak for culvert.
//!
//! A *scenario* is a script of socket calls for several *actors* (threads of one or more processes). A
//! *conductor* makes them one at a time, over control sockets, so that results do not depend on timing. The
//! script is generated while it runs on the kernel, then played again with the library preloaded into all
//! or some of the processes: the traces must be equal.
//!
//! Actors call libc's functions by their dynamic symbols, as any program would, so that a preloaded
//! library sees them. Control traffic uses bare system calls, so that no library can disturb it.

pub mod actor;
pub mod cli;
pub mod conductor;
pub mod generate;
pub mod model;
pub mod raw;
pub mod rng;
pub mod script;
pub mod shrink;
pub mod spaces;
pub mod task;
pub mod wire;
