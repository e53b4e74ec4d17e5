//! The engine under packetdrill: its sockets with the numbers and errors of libc ([`face`]), a runner of packetdrill's scripts in
//! virtual time ([`script`], [`run`]), and a shared object that packetdrill itself loads (`--so_filename`, `exports`).

#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod exports;
pub mod face;
mod options;
#[allow(unsafe_code)]
pub mod port;
pub mod run;
pub mod script;

#[cfg(test)]
mod scripts;
