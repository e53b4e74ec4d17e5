//! Whoever owns the streams of the connections of a stack by itself: a trace's.

use crate::card::Packet;
use crate::memory::{Pattern, Ring};
use std::collections::HashMap;
use std::ops::Range;
use zstack::payload::{Buffer, Host, Spans};
use zstack::stack::ConnId;
use zstack::tcp::Event;

/// What the engine's program sends.
pub const OURS: Pattern = Pattern(1);
/// What the script's peer sends.
pub const PEERS: Pattern = Pattern(2);

/// How much of a stream may be unacknowledged.
const MEMORY: u32 = 1 << 20;

/// A connection.
#[derive(Debug, Default)]
pub struct Conn {
    memory: Option<Ring>,
    /// So many bytes were written.
    pub written: u64,
    /// So many were given back.
    pub released: u64,
    /// What has arrived, in order or not.
    placed: Vec<u8>,
    /// So many bytes can be read.
    pub published: u64,
    /// So many may come.
    pub edge: u64,
    /// What was told of it and not asked for yet.
    pub events: Vec<String>,
}

impl Conn {
    /// A connection for whose incoming stream there is so much room.
    pub fn new(room: u64) -> Conn {
        Conn { edge: room, ..Conn::default() }
    }
}

/// The programs.
#[derive(Debug, Default)]
pub struct Programs {
    /// Connections by name.
    pub conns: HashMap<ConnId, Conn>,
    /// The last one that began.
    pub last: Option<ConnId>,
    /// Room that a listener's connections have.
    pub room: u64,
    /// What must not be.
    pub faults: Vec<String>,
}

impl Programs {
    /// Writes so many bytes.
    pub fn write(&mut self, id: ConnId, len: u64) -> Result<u64, String> {
        let conn = self.conns.get_mut(&id).ok_or("no such connection")?;
        let ring = conn.memory.get_or_insert_with(|| Ring::new(MEMORY, 0));
        if conn.written + len - conn.released > ring.size() {
            return Err("the script writes more than there is memory for".to_owned());
        }
        let mut bytes = vec![0; len as usize];
        OURS.fill(conn.written, &mut bytes);
        ring.write(conn.written, &bytes);
        conn.written += len;
        Ok(conn.written)
    }
}

// SAFETY: a ring lives as long as `conns`, from which nothing is removed.
#[allow(unsafe_code)]
unsafe impl Host for Programs {
    type Buffer = Packet;

    fn spans(&mut self, id: ConnId, from: u64, len: u32) -> Spans {
        match self.conns.get(&id) {
            Some(c) if from >= c.released && from + u64::from(len) <= c.written && len > 0 => {
                c.memory.as_ref().map_or(Spans::EMPTY, |m| m.spans(from, len))
            }
            _ => {
                self.faults.push(format!("{len} bytes from {from} were asked for"));
                Spans::EMPTY
            }
        }
    }

    fn release(&mut self, id: ConnId, to: u64) {
        let Some(c) = self.conns.get_mut(&id) else { return };
        if to <= c.released || to > c.written {
            self.faults.push(format!("released to {to}; it was {} of {}", c.released, c.written));
            return;
        }
        if let Some(memory) = &c.memory {
            memory.poison(c.released, to - c.released);
        }
        c.released = to;
    }

    fn place(&mut self, id: ConnId, at: u64, buffer: Packet, range: Range<usize>) -> bool {
        let Some(c) = self.conns.get_mut(&id) else { return false };
        let bytes = &buffer.bytes()[range];
        let end = at + bytes.len() as u64;
        if at < c.published || end > c.edge || PEERS.differs(at, bytes).is_some() {
            self.faults.push(format!("placed {at} to {end} wrongly: {} published, edge {}", c.published, c.edge));
            return true;
        }
        if c.placed.len() < end as usize {
            c.placed.resize(end as usize, crate::memory::POISON);
        }
        c.placed[at as usize..end as usize].copy_from_slice(bytes);
        true
    }

    fn publish(&mut self, id: ConnId, to: u64) {
        let Some(c) = self.conns.get_mut(&id) else { return };
        let placed = c.placed.get(c.published as usize..to as usize);
        if to <= c.published || placed.is_none_or(|p| PEERS.differs(c.published, p).is_some()) {
            self.faults.push(format!("published to {to}, from {}, what is not there", c.published));
        }
        c.published = to;
    }

    fn event(&mut self, id: ConnId, event: Event) {
        if let Event::Incoming(_) = event {
            self.conns.insert(id, Conn::new(self.room));
            self.last = Some(id);
        }
        let text = match event {
            Event::Ended(cause) => format!("ended {}", words(&format!("{cause:?}"))),
            other => words(&format!("{other:?}")),
        };
        self.conns.entry(id).or_default().events.push(text);
    }
}

/// A name as scripts have it: `TimedOut` is `timed_out`.
pub fn words(name: &str) -> String {
    let mut text = String::new();
    for (i, c) in name.split('(').next().unwrap_or("").chars().enumerate() {
        if c.is_uppercase() && i > 0 {
            text.push('_');
        }
        text.extend(c.to_lowercase());
    }
    text
}
