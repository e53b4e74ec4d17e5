//! Somebody who asks for all connections: his question, and as much of the answer as he has taken.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use zstack_control::{Question, is_trusted};

/// A question that is longer is none.
const QUESTION: usize = 64;

/// Somebody who asks.
pub(crate) struct Asker {
    stream: UnixStream,
    question: Vec<u8>,
    /// He has said what he wants.
    asked: bool,
    /// He wants details.
    pub details: bool,
    piece: Vec<u8>,
    sent: usize,
    /// The answer goes on with the connection in this place of the worker; `None`: with what has happened to it.
    pub next: Option<usize>,
}

impl Asker {
    /// Nothing was read. The stream does not block.
    pub fn new(stream: UnixStream) -> Asker {
        Asker { stream, question: Vec::new(), asked: false, details: false, piece: Vec::new(), sent: 0, next: None }
    }

    /// His stream, to be watched.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Reads the question, if that is not done.
    ///
    /// # Errors
    /// WouldBlock: it has not come. Others: he asks for nothing that is known, or is gone.
    pub fn listen(&mut self) -> io::Result<()> {
        let mut buffer = [0; QUESTION];
        while !self.asked {
            let n = match self.stream.read(&mut buffer) {
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                other => other?,
            };
            self.question.extend_from_slice(&buffer[..n]);
            match Question::of(&self.question) {
                Question::Connections => self.asked = true,
                // Numbers are in it that a blind attacker would have to guess.
                Question::Details if is_trusted(&self.stream) => (self.asked, self.details) = (true, true),
                Question::NotYet if n > 0 && self.question.len() < QUESTION => {}
                _ => return Err(ErrorKind::InvalidData.into()),
            }
        }
        Ok(())
    }

    /// Sends what is left of the last piece.
    ///
    /// # Errors
    /// WouldBlock: he takes no more now. Others: he is gone.
    pub fn send(&mut self) -> io::Result<()> {
        while self.sent < self.piece.len() {
            match self.stream.write(&self.piece[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.piece.clear();
        self.sent = 0;
        Ok(())
    }

    /// The next piece is made here.
    pub fn piece(&mut self) -> &mut Vec<u8> {
        &mut self.piece
    }
}
