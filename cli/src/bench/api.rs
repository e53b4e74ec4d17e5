//! Rows of messages in place between two programs that poll, beside something else than the kernel: smaller messages, two bare cache lines,
//! iceoryx2. Of each message the first word alone is written and read, where no row says more, so that what is measured is what it costs to hand it over.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::messages::messages;
use super::procs::{Job, Side};
use super::row::{BLANK, Equipment, Floor, Row, Sample, Setup, json, number, per_op, workload};

const SMALL: usize = 64;
const MIDDLE: usize = 64 << 10;
const LARGE: usize = 1 << 20;

const POLLED: Row = Row { unit: "us", higher_is_better: false, ..BLANK };
const BESIDE_ICEORYX2: Row =
    Row { beside: Some("iceoryx2"), equipment: &[Equipment::Iceoryx2], floor: Floor::Times(1.0), ..POLLED };

/// In the order of the table.
pub const ROWS: &[Row] = &[
    Row {
        id: "api-flat",
        title: "1 MiB one way in place, polled, not touched",
        beside: Some("64 B"),
        floor: Floor::Times(1.0 / 1.2),
        operation: "message",
        run: |s, side| in_place(s, "one-way", if side == Side::Kernel { SMALL } else { LARGE }),
        ..POLLED
    },
    Row {
        id: "api-flat-rtt",
        title: "1 MiB there and back in place, polled, not touched",
        beside: Some("64 B"),
        floor: Floor::Times(1.0 / 1.2),
        operation: "round trip",
        run: |s, side| in_place(s, "round-trip", if side == Side::Kernel { SMALL } else { LARGE }),
        ..POLLED
    },
    Row {
        id: "api-bare",
        title: "64 B there and back in place, polled",
        beside: Some("a word by two cache lines"),
        floor: Floor::Times(1.0 / 1.5),
        operation: "round trip",
        run: |s, side| {
            if side == Side::Kernel { bare(s, "round-trip", 0, "us") } else { in_place(s, "round-trip", SMALL) }
        },
        ..POLLED
    },
    Row {
        id: "api-bare-64k",
        title: "64 KiB one way in place, all of it written and read",
        beside: Some("the same by bare memory, polled"),
        unit: "msg/s",
        floor: Floor::Times(0.9),
        operation: "message",
        run: |s, side| match side {
            Side::Kernel => bare(s, "one-way", MIDDLE, "rate"),
            side => messages(s, side, "inplace", "one-way", MIDDLE),
        },
        ..BLANK
    },
    Row {
        id: "api-iceoryx2",
        title: "64 B one way in place, polled",
        operation: "message",
        run: |s, side| either(s, side, "one-way", SMALL),
        ..BESIDE_ICEORYX2
    },
    Row {
        id: "api-iceoryx2-1m",
        title: "1 MiB one way in place, polled, not touched",
        operation: "message",
        run: |s, side| either(s, side, "one-way", LARGE),
        ..BESIDE_ICEORYX2
    },
    Row {
        id: "api-iceoryx2-rtt",
        title: "64 B there and back in place, polled",
        operation: "round trip",
        run: |s, side| either(s, side, "round-trip", SMALL),
        ..BESIDE_ICEORYX2
    },
    Row {
        id: "api-iceoryx2-rtt-1m",
        title: "1 MiB there and back in place, polled, not touched",
        operation: "round trip",
        run: |s, side| either(s, side, "round-trip", LARGE),
        ..BESIDE_ICEORYX2
    },
];

/// What a client has said, of which `what` is told, and the CPU that both have used; `server` says its own.
fn sample(s: &Setup, client: Job, what: &str, server: impl FnOnce() -> io::Result<Duration>) -> io::Result<Sample> {
    let done = client.finish(s.length())?;
    let answer = json(&done.output)?;
    let cpu = per_op(server()? + done.cpu, number(&answer["all_operations"])?);
    Ok(Sample { value: number(&answer[what])?, cpu, details: BTreeMap::new() })
}

fn in_place(s: &Setup, pattern: &str, size: usize) -> io::Result<Sample> {
    let (size, seconds) = (size.to_string(), s.seconds.to_string());
    let what = ["--calls", "polled", "--pattern", pattern, "--size", &size];
    let mut server = s.start(workload(&[&["message-server"], &what[..]].concat()), Side::Culvert)?;
    let port = server.first_line()?;
    let client = [&["message-client", "--port", &port, "--seconds", &seconds], &what[..]].concat();
    let client = s.start(workload(&client), Side::Culvert)?;
    sample(s, client, "us", || Ok(server.cpu()))
}

/// By memory that two processes have, and nothing else; `what` of it is told.
fn bare(s: &Setup, pattern: &str, size: usize, what: &str) -> io::Result<Sample> {
    let (size, seconds) = (size.to_string(), s.seconds.to_string());
    let mut server = s.start(workload(&["bare-server", "--size", &size]), Side::Kernel)?;
    let path = server.first_line()?;
    let client = ["bare-client", "--path", &path, "--pattern", pattern, "--size", &size, "--seconds", &seconds];
    let client = s.start(workload(&client), Side::Kernel)?;
    sample(s, client, what, || Ok(server.cpu()))
}

fn either(s: &Setup, side: Side, pattern: &str, size: usize) -> io::Result<Sample> {
    if side == Side::Culvert { in_place(s, pattern, size) } else { by_iceoryx2(s, pattern, size) }
}

/// The program that sends by iceoryx2, which is built apart.
pub fn iceoryx2() -> io::Result<Command> {
    let beside = || Some(std::env::current_exe().ok()?.parent()?.join("culvert-bench-iceoryx2"));
    let path = std::env::var_os("CULVERT_ICEORYX2").map(PathBuf::from).or_else(beside).filter(|p| p.is_file());
    path.map(Command::new).ok_or_else(|| {
        io::Error::other(
            "culvert-bench-iceoryx2 was not found: `cargo build --release --manifest-path bench/iceoryx2/Cargo.toml`, and name it in CULVERT_ICEORYX2",
        )
    })
}

fn by_iceoryx2(s: &Setup, pattern: &str, size: usize) -> io::Result<Sample> {
    let (size, seconds) = (size.to_string(), s.seconds.to_string());
    // What one that was killed has left is not this run's.
    static RUN: AtomicU32 = AtomicU32::new(0);
    let unique = format!("culvert-bench/{}/{}", std::process::id(), RUN.fetch_add(1, Ordering::Relaxed));
    let what = ["--name", &unique, "--pattern", pattern, "--size", &size];
    let start = |role: &[&str]| {
        let mut c = iceoryx2()?;
        c.args(what).args(role);
        s.start(c, Side::Kernel)
    };
    let mut server = start(&["server"])?;
    server.first_line()?;
    let client = start(&["client", "--seconds", &seconds])?;
    // It takes its services with it when it ends.
    sample(s, client, "us", || Ok(server.finish(Duration::ZERO)?.cpu))
}
