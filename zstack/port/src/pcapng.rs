//! Writes packets in the pcapng format (draft-ietf-opsawg-pcapng): one section, one interface, times in nanoseconds.

use crate::raw::memory;
use std::fs::File;
use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};
use zstack::payload::Spans;
use zstack::port::Medium;

/// Bytes that are gathered before they are written.
const BATCH: usize = 128 * 1024;

/// Which way a packet went, as in the block's epb_flags (section 4.3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    In = 1,
    Out = 2,
}

/// A capture file that grows.
pub(crate) struct Writer {
    pub(crate) file: File,
    /// Whole blocks that are not in the file yet.
    pending: Vec<u8>,
    /// How much of the file is whole blocks.
    whole: u64,
}

impl Writer {
    /// Begins the file with the section and the interface.
    pub(crate) fn new(file: File, medium: Medium, name: &str) -> io::Result<Writer> {
        let mut writer = Writer { file, pending: Vec::with_capacity(BATCH), whole: 0 };
        // Section header: byte order, version 1.0, length not known.
        writer.block(0x0a0d_0d0a, |b| {
            b.extend(0x1a2b_3c4du32.to_ne_bytes());
            b.extend([1u16.to_ne_bytes(), 0u16.to_ne_bytes()].concat());
            b.extend((-1i64).to_ne_bytes());
            option(b, 4, concat!("zstack ", env!("CARGO_PKG_VERSION")).as_bytes());
            option(b, 0, &[]);
        });
        // Interface: link type, reserved, no limit of a packet's length, name, times in 10^-9 s.
        let link: u16 = if medium == Medium::Ip { 101 } else { 1 };
        writer.block(1, |b| {
            b.extend([link.to_ne_bytes(), [0; 2]].concat());
            b.extend(0u32.to_ne_bytes());
            option(b, 2, name.as_bytes());
            option(b, 9, &[9]);
            option(b, 0, &[]);
        });
        writer.flush()?;
        Ok(writer)
    }

    /// Adds a packet: `head`, and behind it the payload.
    ///
    /// # Safety
    /// The payload's spans must be readable through the call.
    #[allow(unsafe_code)] // The contract is handed on to the function that copies.
    pub(crate) unsafe fn packet(&mut self, direction: Direction, head: &[u8], payload: &Spans) -> io::Result<()> {
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        let len = head.len() + payload.len() as usize;
        // Enhanced packet block: interface, time, length here, length on the wire, bytes, direction.
        self.block(6, |b| {
            b.extend(0u32.to_ne_bytes());
            b.extend(((nanos >> 32) as u32).to_ne_bytes());
            b.extend((nanos as u32).to_ne_bytes());
            b.extend((len as u32).to_ne_bytes());
            b.extend((len as u32).to_ne_bytes());
            b.extend_from_slice(head);
            let at = b.len();
            b.resize(at + payload.len() as usize, 0);
            // SAFETY: readable by this function's contract.
            unsafe { memory::copy(payload, &mut b[at..]) };
            pad(b);
            option(b, 2, &(direction as u32).to_ne_bytes());
            option(b, 0, &[]);
        });
        if self.pending.len() >= BATCH { self.flush() } else { Ok(()) }
    }

    /// Writes what was gathered. If that fails, the file ends behind the last block that is whole.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        let mut written = 0;
        while written < self.pending.len() {
            match self.file.write(&self.pending[written..]) {
                Ok(0) => return self.cut(written, io::ErrorKind::WriteZero.into()),
                Ok(n) => written += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.cut(written, error),
            }
        }
        self.whole += written as u64;
        self.pending.clear();
        Ok(())
    }

    fn cut(&mut self, written: usize, error: io::Error) -> io::Result<()> {
        let mut whole = 0;
        while let Some(len) = self.pending.get(whole + 4..whole + 8) {
            let end = whole + u32::from_ne_bytes([len[0], len[1], len[2], len[3]]) as usize;
            if end > written {
                break;
            }
            whole = end;
        }
        self.pending.clear();
        // A pipe cannot be cut, and has no reader any more.
        let _ = self.file.set_len(self.whole + whole as u64);
        Err(error)
    }

    /// A block: type and length before, length behind (section 3.1).
    fn block(&mut self, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
        let start = self.pending.len();
        self.pending.extend(kind.to_ne_bytes());
        self.pending.extend([0; 4]);
        body(&mut self.pending);
        let len = ((self.pending.len() - start + 4) as u32).to_ne_bytes();
        self.pending[start + 4..start + 8].copy_from_slice(&len);
        self.pending.extend(len);
    }
}

fn option(bytes: &mut Vec<u8>, code: u16, value: &[u8]) {
    bytes.extend(code.to_ne_bytes());
    bytes.extend((value.len() as u16).to_ne_bytes());
    bytes.extend(value);
    pad(bytes);
}

/// To a multiple of four; all blocks are, so the whole is.
fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}
