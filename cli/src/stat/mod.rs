//! `culvert stat`: what every process under culvert does with its connections.
//!
//! The JSON form is stable; fields may be added, none changes its meaning:
//!
//! ```text
//! {"processes": [{
//!   "pid": 4711, "command": "redis-server", "path": "auto",
//!   "disabled": null | KEY, "disabled_text": null | SENTENCE,    why nothing at all is accelerated
//!   "error": null | SENTENCE,                                    why its state could not be read
//!   "channels": 2,                                               channels its family ever mapped
//!   "connections": [{
//!     "fd": 9 | null, "local": "127.0.0.1:6379", "peer": "127.0.0.1:40312", "peer_pid": 4712 | null,
//!     "tcp_state": "established" | ...,
//!     "state": "eligible" | "attached" | "pinned" | "untracked", "role": "connector" | "acceptor" | null,
//!     "path": "shm" | "zstack" | "kernel",         "shm" if either direction is on its ring; "zstack" if that leads to a zstackd
//!     "reason": null | KEY, "reason_text": null | SENTENCE,      why not, if path is "kernel"
//!     "rx": {"path": ..., "phase": "native" | "transit" | "ring" | "down",
//!            "bytes": 0, "messages": 0, "switched_up_at": 123 | null},
//!     "tx": {the same},                            phases "native", "ring", "rewind", "down"
//!     "doorbells": 0, "spins_won": 0, "spins_lost": 0,
//!     "outer": null | {"state": "established" | ..., "cwnd": 14600, "srtt_us": 250, "retransmits": 0,
//!                      "copied_in": 0, "copied_out": 0, "port": "af_packet" | ...}
//!   }]
//! }]}
//! ```
//! `bytes` and `messages` count what went through the ring; `switched_up_at` is the stream position (bytes)
//! at which the direction moved there. `outer` is the connection on the wire, as the zstackd tells that carries it: window and copies in
//! bytes; on whichever path the connection is here. KEYs are those of `shmring::family::Reason`, and `untracked`: the
//! library did not see this socket begin. A process appears if the caller may read its `/proc/PID/fd`.

mod family;
mod outer;
mod render;
mod scan;

use clap::Args;
use family::Direction;
use serde::Serialize;

pub use render::columns;

use crate::exit;

/// See the module's documentation.
#[derive(Serialize, Debug)]
pub struct Report {
    /// In order of process id.
    pub processes: Vec<Process>,
}

/// See the module's documentation.
#[derive(Serialize, Debug, Clone)]
pub struct Process {
    pub pid: u32,
    pub command: String,
    pub path: &'static str,
    pub disabled: Option<String>,
    pub disabled_text: Option<&'static str>,
    pub error: Option<String>,
    pub channels: u64,
    pub connections: Vec<Connection>,
}

/// See the module's documentation.
#[derive(Serialize, Debug, Clone, PartialEq)]
pub struct Connection {
    pub fd: Option<i32>,
    pub local: String,
    pub peer: String,
    pub peer_pid: Option<u32>,
    pub tcp_state: &'static str,
    pub state: &'static str,
    pub role: Option<&'static str>,
    pub path: &'static str,
    pub reason: Option<String>,
    pub reason_text: Option<&'static str>,
    pub rx: Direction,
    pub tx: Direction,
    pub doorbells: u64,
    pub spins_won: u64,
    pub spins_lost: u64,
    pub outer: Option<Outer>,
}

/// See the module's documentation.
#[derive(Serialize, Debug, Clone, PartialEq)]
pub struct Outer {
    pub state: String,
    pub cwnd: u64,
    pub srtt_us: u64,
    pub retransmits: u64,
    pub copied_in: u64,
    pub copied_out: u64,
    pub port: String,
}

/// Everything the caller may see; only `pid` if given.
pub fn collect(pid: Option<u32>) -> std::io::Result<Report> {
    scan::collect(pid)
}

/// Asks process `pid` to bring its connections back to the kernel.
pub fn recall(pid: u32) -> Result<(), String> {
    scan::recall(pid)
}

/// `culvert stat`.
#[derive(Args, Debug, Default)]
pub struct StatArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Only this process
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
}

/// Runs `culvert stat`.
pub fn main(args: &StatArgs) -> u8 {
    let report = match collect(args.pid) {
        Ok(r) => r,
        Err(e) => {
            eprintln!("culvert: cannot read /proc: {e}");
            return exit::FAILED;
        }
    };
    let text = if args.json {
        serde_json::to_string_pretty(&report).unwrap_or_default() + "\n"
    } else {
        render::text(&report)
    };
    print!("{text}");
    exit::OK
}
