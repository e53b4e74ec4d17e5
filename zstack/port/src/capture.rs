//! A port that writes what crosses it to a file.

use crate::pcapng::{Direction, Writer};
use std::fs::File;
use std::io;
use std::path::Path;
use zstack::payload::{Buffer, Spans};
use zstack::port::{Capabilities, Frame, Port, Received, Refused};

/// Any port, and a capture of its packets in pcapng: those received and those that the port has accepted, as they were handed over.
/// A frame that the port is to cut is one packet there, and a checksum that the port completes is not yet complete, as in captures
/// of a network card with offloads.
///
/// A capture that cannot be written (a full disk) ends, and the port goes on: see [`Captured::failure`].
pub struct Captured<P> {
    port: P,
    writer: Option<Writer>,
    failure: Option<io::Error>,
}

impl<P: Port> Captured<P> {
    /// The port alone: nothing is captured.
    pub fn off(port: P) -> Captured<P> {
        Captured { port, writer: None, failure: None }
    }

    /// Makes the file, or empties it, and captures; `name` is the interface's name in the file.
    ///
    /// # Errors
    /// Those of making and writing the file.
    pub fn to_file(port: P, path: &Path, name: &str) -> io::Result<Captured<P>> {
        let writer = Writer::new(File::create(path)?, port.capabilities().medium, name)?;
        Ok(Captured { port, writer: Some(writer), failure: None })
    }

    /// The port.
    pub fn port(&self) -> &P {
        &self.port
    }

    /// The port; what is received or sent here is not captured.
    pub fn port_mut(&mut self) -> &mut P {
        &mut self.port
    }

    /// Why the capture has ended before the port did.
    pub fn failure(&self) -> Option<&io::Error> {
        self.failure.as_ref()
    }

    fn write(&mut self, write: impl FnOnce(&mut Writer) -> io::Result<()>) {
        if let Some(writer) = &mut self.writer
            && let Err(error) = write(writer)
        {
            self.failure = Some(error);
            self.writer = None;
        }
    }
}

impl<P> Drop for Captured<P> {
    fn drop(&mut self) {
        if let Some(writer) = &mut self.writer {
            let _ = writer.flush();
        }
    }
}

impl<P: Port> Port for Captured<P> {
    type Buffer = P::Buffer;

    fn capabilities(&self) -> Capabilities {
        self.port.capabilities()
    }

    fn receive(&mut self) -> Result<Option<Received<P::Buffer>>, Refused> {
        let received = self.port.receive();
        if self.writer.is_some() {
            match &received {
                Ok(Some(r)) => self.write(|w| {
                    let bytes = &r.buffer.bytes()[r.range.clone()];
                    #[allow(unsafe_code)]
                    // SAFETY: there are no spans.
                    unsafe {
                        w.packet(Direction::In, bytes, &Spans::EMPTY)
                    }
                }),
                // Nothing more is there: time to write.
                _ => self.write(Writer::flush),
            }
        }
        received
    }

    #[allow(unsafe_code)] // The trait's contract is handed on.
    unsafe fn send(&mut self, frame: &Frame<'_>) -> Result<(), Refused> {
        // SAFETY: the caller's promise is the inner port's.
        let result = unsafe { self.port.send(frame) };
        if result.is_ok() && self.writer.is_some() {
            // SAFETY: the port says when the frame is completed, and the caller learns of it from `completed` at the earliest.
            self.write(|w| unsafe { w.packet(Direction::Out, frame.head, &frame.payload) });
        }
        result
    }

    fn completed(&mut self) -> u64 {
        self.port.completed()
    }

    fn flush(&mut self) {
        self.port.flush();
        if self.writer.is_some() {
            self.write(Writer::flush);
        }
    }
}

#[cfg(test)]
mod tests;
