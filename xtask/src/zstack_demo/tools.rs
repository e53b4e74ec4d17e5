//! The engine's own tools beside the same program over the kernel's sockets: `zstack http` and `zstack perf`.
//!
//! The client's namespace is joined to the kernel's server by a veth pair, and to the engine by a tun device.

use super::FILES;
use super::clients::{Sample, curl, curl_speed, same, wrk};
use super::lab::{Files, Namespace, PATIENCE, Server, cpu_of, output};
use super::measure::{ROUNDS, Side, in_turns, number};
use crate::step;
use crate::with_dpdk::zstack;
use std::process::Stdio;
use std::time::Duration;

const KERNEL: &str = "10.98.0.2";
const ENGINE: &str = "10.97.0.2";

/// A row of the table: a number in a unit, more being better, or, where `less`, fewer.
struct Row {
    name: &'static str,
    unit: &'static str,
    less: bool,
    /// Whether the CPU time of a row is given for a unit: a request, a MiB.
    each: &'static str,
    run: fn(&World<'_>, Side) -> Result<Sample, String>,
}

fn address(side: Side) -> &'static str {
    match side {
        Side::Kernel => KERNEL,
        Side::Engine => ENGINE,
    }
}

const ROWS: &[Row] = &[
    Row {
        name: "http 1 KiB, wrk -c64",
        unit: "requests/s",
        less: false,
        each: "request",
        run: |w, s| w.wrk(s, "1k", 64),
    },
    Row {
        name: "http 100 KiB, wrk -c8",
        unit: "requests/s",
        less: false,
        each: "request",
        run: |w, s| w.wrk(s, "100k", 8),
    },
    Row { name: "http 64 MiB, curl", unit: "MiB/s", less: false, each: "MiB", run: |w, s| w.curl_speed(s, "64m") },
    Row { name: "perf upload", unit: "MiB/s", less: false, each: "MiB", run: |w, s| w.perf(s, "upload", 1) },
    Row { name: "perf download", unit: "MiB/s", less: false, each: "MiB", run: |w, s| w.perf(s, "download", 1) },
    Row {
        name: "perf exchange of 64 B",
        unit: "us (p50)",
        less: true,
        each: "exchange",
        run: |w, s| w.perf(s, "exchange", 1),
    },
    Row {
        name: "perf connect",
        unit: "connections/s",
        less: false,
        each: "connection",
        run: |w, s| w.perf(s, "connect", 4),
    },
];

/// Namespaces and servers.
pub struct World<'a> {
    client: Namespace,
    _server: Namespace,
    http: [Server; 2],
    perf: [Server; 2],
    files: &'a Files,
}

impl World<'_> {
    /// Starts all servers.
    pub fn new(files: &Files) -> Result<World<'_>, String> {
        let (client, server) = (Namespace::new()?, Namespace::new()?);
        client.ip(&format!("link add v0 type veth peer name v0 netns {}", server.pid()))?;
        for (namespace, address) in [(&client, "10.98.0.1"), (&server, KERNEL)] {
            namespace.ip(&format!("addr add {address}/24 dev v0"))?;
            namespace.ip("link set v0 up")?;
        }
        let device = |n: u32, address: &str, peer: &str| format!("tun:zsd{n},addr={address}/24,peer={peer}");
        let start = |of: &Namespace, port: &str, words: &[&str]| {
            println!("# zstack --port {port} {}", words.join(" "));
            of.serve(zstack(), &[&["--port", port], words].concat(), &[])
        };
        let (root, control) = (files.name("served"), files.name("control"));
        let http = ["http", "--listen", "80", &root];
        let perf = ["perf", "--listen", "5001"];
        let engine_http =
            start(&client, &device(0, ENGINE, "10.97.0.1"), &[&http[..], &["--control", &control]].concat())?;
        let engine_perf = start(&client, &device(1, "10.96.0.2", "10.96.0.1"), &perf)?;
        Ok(World {
            http: [start(&server, "kernel", &http)?, engine_http],
            perf: [start(&server, "kernel", &perf)?, engine_perf],
            client,
            _server: server,
            files,
        })
    }

    fn url(side: Side, file: &str) -> String {
        format!("http://{}/{file}", address(side))
    }

    /// Whether both servers serve what is right.
    pub fn check(&self) -> Result<(), String> {
        let got = self.files.name("got");
        for side in [Side::Kernel, Side::Engine] {
            let small = Self::url(side, "1k");
            if !step::poll_until(PATIENCE, || curl(&self.client, &["-o", &got, &small]).is_ok()) {
                return Err(format!("{small} does not answer"));
            }
            for (name, _) in FILES {
                curl(&self.client, &["-o", &got, &Self::url(side, name)])?;
                same(got.as_ref(), &self.files.at("served").join(name), 0)?;
            }
            let code =
                curl(&self.client, &["-o", &got, "-w", "%{http_code}", "-r", "5000-", &Self::url(side, "100k")])?;
            same(got.as_ref(), &self.files.at("served/100k"), 5000)?;
            let none = curl(&self.client, &["-o", &got, "-w", "%{http_code}", &Self::url(side, "none")])?;
            let up = curl(
                &self.client,
                &["--path-as-is", "-o", &got, "-w", "%{http_code}", &Self::url(side, "../../etc/passwd")],
            )?;
            if (code.as_str(), none.as_str(), up.as_str()) != ("206", "404", "403") {
                return Err(format!("{}: {code}, {none} and {up} instead of 206, 404 and 403", address(side)));
            }
        }
        println!("# curl: every file, a range, 404 and a path that leads up: the same from both");
        Ok(())
    }

    fn wrk(&self, side: Side, file: &str, connections: u32) -> Result<Sample, String> {
        wrk(&self.client, &Self::url(side, file), connections, 1)
    }

    fn curl_speed(&self, side: Side, file: &str) -> Result<Sample, String> {
        curl_speed(&self.client, &Self::url(side, file))
    }

    fn perf(&self, side: Side, mode: &str, connections: u32) -> Result<Sample, String> {
        let to = match side {
            Side::Kernel => format!("{KERNEL}:5001"),
            Side::Engine => "10.96.0.2:5001".to_owned(),
        };
        let mut c = self.client.command(zstack());
        c.args(["--port", "kernel", "perf", "--json", "--seconds", "1", "--mode", mode, "--connect", &to]);
        c.args(["--connections", &connections.to_string()]);
        let json = output(c)?;
        let field = |name: &str| number(&json, name).ok_or_else(|| format!("perf said no {name}: {json}"));
        match mode {
            "upload" | "download" => {
                Ok(Sample { value: field("mib_per_s")?, done: field("bytes")? / f64::from(1 << 20) })
            }
            "exchange" => Ok(Sample { value: field("p50")?, done: field("exchanges")? }),
            _ => Ok(Sample { value: field("per_s")?, done: field("exchanges")? }),
        }
    }

    /// CPU seconds that the servers of a side have spent.
    fn cpu(&self, side: Side) -> f64 {
        let at = usize::from(side == Side::Engine);
        [&self.http[at], &self.perf[at]].into_iter().map(|server| cpu_of(server.pid())).sum()
    }

    /// `zstack stat` of the engine's server, while wrk runs.
    pub fn stat(&self) -> Result<(), String> {
        let mut c = self.client.command("wrk");
        c.args(["-t1", "-d2", "-c4", &Self::url(Side::Engine, "100k")]).stdout(Stdio::null());
        let load = c.spawn().map(step::Guard).map_err(|e| format!("wrk: {e}"))?;
        std::thread::sleep(Duration::from_millis(700));
        let mut c = std::process::Command::new(zstack());
        c.args(["stat", "--control", &self.files.name("control")]);
        println!("\n# zstack stat, while wrk runs with 4 connections\n");
        print!("{}", output(c)?);
        drop(load);
        Ok(())
    }
}

/// Measures all rows.
pub fn table(world: &World<'_>) -> Result<(), String> {
    println!(
        "\nserver: zstack over the kernel's sockets and a veth pair, and over the engine and a tun device; client: the kernel."
    );
    println!(
        "Median of {ROUNDS} rounds, in turns. CPU: of the server process, in microseconds, for each unit of work.\n"
    );
    println!(
        "{:<24} {:<14} {:>10} {:>10} {:>7}   {:<11} {:>8} {:>8} {:>7}",
        "row", "unit", "kernel", "engine", "ratio", "CPU us a", "kernel", "engine", "ratio"
    );
    for row in ROWS {
        let [[kernel, kernel_cpu], [engine, engine_cpu]] = in_turns(|side| {
            let before = world.cpu(side);
            let sample = (row.run)(world, side)?;
            Ok([sample.value, (world.cpu(side) - before) * 1e6 / sample.done.max(1.0)])
        })?;
        let better = if row.less { kernel / engine } else { engine / kernel };
        println!(
            "{:<24} {:<14} {kernel:>10.1} {engine:>10.1} {better:>6.2}x   {:<11} {kernel_cpu:>8.1} {engine_cpu:>8.1} {:>6.2}x",
            row.name,
            row.unit,
            row.each,
            kernel_cpu / engine_cpu.max(0.001)
        );
    }
    bare(world)?;
    println!("\nratio: how many times better the engine is; over 1 is better than the kernel.");
    Ok(())
}

/// What the tun device itself costs, without the engine: 64 bytes of payload in a packet, a full packet, and one as long as the kernel and the
/// engine hand over at once.
fn bare(world: &World<'_>) -> Result<(), String> {
    println!("\nwhat a tun itself costs, without the engine (CPU us a packet)");
    for size in [92, 1500, 65_000] {
        let mut c = world.client.command(zstack());
        let size = size.to_string();
        c.args([
            "--port",
            "tun:zsd8,addr=10.95.0.2/24,peer=10.95.0.1,mtu=65000",
            "bare",
            "--json",
            "--seconds",
            "0.5",
            "--size",
            &size,
        ]);
        let json = output(c)?;
        let field = |name: &str| number(&json, name).ok_or_else(|| format!("bare said no {name}: {json}"));
        let (written, back) = (field("written_cpu_us")?, field("there_and_back_cpu_us")?);
        println!("  {size:>6} bytes   written {written:>7.2}   to the kernel's ICMP and back {back:>7.2}");
    }
    Ok(())
}
