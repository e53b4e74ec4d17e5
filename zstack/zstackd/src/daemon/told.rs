//! The control socket: who asks is told of every connection. See `zstack_control`.

use super::{CONTROL, Daemon};
use crate::conn::Stage;
use crate::wire::Wire;
use std::io::{self, ErrorKind, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use zstack_control::{Connection, Question, is_trusted, line};

/// Who may ask at the same time. Another one takes the place of the first of them: somebody who connects and asks nothing keeps nobody
/// away.
const ASKERS: usize = 8;
/// A question that is longer is none.
const QUESTION: usize = 64;
/// Bytes of an answer that are made at a time.
const PIECE: usize = 64 << 10;

/// Somebody who asks.
pub struct Asker {
    stream: UnixStream,
    question: Vec<u8>,
    /// The answer goes on with this connection; `None`: the question has not come yet.
    next: Option<usize>,
    /// The question is for details.
    details: bool,
    piece: Vec<u8>,
    sent: usize,
}

/// The control socket, and who asks.
pub struct Control {
    listener: UnixListener,
    askers: [Option<Asker>; ASKERS],
    /// Whose place the next one gets.
    next: usize,
}

impl Control {
    /// Opens it: an abstract name (unix(7)) behind `@`, which goes with the process.
    ///
    /// # Errors
    /// Those of bind(2).
    pub fn open(name: &str) -> io::Result<Control> {
        let address = SocketAddr::from_abstract_name(name.trim_start_matches('@'))?;
        let listener = UnixListener::bind_addr(&address)?;
        listener.set_nonblocking(true)?;
        Ok(Control { listener, askers: [const { None }; ASKERS], next: 0 })
    }

    /// Its descriptor, to be watched.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl<P: Wire> Daemon<P> {
    /// Somebody wants to ask. One for whom no descriptor is left waits until the next one comes.
    pub(super) fn control_ready(&mut self) {
        while let Ok((stream, _)) = self.control.listener.accept() {
            let place = self.control.next;
            let token = CONTROL + 1 + place as u64;
            if stream.set_nonblocking(true).is_err() || self.poller.watch_edges(&stream, token).is_err() {
                continue;
            }
            let asker = Asker { stream, question: Vec::new(), next: None, details: false, piece: Vec::new(), sent: 0 };
            self.control.askers[place] = Some(asker);
            self.control.next = (place + 1) % ASKERS;
        }
    }

    /// Somebody who asks has sent something, or takes more.
    pub(super) fn asker_ready(&mut self, place: usize) {
        let Some(mut asker) = self.control.askers.get_mut(place).and_then(Option::take) else { return };
        // Who was told all, or is gone, is dropped: closing the stream ends the answer.
        if self.answer(&mut asker).is_err_and(|e| e.kind() == ErrorKind::WouldBlock) {
            self.control.askers[place] = Some(asker);
        }
    }

    fn answer(&self, asker: &mut Asker) -> io::Result<()> {
        let mut at = match asker.next {
            Some(at) => at,
            None => {
                listen(asker)?;
                if asker.details {
                    asker.piece.extend(format!("{}\n", self.counted()).bytes());
                }
                0
            }
        };
        loop {
            while asker.sent < asker.piece.len() {
                match asker.stream.write(&asker.piece[asker.sent..]) {
                    Ok(n) => asker.sent += n,
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(e) => {
                        asker.next = Some(at);
                        return Err(e);
                    }
                }
            }
            asker.piece.clear();
            asker.sent = 0;
            let end = self.generations.len();
            while at < end && asker.piece.len() < PIECE {
                let text = if asker.details { self.detail(at) } else { self.describe(at).map(|c| line(&c)) };
                asker.piece.extend(text.unwrap_or_default().bytes());
                at += 1;
            }
            if asker.piece.is_empty() {
                return Ok(());
            }
        }
    }

    fn describe(&self, index: usize) -> Option<Connection> {
        let conn = self.conns.get(index).filter(|conn| matches!(conn.stage, Stage::Open))?;
        let info = self.endpoint.info(conn.outer)?.tcp;
        Some(Connection {
            local: conn.flow.local,
            remote: conn.flow.remote,
            state: info.phase.name().to_string(),
            cwnd: info.cwnd.into(),
            srtt_us: info.srtt.0.into(),
            retransmits: info.retransmits.into(),
            copied_in: conn.received,
            copied_out: conn.sent,
            port: self.endpoint.port().kind().to_string(),
        })
    }

    /// All that is known of a connection, in a line.
    fn detail(&self, index: usize) -> Option<String> {
        let conn = self.conns.get(index)?;
        let (outer, now) = (conn.outer, self.clock.now());
        let engine = self.endpoint.sockets().connection(outer).and_then(|id| self.endpoint.stack().detail(id));
        let ready = self.endpoint.ready(outer);
        Some(format!("{}: now {now:?}; {conn:?}; {ready:?}; {}\n", conn.flow, engine.unwrap_or_default()))
    }
}

/// Reads the question.
fn listen(asker: &mut Asker) -> io::Result<()> {
    let mut buffer = [0; QUESTION];
    loop {
        let n = match asker.stream.read(&mut buffer) {
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            other => other?,
        };
        asker.question.extend_from_slice(&buffer[..n]);
        match Question::of(&asker.question) {
            Question::Connections => {
                asker.next = Some(0);
                return Ok(());
            }
            // Numbers are in it that a blind attacker would have to guess.
            Question::Details if is_trusted(&asker.stream) => {
                (asker.details, asker.next) = (true, Some(0));
                return Ok(());
            }
            Question::NotYet if n > 0 && asker.question.len() < QUESTION => {}
            _ => return Err(ErrorKind::InvalidData.into()),
        }
    }
}
