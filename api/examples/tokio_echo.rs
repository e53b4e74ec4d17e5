//! A server that answers with what it receives, for any number of clients in one thread: readiness is tokio's, by `AsyncFd`.
//!
//! ```text
//! tokio_echo                 prints its port
//! ```

use std::io::{ErrorKind, Result};
use std::net::{TcpListener, TcpStream};
use tokio::io::unix::AsyncFd;

/// Answers until the client has sent all.
async fn serve(client: TcpStream) -> Result<()> {
    client.set_nonblocking(true)?;
    // SAFETY: the stream has its descriptor until it is dropped.
    let client = unsafe { AsyncFd::register(client) }?;
    loop {
        // `WouldBlock` waits for the next readiness.
        let view = loop {
            match client.readable().await?.try_io(|c| culvert::look(c.get_ref(), 1)) {
                Ok(view) => break view?,
                Err(_) => continue,
            }
        };
        if view.is_empty() {
            return Ok(());
        }
        let len = view.len();
        let mut done = 0;
        while done < len {
            let mut room = loop {
                match client.writable().await?.try_io(|c| culvert::reserve(c.get_ref(), len - done)) {
                    Ok(room) => break room?,
                    Err(_) => continue,
                }
            };
            let mut n = room.write_from(0, &view, done, room.len());
            done += n;
            // On the kernel a commit may be partial, or wait.
            while n > 0 {
                match client.writable().await?.try_io(|_| room.commit(n)) {
                    Ok(sent) => n -= sent?,
                    Err(_) => continue,
                }
            }
        }
        view.release(len)?;
    }
}

fn main() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?.port());
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        // SAFETY: as above.
        let listener = unsafe { AsyncFd::register(listener) }?;
        loop {
            match listener.readable().await?.try_io(|l| l.get_ref().accept()) {
                Ok(Ok((client, _))) => {
                    tokio::task::spawn_local(serve(client));
                }
                Ok(Err(e)) if e.kind() == ErrorKind::ConnectionAborted => {}
                Ok(Err(e)) => return Err(e),
                Err(_) => {}
            }
        }
    })
}
