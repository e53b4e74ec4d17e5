//! zstackd: gives unmodified programs the TCP/IP engine for connections to other hosts.

#![deny(unsafe_code)]

pub mod front;
