//! The crate `culvert` and its examples, with the library and without.

use culvert_api_tests::{Lab, Server, With, files_are_served, succeeds};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};

const RPC: &str = env!("CARGO_BIN_EXE_rpc_echo");
const HTTP: &str = env!("CARGO_BIN_EXE_http_files");
const TOKIO: &str = env!("CARGO_BIN_EXE_tokio_echo");
const PIPELINE: &str = env!("CARGO_BIN_EXE_pipeline");
const MIXED: &str = env!("CARGO_BIN_EXE_mixed");

#[test]
fn the_echo_example_works_with_the_library_at_either_end() {
    let lab = Lab::new("rust-rpc");
    for (s, c) in [
        (With::Preload, With::Preload),
        (With::Preload, With::Nothing),
        (With::Nothing, With::Preload),
        (With::Nothing, With::Nothing),
    ] {
        let mut command = lab.command(RPC, s);
        command.arg("server");
        let mut server = Server::start(command);
        for (count, size) in [(200, 64), (50, 65_536)] {
            let mut client = lab.command(RPC, c);
            client.args(["client", &server.port.to_string(), &count.to_string(), &size.to_string()]);
            let said = succeeds(client);
            let line = server.line();
            let n: Vec<u64> = line.split_whitespace().filter_map(|w| w.parse().ok()).collect();
            let both = s == With::Preload && c == With::Preload;
            assert!(said == format!("{count} messages; path {}\n", if both { 3 } else { 0 }), "{said}");
            assert!(if both { n[0] * 10 > n[1] * 6 } else { n[0] == 0 }, "{s:?} {c:?} {size}: {line}");
        }
    }
}

#[test]
fn the_example_that_answers_from_mapped_files_answers_with_them() {
    let lab = Lab::new("rust-http");
    for with in [With::Preload, With::Nothing] {
        files_are_served(&lab, &lab.command(HTTP, with));
    }
}

#[test]
fn the_tokio_example_answers_many_clients() {
    let lab = Lab::new("tokio");
    for with in [With::Preload, With::Nothing] {
        let server = Server::start(lab.command(TOKIO, with));
        let mut client = lab.command(MIXED, with);
        client.args(["echo", &server.port.to_string(), "12", "5000000"]);
        assert_eq!(succeeds(client), format!("60000000 bytes came back; in place: {}\n", with == With::Preload));
        // And one that is not of this library.
        let mut stranger = TcpStream::connect(("127.0.0.1", server.port)).expect("a connection");
        stranger.write_all(&[7; 100_000]).expect("bytes sent");
        stranger.shutdown(Shutdown::Write).expect("an end");
        let mut all = Vec::new();
        stranger.read_to_end(&mut all).expect("an answer");
        assert!(all == [7; 100_000]);
    }
}

#[test]
fn the_pipeline_example_works_with_the_library_at_each_process() {
    let lab = Lab::new("rust-pipeline");
    let numbers = |text: &str| text.split_whitespace().filter_map(|w| w.parse().ok()).collect::<Vec<u64>>();
    for missing in [None, Some(0), Some(1), Some(2)] {
        let start = |place: usize, args: &[&str]| {
            let with = if missing == Some(place) { With::Nothing } else { With::Preload };
            let mut command = lab.command(PIPELINE, with);
            command.args(args);
            command
        };
        let count = if missing.is_none() { "2000" } else { "200" };
        let sink = Server::start(start(2, &["sink"]));
        let filter = Server::start(start(1, &["filter", &sink.port.to_string()]));
        succeeds(start(0, &["source", &filter.port.to_string(), count]));
        let (filter, sink) = (numbers(&filter.wait()), numbers(&sink.wait()));
        match missing {
            None => assert!(
                filter[0] == 1334 && sink[0] == 1334 && filter[1] * 2 > filter[0] && sink[1] * 2 > sink[0],
                "{filter:?} {sink:?}"
            ),
            Some(place) => {
                assert_eq!((filter[0], sink[0], sink[1]), (134, 134, 0), "{place}");
            }
        }
    }
}

/// Who is killed with room and bytes in hand leaves nothing behind.
#[test]
fn a_peer_that_is_killed_with_spans_costs_nothing_once_it_is_gone() {
    let lab = Lab::new("killed");
    let server = Server::start(lab.command(TOKIO, With::Preload));
    let round = || {
        let mut client = lab.command(MIXED, With::Preload);
        client.args(["hold", &server.port.to_string()]);
        assert_eq!(Server::kill_once_it_speaks(client), "false false\n");
        let mut client = lab.command(MIXED, With::Preload);
        client.args(["echo", &server.port.to_string(), "1", "1000000"]);
        succeeds(client);
    };
    round();
    round();
    let before = server.holds();
    (0..12).for_each(|_| round());
    // What the last ones had is given back with the next call, at the latest.
    let after = server.holds();
    assert!(after.0 <= before.0 + 2 && after.1 <= before.1 + 4, "{before:?} {after:?}");
}

/// `CULVERT_API_CALLS=2500000` makes ten million calls of it.
#[test]
fn posix_calls_and_those_in_place_make_one_stream() {
    let lab = Lab::new("mixed");
    let calls = std::env::var("CULVERT_API_CALLS").unwrap_or_else(|_| "2000".to_owned());
    let seed = std::env::var("CULVERT_API_SEED").unwrap_or_else(|_| std::process::id().to_string());
    println!("CULVERT_API_SEED={seed}");
    for (s, c) in [(With::Preload, With::Preload), (With::Preload, With::Nothing)] {
        let mut command = lab.command(MIXED, s);
        command.args(["server", &seed, &calls]);
        let server = Server::start(command);
        let mut client = lab.command(MIXED, c);
        client.args(["client", &server.port.to_string(), &seed, &calls]);
        let client = succeeds(client);
        let server = server.wait();
        let number = |text: &str, what: &str| {
            let after = text.split(what).nth(1).unwrap_or_else(|| panic!("{text}"));
            after.split_whitespace().next().and_then(|w| w.parse::<u64>().ok()).expect("a number")
        };
        assert_eq!(number(&client, "sent"), number(&server, "received"));
        assert_eq!(number(&server, "sent"), number(&client, "received"));
    }
}
