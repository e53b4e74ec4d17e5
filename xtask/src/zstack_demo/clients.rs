//! The clients: curl, wrk and redis-benchmark over the kernel's sockets, in the namespace of the remote host.

use super::lab::{Namespace, output};
use std::path::Path;

/// One measurement: the value, and how much was done (requests, or MiB).
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sample {
    pub value: f64,
    pub done: f64,
}

pub fn curl(from: &Namespace, words: &[&str]) -> Result<String, String> {
    let mut c = from.command("curl");
    c.args(["-sS", "--noproxy", "*", "--max-time", "30"]).args(words);
    output(c)
}

/// MiB a second of one large file.
pub fn curl_speed(from: &Namespace, url: &str) -> Result<Sample, String> {
    let text = curl(from, &["-o", "/dev/null", "-w", "%{speed_download} %{size_download}", url])?;
    let numbers: Vec<f64> = text.split(' ').filter_map(|n| n.parse().ok()).collect();
    match numbers[..] {
        [speed, size] => Ok(Sample { value: speed / f64::from(1 << 20), done: size / f64::from(1 << 20) }),
        _ => Err(format!("curl: {text}")),
    }
}

/// Requests a second.
pub fn wrk(from: &Namespace, url: &str, connections: u32, seconds: u32) -> Result<Sample, String> {
    let mut c = from.command("wrk");
    c.args(["-t1", &format!("-d{seconds}"), &format!("-c{connections}"), url]);
    wrk_said(&output(c)?)
}

fn wrk_said(text: &str) -> Result<Sample, String> {
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

/// GETs a second of 64 bytes, with 50 connections.
pub fn redis(from: &Namespace, server: &str, pipeline: u32, requests: u32) -> Result<Sample, String> {
    let mut c = from.command("redis-benchmark");
    c.args(["-h", server, "-c", "50", "-d", "64", "-t", "get", "--csv"]);
    c.args(["-P", &pipeline.to_string(), "-n", &requests.to_string()]);
    let text = output(c)?;
    redis_said(&text).map(|value| Sample { value, done: requests.into() }).ok_or(format!("redis-benchmark: {text}"))
}

fn redis_said(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|l| l.strip_prefix("\"GET\",\""))?;
    line.split('"').next()?.parse().ok().filter(|rate| *rate > 0.0)
}

/// Whether what was fetched is the file, from a byte on.
pub fn same(got: &Path, file: &Path, from: usize) -> Result<(), String> {
    let read = |p: &Path| std::fs::read(p).map_err(|e| format!("{}: {e}", p.display()));
    if read(got)? == read(file)?[from..] { Ok(()) } else { Err(format!("{}: other bytes arrived", file.display())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_say_is_read() {
        let wrk = "Running 2s test\n  200000 requests in 2.00s, 150MB read\nRequests/sec:  99999.50\n";
        assert_eq!(wrk_said(wrk), Ok(Sample { value: 99999.5, done: 200_000.0 }));
        assert!(wrk_said(&format!("{wrk}  Socket errors: connect 0, read 1, write 0, timeout 0\n")).is_err());
        assert_eq!(redis_said("\"test\",\"rps\"\n\"GET\",\"71000.00\",\"0.4\"\n"), Some(71_000.0));
        assert_eq!(redis_said("\"GET\",\"0.00\""), None);
    }
}
