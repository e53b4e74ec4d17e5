//! Chunks that are outstanding when something happens: to who has sent them, to who has them unread, to one in the middle.
//!
//! `CULVERT_API_KILLS`: how many processes are killed, else 6. With it, how long it took from each kill of a receiver until its owner had
//! all chunks back is printed; and that must be no longer than `CULVERT_API_BACK_MS`, if that is set.

use culvert_api_tests::{Lab, Server, With, succeeds};
use std::io::Write;
use std::process::ChildStdin;
use std::time::{Duration, Instant};

const CHUNKS: &str = env!("CARGO_BIN_EXE_chunks");
const LEAVING: &str = env!("CARGO_BIN_EXE_leaving");
const PIPELINE: &str = env!("CARGO_BIN_EXE_pipeline");

/// What [`CHUNKS`] sends behind the chunks that lie unread.
const MORE: u64 = 700_000;
/// Bytes of those, without the one that the reader keeps.
const UNREAD: u64 = 5 * 30_000 - (1 + 2 + 3 + 4 + 5);

/// A reader of this kind, whose sender does that.
fn exchange(sender: &str, reader: &str) -> String {
    let lab = Lab::new(&format!("chunks-{sender}-{reader}"));
    let mut command = lab.command(CHUNKS, With::Preload);
    command.args(["sender", sender]);
    if reader == "close" {
        // It says that it was reset.
        command.stderr(std::process::Stdio::null());
    }
    let sends = Server::start(command);
    let mut command = lab.command(CHUNKS, With::Preload);
    command.args(["reader", &sends.port.to_string(), reader]);
    let said = succeeds(command);
    let status = sends.ends();
    assert!(reader == "close" || status.success(), "{sender} {reader}: {status}");
    said
}

#[test]
fn a_receiver_that_leaves_with_chunks_unread_loses_nothing() {
    for how in ["stay", "splice", "exec", "spawn", "fork", "pace", "half"] {
        let bytes = UNREAD + MORE - if how == "half" { 1734 } else { 0 };
        assert_eq!(exchange("stay", how), format!("(true, 30000)\n{bytes} bytes\n"), "{how}");
    }
    exchange("stay", "close");
}

#[test]
fn a_sender_that_leaves_with_chunks_unread_loses_nothing() {
    for how in ["exec", "spawn", "fork", "pace"] {
        assert_eq!(exchange(how, "stay"), format!("(true, 30000)\n{} bytes\n", UNREAD + MORE), "{how}");
    }
    assert_eq!(exchange("close", "stay"), format!("(true, 30000)\n{UNREAD} bytes\n"));
}

/// With room that is filled, a view, and chunks that are kept or lie unread, in their hands.
#[test]
fn who_leaves_with_all_kinds_of_memory_in_hand_loses_nothing() {
    let (unread, room, more) = (UNREAD, 4_000, 500_000);
    for (writer, reader) in [
        ("stay", "stay"),
        ("stay", "pass"),
        ("stay", "stdio"),
        ("stay", "exec"),
        ("pass", "silent"),
        ("stdio", "silent"),
        ("exec", "silent"),
    ] {
        let lab = Lab::new(&format!("leaving-{writer}-{reader}"));
        let mut command = lab.command(LEAVING, With::Preload);
        command.args(["writer", writer]);
        let writes = Server::start(command);
        let mut command = lab.command(LEAVING, With::Preload);
        command.args(["reader", &writes.port.to_string(), reader]);
        let said = succeeds(command);
        let status = writes.ends();
        assert!(status.success(), "{writer} {reader}: {status}");
        // An exec leaves room uncommitted, and a view unread.
        let released = if reader == "exec" { 0 } else { 700 };
        let committed = if writer == "exec" { 0 } else { room };
        assert_eq!(said, format!("{} bytes\n", unread - released + committed + more), "{writer} {reader}");
    }
}

/// A process that takes chunks of lenders, and is told their ports.
struct Taker(Server, ChildStdin);

impl Taker {
    fn start(lab: &Lab, how: &str, port: u16) -> Taker {
        let mut command = lab.command(CHUNKS, With::Preload);
        command.args(["takers", how]);
        let (server, stdin) = Server::start_told(command);
        let mut taker = Taker(server, stdin);
        taker.goes_to(port);
        taker
    }

    fn goes_to(&mut self, port: u16) {
        writeln!(self.1, "{port}").expect("a taker that listens");
    }
}

/// More than there are places at a desk, or edges of one process.
const MANY: usize = 66;

#[test]
fn receivers_that_are_killed_before_they_are_answered_keep_no_place_from_others() {
    let lab = Lab::new("asked");
    let mut command = lab.command(CHUNKS, With::Preload);
    command.arg("lender");
    let mut lender = Server::start(command);
    for _ in 0..MANY {
        let mut taker = Taker::start(&lab, "asks", lender.port);
        assert_eq!(taker.0.line(), "asked\n");
        taker.0.kill();
    }
    let mut taker = Taker::start(&lab, "takes", lender.port);
    assert_eq!(taker.0.line(), "in place\n");
    assert_eq!(lender.line(), "4 are back\n");
}

#[test]
fn owners_that_are_killed_before_they_answer_keep_no_edge_of_a_receiver() {
    let lab = Lab::new("answers");
    let start = || {
        let mut command = lab.command(CHUNKS, With::Preload);
        command.arg("lender").stderr(std::process::Stdio::null());
        Server::start(command)
    };
    let mut lender = start();
    let mut taker = Taker::start(&lab, "asks", lender.port);
    for _ in 0..MANY {
        assert_eq!(taker.0.line(), "asked\n");
        lender.kill();
        lender = start();
        taker.goes_to(lender.port);
    }
    assert_eq!(taker.0.line(), "asked\n");
    drop(lender);
    let Taker(server, stdin) = taker;
    drop(stdin);
    assert!(server.ends().success());
}

/// Of three processes one is killed, at any time: all chunks come back to their owner, if it is not that, and the others hear of it.
#[test]
fn all_chunks_come_back_whoever_is_killed() {
    let number = |name| std::env::var(name).ok().and_then(|n| n.parse::<u32>().ok());
    let rounds = number("CULVERT_API_KILLS").unwrap_or(6);
    let mut took = Vec::new();
    for round in 0..rounds {
        let lab = Lab::new("kills");
        let start = |program: &str, args: &[&str]| {
            let mut command = lab.command(program, With::Preload);
            command.args(args).stderr(std::process::Stdio::null());
            command
        };
        let mut sink = Server::start(start(PIPELINE, &["sink"]));
        let mut filter = Server::start(start(PIPELINE, &["filter", &sink.port.to_string()]));
        let mut source = Server::start_with(start(CHUNKS, &["source", &filter.port.to_string()]), |line| {
            assert_eq!(line, "on its way\n");
        });
        // Some messages later.
        (0..round * 7 % 10).for_each(|_| assert_eq!(source.line(), "on its way\n"));
        let killed = Instant::now();
        match round % 3 {
            0 => source.kill(),
            1 => filter.kill(),
            _ => sink.kill(),
        }
        if round % 3 != 0 {
            let mut line = source.line();
            while line == "on its way\n" {
                line = source.line();
            }
            took.push(killed.elapsed());
            assert!(line.starts_with("8 of 8 are back"), "{round}: {line:?}");
            assert!(source.ends().success());
        }
        filter.ends();
        sink.ends();
    }
    took.sort();
    let (half, last) = (took[took.len() / 2], took[took.len() - 1]);
    println!(
        "{} receivers were killed: all chunks were back {half:?} later in half of the cases, {last:?} at most",
        took.len()
    );
    if let Some(most) = number("CULVERT_API_BACK_MS") {
        assert!(last <= Duration::from_millis(most.into()), "{last:?}");
    }
}
