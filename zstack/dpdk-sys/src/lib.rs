//! Bindings of the system's DPDK (libdpdk, found by pkg-config), made by bindgen when this crate is built, with functions of C for what
//! DPDK has as static inline functions (`z_...`) and constants for its macros (`Z_...`). The safe layer over them is `zstack-dpdk`.
//!
//! It is built on demand alone: it needs Debian's libdpdk-dev, pkg-config, libclang1-14 and clang-14 (for its headers).

// Made by a program, out of C.
#![allow(missing_docs, non_camel_case_types, non_snake_case, non_upper_case_globals)]
#![allow(clippy::all, clippy::undocumented_unsafe_blocks, unsafe_op_in_unsafe_fn, unnecessary_transmutes)]
#![allow(improper_ctypes)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
