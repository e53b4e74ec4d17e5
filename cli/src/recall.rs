//! `culvert kernel PID`: brings the connections of a running process back to the kernel, where a packet filter sees their
//! bytes, `tcpdump` too.
//!
//! It writes one word into the memory of the process's family, through `/proc/PID/fd`: whoever may do that is the same user or
//! root. The process looks at that word at each call that would use a ring.

use std::time::{Duration, Instant};

use clap::Args;

use crate::visible::visible;
use crate::{exit, stat};

/// `culvert kernel`.
#[derive(Args, Debug)]
pub struct KernelArgs {
    /// Processes under culvert; their forks go along
    #[arg(required = true, value_name = "PID", value_parser = process_id)]
    pub pids: Vec<u32>,
}

fn process_id(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "expected a process id, as `culvert stat` shows it".into())
}

/// How long connections that are in use are waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Runs `culvert kernel`.
pub fn main(args: &KernelArgs) -> u8 {
    let mut code = exit::OK;
    for &pid in &args.pids {
        match recall(pid) {
            Ok(0) => println!("{pid}: all connections are on the kernel"),
            Ok(n) => println!(
                "{pid}: {n} connections go back to the kernel when they are used next; none carries bytes before"
            ),
            Err(e) => {
                eprintln!("culvert: {pid}: {}", visible(&e));
                code = exit::NO;
            }
        }
    }
    code
}

/// Asks process `pid`, and returns how many of its connections are still in shared memory after a while.
fn recall(pid: u32) -> Result<usize, String> {
    stat::recall(pid)?;
    let end = Instant::now() + PATIENCE;
    loop {
        let report = stat::collect(Some(pid)).map_err(|e| e.to_string())?;
        let left = report.processes.iter().flat_map(|p| &p.connections).filter(|c| c.path == "shm").count();
        if left == 0 || Instant::now() >= end {
            return Ok(left);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
