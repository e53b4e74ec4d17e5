//! libFuzzer over the parsers of bytes that somebody else wrote. `FUZZ_TARGET` names the parser; `cargo xtask fuzz` runs all
//! of them, each for a while. A target fails by a panic, a hang, or memory without bound.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;

#[allow(dead_code)]
#[path = "../../../cli/src/elf.rs"]
mod elf;
#[allow(dead_code)]
#[path = "../../../cli/src/stat/family.rs"]
mod family;
#[allow(dead_code)]
#[path = "../../../cli/src/netdiag.rs"]
mod netdiag;

type Target = fn(&[u8]);

const TARGETS: &[(&str, Target)] = &[
    // A datagram in the mailbox: any process of the machine can send one.
    ("message", rendezvous::fuzzing::message),
    // An entry of another user's registry file.
    ("registry", rendezvous::fuzzing::registry),
    // The kernel's answer about a socket.
    ("diag", rendezvous::fuzzing::diag),
    // The memory of a process that `culvert stat` looks at, which any user may have prepared.
    ("family", |data| {
        let _ = (family::parse_header(data), family::parse_endpoint(data));
    }),
    // A program that is to be run.
    ("elf", |data| {
        let _ = elf::parse(data);
    }),
    // /proc/net/tcp, which the command reads where the kernel has no socket diagnostics.
    ("proc-net", |data| {
        let _ = netdiag::parse_proc(&String::from_utf8_lossy(data));
    }),
    // Packets: anybody on the network can send them.
    ("wire-ethernet", zstack_wire::fuzzing::ethernet),
    ("wire-arp", zstack_wire::fuzzing::arp),
    ("wire-ipv4", zstack_wire::fuzzing::ipv4),
    ("wire-ipv6", zstack_wire::fuzzing::ipv6),
    ("wire-tcp", zstack_wire::fuzzing::tcp),
    ("wire-udp", zstack_wire::fuzzing::udp),
    ("wire-icmpv4", zstack_wire::fuzzing::icmpv4),
    ("wire-icmpv6", zstack_wire::fuzzing::icmpv6),
    ("wire-frame", zstack_wire::fuzzing::frame),
    ("wire-checksum", zstack_wire::fuzzing::checksum),
    // The engine's layer below TCP as a whole: frames between packets of ours.
    ("net-receive", zstack::net::fuzzing::receive),
    // The whole engine: packets, calls and time.
    ("engine-frames", zstack::stack::fuzzing::frames),
    ("engine-segments", zstack::stack::fuzzing::segments),
    ("engine-bridge", zstack::stack::fuzzing::bridge),
];

fuzz_target!(|data: &[u8]| {
    static TARGET: OnceLock<Target> = OnceLock::new();
    let target = TARGET.get_or_init(|| {
        let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
        let names: Vec<_> = TARGETS.iter().map(|t| t.0).collect();
        TARGETS.iter().find(|t| t.0 == name).unwrap_or_else(|| panic!("FUZZ_TARGET={name}: one of {names:?}")).1
    });
    target(data);
});
