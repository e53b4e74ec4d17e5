//! The engine alone, in the command `zstack`, beside the same command (or nginx) on the kernel's sockets. The other end is the kernel's.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddrV4;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::super::procs::{Job, Side};
use super::super::row::{Sample, Setup, json, number};
use super::lab::{Device, FAR, NEAR, Namespace, Wire, zstack};
use super::web::{FILE, Site, nginx, wrk};

/// Port of the perf servers.
pub const PERF: u16 = 5001;

pub fn tool(port: &str, words: &[&str]) -> io::Result<Command> {
    let mut c = zstack()?;
    c.args(["--port", port]).args(words);
    Ok(c)
}

/// A wire, and what `--port` of the near end is.
fn near(s: &Setup, side: Side, device: Device, more: &str) -> io::Result<(Wire, String)> {
    Ok(match side {
        Side::Kernel => (Wire::of_kernels(s)?, "kernel".into()),
        Side::Culvert => (Wire::new(s)?, device.with_address(more)),
    })
}

fn perf(s: &Setup, from: &Namespace, port: &str, to: SocketAddrV4, mode: &str, more: &[&str]) -> io::Result<Value> {
    let (to, seconds) = (to.to_string(), s.seconds.to_string());
    let words = [&["perf", "--json", "--mode", mode, "--seconds", &seconds, "--connect", &to], more].concat();
    json(&from.start(s, tool(port, &words)?)?.finish(s.length())?.output)
}

fn perf_server(s: &Setup, on: &Namespace, port: &str) -> io::Result<Job> {
    on.start(s, tool(port, &["perf", "--listen", &PERF.to_string()])?)
}

/// MiB for a CPU second of the near end, to or from a kernel. What the device takes for as many full frames as it sends is in the details.
pub fn throughput(s: &Setup, side: Side, device: Device, mode: &str) -> io::Result<Sample> {
    let (wire, port) = near(s, side, device, "")?;
    let before = wire.frames();
    let to = SocketAddrV4::new(FAR, PERF);
    let _server = perf_server(s, &wire.far, "kernel")?;
    wire.far.knock(s, to)?;
    let answer = perf(s, &wire.near, &port, to, mode, &[])?;
    let mib = number(&answer["bytes"])? / f64::from(1 << 20);
    let frames = wire.frames() - before;
    let size = if mode == "upload" { 1500 } else { 92 };
    let port = if side == Side::Culvert { frames / mib * bare(s, device, size)? } else { 0.0 };
    let (ours, theirs) = (number(&answer["client_cpu_s"]["total"])?, number(&answer["server_cpu_s"]["total"])?);
    Ok(Sample {
        value: mib / ours,
        cpu: (ours + theirs) * 1e6 / mib,
        details: BTreeMap::from([
            ("mib_per_s", number(&answer["mib_per_s"])?),
            ("near_cpu_us", ours * 1e6 / mib),
            ("far_cpu_us", theirs * 1e6 / mib),
            ("port_cpu_us", port),
        ]),
    })
}

/// MiB for a CPU second of both ends: two engines and memif, or two kernels and a veth.
pub fn memif(s: &Setup, side: Side) -> io::Result<Sample> {
    let to = SocketAddrV4::new(FAR, PERF);
    if side == Side::Culvert {
        return between_engines(s, &[]);
    }
    let wire = Wire::of_kernels(s)?;
    let _server = perf_server(s, &wire.far, "kernel")?;
    wire.far.knock(s, to)?;
    of_both(&perf(s, &wire.near, "kernel", to, "upload", &[])?)
}

/// MiB for a CPU second of two engines and memif, of which one sends by reference, or copies what it sends.
pub fn memif_by_reference(s: &Setup, side: Side) -> io::Result<Sample> {
    between_engines(s, copying(side))
}

/// What `zstack` is told where the row's other side copies.
fn copying(side: Side) -> &'static [&'static str] {
    if side == Side::Kernel { &["--copy"] } else { &[] }
}

fn between_engines(s: &Setup, more: &[&str]) -> io::Result<Sample> {
    let wire = Wire::new(s)?;
    let socket = s.scratch.join("memif.sock");
    // That of the round before.
    let _ = fs::remove_file(&socket);
    let port = |role: &str, address| {
        format!(
            "dpdk:net_memif0,role={role},id=0,socket={},socket-abstract=no,memory=none,addr={address}/24",
            socket.display()
        )
    };
    let mut server = perf_server(s, &wire.far, &port("server", FAR))?;
    server.wait_until(|job| listens(job, &socket).then_some(()))?;
    of_both(&perf(s, &wire.near, &port("client", NEAR), SocketAddrV4::new(FAR, PERF), "upload", more)?)
}

/// MiB for a CPU second of both ends.
fn of_both(answer: &Value) -> io::Result<Sample> {
    let mib = number(&answer["bytes"])? / f64::from(1 << 20);
    let both = number(&answer["client_cpu_s"]["total"])? + number(&answer["server_cpu_s"]["total"])?;
    let details = BTreeMap::from([("mib_per_s", number(&answer["mib_per_s"])?)]);
    Ok(Sample { value: mib / both, cpu: both * 1e6 / mib, details })
}

/// Segments for a CPU second of an engine that sends 64 KiB by a call, by reference, or copied; who acknowledges is played in the same process.
/// `None`: the device drops what it is given, as a card would that reads memory by itself.
pub fn solo(s: &Setup, side: Side, device: Option<Device>) -> io::Result<Sample> {
    let wire = Wire::new(s)?;
    let port = match device {
        Some(device) => device.with_address(&format!(",gateway={FAR}")),
        None => format!("dpdk:net_null0,no-rx=1,memory=none,addr={NEAR}/24,gateway={FAR}"),
    };
    let seconds = s.seconds.to_string();
    let words = [&["solo", "--json", "--size", "64k", "--seconds", &seconds], copying(side)].concat();
    let answer = json(&wire.near.start(s, tool(&port, &words)?)?.finish(s.length())?.output)?;
    let details = BTreeMap::from([
        ("copied_mib", number(&answer["copied_bytes"])? / f64::from(1 << 20)),
        ("referenced_mib", number(&answer["referenced_bytes"])? / f64::from(1 << 20)),
    ]);
    Ok(Sample { value: number(&answer["segments_per_cpu_s"])?, cpu: number(&answer["cpu_ns"])? / 1e3, details })
}

/// Nanoseconds that a packet takes from the driver (net_null, which makes it) to its return, 32 of them held: its buffer in memory of ours, or in DPDK's own.
pub fn pool(s: &Setup, side: Side) -> io::Result<Sample> {
    let wire = Wire::new(s)?;
    let pool = if side == Side::Kernel { "dpdk" } else { "pinned" };
    let port = format!("dpdk:net_null0,no-rx=0,size=64,memory=none,pool={pool},addr={NEAR}/24");
    let seconds = s.seconds.to_string();
    let words = ["bare", "--json", "--held", "32", "--seconds", &seconds];
    let answer = json(&wire.near.start(s, tool(&port, &words)?)?.finish(s.length())?.output)?;
    let cpu = number(&answer["received_cpu_us"])?;
    Ok(Sample { value: cpu * 1e3, cpu, details: BTreeMap::new() })
}

/// Whether somebody in a program's network namespace listens at a Unix socket (proc(5): the flag __SO_ACCEPTCON).
pub fn listens(job: &Job, socket: &Path) -> bool {
    let text = fs::read_to_string(format!("/proc/{}/net/unix", job.pid())).unwrap_or_default();
    let socket = socket.to_string_lossy();
    text.lines().any(|l| l.ends_with(&*socket) && l.split_ascii_whitespace().nth(3) == Some("00010000"))
}

/// Microseconds of a round trip of 64 bytes to a kernel.
pub fn round_trip(s: &Setup, side: Side, sleep: &str) -> io::Result<Sample> {
    let (wire, port) = near(s, side, Device::AfPacket, &format!(",sleep={sleep}"))?;
    let to = SocketAddrV4::new(FAR, PERF);
    let _server = perf_server(s, &wire.far, "kernel")?;
    wire.far.knock(s, to)?;
    let answer = perf(s, &wire.near, &port, to, "exchange", &[])?;
    let (ours, theirs) =
        (number(&answer["client_cpu_us_per_exchange"])?, number(&answer["server_cpu_us_per_exchange"])?);
    Ok(Sample {
        value: number(&answer["latency_us"]["p50"])?,
        cpu: ours + theirs,
        details: BTreeMap::from([
            ("p99_us", number(&answer["latency_us"]["p99"])?),
            ("near_cpu_us", ours),
            ("far_cpu_us", theirs),
        ]),
    })
}

/// Requests for a CPU second of the server: `zstack http`, or nginx on the kernel.
pub fn http(s: &Setup, side: Side, device: Device) -> io::Result<Sample> {
    let (wire, port) = near(s, side, device, "")?;
    let at = SocketAddrV4::new(NEAR, 80);
    let www = s.scratch.join("www");
    fs::create_dir_all(&www)?;
    fs::write(www.join("1k"), [b'a'; FILE])?;
    let server = if side == Side::Kernel {
        nginx(s, &Site::Near(&wire.near))?
    } else {
        let root = www.display().to_string();
        wire.near.start(s, tool(&port, &["http", "--listen", "80", &root])?)?
    };
    wire.far.knock(s, at)?;
    wrk(s, &wire.far, "1k", 64, || server.cpu())
}

/// Microseconds of CPU that a device takes to send a frame with an IP packet of so many bytes, which the kernel at the other end drops at once.
pub fn bare(s: &Setup, device: Device, size: u32) -> io::Result<f64> {
    let wire = Wire::new(s)?;
    // Its other end is told to bare by an address that the driver need not know.
    let port = format!("{},gateway={FAR}", device.with_address(""));
    let done = wire
        .near
        .start(s, tool(&port, &["bare", "--json", "--size", &size.to_string(), "--seconds", "0.5"])?)?
        .finish(s.length())?;
    number(&json(&done.output)?["written_cpu_us"])
}
