//! Accept, fork, exec: the socket becomes another program's standard input and output, when nothing or
//! much has gone through it before.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Serves until killed.
pub fn serve(port: u16, lines: usize, program: &[&str]) -> io::Result<()> {
    // SAFETY: no handler is installed; with SIGCHLD ignored the kernel reaps the children.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    for conn in TcpListener::bind(("127.0.0.1", port))?.incoming() {
        let mut conn = conn?;
        if let Err(e) = greet(&mut conn, lines) {
            eprintln!("greeting: {e}");
            continue;
        }
        // SAFETY: this program has one thread, so the child may go on as an ordinary program.
        match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error()),
            0 => {
                let fd = conn.as_raw_fd();
                for standard in 0..2 {
                    // SAFETY: both descriptors are open; only the child's standard streams change.
                    assert_eq!(unsafe { libc::dup2(fd, standard) }, standard);
                }
                drop(conn);
                return Err(Command::new(program[0]).args(&program[1..]).exec());
            }
            _ => drop(conn),
        }
    }
    Ok(())
}

/// Answers `lines` lines, reading not one byte beyond them: what follows is for the program.
fn greet(conn: &mut TcpStream, lines: usize) -> io::Result<()> {
    for _ in 0..lines {
        let mut byte = [0];
        let mut line = Vec::new();
        while byte != *b"\n" {
            conn.read_exact(&mut byte)?;
            line.push(byte[0]);
        }
        conn.write_all(&line)?;
    }
    Ok(())
}

/// Sends `lines` lines, awaiting each one's answer but the last one's, and at once all of standard
/// input; then ends its direction, and copies what comes to standard output.
pub fn talk(port: u16, lines: usize) -> io::Result<()> {
    let mut input = Vec::new();
    io::stdin().read_to_end(&mut input)?;
    let mut conn = TcpStream::connect(("127.0.0.1", port))?;
    let mut owed = 0;
    for i in 0..lines {
        let line = format!("line {i}\n");
        conn.write_all(line.as_bytes())?;
        if i + 1 == lines {
            owed = line.len();
            break;
        }
        expect(&mut conn, line.as_bytes())?;
    }
    let mut half = conn.try_clone()?;
    let sender = std::thread::spawn(move || {
        half.write_all(&input)?;
        half.shutdown(Shutdown::Write)
    });
    let mut last = vec![0; owed];
    conn.read_exact(&mut last)?;
    let mut answer = Vec::new();
    conn.read_to_end(&mut answer)?;
    sender.join().expect("the sending thread")?;
    io::stdout().write_all(&answer)
}

fn expect(conn: &mut TcpStream, wanted: &[u8]) -> io::Result<()> {
    let mut got = vec![0; wanted.len()];
    conn.read_exact(&mut got)?;
    if got == wanted { Ok(()) } else { Err(io::Error::other(format!("{got:?} came back for {wanted:?}"))) }
}
