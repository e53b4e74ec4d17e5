//! Bytes between a program and the wire. What a program has written is lent to the engine where it lies, or, if it is little or not on a
//! ring, copied from the inner socket into the engine's ring; what arrived is copied from where the engine keeps it into the inner socket.

use crate::conn::Conn;
use crate::front::{LITTLE, is_nearly_read};
use crate::lending::LEAST;
use crate::wire::Wire;
use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use zstack::endpoint::Endpoint;
use zstack::sockets::Error;

/// Bytes that one connection moves in each direction before the others have their turn.
const ROUND: usize = 256 << 10;

/// Pieces that are handed to the inner socket by one call.
const PIECES: usize = 16;

/// More than a program that writes little writes at a time. Who has written that much is asked for the rest where it lies.
const MUCH: usize = 16 << 10;

/// What has become of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It waits to be told of more.
    Waits,
    /// It has more to do.
    More,
    /// Both directions have ended in order: the inner socket is closed so, and the engine does the rest.
    Done,
    /// The program's end is gone, or broken: the remote host is sent a RST.
    ProgramGone,
    /// The outer connection broke off, and the program has all that arrived before: its end is reset.
    Broken,
}

/// Moves what can be moved on a connection that is open.
pub fn pump<P: Wire>(conn: &mut Conn, endpoint: &mut Endpoint<P>) -> Outcome {
    // Its end of stream was told before; what broke off since is what the program still sends.
    if conn.remote_ended && !conn.program_ended && endpoint.ready(conn.outer).hang_up {
        return Outcome::Broken;
    }
    let out = to_wire(conn, endpoint);
    if out == Outcome::ProgramGone {
        return out;
    }
    let back = to_program(conn, endpoint);
    if back == Outcome::ProgramGone {
        // What it sent last may have come since, and goes to the wire before the reset.
        conn.readable = true;
        to_wire(conn, endpoint);
    }
    match (out, back) {
        (_, Outcome::ProgramGone | Outcome::Broken) => back,
        _ if conn.program_ended && conn.remote_ended => Outcome::Done,
        // It had ended in order, and has reset the connection since: what came later was read by nobody.
        _ if conn.program_ended && conn.failed => Outcome::ProgramGone,
        (Outcome::More, _) | (_, Outcome::More) => Outcome::More,
        _ => Outcome::Waits,
    }
}

/// From the program to the wire.
fn to_wire<P: Wire>(conn: &mut Conn, endpoint: &mut Endpoint<P>) -> Outcome {
    give_back(conn, endpoint);
    let Some(inner) = conn.inner.take() else { return Outcome::Waits };
    let outcome = from_program(conn, endpoint, &inner);
    conn.inner = Some(inner);
    outcome
}

fn from_program<P: Wire>(conn: &mut Conn, endpoint: &mut Endpoint<P>, inner: &Arc<TcpStream>) -> Outcome {
    let mut moved = 0;
    while conn.readable && !conn.program_ended {
        if moved >= ROUND {
            return Outcome::More;
        }
        if conn.lending.wanted() {
            match lend(conn, endpoint, inner, ROUND - moved) {
                Ok(0) => {}
                Ok(n) => {
                    moved += n;
                    continue;
                }
                // There is no room now; or the connection has ended, which the other direction finds.
                Err(None) => return Outcome::Waits,
                Err(Some(outcome)) => return outcome,
            }
        }
        let most = if conn.lending.much { ROUND - moved } else { MUCH };
        let (first, second) = match endpoint.reserve(conn.outer, most) {
            Ok(room) => room,
            // Readiness is told when there is room, and when the handshake is complete.
            Err(Error::WouldBlock | Error::Connecting) => return Outcome::Waits,
            // Found by the other direction, which delivers what arrived before.
            Err(_) => return Outcome::Waits,
        };
        let room = first.len() + second.len();
        match (&**inner).read_vectored(&mut [IoSliceMut::new(first), IoSliceMut::new(second)]) {
            Ok(0) if conn.reset => return Outcome::ProgramGone,
            Ok(0) => {
                conn.program_ended = true;
                endpoint.shutdown(conn.outer);
            }
            Ok(n) => {
                // What was lent just now is much, too.
                conn.lending.much = n >= MUCH || conn.lending.much && (moved > 0 || n == room);
                moved += n;
                conn.sent += n as u64;
                // Less than there was room for: nothing more was there (epoll(7), question 9), apart from an end.
                conn.readable = n == room || conn.ending || conn.urgent;
                let more = follows(conn, inner);
                if endpoint.commit(conn.outer, n, more).is_err() {
                    return Outcome::Waits;
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                conn.readable = false;
                // It may have been told of a cork that is out: what waits goes then.
                let more = conn.corked && follows(conn, inner);
                // Gives the ring back, if nothing is in it.
                let _ = endpoint.commit(conn.outer, 0, more);
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Outcome::ProgramGone,
        }
    }
    Outcome::Waits
}

/// Lends the engine what lies on the program's ring, up to `most` bytes: how many. 0: they are little, or lie elsewhere, and are to be copied.
/// An error: nothing was read, and it is told again when there is room in what the connection may have on its way; or what has become of it.
fn lend<P: Wire>(
    conn: &mut Conn,
    endpoint: &mut Endpoint<P>,
    inner: &Arc<TcpStream>,
    most: usize,
) -> Result<usize, Option<Outcome>> {
    let room = endpoint.lendable(conn.outer, LEAST).map_err(|_| None)?;
    let Some(lent) = conn.lending.lend(inner, conn.sent, most.min(room)) else { return Ok(0) };
    conn.sent += lent.len as u64;
    conn.readable = !lent.all || conn.ending || conn.urgent;
    let more = follows(conn, inner);
    let [first, second] = lent.pieces;
    let two = !second.is_empty();
    let mut sent = endpoint.send(conn.outer, first, two || more);
    if two && sent.is_ok() {
        sent = endpoint.send(conn.outer, second, more);
    }
    match sent {
        Ok(()) => {}
        Err((Error::WouldBlock | Error::Connecting, _)) => {
            // There was room. What was read cannot be put back, and no stream may go on without it.
            debug_assert!(false, "what was lendable was refused");
            return Err(Some(Outcome::ProgramGone));
        }
        Err(_) => return Err(None),
    }
    tell_of_room(conn, endpoint, inner);
    Ok(lent.len)
}

/// Whether the program has said that more follows what was just read, which may wait for it (MSG_MORE, TCP_CORK). Notes whether its small segments wait for
/// acknowledgements. Asked behind the read: what was said with bytes was said before them.
fn follows(conn: &mut Conn, inner: &TcpStream) -> bool {
    let manner = culvert::manner(&inner);
    conn.waits = manner.waits;
    conn.corked = manner.corked;
    manner.more || manner.corked
}

/// Gives a program the room of its ring that the engine is done with.
pub fn give_back<P: Wire>(conn: &mut Conn, endpoint: &mut Endpoint<P>) {
    if let Some(inner) = conn.inner.clone()
        && conn.lending.holds()
    {
        tell_of_room(conn, endpoint, &inner);
        // Much of its ring is on its way, and the wire would take more.
        if !conn.readable
            && conn.lending.is_drawn(conn.sent)
            && let Some(info) = endpoint.info(conn.outer)
            && info.tcp.unsent == 0
            && info.tcp.in_flight < info.tcp.cwnd.min(info.tcp.window)
        {
            conn.lending.copy_from_now_on();
        }
    }
}

/// Copies what the engine has of a program's ring, and gives that back: a remote host that acknowledges slowly is not to keep a connection in
/// a channel, or its ring's memory, that its program has done with. What a frame points at stays, and is given back by a later call.
pub fn take_over<P: Wire>(conn: &mut Conn, endpoint: &mut Endpoint<P>) {
    if conn.lending.holds() {
        conn.lending.copied(endpoint.take_over(conn.outer));
        if let Some(inner) = &conn.inner
            && Arc::strong_count(inner) == 1
        {
            conn.lending.end(inner);
        }
    }
}

/// What can be given back is, and what is left when it can.
fn tell_of_room<P: Wire>(conn: &mut Conn, endpoint: &mut Endpoint<P>, inner: &TcpStream) {
    let released = endpoint.released(conn.outer);
    if let Some(next) = conn.lending.give_back(inner, released, conn.sent) {
        endpoint.tell_released(conn.outer, next);
    }
}

/// From the wire to the program.
fn to_program<P: Wire>(conn: &mut Conn, endpoint: &mut Endpoint<P>) -> Outcome {
    let Some(inner) = conn.inner.as_deref() else { return Outcome::Waits };
    let mut inner = inner;
    let mut moved = 0;
    while !conn.remote_ended {
        if moved >= ROUND {
            return Outcome::More;
        }
        let mut pieces: [IoSlice<'_>; PIECES] = std::array::from_fn(|_| IoSlice::new(&[]));
        let n = match endpoint.peek(conn.outer) {
            Ok([]) => {
                // As much as the program's kernel would hold comes before its end, and no more: by then all of it can be brought there, for
                // whoever reads on that culvert does not serve. (What a program passes on in a message, or leaves to another image.)
                let held = conn.end_held && !conn.writable;
                if conn.received > u64::from(LITTLE) && (held || !is_nearly_read(inner.as_fd())) {
                    (conn.end_held, conn.writable) = (true, false);
                    return Outcome::Waits;
                }
                conn.remote_ended = true;
                // Where the program's stream has ended, too, the socket is closed now, which says the same. Fails where the program's end
                // is gone already, which a read tells.
                if !conn.program_ended {
                    let _ = inner.shutdown(Shutdown::Write);
                }
                return Outcome::Waits;
            }
            Ok(_) if !conn.writable => return Outcome::Waits,
            Ok(_) => {
                let mut whole = 0;
                let mut count = 0;
                for (slot, piece) in pieces.iter_mut().zip(endpoint.pieces(conn.outer)) {
                    whole += piece.len();
                    *slot = IoSlice::new(piece);
                    count += 1;
                }
                match inner.write_vectored(&pieces[..count]) {
                    Ok(n) => {
                        // Less than there was: no room is left.
                        conn.writable = n == whole;
                        n
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {
                        conn.writable = false;
                        return Outcome::Waits;
                    }
                    Err(e) if e.kind() == ErrorKind::Interrupted => 0,
                    Err(e) => {
                        // EPIPE: behind an end in order (tcp_reset: in CLOSE_WAIT), which a read finds.
                        conn.reset = e.kind() != ErrorKind::BrokenPipe;
                        return Outcome::ProgramGone;
                    }
                }
            }
            Err(Error::WouldBlock | Error::Connecting) => return Outcome::Waits,
            Err(_) => return Outcome::Broken,
        };
        moved += n;
        conn.received += n as u64;
        if endpoint.consume(conn.outer, n).is_err() {
            return Outcome::Broken;
        }
    }
    Outcome::Waits
}
