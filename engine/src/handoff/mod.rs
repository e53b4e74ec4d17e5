//! Handing unread bytes on to the next program image.
//!
//! A connection that survives `exec` goes back to its lifeline first (`leave::quit`), and the peer re-sends what
//! was not read. A peer that has already finished sending cannot: then what is left of that direction is a
//! finite piece of our ring followed by the end of the stream. It is copied into a fresh, private channel,
//! whose memfd crosses the exec under a number that the constructor of the next image looks at. There it is
//! simply a connection whose sender has gone down: ring to its end, then the lifeline. An image that does
//! not load culvert would see a truncated stream; such a connection is reset instead, unless this process goes on to read it,
//! and the image has it by oversight. So does an error cross that this library has taken from the kernel and told nobody.
//!
//! Standard input is a case of its own, and the usual one: stdio reads it behind our back, preloaded or not.
//! Where all that will ever come in is known, descriptor 0 becomes a file with just those bytes (the socket
//! stays open under its other numbers). To the program it is no socket any more: `getpeername(0)` fails. Else it is handed on as
//! under another number, and the next image looks whether anything in it uses stdio's `stdin`.
mod crossing;
mod passing;
mod stdin;
mod taking;

pub use crossing::{has_bytes, survives};
pub use passing::{Passed, after_fork_child, pass_on};
pub use stdin::{forbid as forbid_stdin, is_handed_on as stdin_is_handed_on};
pub use taking::{is_heir, take_up};
