//! The program under culvert: this test program itself, started again. It does what its environment says until it is killed.

use crate::board::{Board, End, GOES, STANDS, TRIES, Word, now};
use crate::talk::{HELLO, Hello, Mode, OnBoard, talk};
use crate::world::World;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

/// What a program is to do.
#[derive(Clone, Debug)]
pub struct Task<'a> {
    /// `client`, `server`, or `again`: a client that connects again whenever a connection has ended.
    pub role: &'a str,
    /// Where to connect to, or to listen.
    pub at: SocketAddr,
    pub board: &'a Path,
    /// The first connection's id; the row is the id's place behind it.
    pub first: u64,
    pub connections: u64,
    /// Whose it is; 0 is root.
    pub user: u32,
}

impl Task<'_> {
    /// The command, in the programs' namespace: under culvert where there is a zstackd.
    pub fn command(&self, world: &World) -> Command {
        let this = std::env::current_exe().expect("this program");
        let this = this.to_str().expect("its name");
        let mut command = match self.user {
            _ if world.zstackd.is_none() => world.here.command(this),
            0 => world.run_here(this),
            user => world.run_here_as(user, this),
        };
        command
            .args(["--exact", "program::run", "--ignored", "--nocapture", "--test-threads=1"])
            .env("STORM_ROLE", self.role)
            .env("STORM_AT", self.at.to_string())
            .env("STORM_BOARD", self.board)
            .env("STORM_FIRST", self.first.to_string())
            .env("STORM_CONNECTIONS", self.connections.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

/// Run by the other tests.
#[test]
#[ignore = "run by the other tests"]
fn run() {
    let board = Board::open(&PathBuf::from(variable("STORM_BOARD")));
    let at: SocketAddr = variable("STORM_AT").parse().expect("an address");
    let first: u64 = variable("STORM_FIRST").parse().expect("a number");
    let n: u64 = variable("STORM_CONNECTIONS").parse().expect("a number");
    match variable("STORM_ROLE").as_str() {
        "client" => thread::scope(|s| {
            for i in 0..n {
                let board = &board;
                s.spawn(move || {
                    client(at, Hello { id: first + i, mode: Mode::ALL[i as usize % 4] }, board, i as usize)
                });
            }
        }),
        "server" => server(at, first, &board),
        "scribble" => crate::hostile::scribble(at, Box::leak(Box::new(board)), first, n),
        "flood" => crate::hostile::flood(at, &board),
        "brief" => crate::many::brief(at, &board, first, false),
        "stays" => crate::many::brief(at, &board, first, true),
        "many" => crate::many::program(at, &board, first, n),
        "again" => {
            let log = log();
            thread::scope(|s| {
                for i in 0..n {
                    let (board, log) = (&board, &log);
                    s.spawn(move || again(at, first + i, board, log, i as usize));
                }
            });
        }
        other => panic!("{other}"),
    }
    loop {
        thread::park();
    }
}

/// Connects, says who it is, and talks. Whether it came to that.
fn client(at: SocketAddr, hello: Hello, board: &Board, row: usize) -> bool {
    board.set(row, Word::Stage, TRIES);
    let mut stream = match TcpStream::connect(at) {
        Ok(stream) => stream,
        Err(e) => {
            board.set(row, Word::When, now());
            board.set(row, Word::WriteEnd, End::Error(e.raw_os_error().unwrap_or(-1)).number());
            return false;
        }
    };
    board.set(row, Word::Port, stream.local_addr().expect("its address").port().into());
    board.set(row, Word::Stage, STANDS);
    if let Err(e) = stream.write_all(&hello.bytes()) {
        board.set(row, Word::When, now());
        board.set(row, Word::WriteEnd, End::Error(e.raw_os_error().unwrap_or(-1)).number());
        return false;
    }
    board.set(row, Word::Stage, GOES);
    talk(stream, hello, true, &OnBoard { board, row });
    true
}

/// The board's log, to which each process appends lines.
fn log() -> File {
    let path = Path::new(&variable("STORM_BOARD")).with_extension("log");
    File::options().append(true).create(true).open(path).expect("the log")
}

/// Connects, and connects again, for ever; and says how each connection has ended.
fn again(at: SocketAddr, id: u64, board: &Board, mut log: &File, row: usize) {
    let mode = Mode::ALL[id as usize % 4];
    for turn in 0.. {
        board.clear(row);
        let talked = client(at, Hello { id: id + (turn << 32), mode }, board, row);
        let r = board.row(row);
        let ends = [r.end(Word::ReadEnd), r.end(Word::WriteEnd)];
        let [port, when, wrong] = [Word::Port, Word::When, Word::Wrong].map(|word| r.get(word));
        let line = format!("{id} {mode:?} {talked} {port} {ends:?} {when} {wrong}\n");
        log.write_all(line.as_bytes()).expect("the log");
        if !talked {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

fn server(at: SocketAddr, first: u64, board: &Board) {
    let listener = TcpListener::bind(at).expect("a port");
    // Its own row: that it listens.
    board.set(0, Word::Stage, GOES);
    thread::scope(|s| {
        loop {
            let Ok((mut stream, _)) = listener.accept() else { continue };
            s.spawn(move || {
                let mut bytes = [0; HELLO];
                if stream.read_exact(&mut bytes).is_ok() {
                    let hello = Hello::of(&bytes);
                    let row = (hello.id - first) as usize + 1;
                    board.set(row, Word::Stage, GOES);
                    talk(stream, hello, true, &OnBoard { board, row });
                }
            });
        }
    });
}
