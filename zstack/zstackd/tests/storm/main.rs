//! zstackd attacked: programs and zstackd itself killed under load, stopped, starved, flooded. Needs root and /dev/net/tun.
//!
//! As they stand these are small; each has its number of rounds in an environment variable (`STORM_...`), with which it runs for as
//! long as one likes: `cargo xtask nightly` sets them.

mod board;
mod census;
mod daemon;
mod far;
mod hostile;
mod killed;
#[path = "../../../port/tests/lab/mod.rs"]
mod lab;
mod many;
mod program;
mod short;
mod stopped;
mod talk;
mod wire;
#[path = "../world/mod.rs"]
mod world;

/// The number of something: this, or what the environment says.
fn number(key: &str, default: usize) -> usize {
    std::env::var(key).map_or(default, |v| v.parse().unwrap_or_else(|_| panic!("{key}={v}: not a number")))
}
