//! The side that answers.

use super::histogram::Histogram;
use super::{REQUEST, STAMP, TELL, WAKE, load};
use crate::run::{App, Meter, summary};
use crate::sys;
use crate::table::Table;
use crate::transport::{Conn, Event, Transport};
use serde_json::json;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;
use zstack::sockets::Still;

/// Bytes that a connection moves before the others have their turn.
const TURN: u64 = 512 << 10;

#[derive(Default)]
struct Peer {
    request: Vec<u8>,
    received: u64,
    sent: u64,
    /// What is told to one who asks.
    told: Option<Still>,
    shut: bool,
    /// What has come of a message that says when it was sent.
    message: Vec<u8>,
}

/// `perf --listen`.
pub struct Server {
    at: SocketAddr,
    copy: bool,
    load: Still,
    peers: Table<Peer>,
    meter: Meter,
    bytes: u64,
    served: u64,
    /// How long messages took from their sender to us, since the beginning.
    wakes: Histogram,
}

enum Progress {
    Waits,
    More,
    Done,
}

impl Server {
    pub fn new(at: SocketAddr, copy: bool) -> Server {
        let (peers, wakes) = (Table::default(), Histogram::default());
        Server { at, copy, load: load(), peers, meter: Meter::start(), bytes: 0, served: 0, wakes }
    }

    fn serve(&mut self, transport: &mut dyn Transport, conn: Conn) {
        let Some(peer) = self.peers.get_mut(conn) else { return };
        let before = peer.received + peer.sent;
        let result = serve(transport, conn, peer, &self.load, self.copy, self.meter, &mut self.wakes);
        self.bytes += peer.received + peer.sent - before;
        match result {
            Ok(Progress::Waits) => {}
            Ok(Progress::More) => transport.again(conn),
            Ok(Progress::Done) => {
                self.peers.remove(conn);
                self.served += 1;
                transport.close(conn);
            }
            Err(_) => {
                self.peers.remove(conn);
                self.served += 1;
                transport.abort(conn);
            }
        }
    }
}

fn serve(
    transport: &mut dyn Transport,
    conn: Conn,
    peer: &mut Peer,
    load: &Still,
    copy: bool,
    meter: Meter,
    wakes: &mut Histogram,
) -> io::Result<Progress> {
    let mut ended = false;
    while peer.request.len() < REQUEST {
        let want = REQUEST - peer.request.len();
        let request = &mut peer.request;
        match transport.take(conn, want, &mut |bytes| request.extend_from_slice(bytes)) {
            Ok(0) => return Ok(Progress::Done),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Progress::Waits),
            Err(e) => return Err(e),
        }
    }
    if peer.request[..4] != *b"ZSTK" {
        return Err(ErrorKind::InvalidData.into());
    }
    let letter = peer.request[4];
    let size =
        u64::from(u32::from_le_bytes([peer.request[8], peer.request[9], peer.request[10], peer.request[11]])).max(1);
    let begin = peer.received + peer.sent;
    loop {
        if peer.received + peer.sent - begin >= TURN {
            return Ok(Progress::More);
        }
        let mut blocked = 0;
        // What has come.
        let message = &mut peer.message;
        let mut keep = |bytes: &[u8]| {
            if letter == WAKE {
                message.extend_from_slice(bytes);
            }
        };
        match transport.take(conn, TURN as usize, &mut keep) {
            Ok(0) => ended = true,
            Ok(n) => {
                peer.received += n as u64;
                while letter == WAKE && peer.message.len() as u64 >= size.max(u64::from(STAMP)) {
                    let sent = u64::from_le_bytes(peer.message[..8].try_into().expect("8 bytes"));
                    wakes.add(sys::now().saturating_sub(Duration::from_nanos(sent)));
                    peer.message.drain(..size as usize);
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => blocked += 1,
            Err(e) => return Err(e),
        }
        // What is owed for it.
        let owed = match letter {
            b'u' => 0,
            b'd' => u64::MAX,
            b'r' | WAKE => peer.received / size * size - peer.sent,
            b'c' => (peer.received / size).min(1) * size - peer.sent,
            TELL => {
                let told = || {
                    let mut told = json!(meter.read());
                    told["wake_us"] = wakes.told();
                    Still::from(told.to_string().into_bytes())
                };
                let told = peer.told.get_or_insert_with(told);
                told.len() as u64 - peer.sent
            }
            _ => return Err(ErrorKind::InvalidData.into()),
        };
        let source = peer.told.as_ref().unwrap_or(load);
        if owed > 0 && !peer.shut {
            let from = peer.sent as usize % source.len();
            let piece =
                source.slice(from..from + (source.len() - from).min(usize::try_from(owed).unwrap_or(usize::MAX)));
            let result = match piece.bytes() {
                Some(bytes) if copy || bytes.len() <= 256 => transport.write(conn, bytes, false),
                _ => transport.send(conn, &piece, false),
            };
            match result {
                Ok(n) => peer.sent += n as u64,
                Err(e) if e.kind() == ErrorKind::WouldBlock => blocked += 1,
                Err(e) => return Err(e),
            }
        } else {
            blocked += 1;
        }
        let over = match letter {
            b'c' => peer.sent == size,
            TELL => peer.told.as_ref().is_some_and(|t| peer.sent == t.len() as u64),
            _ => false,
        };
        if over || (ended && (owed == 0 || letter == b'd')) {
            return Ok(Progress::Done);
        }
        if blocked == 2 || ended {
            return Ok(Progress::Waits);
        }
    }
}

impl App for Server {
    fn start(&mut self, transport: &mut dyn Transport) -> Result<(), String> {
        transport.listen(self.at)
    }

    fn event(&mut self, transport: &mut dyn Transport, event: Event) {
        match event {
            Event::Accepted(conn) => {
                self.peers.insert(conn, Peer::default());
                self.serve(transport, conn);
            }
            Event::Ready(conn) => self.serve(transport, conn),
            Event::Connected(_) | Event::Failed(..) | Event::Watched(_) => {}
        }
    }

    fn finished(&self) -> bool {
        false
    }

    fn end(&mut self, transport: &mut dyn Transport, _interrupted: bool) -> Result<(), String> {
        let open: Vec<Conn> = self.peers.iter().map(|(conn, _)| conn).collect();
        for conn in &open {
            transport.abort(*conn);
        }
        let what = format!("perf server: {} connections served, {} open", self.served, open.len());
        crate::out::line(format_args!("{}", summary(&what, self.bytes, self.meter.read(), transport.copied())));
        Ok(())
    }
}
