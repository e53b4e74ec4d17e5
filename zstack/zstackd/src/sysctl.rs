//! What this network namespace's kernel does where a program asks for nothing else (tcp(7), /proc/sys/net/ipv4).

use std::fs;
use zstack::tcp::Options;

/// The same, with the namespace's times for keep-alive probes. A time that cannot be read stays.
pub fn with_keep_alive(options: Options) -> Options {
    let read =
        |name: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/tcp_keepalive_{name}")).ok()?.trim().parse().ok();
    let milliseconds = |name, otherwise| read(name).map_or(otherwise, |seconds: u32| seconds.saturating_mul(1000));
    Options {
        keepalive_idle: milliseconds("time", options.keepalive_idle),
        keepalive_interval: milliseconds("intvl", options.keepalive_interval),
        keepalive_count: read("probes").map_or(options.keepalive_count, |n| n.min(u8::MAX.into()) as u8),
        ..options
    }
}
