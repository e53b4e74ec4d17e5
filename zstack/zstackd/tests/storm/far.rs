//! The remote host: it answers programs' connections, and opens its own, and keeps what it has seen of each.

use crate::board::{End, Row, Word};
use crate::lab::{Namespace, soon};
use crate::talk::{HELLO, Hello, InMemory, talk};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// A call of the remote host's that takes longer hangs.
pub fn patience() -> Duration {
    Duration::from_secs(30 + 2 * crate::number("STORM_STOPPED", 1) as u64)
}

/// What the remote host has seen.
#[derive(Default)]
pub struct Seen {
    rows: Mutex<HashMap<u64, Arc<InMemory>>>,
    ended: Mutex<HashMap<u64, Row>>,
    /// Connections that go on, with those that have not said yet whose they are.
    open: AtomicUsize,
    /// Those that have ended before they said whose they are.
    pub silent: AtomicUsize,
    /// What went wrong with these.
    pub trouble: Mutex<Vec<String>>,
    streams: Mutex<HashMap<u64, TcpStream>>,
}

/// The remote host's listener, as long as it lives.
pub struct Far {
    pub seen: Arc<Seen>,
    pub at: SocketAddr,
    stop: Arc<AtomicBool>,
}

fn limited(stream: &TcpStream) {
    stream.set_read_timeout(Some(patience())).expect("a timeout");
    stream.set_write_timeout(Some(patience())).expect("a timeout");
}

impl Far {
    /// Listens on this port, on all addresses.
    pub fn listen(there: &Namespace, port: u16) -> Far {
        let listener = there.within(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).expect("a socket");
            socket.set_only_v6(false).expect("both families");
            socket.set_reuse_address(true).expect("an option");
            socket.bind(&SocketAddr::from(([0u16; 8], port)).into()).expect("a port");
            socket.listen(4096).expect("it listens");
            TcpListener::from(socket)
        });
        let at = listener.local_addr().expect("its address");
        let (seen, stop) = (Arc::new(Seen::default()), Arc::new(AtomicBool::new(false)));
        let (s, over) = (seen.clone(), stop.clone());
        thread::spawn(move || {
            listener.set_nonblocking(true).expect("nonblocking");
            while !over.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        stream.set_nonblocking(false).expect("blocking");
                        s.serve(stream);
                    }
                    Err(_) => thread::sleep(Duration::from_micros(300)),
                }
            }
        });
        Far { seen, at, stop }
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Seen {
    fn serve(self: &Arc<Seen>, mut stream: TcpStream) {
        limited(&stream);
        self.open.fetch_add(1, Ordering::SeqCst);
        let seen = self.clone();
        thread::spawn(move || {
            let mut bytes = [0; HELLO];
            match stream.read_exact(&mut bytes) {
                Ok(()) => seen.talk(stream, Hello::of(&bytes)),
                Err(e) => {
                    let hangs = e.kind() == std::io::ErrorKind::WouldBlock;
                    if hangs || bytes[..7] != *b"storm\0\0" && bytes[0] != 0 {
                        seen.trouble.lock().expect("trouble").push(format!("no greeting: {e}: {bytes:?}"));
                    }
                    seen.silent.fetch_add(1, Ordering::Relaxed);
                }
            }
            seen.open.fetch_sub(1, Ordering::SeqCst);
        });
    }

    fn talk(&self, stream: TcpStream, hello: Hello) {
        let row = Arc::new(InMemory::default());
        let doubled = self.rows.lock().expect("rows").insert(hello.id, row.clone()).is_some();
        if doubled {
            self.trouble.lock().expect("trouble").push(format!("connection {} came twice", hello.id));
        }
        self.streams.lock().expect("streams").insert(hello.id, stream.try_clone().expect("a descriptor"));
        talk(stream, hello, false, &*row);
        self.streams.lock().expect("streams").remove(&hello.id);
        self.ended.lock().expect("ended").insert(hello.id, row.row());
    }

    /// Opens a connection to a program, in a thread of its own. `failed` hears of an error.
    pub fn connect(
        self: &Arc<Seen>,
        there: &Namespace,
        to: SocketAddr,
        hello: Hello,
        failed: impl FnOnce(End) + Send + 'static,
    ) {
        let (seen, there) = (self.clone(), there.again());
        self.open.fetch_add(1, Ordering::SeqCst);
        thread::spawn(move || {
            there.enter();
            match TcpStream::connect(to) {
                Ok(mut stream) => {
                    limited(&stream);
                    match stream.write_all(&hello.bytes()) {
                        Ok(()) => seen.talk(stream, hello),
                        Err(e) => failed(End::Error(e.raw_os_error().unwrap_or(-1))),
                    }
                }
                Err(e) => failed(End::Error(e.raw_os_error().unwrap_or(-1))),
            }
            seen.open.fetch_sub(1, Ordering::SeqCst);
        });
    }

    /// What was seen of a connection to its end.
    pub fn end_of(&self, id: u64) -> Row {
        soon(&format!("the remote host's end of connection {id}"), 2 * patience(), || {
            self.ended.lock().expect("ended").get(&id).copied()
        })
    }

    pub fn known(&self, id: u64) -> Option<Row> {
        Some(self.rows.lock().expect("rows").get(&id)?.row())
    }

    /// Waits until no connection goes on.
    pub fn quiet(&self) {
        soon("the remote host's connections have ended", 2 * patience(), || {
            (self.open.load(Ordering::SeqCst) == 0).then_some(())
        });
        let trouble = self.trouble.lock().expect("trouble");
        assert!(trouble.is_empty(), "{trouble:?}");
    }

    /// Shuts what goes on: for connections of which nothing will ever be heard again.
    pub fn cut(&self) {
        self.streams.lock().expect("streams").values().for_each(|stream| {
            let _ = stream.shutdown(Shutdown::Both);
        });
    }

    /// Shuts one.
    pub fn end(&self, id: u64) {
        if let Some(stream) = self.streams.lock().expect("streams").get(&id) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub fn forget(&self) {
        self.rows.lock().expect("rows").clear();
        self.ended.lock().expect("ended").clear();
    }
}

/// What must hold of a connection whose program was killed. `program`: what it had written down.
pub fn judge(id: u64, mode: crate::talk::Mode, program: &Row, remote: &Row) {
    use crate::talk::Mode;
    let told = || format!("connection {id} ({mode:?}):\n program {program:?}\n remote  {remote:?}");
    let (p, r) = (|word| program.get(word), |word| remote.get(word));
    assert!(p(Word::Wrong) == 0 && r(Word::Wrong) == 0, "wrong bytes: {}", told());
    assert!(r(Word::Got) <= p(Word::Wants), "more than was sent: {}", told());
    assert!(p(Word::Got) <= r(Word::Wants), "more than was sent: {}", told());
    // Until it was killed nothing ends.
    let ended = (program.end(Word::ReadEnd), program.end(Word::WriteEnd));
    assert!(ended == (End::Not, End::Not), "an end before the kill: {}", told());
    let ends = [remote.end(Word::ReadEnd), remote.end(Word::WriteEnd)];
    for end in ends {
        assert!(matches!(end, End::Not | End::Eof) || end.is_reset(), "{end:?}: {}", told());
    }
    // An end in order means that everything is there; but where one thread was told of a reset, another one reads an end.
    if ends[0] == End::Eof && ends[1] != End::Error(libc::ECONNRESET) {
        assert!(r(Word::Got) >= p(Word::Sent), "an end in order of a stream that was cut: {}", told());
    }
    // The program had nothing to read, so its kernel sends all that was written, and then FIN.
    if mode == Mode::Up {
        assert_eq!(ends[0], End::Eof, "cut, where the kernel would not: {}", told());
    }
    if mode == Mode::Down {
        assert!(ends[1].is_reset(), "a writer that heard nothing: {}", told());
    }
}
