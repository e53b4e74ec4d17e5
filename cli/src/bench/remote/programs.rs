//! Unmodified programs behind zstackd, beside the same on the kernel. The other end is the kernel's.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddrV4;
use std::sync::OnceLock;
use std::time::Duration;

use super::super::procs::Side;
use super::super::row::{Sample, Setup, json, number, per_op, program, workload};
use super::super::rows::parse_redis;
use super::engine;
use super::lab::{Device, FAR, NEAR, World};
use super::pair::{End, Pair};
use super::web::{self, Site};

/// Requests for a CPU second of nginx and zstackd.
pub fn nginx_behind(s: &Setup, side: Side, device: Device) -> io::Result<Sample> {
    let world = World::new(s, side, device)?;
    let server = web::nginx(s, &Site::Behind(&world))?;
    world.wire.far.knock(s, SocketAddrV4::new(NEAR, 80))?;
    let daemon = world.cpu();
    let mut sample = web::wrk(s, &world.wire.far, "1k", 32, || server.cpu() + world.cpu())?;
    let requests = sample.details["rate"] * f64::from(s.seconds);
    sample.details.insert("zstackd_cpu_us", per_op(world.cpu() - daemon, requests));
    Ok(sample)
}

/// GETs for a CPU second of redis-server and zstackd.
pub fn redis_behind(s: &Setup, side: Side, device: Device) -> io::Result<Sample> {
    let world = World::new(s, side, device)?;
    let mut c = program("redis-server")?;
    c.args(["--port", "6379", "--save", "", "--appendonly", "no", "--protected-mode", "no"]);
    c.args(["--loglevel", "warning", "--dir"]).arg(s.scratch);
    let server = world.start(s, c)?;
    world.wire.far.knock(s, SocketAddrV4::new(NEAR, 6379))?;
    let requests = s.seconds * 40_000;
    let mut c = program("redis-benchmark")?;
    c.args(["-h", &NEAR.to_string(), "-c", "50", "-d", "64", "-t", "set,get", "--csv", "-n", &requests.to_string()]);
    let (program, daemon) = (server.cpu(), world.cpu());
    // So many commands, not for so long: some minutes, where others want the processors too.
    let done = world.wire.far.start(s, c)?.finish(s.length() + Duration::from_secs(180))?;
    let (program, daemon) = (server.cpu() - program, world.cpu() - daemon);
    let (set, get) = parse_redis(&done.output)?;
    let commands = 2.0 * f64::from(requests);
    Ok(Sample {
        value: commands / (program + daemon).as_secs_f64(),
        cpu: per_op(program + daemon + done.cpu, commands),
        details: BTreeMap::from([
            ("rate", 2.0 / (1.0 / set + 1.0 / get)),
            ("server_cpu_us", per_op(program + daemon, commands)),
            ("zstackd_cpu_us", per_op(daemon, commands)),
            ("client_cpu_us", per_op(done.cpu, commands)),
        ]),
    })
}

/// MiB for a CPU second of two programs and of the zstackds, one each, between which is memif; or of the programs alone, between two kernels.
pub fn stream(s: &Setup, side: Side) -> io::Result<Sample> {
    let pair = Pair::new(s, side)?;
    let to = SocketAddrV4::new(FAR, engine::PERF);
    let _server = pair.start(s, End::Far, engine::tool("kernel", &["perf", "--listen", &engine::PERF.to_string()])?)?;
    pair.knock(s, to)?;
    let daemons = pair.cpu();
    let (to, seconds) = (to.to_string(), s.seconds.to_string());
    let words = ["perf", "--json", "--mode", "upload", "--seconds", &seconds, "--connect", &to];
    let answer = json(&pair.start(s, End::Near, engine::tool("kernel", &words)?)?.finish(s.length())?.output)?;
    let daemons = [pair.cpu()[0] - daemons[0], pair.cpu()[1] - daemons[1]].map(|cpu| cpu.as_secs_f64());
    let mib = number(&answer["bytes"])? / f64::from(1 << 20);
    let programs = [number(&answer["client_cpu_s"]["total"])?, number(&answer["server_cpu_s"]["total"])?];
    let all: f64 = programs.iter().chain(&daemons).sum();
    let us = |seconds: f64| seconds * 1e6 / mib;
    Ok(Sample {
        value: mib / all,
        cpu: us(all),
        details: BTreeMap::from([
            ("mib_per_s", number(&answer["mib_per_s"])?),
            ("sender_cpu_us", us(programs[0])),
            ("receiver_cpu_us", us(programs[1])),
            ("sender_zstackd_cpu_us", us(daemons[0])),
            ("receiver_zstackd_cpu_us", us(daemons[1])),
        ]),
    })
}

/// Microseconds of CPU of a program and zstackd, without zstackd's port, to connect to a far host and close.
pub fn connect(s: &Setup, side: Side) -> io::Result<Sample> {
    let device = Device::AfPacket;
    let world = World::new(s, side, device)?;
    let to = SocketAddrV4::new(FAR, 7).to_string();
    let mut server = world.wire.far.start(s, workload(&["remote", "accept-server", &to]))?;
    server.first_line()?;
    let (daemon, frames, far) = (world.cpu(), world.wire.frames(), server.cpu());
    let client = world.start(s, workload(&["remote", "connect-client", &to, "--seconds", &s.seconds.to_string()]))?;
    let done = client.finish(s.length())?;
    // What is on its way when the last one is closed.
    settle(&world);
    let (daemon, frames, far) = (world.cpu() - daemon, world.wire.frames() - frames, server.cpu() - far);
    let answer = json(&done.output)?;
    let n = number(&answer["operations"])?;
    let port = if side == Side::Culvert { frames / n * port_cost(s, device)? } else { 0.0 };
    let all = per_op(done.cpu + daemon, n);
    let passed_on = if side == Side::Culvert { passed_on(s, &world, &to)? } else { 0.0 };
    Ok(Sample {
        value: all - port,
        cpu: all + per_op(far, n),
        details: BTreeMap::from([
            ("passed_on_cpu_us", passed_on),
            ("rate", number(&answer["rate"])?),
            ("program_cpu_us", per_op(done.cpu, n)),
            ("zstackd_cpu_us", per_op(daemon, n)),
            ("port_cpu_us", port),
            ("frames_sent", frames / n),
            ("far_cpu_us", per_op(far, n)),
        ]),
    })
}

/// The same, with the port, for a program without culvert, whose packets zstackd passes on as they are: what it costs that a process is on
/// the way at all.
fn passed_on(s: &Setup, world: &World, to: &str) -> io::Result<f64> {
    let before = world.cpu();
    let args = ["remote", "connect-client", to, "--seconds", &s.seconds.to_string(), "--most", "3000"];
    let done = world.here().start(s, workload(&args))?.finish(s.length())?;
    settle(world);
    let n = number(&json(&done.output)?["operations"])?;
    Ok(per_op(done.cpu + (world.cpu() - before), n))
}

/// Returns when zstackd has nothing to do.
fn settle(world: &World) {
    const LOOK: Duration = Duration::from_millis(20);
    for _ in 0..50 {
        let before = world.cpu();
        std::thread::sleep(LOOK);
        if world.cpu() - before < LOOK / 20 {
            return;
        }
    }
}

/// What the device takes for a frame, in microseconds: measured once.
fn port_cost(s: &Setup, device: Device) -> io::Result<f64> {
    static COST: OnceLock<f64> = OnceLock::new();
    if let Some(cost) = COST.get() {
        return Ok(*cost);
    }
    let bare = || engine::bare(s, device, 92);
    let mut costs = [bare()?, bare()?, bare()?];
    costs.sort_by(f64::total_cmp);
    Ok(*COST.get_or_init(|| costs[1]))
}

/// Microseconds of a round trip of 64 bytes of a program's to a far host.
pub fn round_trip(s: &Setup, side: Side) -> io::Result<Sample> {
    let world = World::new(s, side, Device::AfPacket)?;
    let to = SocketAddrV4::new(FAR, 7).to_string();
    let mut server = world.wire.far.start(s, workload(&["remote", "echo-server", &to]))?;
    server.first_line()?;
    let (daemon, far) = (world.cpu(), server.cpu());
    let client = world.start(s, workload(&["remote", "rtt-client", &to, "--seconds", &s.seconds.to_string()]))?;
    let done = client.finish(s.length())?;
    let (daemon, far) = (world.cpu() - daemon, server.cpu() - far);
    let answer = json(&done.output)?;
    let n = number(&answer["all_operations"])?;
    Ok(Sample {
        value: number(&answer["p50_ns"])? / 1e3,
        cpu: per_op(done.cpu + daemon + far, n),
        details: BTreeMap::from([
            ("p99_us", number(&answer["p99_ns"])? / 1e3),
            ("program_cpu_us", per_op(done.cpu, n)),
            ("zstackd_cpu_us", per_op(daemon, n)),
            ("far_cpu_us", per_op(far, n)),
        ]),
    })
}
