//! An HTTP server that answers from mapped files: each byte goes once, from the page cache to where the client reads it.
//!
//! ```text
//! http_files DIRECTORY       prints its port; GET and HEAD, with connections that are kept
//! ```

use std::fs::File;
use std::io::{Error, Result};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Component, Path};

/// A file in memory. Another process may write it meanwhile, so it is never a slice.
struct Mapped {
    at: *mut u8,
    len: usize,
}

impl Mapped {
    fn new(file: &File) -> Result<Mapped> {
        let len = file.metadata()?.len() as usize;
        if len == 0 {
            return Ok(Mapped { at: core::ptr::null_mut(), len });
        }
        // SAFETY: a mapping of its own.
        let at =
            unsafe { libc::mmap(core::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if at == libc::MAP_FAILED { Err(Error::last_os_error()) } else { Ok(Mapped { at: at.cast(), len }) }
    }

    fn send(&self, client: &TcpStream) -> Result<()> {
        let mut done = 0;
        while done < self.len {
            let mut room = culvert::reserve(client, self.len - done)?;
            for (to, n) in room.spans() {
                // SAFETY: as many bytes of the mapping, and of the room.
                unsafe { core::ptr::copy_nonoverlapping(self.at.add(done), to, n) };
                done += n;
            }
            room.commit(room.len())?;
        }
        Ok(())
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the mapping, which nobody uses any more.
            unsafe { libc::munmap(self.at.cast(), self.len) };
        }
    }
}

fn send(client: &TcpStream, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        let mut room = culvert::reserve(client, bytes.len())?;
        let n = room.write(0, bytes);
        bytes = &bytes[room.commit(n)?..];
    }
    Ok(())
}

fn answer(client: &TcpStream, status: &str, len: usize) -> Result<()> {
    send(client, format!("HTTP/1.1 {status}\r\nContent-Length: {len}\r\n\r\n").as_bytes())
}

/// Answers one request. False: the connection is not kept.
fn answer_request(client: &TcpStream, directory: &Path, head: &str) -> Result<bool> {
    let mut words = head.lines().next().unwrap_or("").split(' ');
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let Some(path) = path.strip_prefix('/').map(Path::new) else {
        return answer(client, "400 Bad Request", 0).map(|()| false);
    };
    if !path.components().all(|c| matches!(c, Component::Normal(_))) {
        return answer(client, "400 Bad Request", 0).map(|()| false);
    }
    if !["GET", "HEAD"].contains(&method) {
        return answer(client, "501 Not Implemented", 0).map(|()| false);
    }
    let file = File::open(directory.join(path)).ok().filter(|f| f.metadata().is_ok_and(|m| m.is_file()));
    let Some(file) = file else { return answer(client, "404 Not Found", 0).map(|()| true) };
    let mapped = Mapped::new(&file)?;
    answer(client, "200 OK", mapped.len)?;
    if method == "GET" {
        mapped.send(client)?;
    }
    Ok(true)
}

fn serve(client: &TcpStream, directory: &Path) -> Result<()> {
    const MOST: usize = 8192;
    let mut min = 1;
    loop {
        let view = culvert::look(client, min)?;
        // The head is copied before it is looked at: the client could change it meanwhile.
        let mut head = vec![0; view.len().min(MOST)];
        let (seen, n) = (view.len(), view.copy_to(0, &mut head));
        let end = head.windows(4).position(|w| w == b"\r\n\r\n");
        view.release(end.map_or(0, |end| end + 4))?;
        match end {
            Some(end) => {
                min = 1;
                if !answer_request(client, directory, &String::from_utf8_lossy(&head[..end]))? {
                    return Ok(());
                }
            }
            // No more comes, or too much of it.
            None if seen < min || n == MOST => return Ok(()),
            None => min = seen + 1,
        }
    }
}

fn main() -> Result<()> {
    let Some(directory) = std::env::args_os().nth(1) else { return Err(Error::other("usage: http_files DIRECTORY")) };
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?.port());
    for client in listener.incoming() {
        let (client, directory) = (client?, directory.clone());
        std::thread::spawn(move || {
            let _ = serve(&client, Path::new(&directory));
        });
    }
    Ok(())
}
