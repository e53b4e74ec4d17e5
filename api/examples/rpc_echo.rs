//! A server that answers each message with the message, and a client that checks it.
//!
//! ```text
//! rpc_echo server            prints its port, serves one client after another
//! rpc_echo client PORT COUNT SIZE
//! ```
//! A message is its length, 4 bytes, most significant first, and as many bytes: 65,536 at most, since this client sends all of a
//! message before it reads. The server copies each byte once, from where the
//! client has written it to where the client will read it.

use std::io::{Error, ErrorKind, Result};
use std::net::{TcpListener, TcpStream};

/// Answers until the client has closed the connection. How many bytes were copied once, and how many more often.
fn serve(client: &TcpStream) -> Result<(u64, u64)> {
    let (mut once, mut twice) = (0, 0);
    loop {
        let mut view = culvert::look(client, 4)?;
        if view.is_empty() {
            return Ok((once, twice));
        }
        let mut length = [0; 4];
        if view.copy_to(0, &mut length) < 4 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let mut left = 4 + u32::from_be_bytes(length) as usize;
        loop {
            let here = view.len().min(left);
            let mut done = 0;
            while done < here {
                let mut room = culvert::reserve(client, here - done)?;
                let n = room.write_from(0, &view, done, room.len());
                if room.copies() || view.copies() {
                    twice += n as u64
                } else {
                    once += n as u64
                }
                // All of it, since this socket waits.
                room.commit(n)?;
                done += n;
            }
            view.release(here)?;
            left -= here;
            if left == 0 {
                break;
            }
            view = culvert::look(client, 1)?;
            if view.is_empty() {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

fn message(size: u32, seed: u32) -> Vec<u8> {
    let body = (0..size).map(|i| (seed + i) as u8);
    size.to_be_bytes().into_iter().chain(body).collect()
}

fn call(server: &TcpStream, message: &[u8]) -> Result<()> {
    let mut done = 0;
    while done < message.len() {
        let mut room = culvert::reserve(server, message.len() - done)?;
        let n = room.write(0, &message[done..]);
        done += room.commit(n)?;
    }
    let (mut answer, mut got) = (vec![0; message.len()], 0);
    while got < answer.len() {
        let view = culvert::look(server, 1)?;
        let n = view.copy_to(0, &mut answer[got..]);
        if n == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        view.release(n)?;
        got += n;
    }
    if answer == message { Ok(()) } else { Err(Error::other("another answer")) }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["server"] => {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            println!("{}", listener.local_addr()?.port());
            for client in listener.incoming() {
                let (once, twice) = serve(&client?)?;
                println!("{once} of {} bytes in place", once + twice);
            }
            Ok(())
        }
        ["client", port, count, size] => {
            let number = |text: &str| text.parse::<u32>().map_err(Error::other);
            let server = TcpStream::connect(("127.0.0.1", number(port)? as u16))?;
            for i in 0..number(count)? {
                call(&server, &message(number(size)?, i))?;
            }
            let path = culvert::path(&server);
            println!("{count} messages; path {}", u32::from(path.sending) + 2 * u32::from(path.receiving));
            Ok(())
        }
        _ => Err(Error::other("usage: rpc_echo server | client PORT COUNT SIZE")),
    }
}
