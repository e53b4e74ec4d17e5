//! `cargo xtask demo zstack`: the engine's HTTP server and `perf` beside the same program over the kernel's sockets, with curl and wrk in another
//! network namespace.
//!
//! The client's namespace is joined to the kernel's server by a veth pair, and to the engine by a tun device. The namespaces have no
//! names: they, the devices and the servers go with their processes, which end with this one, however it ends.

use crate::step::{self, Guard, Tally};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PROGRAMS: &[&str] = &["curl", "wrk", "iproute2", "util-linux"];
/// No namespace lives longer, in seconds.
const LIFE: &str = "300";
const KERNEL: &str = "10.98.0.2";
const ENGINE: &str = "10.97.0.2";
const ROUNDS: usize = 3;
/// How the directory of the files is called, before the number of this process.
const FILES_OF: &str = "zstack-demo-";

/// What curl, wrk and perf fetch.
const FILES: &[(&str, usize)] = &[("1k", 1 << 10), ("100k", 100 << 10), ("64m", 64 << 20)];

/// A row of the table: a number in a unit, more being better, or, where `less`, fewer.
struct Row {
    name: &'static str,
    unit: &'static str,
    less: bool,
    /// Whether the CPU time of a row is given for a unit: a request, a MiB.
    each: &'static str,
    run: fn(&World, Side) -> Result<Sample, String>,
}

/// One measurement: the value, and how much was done (requests, or MiB).
struct Sample {
    value: f64,
    done: f64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Kernel,
    Engine,
}

impl Side {
    fn address(self) -> &'static str {
        match self {
            Side::Kernel => KERNEL,
            Side::Engine => ENGINE,
        }
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

/// Namespaces, servers and files.
struct World {
    client: Guard,
    _server: Guard,
    http: [Guard; 2],
    perf: [Guard; 2],
    directory: PathBuf,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// False if something did not work.
pub fn demo() -> bool {
    let mut build = crate::cargo();
    build.args(["build", "--release", "-p", "zstack-tool"]);
    if !step::Step::new("build", build, Duration::from_secs(900)).run(&mut Tally::default())
        || !crate::debian::install(PROGRAMS)
    {
        return false;
    }
    let began = Instant::now();
    sweep();
    let directory = std::env::temp_dir().join(format!("{FILES_OF}{}", std::process::id()));
    let result = World::new(directory).and_then(|world| {
        world.check()?;
        table(&world)?;
        world.stat()
    });
    println!("\n# {:.0} s", began.elapsed().as_secs_f64());
    if let Err(text) = &result {
        eprintln!("demo zstack: {text}");
    }
    result.is_ok()
}

/// Removes the files of demonstrations that were killed.
fn sweep() {
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|n| n.strip_prefix(FILES_OF)).and_then(|p| p.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn zstack() -> PathBuf {
    crate::artefact("ZSTACK_BIN", "zstack")
}

/// A program that dies with this one, even if this one is killed.
fn bound(program: &str) -> Command {
    let mut c = Command::new("setpriv");
    c.args(["--pdeathsig", "KILL", program]);
    c.stdin(Stdio::null());
    c
}

/// `program` in the network namespace of a process.
fn inside(of: &Guard, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut c = bound("nsenter");
    c.args(["-t", &of.0.id().to_string(), "-n", "--"]).arg(program);
    c
}

/// Runs a command to its end; its output.
fn output(mut c: Command) -> Result<String, String> {
    let out = c.output().map_err(|e| format!("{}: {e}", step::show(&c)))?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if out.status.success() {
        return Ok(text);
    }
    Err(format!("{}: {}\n{text}{}", step::show(&c), out.status, String::from_utf8_lossy(&out.stderr)))
}

/// A process that holds a network namespace of its own.
fn namespace() -> Result<Guard, String> {
    let mut c = bound("unshare");
    let guard = c.args(["-n", "sleep", LIFE]).spawn().map(Guard).map_err(|e| format!("unshare: {e}"))?;
    let own = std::fs::read_link("/proc/self/ns/net").ok();
    let of = format!("/proc/{}/ns/net", guard.0.id());
    let apart = || std::fs::read_link(&of).is_ok_and(|theirs| Some(theirs) != own);
    if !step::poll_until(Duration::from_secs(10), apart) {
        return Err("unshare -n made no network namespace: are you root?".into());
    }
    Ok(guard)
}

impl World {
    fn new(directory: PathBuf) -> Result<World, String> {
        let served = directory.join("served");
        std::fs::create_dir_all(&served).map_err(|e| format!("{}: {e}", served.display()))?;
        // Removed in any case from here on.
        struct Files(Option<PathBuf>);
        impl Drop for Files {
            fn drop(&mut self) {
                if let Some(path) = &self.0 {
                    let _ = std::fs::remove_dir_all(path);
                }
            }
        }
        let mut files = Files(Some(directory.clone()));
        let mut state = 1u64;
        for (name, len) in FILES {
            let byte = |_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            };
            let bytes: Vec<u8> = (0..*len).map(byte).collect();
            std::fs::write(served.join(name), bytes).map_err(|e| format!("{}: {e}", directory.display()))?;
        }
        let (client, server) = (namespace()?, namespace()?);
        let ip = |of: &Guard, words: &str| {
            let mut c = inside(of, "ip");
            c.args(words.split(' '));
            output(c)
        };
        ip(&client, &format!("link add v0 type veth peer name v0 netns {}", server.0.id()))?;
        ip(&client, "addr add 10.98.0.1/24 dev v0")?;
        ip(&server, &format!("addr add {KERNEL}/24 dev v0"))?;
        for of in [&client, &server] {
            ip(of, "link set lo up")?;
            ip(of, "link set v0 up")?;
        }
        let device = |n: u32, address: &str, peer: &str| format!("tun:zsd{n},addr={address}/24,peer={peer}");
        let start = |of: &Guard, port: &str, words: &[&str]| {
            let mut c = inside(of, zstack());
            c.args(["--port", port]).args(words).stdout(Stdio::null());
            println!("# zstack --port {port} {}", words.join(" "));
            c.spawn().map(Guard).map_err(|e| format!("{}: {e}", step::show(&c)))
        };
        let root = served.display().to_string();
        let control = directory.join("control").display().to_string();
        let http = ["http", "--listen", "80", &root];
        let perf = ["perf", "--listen", "5001"];
        let engine_http =
            start(&client, &device(0, ENGINE, "10.97.0.1"), &[&http[..], &["--control", &control]].concat())?;
        let engine_perf = start(&client, &device(1, "10.96.0.2", "10.96.0.1"), &perf)?;
        let world = World {
            http: [start(&server, "kernel", &http)?, engine_http],
            perf: [start(&server, "kernel", &perf)?, engine_perf],
            client,
            _server: server,
            directory,
        };
        files.0 = None;
        Ok(world)
    }

    fn served(&self, name: &str) -> PathBuf {
        self.directory.join("served").join(name)
    }

    fn url(side: Side, file: &str) -> String {
        format!("http://{}/{file}", side.address())
    }

    fn curl(&self, words: &[&str]) -> Result<String, String> {
        let mut c = inside(&self.client, "curl");
        c.args(["-sS", "--noproxy", "*", "--max-time", "30"]).args(words);
        output(c)
    }

    /// Whether both servers serve what is right.
    fn check(&self) -> Result<(), String> {
        let got = self.directory.join("got").display().to_string();
        for side in [Side::Kernel, Side::Engine] {
            let small = Self::url(side, "1k");
            if !step::poll_until(Duration::from_secs(10), || self.curl(&["-o", &got, &small]).is_ok()) {
                return Err(format!("{small} does not answer"));
            }
            for (name, _) in FILES {
                self.curl(&["-o", &got, &Self::url(side, name)])?;
                same(Path::new(&got), &self.served(name), 0)?;
            }
            let code = self.curl(&["-o", &got, "-w", "%{http_code}", "-r", "5000-", &Self::url(side, "100k")])?;
            same(Path::new(&got), &self.served("100k"), 5000)?;
            let none = self.curl(&["-o", &got, "-w", "%{http_code}", &Self::url(side, "none")])?;
            let up =
                self.curl(&["--path-as-is", "-o", &got, "-w", "%{http_code}", &Self::url(side, "../../etc/passwd")])?;
            if (code.as_str(), none.as_str(), up.as_str()) != ("206", "404", "403") {
                return Err(format!("{}: {code}, {none} and {up} instead of 206, 404 and 403", side.address()));
            }
        }
        println!("# curl: every file, a range, 404 and a path that leads up: the same from both");
        Ok(())
    }

    fn wrk(&self, side: Side, file: &str, connections: u32) -> Result<Sample, String> {
        let mut c = inside(&self.client, "wrk");
        c.args(["-t1", "-d2", &format!("-c{connections}"), &Self::url(side, file)]);
        let text = output(c)?;
        if text.contains("Non-2xx") || text.contains("Socket errors") {
            return Err(format!("wrk: {text}"));
        }
        let word = |line: &str, at: usize| {
            let line = text.lines().find(|l| l.contains(line))?;
            line.split_whitespace().nth(at)?.parse::<f64>().ok()
        };
        match (word("Requests/sec:", 1), word("requests in", 0)) {
            (Some(value), Some(done)) => Ok(Sample { value, done }),
            _ => Err(format!("wrk: {text}")),
        }
    }

    fn curl_speed(&self, side: Side, file: &str) -> Result<Sample, String> {
        let url = Self::url(side, file);
        let text = self.curl(&["-o", "/dev/null", "-w", "%{speed_download} %{size_download}", &url])?;
        let numbers: Vec<f64> = text.split(' ').filter_map(|n| n.parse().ok()).collect();
        match numbers[..] {
            [speed, size] => Ok(Sample { value: speed / f64::from(1 << 20), done: size / f64::from(1 << 20) }),
            _ => Err(format!("curl: {text}")),
        }
    }

    fn perf(&self, side: Side, mode: &str, connections: u32) -> Result<Sample, String> {
        let to = match side {
            Side::Kernel => format!("{KERNEL}:5001"),
            Side::Engine => "10.96.0.2:5001".to_owned(),
        };
        let mut c = inside(&self.client, zstack());
        c.args(["--port", "kernel", "perf", "--json", "--seconds", "1.5", "--mode", mode, "--connect", &to]);
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
        [&self.http[at], &self.perf[at]].into_iter().map(|g| cpu_of(g.0.id())).sum()
    }

    /// `zstack stat` of the engine's server, while wrk runs.
    fn stat(&self) -> Result<(), String> {
        let mut c = inside(&self.client, "wrk");
        c.args(["-t1", "-d2", "-c4", &Self::url(Side::Engine, "100k")]).stdout(Stdio::null());
        let load = c.spawn().map(Guard).map_err(|e| format!("wrk: {e}"))?;
        std::thread::sleep(Duration::from_millis(700));
        let mut c = Command::new(zstack());
        c.args(["stat", "--control", &self.directory.join("control").display().to_string()]);
        println!("\n# zstack stat, while wrk runs with 4 connections\n");
        print!("{}", output(c)?);
        drop(load);
        Ok(())
    }
}

/// The time that a process with one thread has had a CPU, in seconds (proc_pid_schedstat: the first number, nanoseconds).
fn cpu_of(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
    stat.split(' ').next().and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

/// The first number behind `"name":` in a JSON text.
fn number(json: &str, name: &str) -> Option<f64> {
    let rest = json.split_once(&format!("\"{name}\":"))?.1.trim_start();
    rest[..rest.find([',', '\n', '}'])?].trim().parse().ok()
}

fn same(got: &Path, file: &Path, from: usize) -> Result<(), String> {
    let read = |p: &Path| std::fs::read(p).map_err(|e| format!("{}: {e}", p.display()));
    if read(got)? == read(file)?[from..] { Ok(()) } else { Err(format!("{}: other bytes arrived", file.display())) }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn table(world: &World) -> Result<(), String> {
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
        let (mut values, mut cpus) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        for _ in 0..ROUNDS {
            for (at, side) in [Side::Kernel, Side::Engine].into_iter().enumerate() {
                let before = world.cpu(side);
                let sample = (row.run)(world, side)?;
                values[at].push(sample.value);
                cpus[at].push((world.cpu(side) - before) * 1e6 / sample.done.max(1.0));
            }
        }
        let [kernel, engine] = values.map(median);
        let [kernel_cpu, engine_cpu] = cpus.map(median);
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
fn bare(world: &World) -> Result<(), String> {
    println!("\nwhat a tun itself costs, without the engine (CPU us a packet)");
    for size in [92, 1500, 65_000] {
        let mut c = inside(&world.client, zstack());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_a_report() {
        let json = "{\n  \"a\": 1.5,\n  \"l\": {\n \"p50\": 80.0\n },\n \"n\": null\n}";
        assert_eq!(
            (number(json, "a"), number(json, "p50"), number(json, "n"), number(json, "x")),
            (Some(1.5), Some(80.0), None, None)
        );
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    }

    #[test]
    fn cpu_time_of_this_process_is_found() {
        assert!(cpu_of(std::process::id()) > 0.0 && cpu_of(u32::MAX) == 0.0);
    }
}
