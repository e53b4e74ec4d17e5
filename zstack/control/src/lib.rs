//! What a running zstackd tells of its connections, and how it is asked.
//!
//! A Unix stream socket, whose name stands in the file by which zstackd says that it serves (`rendezvous::serving`). Who has connected
//! sends one line, [`CONNECTIONS`]; the answer is one JSON object a line, a [`Connection`] each, and ends with the stream. Fields may be
//! added, none changes its meaning. Root and the user whose zstackd it is may ask for [`DETAILS`], and get lines of text, for people who look
//! for a fault. Who asks for something else gets an answer of no line.
//!
//! *Who answers* ([`Question`], [`line()`]) never waits for who asks: it reads what has come, and writes what is taken.
//! *Who asks* ([`ask`]) takes nothing for granted: whose process answers is asked of the kernel, since anybody may take the name of one
//! that has ended; the answer is bounded in length and time, and every text in it can be shown on a terminal.
#![deny(unsafe_code)]

mod ask;
#[allow(unsafe_code)]
mod socket;
mod told;

pub use ask::{ask, ask_within};
pub use socket::is_trusted;
pub use told::{CONNECTIONS, Connection, DETAILS, Error, LINE, MOST, Question, TEXT, line};
