//! `cargo xtask demo zstack`: unmodified nginx and redis behind zstackd on a DPDK port, beside the same programs on the kernel; then the
//! engine's own HTTP server and `perf` beside the same program over the kernel's sockets. Clients are curl, wrk and redis-benchmark on
//! the kernel, in a network namespace of their own.
//!
//! The namespaces have no names: they, the devices and the servers go with their processes, which end with this one, however it ends.

pub mod clients;
pub mod lab;
mod measure;
mod programs;
mod tools;

use crate::step::Tally;
use crate::{build, debian, with_dpdk};
use lab::Files;
use std::time::Instant;

const PROGRAMS: &[&str] = &["curl", "wrk", "nginx", "redis-server", "redis-tools", "iproute2", "util-linux", "ethtool"];

/// What is served.
const FILES: &[(&str, usize)] = &[("1k", 1 << 10), ("100k", 100 << 10), ("64m", 64 << 20)];

/// False if something did not work.
pub fn demo() -> bool {
    debian::install(PROGRAMS) && with_dpdk::ready() && build(&mut Tally::default()) && show()
}

fn show() -> bool {
    let began = Instant::now();
    lab::sweep();
    let result = Files::new().and_then(|files| {
        serve(&files)?;
        let programs = programs::World::new(&files)?;
        programs.check()?;
        programs.table()?;
        programs.stat()?;
        drop(programs);
        println!("\n# the engine alone\n");
        let tools = tools::World::new(&files)?;
        tools.check()?;
        tools::table(&tools)?;
        tools.stat()
    });
    println!("\n# {:.0} s", began.elapsed().as_secs_f64());
    if let Err(text) = &result {
        eprintln!("demo zstack: {text}");
    }
    result.is_ok()
}

/// Writes what is served.
fn serve(files: &Files) -> Result<(), String> {
    let mut state = 1u64;
    FILES.iter().try_for_each(|(name, len)| {
        let byte = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        files.write(&format!("served/{name}"), (0..*len).map(byte).collect::<Vec<u8>>())
    })
}
