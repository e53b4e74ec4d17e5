//! How long a message needs to a program that sleeps, on every port that the engine has.
//!
//! `zstack perf` sends 64 bytes after each pause of 20 ms, in which both ends sleep, with the moment when it does so; the other end takes the time
//! when its program has them. Nothing is taken off: it is the sender's call, its kernel or engine, the wire, the wake-up of the receiver, its
//! turn, and, beside the engine, its TCP.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use serde_json::Value;

use super::super::procs::{Job, Side};
use super::super::row::{Sample, Setup, json, number};
use super::engine::{PERF, listens, tool};
use super::lab::{FAR, NEAR, Namespace, Wire};

/// The kernel's end of a tun or tap, and the engine's.
const HERE: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 1);
const THERE: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 2);

/// A port that is measured: what it is called in the details, for its median and for what one of a hundred exceeds.
struct Port {
    median: &'static str,
    p99: &'static str,
    kind: Kind,
}

enum Kind {
    /// On the near end of the wire; the kernel is at the far one.
    Veth(&'static str),
    /// The kernel is at its other end, in the same namespace.
    Tun(&'static str),
    /// Two engines; by the second one's word the first is reached: the receiver, and the sender.
    Pair(&'static str, &'static str),
    /// The same, where it is the sender that must be there first.
    PairBack(&'static str, &'static str),
}

const MEMIF: [&str; 2] = [
    "net_memif0,role=server,id=0,socket-abstract=no,socket=",
    "net_memif0,role=client,id=0,socket-abstract=no,socket=",
];
const VHOST: &str = "net_vhost0,iface=";
const VIRTIO: &str = "net_virtio_user0,path=";

/// All that sleep: net_null has nobody at its other end, and libpcap tells of packets a millisecond late.
const PORTS: &[Port] = &[
    Port { median: "af_packet", p99: "af_packet_p99", kind: Kind::Veth("net_af_packet0,iface=p0") },
    Port { median: "af_xdp", p99: "af_xdp_p99", kind: Kind::Veth("net_af_xdp0,iface=p0") },
    Port { median: "dpdk_tap", p99: "dpdk_tap_p99", kind: Kind::Tun("dpdk:net_tap0,iface=zt0,memory=none,") },
    Port { median: "memif", p99: "memif_p99", kind: Kind::Pair(MEMIF[0], MEMIF[1]) },
    Port { median: "tap", p99: "tap_p99", kind: Kind::Tun("tap:zt0,") },
    Port { median: "tun", p99: "tun_p99", kind: Kind::Tun("tun:zt0,") },
    Port { median: "vhost", p99: "vhost_p99", kind: Kind::Pair(VHOST, VIRTIO) },
    Port { median: "virtio_user", p99: "virtio_user_p99", kind: Kind::PairBack(VIRTIO, VHOST) },
];

/// Microseconds until the receiver has a message: the median of the kernel, or of the slowest port.
pub fn wake(s: &Setup, side: Side) -> io::Result<Sample> {
    if side == Side::Kernel {
        let wire = Wire::of_kernels(s)?;
        let _server = server(s, &wire.near, "kernel")?;
        wire.far.knock(s, SocketAddrV4::new(NEAR, PERF))?;
        let told = client(s, &wire.far, "kernel", NEAR)?;
        let p99 = number(&told["wake_us"]["p99"])?;
        return Ok(Sample {
            value: number(&told["wake_us"]["p50"])?,
            details: BTreeMap::from([("p99", p99)]),
            cpu: cpu(&told)?,
        });
    }
    let mut all = Sample::default();
    for port in PORTS {
        let told = measured(s, &port.kind)?;
        let median = number(&told["wake_us"]["p50"])?;
        all.value = all.value.max(median);
        all.cpu = all.cpu.max(cpu(&told)?);
        all.details.extend([(port.median, median), (port.p99, number(&told["wake_us"]["p99"])?)]);
    }
    Ok(all)
}

/// Microseconds of both ends for a message and its answer.
fn cpu(told: &Value) -> io::Result<f64> {
    Ok(number(&told["client_cpu_us_per_exchange"])? + number(&told["server_cpu_us_per_exchange"])?)
}

fn measured(s: &Setup, kind: &Kind) -> io::Result<Value> {
    let wire = Wire::new(s)?;
    let socket = s.scratch.join("wake.sock");
    // That of the port before.
    let _ = fs::remove_file(&socket);
    let end = |driver: &str, mac: u8, address| {
        format!("dpdk:{driver}{},mac=02:00:00:00:00:0{mac},memory=none,addr={address}/24", socket.display())
    };
    match kind {
        Kind::Veth(device) => {
            let _server = server(s, &wire.near, &format!("dpdk:{device},memory=none,addr={NEAR}/24"))?;
            wire.far.knock(s, SocketAddrV4::new(NEAR, PERF))?;
            client(s, &wire.far, "kernel", NEAR)
        }
        Kind::Tun(device) => {
            let _server = server(s, &wire.near, &format!("{device}addr={THERE}/24,peer={HERE}"))?;
            wire.near.knock(s, SocketAddrV4::new(THERE, PERF))?;
            client(s, &wire.near, "kernel", THERE)
        }
        Kind::Pair(to, from) => {
            let mut server = server(s, &wire.near, &end(to, 1, NEAR))?;
            server.wait_until(|job| listens(job, &socket).then_some(()))?;
            client(s, &wire.far, &end(from, 2, FAR), NEAR)
        }
        Kind::PairBack(to, from) => {
            let mut sender = started(s, &wire.far, &end(from, 2, FAR), NEAR)?;
            sender.wait_until(|job| listens(job, &socket).then_some(()))?;
            let _server = server(s, &wire.near, &end(to, 1, NEAR))?;
            json(&sender.finish(s.length())?.output)
        }
    }
}

fn server(s: &Setup, on: &Namespace, port: &str) -> io::Result<Job> {
    on.start(s, tool(port, &["perf", "--listen", &PERF.to_string()])?)
}

fn client(s: &Setup, from: &Namespace, port: &str, to: Ipv4Addr) -> io::Result<Value> {
    json(&started(s, from, port, to)?.finish(s.length())?.output)
}

fn started(s: &Setup, from: &Namespace, port: &str, to: Ipv4Addr) -> io::Result<Job> {
    let (to, seconds) = (SocketAddrV4::new(to, PERF).to_string(), s.seconds.to_string());
    from.start(s, tool(port, &["perf", "--json", "--mode", "wake", "--seconds", &seconds, "--connect", &to])?)
}
