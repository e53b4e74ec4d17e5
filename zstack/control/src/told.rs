//! What is asked, and what is told.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;

/// What is asked, without the newline behind it.
pub const CONNECTIONS: &str = "connections";
/// What is asked by who looks for a fault: lines of text, for people; of each worker the first says what its port is and can,
/// the second what has happened, each other one is about a connection. What they say may change.
pub const DETAILS: &str = "details";

/// Longest line of an answer, bytes.
pub const LINE: usize = 4096;
/// Most connections of an answer.
pub const MOST: usize = 1 << 20;
/// Longest text in it, bytes.
pub const TEXT: usize = 64;

/// A connection that zstackd carries.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Connection {
    /// The program's end, as the program and the remote host see it.
    pub local: SocketAddr,
    /// The remote host's end.
    pub remote: SocketAddr,
    /// State of the connection on the wire: "established", "fin-wait-1"...
    pub state: String,
    /// Congestion window, bytes.
    pub cwnd: u64,
    /// Smoothed round-trip time, microseconds; 0: not measured yet.
    pub srtt_us: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Bytes from the wire that were copied on their way to the program, counted once for each copy in zstackd.
    pub copied_in: u64,
    /// Bytes from the program that were copied on their way to the wire.
    pub copied_out: u64,
    /// The port that it uses: "af_packet", "tap"...
    pub port: String,
}

impl Connection {
    /// Whether it can be told: its texts are such as [`ask`](crate::ask()) believes.
    pub(crate) fn is_sound(&self) -> bool {
        [&self.state, &self.port].iter().all(|t| t.len() <= TEXT && t.bytes().all(|b| b.is_ascii_graphic()))
    }
}

/// The line of an answer about one connection, with its newline. A text that is too long, or has blanks in it or what is no character
/// of ASCII, is left out.
pub fn line(connection: &Connection) -> String {
    let mut told = connection.clone();
    for text in [&mut told.state, &mut told.port] {
        if text.len() > TEXT || !text.bytes().all(|b| b.is_ascii_graphic()) {
            text.clear();
        }
    }
    // Nothing in it can fail.
    serde_json::to_string(&told).unwrap_or_default() + "\n"
}

/// What has come from somebody who asks.
#[derive(PartialEq, Eq, Debug)]
pub enum Question {
    /// Its connections.
    Connections,
    /// All that is known of them, and what has happened.
    Details,
    /// Not all of it has come.
    NotYet,
    /// Something else: it gets no answer.
    Unknown,
}

impl Question {
    /// What the bytes say that have come so far.
    pub fn of(bytes: &[u8]) -> Question {
        let line = match bytes.iter().position(|b| *b == b'\n') {
            Some(end) => &bytes[..end],
            None if [CONNECTIONS, DETAILS].iter().any(|q| q.as_bytes().starts_with(bytes)) => return Question::NotYet,
            None => return Question::Unknown,
        };
        match line {
            line if line == CONNECTIONS.as_bytes() => Question::Connections,
            line if line == DETAILS.as_bytes() => Question::Details,
            _ => Question::Unknown,
        }
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Error {
    /// The name is none of a Unix socket.
    Name,
    /// Nobody answers there.
    Connect(std::io::Error),
    /// The process that answers is this user's, and not the one's who serves.
    Stranger(u32),
    /// The answer broke off.
    Io(std::io::Error),
    /// It did not come, or did not end, in time.
    Late,
    /// It is longer than an answer can be.
    Long,
    /// A line of it is no connection.
    Nonsense,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Name => write!(f, "its control socket has no name"),
            Error::Connect(e) => write!(f, "nobody answers at its control socket: {e}"),
            Error::Stranger(uid) => write!(f, "a process of user {uid} answers at its control socket"),
            Error::Io(e) => write!(f, "its answer broke off: {e}"),
            Error::Late => write!(f, "it does not answer in time"),
            Error::Long => write!(f, "its answer does not end"),
            Error::Nonsense => write!(f, "its answer is not understood"),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
pub mod tests {
    use super::*;

    #[test]
    fn a_question_comes_in_pieces() {
        for n in 0..=CONNECTIONS.len() {
            assert_eq!(Question::of(&CONNECTIONS.as_bytes()[..n]), Question::NotYet);
        }
        assert_eq!(Question::of(b"connections\n"), Question::Connections);
        assert_eq!((Question::of(b"detail"), Question::of(b"details\n")), (Question::NotYet, Question::Details));
        assert_eq!(Question::of(b"connections\nmore"), Question::Connections);
        for other in [&b"\n"[..], b"connection\n", b"connectionsx", b"CONNECTIONS\n", b"\xff"] {
            assert_eq!(Question::of(other), Question::Unknown);
        }
    }

    #[test]
    fn a_line_is_one_object_without_what_a_terminal_obeys() {
        let c = Connection { state: "a b".into(), port: "\u{1b}[31m".into(), ..connection(1) };
        let text = line(&c);
        assert_eq!(text.matches('\n').count(), 1);
        let read: Connection = serde_json::from_str(&text).unwrap();
        assert_eq!((read.state.as_str(), read.port.as_str(), read.local), ("", "", c.local));
        assert!(text.contains("\"local\":\"10.0.0.1:1\"") && text.contains("\"srtt_us\":250"), "{text}");
    }

    pub fn connection(port: u16) -> Connection {
        Connection {
            local: SocketAddr::from(([10, 0, 0, 1], port)),
            remote: "[2001:db8::1]:443".parse().unwrap(),
            state: "established".into(),
            cwnd: 14_600,
            srtt_us: 250,
            retransmits: 3,
            copied_in: 1 << 40,
            copied_out: 7,
            port: "af_packet".into(),
        }
    }
}
