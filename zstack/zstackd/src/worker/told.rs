//! The control socket: who asks is told of every connection. See `zstack_control`. He goes from worker to worker, and each tells him of its own.

use super::asker::Asker;
use super::mail::Letter;
use super::{ASKER, Worker, list};
use crate::conn::Stage;
use crate::wire::Wire;
use std::io::{self, ErrorKind};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use zstack_control::{Connection, line};

/// Who may ask a worker at the same time. Another one takes the place of the first of them: somebody who connects and asks nothing keeps
/// nobody away.
const ASKERS: usize = 8;
/// Bytes of an answer that are made at a time.
const PIECE: usize = 64 << 10;

/// Opens the control socket: an abstract name (unix(7)) behind `@`, which goes with the process.
///
/// # Errors
/// Those of bind(2).
pub(crate) fn open(name: &str) -> io::Result<UnixListener> {
    let address = SocketAddr::from_abstract_name(name.trim_start_matches('@'))?;
    let listener = UnixListener::bind_addr(&address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The next one who has connected. `None`: there is none, or no descriptor is left for him, and he waits until the next one comes.
pub(crate) fn accept(listener: &UnixListener) -> Option<Asker> {
    loop {
        let (stream, _) = listener.accept().ok()?;
        if stream.set_nonblocking(true).is_ok() {
            return Some(Asker::new(stream));
        }
    }
}

/// Those who ask a worker.
#[derive(Default)]
pub(super) struct Askers {
    askers: [Option<Asker>; ASKERS],
    /// Whose place the next one gets.
    next: usize,
}

impl<P: Wire> Worker<P> {
    /// Somebody asks.
    pub(super) fn asked_by(&mut self, asker: Asker) {
        let place = self.askers.next;
        if self.poller.watch_edges(asker.stream(), ASKER + place as u64).is_err() {
            return;
        }
        self.askers.askers[place] = Some(asker);
        self.askers.next = (place + 1) % ASKERS;
        self.asker_ready(place);
    }

    /// Somebody who asks has sent something, or takes more.
    pub(super) fn asker_ready(&mut self, place: usize) {
        let Some(mut asker) = self.askers.askers.get_mut(place).and_then(Option::take) else { return };
        match self.answer(&mut asker) {
            Ok(()) => {
                asker.next = None;
                let next = self.number + 1;
                // The last worker drops him: closing the stream ends the answer.
                if next < self.with.mail.workers() && self.poller.forget(asker.stream()).is_ok() {
                    self.with.mail.send(next, Letter::Asker(asker));
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => self.askers.askers[place] = Some(asker),
            // He is gone.
            Err(_) => {}
        }
    }

    /// Tells of all connections here.
    fn answer(&self, asker: &mut Asker) -> io::Result<()> {
        asker.listen()?;
        let mut at = asker.next.unwrap_or(0);
        if asker.next.replace(at).is_none() && asker.details {
            let (port, counted) = (self.endpoint.port().describe(), list(&self.counted()));
            asker.piece().extend(format!("port: {port}\n{counted}\n").bytes());
        }
        loop {
            asker.send()?;
            let end = self.generations.len();
            while at < end && asker.piece().len() < PIECE {
                let text = if asker.details { self.detail(at) } else { self.describe(at).map(|c| line(&c)) };
                asker.piece().extend(text.unwrap_or_default().bytes());
                at += 1;
            }
            asker.next = Some(at);
            if asker.piece().is_empty() {
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
            copied_out: conn.sent - conn.lending.bytes + if self.endpoint.port().copies() { conn.sent } else { 0 },
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
