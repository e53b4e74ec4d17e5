//! Why a call did nothing, and why a connection ended: as numbers of errno(3), and in words.

use crate::event::Cause;

/// Why a call on a socket did nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// There is nothing to read, or no room to write, now; readiness will be told (EAGAIN).
    WouldBlock,
    /// The connection is not established yet (EAGAIN for a stream that is being opened; ENOTCONN).
    Connecting,
    /// This side has shut its outgoing stream, or the connection ended in order: nothing can be written (EPIPE).
    Shut,
    /// The connection has ended, for this reason.
    Ended(Cause),
    /// No socket of this name (EBADF).
    Stale,
}

/// The number in errno(3) that says the same, on Linux. 0 for [`Cause::Done`].
pub fn errno(cause: Cause) -> i32 {
    match cause {
        Cause::Done => 0,
        Cause::Refused => 111,
        Cause::Reset => 104,
        Cause::Broken => 32,
        Cause::TimedOut => 110,
        Cause::HostUnreachable => 113,
        Cause::NetUnreachable => 101,
        Cause::NoProtocol => 92,
        Cause::Prohibited => 13,
        Cause::HostUnknown => 112,
        Cause::Isolated => 64,
        Cause::SourceRoute => 95,
        Cause::Malformed => 71,
        Cause::Aborted => 103,
        Cause::PortGone => 100,
    }
}

impl Error {
    /// The number in errno(3) that says the same, on Linux.
    pub fn errno(self) -> i32 {
        match self {
            Error::WouldBlock | Error::Connecting => 11,
            Error::Shut | Error::Ended(Cause::Done) => 32,
            Error::Ended(cause) => errno(cause),
            Error::Stale => 9,
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::WouldBlock => f.write_str("not now"),
            Error::Connecting => f.write_str("not connected yet"),
            Error::Shut => f.write_str("nothing can be sent any more"),
            Error::Ended(cause) => f.write_str(text(*cause)),
            Error::Stale => f.write_str("no such socket"),
        }
    }
}

impl std::error::Error for Error {}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> std::io::Error {
        std::io::Error::from_raw_os_error(error.errno())
    }
}

/// The cause in words.
pub fn text(cause: Cause) -> &'static str {
    match cause {
        Cause::Done => "closed",
        Cause::Refused => "connection refused",
        Cause::Reset => "connection reset by peer",
        Cause::Broken => "connection reset by peer after its end of stream",
        Cause::TimedOut => "connection timed out",
        Cause::HostUnreachable => "no route to host",
        Cause::NetUnreachable => "network is unreachable",
        Cause::NoProtocol => "protocol not available",
        Cause::Prohibited => "permission denied",
        Cause::HostUnknown => "host is down",
        Cause::Isolated => "machine is not on the network",
        Cause::SourceRoute => "operation not supported: source route failed",
        Cause::Malformed => "protocol error",
        Cause::Aborted => "connection aborted",
        Cause::PortGone => "network is down: the port is gone",
    }
}
