//! What `connect` says, and when: hosts that answer late, refuse, are silent or cannot be reached.

use std::collections::BTreeMap;
use std::io;

use super::super::procs::Side;
use super::super::row::{Sample, Setup, json, per_op, workload};
use super::lab::{Device, NEAR, World};

/// The hosts (see `workload remote hosts`), and the names of errno and time.
const CASES: &[(&str, &str, &str)] = &[
    ("10.99.1.5:80", "after_50_errno", "after_50_ms"),
    ("10.99.1.20:80", "after_200_errno", "after_200_ms"),
    ("10.99.1.50:80", "after_500_errno", "after_500_ms"),
    ("10.99.2.0:80", "refused_errno", "refused_ms"),
    ("10.99.3.0:80", "silent_errno", "silent_ms"),
    ("10.99.4.0:80", "net_unreachable_errno", "net_unreachable_ms"),
    ("10.99.4.1:80", "host_unreachable_errno", "host_unreachable_ms"),
    ("10.99.4.3:80", "port_unreachable_errno", "port_unreachable_ms"),
    ("10.99.4.13:80", "prohibited_errno", "prohibited_ms"),
    ("10.97.0.77:80", "no_neighbour_errno", "no_neighbour_ms"),
];

/// SYNs are sent three times: a host that is silent is given up after seven seconds, and a neighbour that does not answer to ARP, after three,
/// is another case.
const AGAIN: &str = "2";

/// How many attempts succeeded; errnos and times are the details.
pub fn attempts(s: &Setup, side: Side) -> io::Result<Sample> {
    let world = World::new(s, side, Device::AfPacket)?;
    let far = &world.wire.far;
    let mut hosts = far.start(s, workload(&["remote", "hosts", "slow0"]))?;
    hosts.first_line()?;
    far.run(s, "ip link set slow0 up; ip route add 10.99.0.0/16 dev slow0; echo 1 > /proc/sys/net/ipv4/ip_forward")?;
    let to: Vec<&str> = CASES.iter().map(|(to, ..)| *to).collect();
    let daemon = world.cpu();
    let program = world.start(s, workload(&[&["remote", "attempts", "--again", AGAIN], &to[..]].concat()))?;
    let done = program.finish(s.length())?;
    let cpu = world.cpu() - daemon + done.cpu;
    let results: Vec<(f64, f64)> = serde_json::from_value(json(&done.output)?).map_err(io::Error::other)?;
    if results.len() != CASES.len() {
        return Err(io::Error::other(format!("{} answers to {} attempts from {NEAR}", results.len(), CASES.len())));
    }
    let details = CASES.iter().zip(&results).flat_map(|((_, errno, ms), (e, t))| [(*errno, *e), (*ms, *t)]);
    let connected = results.iter().filter(|(errno, _)| *errno == 0.0).count();
    Ok(Sample { value: connected as f64, cpu: per_op(cpu, CASES.len() as f64), details: BTreeMap::from_iter(details) })
}
