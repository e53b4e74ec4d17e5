//! A connection that ends here: an inner socket of the kernel's, whose other end is the program's, and an outer one of the
//! engine's, whose other end is on the wire.

use crate::flow::Flow;
use std::net::TcpStream;
use zstack::sockets::Socket;
use zstack::time::Time;
use zstack_wire::Seq;

/// How far a connection is.
#[derive(Debug)]
pub enum Stage {
    /// A program has asked for it, and waits: the remote host has not answered yet.
    Asked {
        /// The program's SYN, which is held.
        syn: Vec<u8>,
        /// Its number.
        isn: Seq,
    },
    /// The remote host has taken it. The program's SYN was written back, and its kernel completes the handshake with our listener.
    Released {
        /// The program's SYN.
        syn: Vec<u8>,
        /// Its number.
        isn: Seq,
    },
    /// A remote host has asked for it, and the inner socket is being connected to the server here.
    Inward,
    /// Both ends are there: bytes go both ways.
    Open,
}

/// Whether a server was sent the last ACK of its handshake, without which it does not accept its connection: see
/// [`connect_inward`](crate::front::Lane::connect_inward).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ack {
    /// It is held: the remote host has not completed its own handshake.
    Held,
    /// It goes with the first bytes, or when there is nothing else to do.
    Due,
    /// It was sent.
    Sent,
}

/// A connection.
#[derive(Debug)]
pub struct Conn {
    /// Its addresses.
    pub flow: Flow,
    /// The engine's end.
    pub outer: Socket,
    /// The user whose program has the other end of the inner socket.
    pub user: u32,
    /// How far it is.
    pub stage: Stage,
    /// The inner socket: there is one in the stages [`Stage::Inward`] and [`Stage::Open`].
    pub inner: Option<TcpStream>,
    /// The inner socket may have bytes, or an end, that were not read.
    pub readable: bool,
    /// Behind what the inner socket has comes an end or an error, which it does not tell again.
    pub ending: bool,
    /// Urgent bytes have come, before each of which a read stops (tcp(7)): fewer bytes than there was room for are not the last ones.
    pub urgent: bool,
    /// The inner socket has an error.
    pub failed: bool,
    /// The program has reset the connection, as a write was told: a read is not told so any more, and finds an end behind the last bytes (the
    /// kernel tells an error once).
    pub reset: bool,
    /// The inner socket may take bytes.
    pub writable: bool,
    /// The last ACK of the inner socket's handshake.
    pub ack: Ack,
    /// The program sends no more.
    pub program_ended: bool,
    /// The remote host sends no more, and the program was told.
    pub remote_ended: bool,
    /// The remote host sends no more, and the program is told when it has read nearly all of what came before.
    pub end_held: bool,
    /// After how many milliseconds the remote host is probed when the connection is idle, since the program's socket asks for that.
    pub keep_alive: Option<u32>,
    /// After how many milliseconds without an acknowledgement it ends, since its program asks for that; 0: as long as TCP tries.
    pub timeout: u32,
    /// How much the remote host had acknowledged when that was last looked at.
    pub acknowledged: u64,
    /// When the kernel is asked about its program next.
    pub ask: Time,
    /// Bytes from the program to the wire.
    pub sent: u64,
    /// Bytes from the wire to the program.
    pub received: u64,
    /// It is in the queue of those with work.
    pub queued: bool,
    /// When it is looked at next.
    pub look: Time,
    /// What had been received when it was last looked at after it broke off.
    pub received_then: Option<u64>,
}

impl Conn {
    /// A connection at its beginning.
    pub fn new(flow: Flow, outer: Socket, user: u32, stage: Stage) -> Conn {
        Conn {
            flow,
            outer,
            user,
            stage,
            inner: None,
            readable: false,
            ending: false,
            urgent: false,
            failed: false,
            reset: false,
            writable: false,
            ack: Ack::Sent,
            program_ended: false,
            remote_ended: false,
            end_held: false,
            keep_alive: None,
            timeout: 0,
            acknowledged: 0,
            ask: Time::NEVER,
            sent: 0,
            received: 0,
            queued: false,
            look: Time::NEVER,
            received_then: None,
        }
    }
}
