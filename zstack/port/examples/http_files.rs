//! An HTTP server, and a client, each with a TCP stack of its own in its own thread: the program, not the kernel, is the host at the
//! device's other end. A file's bytes are sent from where they are mapped, a request is read where it arrived, and answers' heads are
//! written where they are sent from.
//!
//! ```text
//! http_files tun:zs0,addr=10.9.0.2/24,peer=10.9.0.1 DIRECTORY           GET and HEAD at http://10.9.0.2/, with connections that are kept
//! http_files tun:zc0,addr=10.8.0.2/24,peer=10.8.0.1 get 10.9.0.2:80/a   writes the file to standard output
//! ```
//! The files are those of the directory when the server starts. Both need CAP_NET_ADMIN.

use std::collections::HashMap;
use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use zstack::endpoint::Endpoint;
use zstack::inplace::{self, Spans};
use zstack::net::{Address, Route};
use zstack::payload::{Region, Span};
use zstack::sockets::{self, Copies, Ready, Receive, Socket, Stable, Still};
use zstack::stack::{Config, Connect, Listen};
use zstack_port::{Clock, Device, Spec};

/// What a request or an answer's head may have, bytes.
const HEAD: usize = 8192;
/// What is queued by reference at a time.
const PIECE: usize = 256 << 10;

/// A file's bytes in memory that nobody can change or cut off any more (memfd, sealed): a packet may be sent from there twice.
struct Mapped {
    at: NonNull<u8>,
    len: u32,
}

// SAFETY: memory that is only read.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

// SAFETY: the mapping stays until this is dropped, and the seals keep its bytes.
unsafe impl Stable for Mapped {
    fn span(&self) -> Span {
        Span { start: self.at.as_ptr(), len: self.len, region: Region::default() }
    }
}

impl Mapped {
    fn new(mut file: File) -> io::Result<Mapped> {
        // SAFETY: a name; the descriptor is ours.
        let mut memory = unsafe {
            let fd = libc::memfd_create(c"file".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            File::from_raw_fd(fd)
        };
        let len = io::copy(&mut file, &mut memory)?;
        let len = u32::try_from(len).map_err(|_| io::Error::other("a file of 4 GiB or more"))?;
        if len == 0 {
            return Ok(Mapped { at: NonNull::dangling(), len });
        }
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE | libc::F_SEAL_SEAL;
        // SAFETY: no memory of ours; then a mapping of its own.
        let at = unsafe {
            if libc::fcntl(memory.as_raw_fd(), libc::F_ADD_SEALS, seals) != 0 {
                return Err(io::Error::last_os_error());
            }
            let (read, fd) = (libc::PROT_READ, memory.as_raw_fd());
            libc::mmap(std::ptr::null_mut(), len as usize, read, libc::MAP_SHARED, fd, 0)
        };
        match NonNull::new(at.cast::<u8>()) {
            Some(at) if at.as_ptr().cast() != libc::MAP_FAILED => Ok(Mapped { at, len }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the mapping, which nobody reads any more.
            unsafe { libc::munmap(self.at.as_ptr().cast(), self.len as usize) };
        }
    }
}

/// The files of a directory, by their names.
fn files(directory: &Path) -> io::Result<HashMap<String, Still>> {
    let mut files = HashMap::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if let (true, Ok(name)) = (entry.file_type()?.is_file(), entry.file_name().into_string()) {
            files.insert(name, Still::from(Arc::new(Mapped::new(File::open(entry.path())?)?)));
        }
    }
    Ok(files)
}

/// A stack at the device's other end, and its clock.
struct Host {
    endpoint: Endpoint<Device>,
    clock: Clock,
}

impl Host {
    fn new(spec: &Spec) -> Result<Host, Box<dyn Error>> {
        let device = Device::open(spec)?;
        let mut key = [0; 16];
        File::open("/dev/urandom")?.read_exact(&mut key)?;
        let first = spec.addresses.first().ok_or("the port has no address: give it one (addr=)")?;
        let mut config = Config::new(Address { ip: first.address, prefix: first.prefix }, key);
        // On a tun device all goes to the kernel, which forwards.
        let any = if first.address.is_ipv4() { [0; 4].into() } else { [0u8; 16].into() };
        config.routes = vec![Route { network: Address { ip: any, prefix: 0 }, gateway: first.peer }];
        config.mac = (spec.kind == zstack_port::Kind::Tap).then(|| [2, key[0], key[1], key[2], key[3], key[4]]);
        let clock = Clock::start();
        let endpoint = Endpoint::new(config, sockets::Config::default(), device, clock.now())?;
        Ok(Host { endpoint, clock })
    }

    /// Runs the stack to completion: packets in, `work` on what is ready, packets out; sleeps when there is nothing to do. Until `work` says that
    /// it is over.
    fn run(
        &mut self,
        mut work: impl FnMut(&mut Endpoint<Device>) -> Result<bool, Box<dyn Error>>,
    ) -> Result<(), Box<dyn Error>> {
        /// It may be told to end by somebody else.
        const MOST: Duration = Duration::from_millis(20);
        loop {
            self.endpoint.turn(self.clock.now());
            if work(&mut self.endpoint)? {
                // What was said last.
                self.endpoint.turn(self.clock.now());
                return Ok(());
            }
            let turn = self.endpoint.flush(self.clock.now());
            if !turn.more {
                let limit = self.clock.until(turn.deadline).map_or(MOST, |limit| limit.min(MOST));
                self.endpoint.port().wait(&mut [], Some(limit))?;
            }
        }
    }
}

/// The text up to an empty line, and how long it is with that. It is copied: of whatever connection the bytes are, it is parsed as it was.
fn head(bytes: Spans) -> Option<(String, usize)> {
    let mut text = vec![0; bytes.len().min(HEAD)];
    bytes.copy_to(0, &mut text);
    let end = text.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    Some((String::from_utf8_lossy(&text[..end]).into_owned(), end))
}

/// What is left to be said on a connection.
#[derive(Default)]
struct Answer {
    head: Vec<u8>,
    body: Option<Still>,
    /// The connection ends behind it.
    last: bool,
}

impl Answer {
    fn to(request: &str, files: &HashMap<String, Still>) -> Answer {
        let mut words = request.lines().next().unwrap_or("").split(' ');
        let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let (status, body) = match (method, path.strip_prefix('/').and_then(|name| files.get(name))) {
            ("GET" | "HEAD", Some(file)) => ("200 OK", file.clone()),
            ("GET" | "HEAD", None) => ("404 Not Found", Still::from(&b""[..])),
            _ => ("501 Not Implemented", Still::from(&b""[..])),
        };
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
        Answer { head, body: (method == "GET" && !body.is_empty()).then_some(body), last: status.starts_with("501") }
    }

    /// Says as much as there is room for. Whether that was all.
    fn go_on(&mut self, endpoint: &mut Endpoint<Device>, socket: Socket) -> Result<bool, sockets::Error> {
        while !self.head.is_empty() {
            let mut room = match inplace::reserve(endpoint, socket, self.head.len()) {
                Err(sockets::Error::WouldBlock) => return Ok(false),
                room => room?,
            };
            let n = room.write(0, &self.head);
            let n = if self.body.is_some() { room.commit_more(n)? } else { room.commit(n)? };
            self.head.drain(..n);
        }
        while let Some(mut body) = self.body.take() {
            let n = body.len().min(PIECE);
            match endpoint.send(socket, body.slice(0..n), n < body.len()) {
                Ok(()) => body.advance(n),
                Err((sockets::Error::WouldBlock, _)) => {
                    self.body = Some(body);
                    return Ok(false);
                }
                Err((error, _)) => return Err(error),
            }
            self.body = (!body.is_empty()).then_some(body);
        }
        Ok(true)
    }
}

/// Serves what is ready of a connection. False: it is over.
fn go_on(
    endpoint: &mut Endpoint<Device>,
    socket: Socket,
    ready: Ready,
    answer: &mut Answer,
    files: &HashMap<String, Still>,
) -> Result<bool, sockets::Error> {
    if ready.error.is_some() {
        return Ok(false);
    }
    loop {
        if !answer.go_on(endpoint, socket)? {
            return Ok(true);
        }
        if answer.last {
            endpoint.shutdown(socket);
            return Ok(false);
        }
        let view = match inplace::look(endpoint, socket, 1) {
            Err(sockets::Error::WouldBlock) => return Ok(true),
            view => view?,
        };
        match head(view.memory()) {
            Some((request, n)) => {
                view.release(n)?;
                *answer = Answer::to(&request, files);
            }
            // The end, or more than a request.
            None if view.is_empty() || view.len() >= HEAD => return Ok(false),
            // The rest has yet to come.
            None => return Ok(!ready.peer_closed),
        }
    }
}

/// Serves a directory's files at port 80 until `end`, which is looked at now and then; what was copied.
pub fn serve(spec: &Spec, directory: &Path, end: &AtomicBool) -> Result<Copies, Box<dyn Error>> {
    let files = files(directory)?;
    let mut host = Host::new(spec)?;
    let listener = host.endpoint.listen(Listen::new(80, host.endpoint.room()), Receive::Copy)?;
    let mut answers = HashMap::new();
    host.run(|endpoint| {
        while let Some(socket) = endpoint.accept(listener) {
            answers.insert(socket, Answer::default());
        }
        while let Some((socket, ready)) = endpoint.next_ready() {
            let Some(answer) = answers.get_mut(&socket) else { continue };
            if !go_on(endpoint, socket, ready, answer, &files).unwrap_or(false) {
                answers.remove(&socket);
                endpoint.close(socket);
            }
        }
        Ok(end.load(Ordering::Relaxed))
    })?;
    Ok(host.endpoint.sockets().copies())
}

/// Gets a file: its bytes go to `to` from where they arrived. The status, and what was copied.
pub fn get(
    spec: &Spec,
    server: SocketAddr,
    name: &str,
    to: &mut impl Write,
) -> Result<(String, Copies), Box<dyn Error>> {
    let mut host = Host::new(spec)?;
    let wanted = Connect::new(server, host.endpoint.room());
    host.endpoint.connect(host.clock.now(), wanted, Receive::Keep)?;
    let mut asked = false;
    let (mut status, mut left) = (None, 0);
    host.run(|endpoint| {
        while let Some((socket, ready)) = endpoint.next_ready() {
            if let Some(error) = ready.error {
                return Err(format!("{server}: {error:?}").into());
            }
            if ready.writable && !asked {
                let request = format!("GET /{name} HTTP/1.1\r\nHost: {server}\r\n\r\n");
                let mut room = inplace::reserve(endpoint, socket, request.len())?;
                let n = room.write(0, request.as_bytes());
                asked = room.commit(n)? == request.len();
            }
            while let Ok(view) = inplace::look(endpoint, socket, 1) {
                if view.is_empty() {
                    return Err("the answer is cut off".into());
                }
                if status.is_none() {
                    let Some((text, n)) = head(view.memory()) else { break };
                    let length = text.lines().find_map(|l| l.strip_prefix("Content-Length: "));
                    left = length.ok_or("the answer has no length")?.parse()?;
                    status = Some(text.lines().next().unwrap_or("").to_owned());
                    view.release(n)?;
                } else {
                    let (first, second) = view.as_slices();
                    to.write_all(first)?;
                    to.write_all(second)?;
                    left -= view.len();
                    let n = view.len();
                    view.release(n)?;
                }
                if left == 0 {
                    endpoint.close(socket);
                    return Ok(true);
                }
            }
        }
        Ok(false)
    })?;
    Ok((status.unwrap_or_default(), host.endpoint.sockets().copies()))
}

// Not where a test has this file as a module.
#[allow(dead_code)]
fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [port, "get", url] => {
            let (server, name) = url.split_once('/').ok_or("give an address, a port and a name: 10.9.0.2:80/a")?;
            let (status, _) = get(&port.parse()?, server.parse()?, name, &mut io::stdout().lock())?;
            if status.contains(" 200 ") { Ok(()) } else { Err(status.into()) }
        }
        [port, directory] => serve(&port.parse()?, Path::new(directory), &AtomicBool::new(false)).map(|_| ()),
        _ => Err("usage: http_files PORT DIRECTORY, or http_files PORT get ADDRESS:80/NAME".into()),
    }
}
