//! Unmodified nginx and redis behind zstackd, whose port is DPDK's net_af_packet on a veth, beside the same programs on the kernel's TCP.
//!
//! ```text
//! client --- v0 --- v0 nginx, redis                              the kernel's side
//!        --- v1 --- p0 (DPDK) zstackd (cv0) --- nginx, redis     zstackd's side: p0 is in a namespace of its own
//! ```

use super::FILES;
use super::clients::{self, Sample, curl, same};
use super::lab::{Files, Namespace, PATIENCE, Server, cpu_of, cpu_of_ended, descendants, output};
use super::measure::{ROUNDS, Side, in_turns};
use crate::with_dpdk::zstackd;
use crate::{culvert, step};
use std::path::Path;
use std::process::{Command, Stdio};

const NGINX: &str = "worker_processes 1;
daemon off;
pid @DIR@/nginx.pid;
error_log stderr crit;
events { worker_connections 4096; }
http {
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000000;
    client_body_temp_path @DIR@/body;
    proxy_temp_path @DIR@/proxy;
    fastcgi_temp_path @DIR@/fastcgi;
    uwsgi_temp_path @DIR@/uwsgi;
    scgi_temp_path @DIR@/scgi;
    default_type application/octet-stream;
    server { listen 80; root @ROOT@; }
}
";

/// A row: requests a second, or MiB.
struct Row {
    name: &'static str,
    unit: &'static str,
    /// What the CPU time is given for.
    each: &'static str,
    server: fn(&Programs) -> &Server,
    run: fn(&Namespace, &str) -> Result<Sample, String>,
}

const ROWS: &[Row] = &[
    Row {
        name: "nginx 1 KiB, wrk -c32",
        unit: "requests/s",
        each: "request",
        server: |p| &p.nginx,
        run: |client, server| clients::wrk(client, &format!("http://{server}/1k"), 32, 1),
    },
    Row {
        name: "nginx 100 KiB, wrk -c8",
        unit: "requests/s",
        each: "request",
        server: |p| &p.nginx,
        run: |client, server| clients::wrk(client, &format!("http://{server}/100k"), 8, 1),
    },
    Row {
        name: "nginx 64 MiB, curl",
        unit: "MiB/s",
        each: "MiB",
        server: |p| &p.nginx,
        run: |client, server| clients::curl_speed(client, &format!("http://{server}/64m")),
    },
    Row {
        name: "redis GET 64 B, -c50 -P1",
        unit: "commands/s",
        each: "command",
        server: |p| &p.redis,
        run: |client, server| clients::redis(client, server, 1, 50_000),
    },
    Row {
        name: "redis GET 64 B, -c50 -P16",
        unit: "commands/s",
        each: "command",
        server: |p| &p.redis,
        run: |client, server| clients::redis(client, server, 16, 400_000),
    },
];

/// The servers of one side.
struct Programs {
    nginx: Server,
    redis: Server,
}

/// Namespaces and servers. What is dropped first comes first.
pub struct World<'a> {
    sides: [Programs; 2],
    zstackd: Server,
    client: Namespace,
    here: Namespace,
    _others: [Namespace; 2],
    files: &'a Files,
}

fn address(side: Side) -> &'static str {
    match side {
        Side::Kernel => "10.98.0.2",
        Side::Engine => "10.97.0.2",
    }
}

/// The library's registry, apart from this machine's.
fn registry(files: &Files) -> String {
    files.name("registry")
}

impl World<'_> {
    /// Starts all servers.
    pub fn new(files: &Files) -> Result<World<'_>, String> {
        let [client, native, here, wire] = [Namespace::new()?, Namespace::new()?, Namespace::new()?, Namespace::new()?];
        client.join("v0", &native, "v0")?;
        client.join("v1", &wire, "p0")?;
        client.ip("addr add 10.98.0.1/24 dev v0")?;
        client.ip("addr add 10.97.0.1/24 dev v1")?;
        native.ip(&format!("addr add {}/24 dev v0", address(Side::Kernel)))?;

        let zstackd = start_zstackd(files, &here, &wire)?;
        let kernel = Programs::start(files, "kernel", |program, words| native.serve(program, words, &[]))?;
        let engine = Programs::start(files, "zstackd", |program, words| {
            let words = [&["run", "--path", "zstack", "--", program], words].concat();
            println!("# culvert {}", words.join(" "));
            here.serve(culvert(), &words, &[("CULVERT_DIR", &registry(files))])
        })?;
        let world = World { sides: [kernel, engine], zstackd, client, here, _others: [native, wire], files };
        for side in [Side::Kernel, Side::Engine] {
            let answers = || curl(&world.client, &["-o", "/dev/null", &url(side, "1k")]).is_ok();
            if !step::poll_until(PATIENCE, answers)
                || !step::poll_until(PATIENCE, || world.redis_cli(side, "ping").is_ok())
            {
                return Err(format!("{}: nginx or redis does not answer", address(side)));
            }
        }
        Ok(world)
    }

    fn redis_cli(&self, side: Side, words: &str) -> Result<String, String> {
        let mut c = self.client.command("redis-cli");
        c.args(["-e", "-h", address(side)]).args(words.split(' '));
        output(c)
    }

    /// Whether both sides serve what is right, and no offload is on.
    pub fn check(&self) -> Result<(), String> {
        let got = self.files.name("got");
        for side in [Side::Kernel, Side::Engine] {
            for (name, _) in FILES {
                curl(&self.client, &["-o", &got, &url(side, name)])?;
                same(Path::new(&got), &self.files.at("served").join(name), 0)?;
            }
            let none = curl(&self.client, &["-o", &got, "-w", "%{http_code}", &url(side, "none")])?;
            self.redis_cli(side, "set name value")?;
            let value = self.redis_cli(side, "get name")?;
            if (none.as_str(), value.trim_end()) != ("404", "value") {
                return Err(format!("{}: {none} and {value} instead of 404 and `value`", address(side)));
            }
        }
        println!("# curl and redis-cli: every file, 404, SET and GET: the same from both");
        Ok(())
    }

    /// Measures all rows.
    pub fn table(&self) -> Result<(), String> {
        println!(
            "\nserver: on the kernel's TCP and a veth, and behind zstackd on DPDK's net_af_packet and a veth; MTU 1500, no offloads; client: the kernel."
        );
        println!(
            "Median of {ROUNDS} rounds, in turns. CPU: of all processes, in microseconds, for each unit of work.\n"
        );
        println!("{:<59}      {:<8} {:>18} {:>28}", "", "CPU us", "kernel's side", "zstackd's side");
        println!(
            "{:<26} {:<11} {:>9} {:>9} {:>7}   {:<10} {:>8} {:>9} {:>8} {:>9} {:>9}",
            "row", "unit", "kernel", "zstackd", "ratio", "for a", "server", "client", "zstackd", "server", "client"
        );
        for row in ROWS {
            let [[kernel, _, kernel_program, kernel_client], [engine, daemon, program, client]] = in_turns(|side| {
                let server = (row.server)(&self.sides[usize::from(side == Side::Engine)]);
                let spent = || [cpu_of(self.zstackd.pid()), cpu_of(server.pid()), cpu_of_ended()];
                let before = spent();
                let sample = (row.run)(&self.client, address(side))?;
                let after = spent();
                let cpu = |n: usize| (after[n] - before[n]) * 1e6 / sample.done.max(1.0);
                Ok([sample.value, cpu(0), cpu(1), cpu(2)])
            })?;
            println!(
                "{:<26} {:<11} {kernel:>9.1} {engine:>9.1} {:>6.2}x   {:<10} {kernel_program:>8.1} {kernel_client:>9.1} {daemon:>8.1} {program:>9.1} {client:>9.1}",
                row.name,
                row.unit,
                engine / kernel,
                row.each,
            );
        }
        println!("\nOf a packet, what the kernel does on a veth's other side is counted as the sender's.");
        Ok(())
    }

    /// `culvert stat` while wrk and redis-benchmark run.
    pub fn stat(&self) -> Result<(), String> {
        let load = |program: &str, words: &[&str]| {
            let mut c = self.client.command(program);
            c.args(words).stdout(Stdio::null());
            c.spawn().map(step::Guard).map_err(|e| format!("{}: {e}", step::show(&c)))
        };
        let to = address(Side::Engine);
        let _wrk = load("wrk", &["-t1", "-d20", "-c2", &url(Side::Engine, "100k")])?;
        let _redis = load("redis-benchmark", &["-h", to, "-c", "2", "-n", "100000000", "-t", "get", "-q"])?;
        let programs = &self.sides[1];
        let worker = *descendants(programs.nginx.pid()).first().ok_or("nginx has no worker")?;
        let ask = |pid: u32, words: &[&str]| -> Result<String, String> {
            let mut c = self.here.command(culvert());
            c.args(["stat", "--pid", &pid.to_string()]).args(words).env("CULVERT_DIR", registry(self.files));
            output(c)
        };
        // Connections of both come there after some exchanges.
        let mut last = String::new();
        let on_the_wire = || {
            let all = [worker, programs.redis.pid()].map(|pid| ask(pid, &["--json"]).unwrap_or_default());
            last = all.concat().split_whitespace().collect();
            last.matches("\"role\":\"acceptor\",\"path\":\"zstack\"").count() == 4
        };
        if !step::poll_until(PATIENCE, on_the_wire) {
            return Err(format!("no connections came to path zstack: {last}"));
        }
        println!("\n# culvert stat, while wrk and redis-benchmark run with 2 connections each\n");
        for pid in [worker, programs.redis.pid()] {
            print!("{}", ask(pid, &[])?);
        }
        Ok(())
    }
}

fn url(side: Side, file: &str) -> String {
    format!("http://{}/{file}", address(side))
}

/// Starts zstackd for the programs of one namespace, with its port in another; returns when programs can be started.
fn start_zstackd(files: &Files, here: &Namespace, wire: &Namespace) -> Result<Server, String> {
    // nginx's worker is another user, with a file of its own there.
    files.directory_for_all("registry")?;
    let config = format!(
        "port = \"dpdk:net_af_packet0,iface=p0,memory=none\"\nport-namespace = \"{}\"\naddresses = [\"{}/24\"]\n",
        wire.path(),
        address(Side::Engine)
    );
    files.write("zstackd.toml", &config)?;
    println!("# culvert zstackd, with the configuration:\n{config}");
    let daemon = zstackd();
    let settings = [("CULVERT_DIR", registry(files)), ("CULVERT_ZSTACKD", daemon.display().to_string())];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let words = ["zstackd", "--config", &files.name("zstackd.toml"), "--log", "warn"];
    let mut server = here.serve(culvert(), &words, &settings)?;
    let serves = |server: &mut Server| {
        let mut c: Command = here.command(culvert());
        c.args(["run", "--path", "zstack", "--", "true"]).env("CULVERT_DIR", registry(files));
        !server.lives() || c.stderr(Stdio::null()).status().is_ok_and(|s| s.success())
    };
    if !step::poll_until(PATIENCE, || serves(&mut server)) || !server.lives() {
        return Err("zstackd does not serve".into());
    }
    Ok(server)
}

impl Programs {
    fn start(
        files: &Files,
        name: &str,
        mut serve: impl FnMut(&str, &[&str]) -> Result<Server, String>,
    ) -> Result<Programs, String> {
        let directory = files.name(name);
        let config = NGINX.replace("@DIR@", &directory).replace("@ROOT@", &files.name("served"));
        files.write(&format!("{name}/nginx.conf"), config)?;
        let nginx = serve("nginx", &["-p", &directory, "-c", &files.name(&format!("{name}/nginx.conf"))])?;
        let redis = serve(
            "redis-server",
            &[
                "--save",
                "",
                "--appendonly",
                "no",
                "--protected-mode",
                "no",
                "--loglevel",
                "warning",
                "--dir",
                &directory,
            ],
        )?;
        Ok(Programs { nginx, redis })
    }
}
