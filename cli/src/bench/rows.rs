//! The rows whose both ends are here: what each one runs, what it measures, and the floor it must reach.

use std::collections::BTreeMap;
use std::io;
use std::process::Command;
use std::time::Duration;

use super::procs::{Job, Side, free_port};
use super::row::{BLANK, Floor, Row, Sample, Setup, json, number, per_op, program, workload};
use crate::stat;

/// In the order of the table.
pub const ROWS: &[Row] = &[
    Row {
        id: "rtt",
        title: "64 B request/response, blocking",
        unit: "us",
        higher_is_better: false,
        floor: Floor::Times(10.0),
        operation: "round trip",
        run: rtt,
        ..BLANK
    },
    Row {
        id: "rtt-nospin",
        title: "the same, spinning off",
        unit: "us",
        higher_is_better: false,
        floor: Floor::Times(1.3),
        operation: "round trip",
        run: rtt_nospin,
        ..BLANK
    },
    Row {
        id: "redis-p1",
        title: "redis-benchmark -c 50 -P 1, SET and GET 64 B",
        unit: "ops/s",
        floor: Floor::Times(3.0),
        operation: "command",
        needs: REDIS,
        run: |s, side| redis(s, side, side, 1),
        ..BLANK
    },
    Row {
        id: "redis-p16",
        title: "redis-benchmark -c 50 -P 16, SET and GET 64 B",
        unit: "ops/s",
        floor: Floor::Times(1.7),
        operation: "command",
        needs: REDIS,
        run: |s, side| redis(s, side, side, 16),
        ..BLANK
    },
    Row {
        id: "nginx",
        title: "nginx, 600 B file, keep-alive, wrk -c 32",
        unit: "req/s",
        floor: Floor::Times(2.0),
        operation: "request",
        needs: NGINX,
        run: |s, side| nginx(s, side, false),
        ..BLANK
    },
    Row {
        id: "iperf",
        title: "iperf3, one stream",
        unit: "Gbit/s",
        floor: Floor::Times(2.0),
        operation: "MiB",
        needs: &["iperf3"],
        run: iperf,
        ..BLANK
    },
    Row {
        id: "nginx-close",
        title: "nginx, new connection per request, wrk -c 32",
        unit: "req/s",
        floor: Floor::TimesAndCpu(0.97),
        operation: "request",
        rounds: 4,
        needs: NGINX,
        run: |s, side| nginx(s, side, true),
        ..BLANK
    },
    Row {
        id: "remote-client",
        title: "redis-benchmark under culvert, server without",
        unit: "ops/s",
        floor: Floor::Times(0.99),
        operation: "command",
        needs: REDIS,
        run: |s, side| redis(s, Side::Kernel, side, 1),
        ..BLANK
    },
    Row {
        id: "remote-server",
        title: "redis-server under culvert, client without",
        unit: "ops/s",
        floor: Floor::Times(0.99),
        operation: "command",
        needs: REDIS,
        run: |s, side| redis(s, side, Side::Kernel, 1),
        rounds: 4,
        ..BLANK
    },
    Row {
        id: "cpu-echo",
        title: "CPU at 20,000 64 B exchanges/s, 32 connections",
        unit: "us/op",
        higher_is_better: false,
        operation: "exchange",
        run: |s, side| load(s, side, "echo", 20_000),
        ..BLANK
    },
    Row {
        id: "cpu-redis",
        title: "CPU at 20,000 redis commands/s, 32 connections",
        unit: "us/op",
        higher_is_better: false,
        operation: "command",
        needs: &["redis-server"],
        run: |s, side| load(s, side, "redis", 20_000),
        ..BLANK
    },
    Row {
        id: "cpu-nginx",
        title: "CPU at 20,000 nginx requests/s, 32 connections",
        unit: "us/op",
        higher_is_better: false,
        operation: "request",
        needs: &["nginx"],
        run: |s, side| load(s, side, "http", 20_000),
        ..BLANK
    },
    Row {
        id: "cpu-iperf",
        title: "CPU at 4 Gbit/s, iperf3, one stream",
        unit: "us/MiB",
        higher_is_better: false,
        operation: "MiB",
        needs: &["iperf3"],
        run: |s, side| iperf_at(s, side, Some("4G")).map(cpu_as_value),
        ..BLANK
    },
    Row {
        id: "threads",
        title: "300 connections, a thread at each end of each",
        unit: "ops/s",
        floor: Floor::Times(1.0),
        operation: "exchange",
        run: |s, side| rate(s, side, "echo-server", ["300", "1"], 0),
        ..BLANK
    },
    Row {
        id: "select",
        title: "300 connections in one select call, one busy at a time",
        unit: "ops/s",
        floor: Floor::Times(1.0),
        operation: "exchange",
        run: |s, side| rate(s, side, "select-server", ["1", "300"], 0),
        ..BLANK
    },
    Row {
        id: "hogs",
        title: "one connection, beside two busy loops for each CPU",
        unit: "ops/s",
        floor: Floor::Times(1.0),
        operation: "exchange",
        rounds: 2,
        run: |s, side| rate(s, side, "echo-server", ["1", "1"], 2),
        ..BLANK
    },
    Row {
        id: "idle",
        title: "1,000 idle connections: memory of both ends",
        unit: "B/conn",
        higher_is_better: false,
        floor: Floor::Extra(8192.0),
        operation: "second",
        run: idle,
        ..BLANK
    },
];

/// What redis rows run.
pub const REDIS: &[&str] = &["redis-server", "redis-benchmark"];
/// What nginx rows run.
pub const NGINX: &[&str] = &["nginx", "wrk"];
/// The file that nginx serves, bytes.
const FILE: usize = 600;

fn rtt(s: &Setup, side: Side) -> io::Result<Sample> {
    rtt_with(s, side, "auto")
}

fn rtt_nospin(s: &Setup, side: Side) -> io::Result<Sample> {
    rtt_with(s, side, "off")
}

fn rtt_with(s: &Setup, side: Side, spin: &str) -> io::Result<Sample> {
    let with_spin = |mut c: Command| {
        c.env("CULVERT_SPIN", spin);
        c
    };
    let mut server = s.start(with_spin(workload(&["echo-server"])), side)?;
    let port = server.first_line()?;
    let seconds = s.seconds.to_string();
    let client = s.start(with_spin(workload(&["rtt-client", "--port", &port, "--seconds", &seconds])), side)?;
    let done = client.finish(s.length())?;
    let answer = json(&done.output)?;
    let cpu = per_op(server.cpu() + done.cpu, number(&answer["all_operations"])?);
    let p50 = number(&answer["p50_ns"])? / 1000.0;
    let details = BTreeMap::from([
        ("mean_us", number(&answer["mean_ns"])? / 1000.0),
        ("p99_us", number(&answer["p99_ns"])? / 1000.0),
    ]);
    Ok(Sample { value: p50, cpu, details })
}

fn redis_server(s: &Setup, side: Side) -> io::Result<(Job, u16)> {
    let port = free_port()?;
    let mut c = program("redis-server")?;
    c.args([
        "--port",
        &port.to_string(),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--daemonize",
        "no",
    ]);
    c.args(["--loglevel", "warning", "--dir"]).arg(s.scratch);
    let mut server = s.start(c, side)?;
    server.wait_listening(port)?;
    Ok((server, port))
}

fn redis(s: &Setup, server_side: Side, client_side: Side, pipeline: u32) -> io::Result<Sample> {
    let (server, port) = redis_server(s, server_side)?;
    // More than `seconds` for each test on the kernel of a small machine: a faster side must not be all beginning.
    let requests = s.seconds * if pipeline == 1 { 100_000 } else { 1_000_000 };
    let mut c = program("redis-benchmark")?;
    c.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-c", "50", "-d", "64", "-t", "set,get", "--csv"]);
    c.args(["-P", &pipeline.to_string(), "-n", &requests.to_string()]);
    let before = server.cpu();
    let done = s.start(c, client_side)?.finish(s.length() * 10)?;
    let cpu = per_op(server.cpu() - before + done.cpu, 2.0 * f64::from(requests));
    let rates = parse_redis(&done.output)?;
    let (set, get) = (rates.0, rates.1);
    Ok(Sample { value: 2.0 / (1.0 / set + 1.0 / get), cpu, details: BTreeMap::from([("set", set), ("get", get)]) })
}

/// SET's and GET's rate in `redis-benchmark --csv`.
pub fn parse_redis(output: &str) -> io::Result<(f64, f64)> {
    let rate = |name: &str| {
        let line = output.lines().find_map(|l| l.strip_prefix(&format!("\"{name}\",\"")))?;
        line.split('"').next()?.parse::<f64>().ok().filter(|r| *r > 0.0)
    };
    rate("SET")
        .zip(rate("GET"))
        .ok_or_else(|| io::Error::other(format!("redis-benchmark: output not understood: {output}")))
}

fn nginx_server(s: &Setup, side: Side) -> io::Result<(Job, u16)> {
    let port = free_port()?;
    let dir = s.scratch.to_str().ok_or_else(|| io::Error::other("odd name of the temporary directory"))?;
    let www = s.scratch.join("www");
    std::fs::create_dir_all(&www)?;
    std::fs::write(www.join("600.bin"), [b'a'; FILE])?;
    let config = s.scratch.join("nginx.conf");
    let text = include_str!("../../../bench/nginx.conf").replace("@PORT@", &port.to_string()).replace("@DIR@", dir);
    std::fs::write(&config, text)?;
    let mut c = program("nginx")?;
    c.arg("-p").arg(s.scratch).arg("-c").arg(&config);
    let mut server = s.start(c, side)?;
    server.wait_listening(port)?;
    Ok((server, port))
}

fn nginx(s: &Setup, side: Side, close: bool) -> io::Result<Sample> {
    let (server, port) = nginx_server(s, side)?;
    let mut c = program("wrk")?;
    c.args(["-t1", "-c32", "--latency", &format!("-d{}s", s.seconds)]);
    if close {
        c.args(["-H", "Connection: close"]);
    }
    c.arg(format!("http://127.0.0.1:{port}/600.bin"));
    let before = server.cpu();
    let done = s.start(c, side)?.finish(s.length())?;
    let (requests, rate) = parse_wrk(&done.output)?;
    Ok(Sample { value: rate, cpu: per_op(server.cpu() - before + done.cpu, requests), ..Sample::default() })
}

/// Number of requests, and their rate. Errors of any kind void the measurement.
pub fn parse_wrk(output: &str) -> io::Result<(f64, f64)> {
    let bad = |why: &str| io::Error::other(format!("wrk: {why}: {output}"));
    if output.contains("Non-2xx") || output.contains("Socket errors") {
        return Err(bad("requests failed"));
    }
    let requests = output.lines().find_map(|l| l.trim().split_once(" requests in ")?.0.parse::<f64>().ok());
    let rate = output.lines().find_map(|l| l.trim().strip_prefix("Requests/sec:")?.trim().parse::<f64>().ok());
    requests.zip(rate).filter(|(n, _)| *n > 0.0).ok_or_else(|| bad("output not understood"))
}

fn iperf(s: &Setup, side: Side) -> io::Result<Sample> {
    iperf_at(s, side, None)
}

fn iperf_at(s: &Setup, side: Side, rate: Option<&str>) -> io::Result<Sample> {
    let port = free_port()?.to_string();
    let mut c = program("iperf3")?;
    c.args(["-s", "-1", "-B", "127.0.0.1", "-p", &port]);
    let mut server = s.start(c, side)?;
    server.wait_listening(port.parse().unwrap_or(0))?;
    let mut c = program("iperf3")?;
    c.args(["-c", "127.0.0.1", "-p", &port, "-J", "-t", &s.seconds.to_string()]);
    c.args(rate.map(|r| ["-b", r]).iter().flatten());
    let client = s.start(c, side)?.finish(s.length())?;
    let server = server.finish(Duration::ZERO)?;
    let answer = json(&client.output)?;
    let received = &answer["end"]["sum_received"];
    let mib = number(&received["bytes"])? / f64::from(1 << 20);
    let value = number(&received["bits_per_second"])? / 1e9;
    Ok(Sample { value, cpu: per_op(client.cpu + server.cpu, mib), details: BTreeMap::from([("gbit_per_s", value)]) })
}

fn cpu_as_value(s: Sample) -> Sample {
    Sample { value: s.cpu, ..s }
}

fn load(s: &Setup, side: Side, protocol: &str, rate: u32) -> io::Result<Sample> {
    let (server, port) = match protocol {
        "redis" => redis_server(s, side)?,
        "http" => nginx_server(s, side)?,
        _ => {
            let mut server = s.start(workload(&["epoll-server"]), side)?;
            let port = server.first_line()?.parse().map_err(|_| server.complain("printed no port"))?;
            (server, port)
        }
    };
    let (port, offered, seconds) = (port.to_string(), rate.to_string(), s.seconds.to_string());
    let args = ["load-client", "--port", &port, "--protocol", protocol, "--rate", &offered, "--seconds", &seconds];
    let before = server.cpu();
    let done = s.start(workload(&args), side)?.finish(s.length())?;
    let answer = json(&done.output)?;
    let cpu = per_op(server.cpu() - before + done.cpu, number(&answer["operations"])?);
    Ok(Sample { value: cpu, cpu, details: BTreeMap::from([("rate", number(&answer["rate"])?)]) })
}

/// Exchanges per second of `threads` threads with `connections` connections each, beside `hogs` busy loops for each CPU.
fn rate(s: &Setup, side: Side, server: &str, [threads, connections]: [&str; 2], hogs: usize) -> io::Result<Sample> {
    let mut server = s.start(workload(&[server]), side)?;
    let port = server.first_line()?;
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut busy =
        (0..hogs * cpus).map(|_| s.start(workload(&["hog"]), Side::Kernel)).collect::<io::Result<Vec<_>>>()?;
    busy.iter_mut().try_for_each(|h| h.first_line().map(drop))?;
    let seconds = s.seconds.to_string();
    let args = ["--port", &port, "--threads", threads, "--connections", connections, "--seconds", &seconds];
    let done = s.start(workload(&[&["rate-client"], &args[..]].concat()), side)?.finish(s.length())?;
    let answer = json(&done.output)?;
    let cpu = per_op(server.cpu() + done.cpu, number(&answer["all_operations"])?);
    Ok(Sample { value: number(&answer["rate"])?, cpu, details: BTreeMap::new() })
}

fn idle(s: &Setup, side: Side) -> io::Result<Sample> {
    const CONNECTIONS: usize = 1000;
    // Enough that both ends have moved to shared memory and settled there.
    const EXCHANGES: &str = "60";
    const LOOK: Duration = Duration::from_secs(2);
    let mut server = s.start(workload(&["epoll-server"]), side)?;
    let port = server.first_line()?;
    let args = ["idle-client", "--port", &port, "--connections", &CONNECTIONS.to_string(), "--exchanges", EXCHANGES];
    let mut client = s.start(workload(&args), side)?;
    client.first_line()?;
    let before = server.cpu() + client.cpu();
    // The measurement itself: nothing happens for this long.
    std::thread::sleep(LOOK);
    let cpu = server.cpu() + client.cpu() - before;
    let resident = server.pss() + client.pss();
    let on_shm = stat::collect(Some(client.pid()))?
        .processes
        .iter()
        .flat_map(|p| &p.connections)
        .filter(|c| c.path == "shm")
        .count();
    if side == Side::Culvert && on_shm < CONNECTIONS {
        return Err(io::Error::other(format!("only {on_shm} of {CONNECTIONS} connections reached shared memory")));
    }
    Ok(Sample {
        value: resident as f64 / CONNECTIONS as f64,
        cpu: cpu.as_secs_f64() * 1e6 / LOOK.as_secs_f64(),
        details: BTreeMap::from([("connections_on_shm", on_shm as f64)]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redis_benchmarks_output_is_read() {
        let text = "\"test\",\"rps\",\"avg_latency_ms\"\n\"SET\",\"69000.50\",\"0.4\"\n\"GET\",\"71000.00\",\"0.4\"\n";
        assert_eq!(parse_redis(text).unwrap(), (69000.5, 71000.0));
        assert!(parse_redis("\"SET\",\"1.0\"\n").is_err());
        assert!(parse_redis("\"SET\",\"0.0\"\n\"GET\",\"1.0\"").is_err());
    }

    #[test]
    fn wrks_output_is_read_and_errors_void_it() {
        let good = "Running 2s test\n  200000 requests in 2.00s, 150MB read\nRequests/sec:  99999.50\n";
        assert_eq!(parse_wrk(good).unwrap(), (200000.0, 99999.5));
        assert!(parse_wrk(&format!("{good}  Socket errors: connect 0, read 1, write 0, timeout 0\n")).is_err());
        assert!(parse_wrk(&format!("{good}  Non-2xx or 3xx responses: 5\n")).is_err());
        assert!(parse_wrk("").is_err());
    }
}
