//! What a library inside somebody else's process stands on: libc's functions behind its own, thread-local storage, the
//! program's signals, copies from memory that may be bad, log lines, the time.
//!
//! ```text
//! signals       handlers put off, counted for EINTR; waits that lose no signal
//! real          the functions behind ours, found by `objects`
//! usercopy      copies that may fault
//! clock log     monotonic time; one-line messages
//! environment   variables; given: those that a program passes on
//! tls           what each thread keeps for itself
//! ```
//! No allocator, no threads, no unwinding; nothing here knows of connections.
#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]
#![allow(clippy::missing_safety_doc)]

// Under Miri, which runs no assembly.
#[cfg(all(miri, not(test)))]
extern crate std;

pub mod clock;
pub mod environment;
pub mod given;
pub mod log;
pub mod objects;
pub mod real;
pub mod signals;
pub mod tls;
pub mod usercopy;

#[cfg(test)]
mod tests;
