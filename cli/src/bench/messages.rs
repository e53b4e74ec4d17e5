//! Rows of messages of one size: in place under culvert, and by POSIX calls. On the kernel both are POSIX calls, since in place there is a
//! copy more. And messages that go through three processes, which are under culvert on both sides.

use std::collections::BTreeMap;
use std::io;

use super::procs::Side;
use super::row::{BLANK, Floor, Row, Sample, Setup, json, number, per_op, workload};

/// In the order of the table.
pub const ROWS: &[Row] = &[
    Row {
        id: "inplace-64k",
        title: "64 KiB messages one way, in place",
        unit: "msg/s",
        floor: Floor::Times(10.0),
        operation: "message",
        run: |s, side| messages(s, side, "inplace", "one-way", 65_536),
        ..BLANK
    },
    Row {
        id: "posix-64k",
        title: "the same by write and read",
        unit: "msg/s",
        floor: Floor::Times(2.0),
        operation: "message",
        run: |s, side| messages(s, side, "posix", "one-way", 65_536),
        ..BLANK
    },
    Row {
        id: "inplace-rtt",
        title: "64 B there and back, in place",
        unit: "us",
        higher_is_better: false,
        floor: Floor::Times(10.0),
        operation: "round trip",
        run: |s, side| messages(s, side, "inplace", "round-trip", 64),
        ..BLANK
    },
    Row {
        id: "inplace-rtt-64k",
        title: "64 KiB there and back, in place",
        unit: "us",
        higher_is_better: false,
        floor: Floor::Times(2.0),
        operation: "round trip",
        run: |s, side| messages(s, side, "inplace", "round-trip", 65_536),
        ..BLANK
    },
    Row {
        id: "inplace-rtt-1m",
        title: "1 MiB there and back, in place",
        unit: "us",
        higher_is_better: false,
        floor: Floor::Times(2.0),
        operation: "round trip",
        run: |s, side| messages(s, side, "inplace", "round-trip", 1 << 20),
        ..BLANK
    },
    Row {
        id: "forward-64k",
        title: "64 KiB through 3 processes by reference; instead of kernel: copied, under culvert",
        unit: "msg/s",
        floor: Floor::Times(4.0),
        operation: "message",
        run: |s, side| forward(s, side, &[]),
        ..BLANK
    },
    Row {
        id: "forward-64k-used",
        title: "the same, all of it written by the first and read by the last",
        unit: "msg/s",
        floor: Floor::Reported,
        operation: "message",
        run: |s, side| forward(s, side, &["--all"]),
        ..BLANK
    },
];

/// What is compared is not the kernel: the same three processes under culvert, by `read` and `write`.
fn forward(s: &Setup, side: Side, all: &[&str]) -> io::Result<Sample> {
    let calls = if side == Side::Culvert { "inplace" } else { "posix" };
    let seconds = s.seconds.to_string();
    let start = |args: &[&str]| s.start(workload(&[args, &["--calls", calls]].concat()), Side::Culvert);
    let mut sink = start(&[&["forward-sink"], all].concat())?;
    let port = sink.first_line()?;
    let mut middle = start(&["forward-middle", "--port", &port])?;
    let port = middle.first_line()?;
    let source = [&["forward-source", "--port", &port, "--seconds", &seconds], all].concat();
    let done = start(&source)?.finish(s.length())?;
    let answer = json(&done.output)?;
    let cpu = per_op(sink.cpu() + middle.cpu() + done.cpu, number(&answer["all_operations"])?);
    let details = BTreeMap::from([("in_place", number(&answer["in_place"])?)]);
    Ok(Sample { value: number(&answer["rate"])?, cpu, details })
}

/// Messages of one size between two programs.
pub fn messages(s: &Setup, side: Side, calls: &str, pattern: &str, size: usize) -> io::Result<Sample> {
    let calls = if side == Side::Culvert { calls } else { "posix" };
    let (size, seconds) = (size.to_string(), s.seconds.to_string());
    let what = ["--calls", calls, "--pattern", pattern, "--size", &size];
    let mut server = s.start(workload(&[&["message-server"], &what[..]].concat()), side)?;
    let port = server.first_line()?;
    let client = [&["message-client", "--port", &port, "--seconds", &seconds], &what[..]].concat();
    let done = s.start(workload(&client), side)?.finish(s.length())?;
    let answer = json(&done.output)?;
    let cpu = per_op(server.cpu() + done.cpu, number(&answer["all_operations"])?);
    let value = number(&answer[if pattern == "one-way" { "rate" } else { "us" }])?;
    Ok(Sample { value, cpu, details: BTreeMap::new() })
}
