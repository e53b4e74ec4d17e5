//! What stands on this process: memory that faults, signals of this thread, its own storage.
// Unsafe here: it makes memory that faults, and installs handlers.
#![allow(unsafe_code)]

mod clock;
mod given;
mod signals;
mod tls;
mod usercopy;
