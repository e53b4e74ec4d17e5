//! nginx at the near end of a wire, wrk at the far one.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::process::Command;
use std::time::Duration;

use super::super::procs::Job;
use super::super::row::{Sample, Setup, per_op, program};
use super::super::rows::parse_wrk;
use super::lab::{NEAR, Namespace, World};

/// Bytes of the file that is served.
pub const FILE: usize = 1024;

/// Where a program runs.
pub enum Site<'a> {
    /// As it is, in a namespace.
    Near(&'a Namespace),
    /// As the near host's program: behind zstackd, if there is one.
    Behind(&'a World),
}

impl Site<'_> {
    fn start(&self, s: &Setup, command: Command) -> io::Result<Job> {
        match self {
            Site::Near(namespace) => namespace.start(s, command),
            Site::Behind(world) => world.start(s, command),
        }
    }
}

/// nginx at port 80 with a file of 1 KiB: `1k`.
pub fn nginx(s: &Setup, site: &Site<'_>) -> io::Result<Job> {
    let dir = s.scratch.to_str().ok_or_else(|| io::Error::other("odd name of the temporary directory"))?;
    fs::create_dir_all(s.scratch.join("www"))?;
    fs::write(s.scratch.join("www/1k"), [b'a'; FILE])?;
    let config = s.scratch.join("nginx.conf");
    let text = include_str!("../../../../bench/nginx.conf").replace("127.0.0.1:@PORT@", "80").replace("@DIR@", dir);
    fs::write(&config, text)?;
    let mut c = program("nginx")?;
    c.arg("-p").arg(s.scratch).arg("-c").arg(&config);
    site.start(s, c)
}

/// wrk at the far end; `server`: CPU time of the server's side so far. The value is requests for a CPU second of that side.
pub fn wrk(
    s: &Setup,
    far: &Namespace,
    file: &str,
    connections: u32,
    server: impl Fn() -> Duration,
) -> io::Result<Sample> {
    let mut c = program("wrk")?;
    c.args(["-t1", &format!("-c{connections}"), &format!("-d{}s", s.seconds), &format!("http://{NEAR}/{file}")]);
    let before = server();
    let done = far.start(s, c)?.finish(s.length())?;
    let spent = server() - before;
    let (requests, rate) = parse_wrk(&done.output)?;
    Ok(Sample {
        value: requests / spent.as_secs_f64(),
        cpu: per_op(spent + done.cpu, requests),
        details: BTreeMap::from([
            ("rate", rate),
            ("server_cpu_us", per_op(spent, requests)),
            ("client_cpu_us", per_op(done.cpu, requests)),
        ]),
    })
}
