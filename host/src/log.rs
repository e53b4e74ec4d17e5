//! One-line messages to stderr or `CULVERT_LOG_FILE`, formatted on the stack and written with one system
//! call: no allocation, no lock, usable in any context.
#![forbid(unsafe_code)]

use crate::clock;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use shmring::lnx;

/// Severity; what is above the configured one is not formatted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Something of the user's is wrong, or a connection was lost.
    Error = 1,
    /// culvert cannot do what it was asked to.
    Warn,
    /// Channels coming and going.
    Info,
    /// Each connection's switches.
    Debug,
    /// Everything.
    Trace,
}

/// Nothing is said any more.
pub fn silence() {
    LEVEL.store(0, Relaxed);
}

static LEVEL: AtomicU8 = AtomicU8::new(Level::Error as u8);
/// Where messages go; the log file's descriptor when there is one.
pub static FD: AtomicI32 = AtomicI32::new(2);

/// Device and inode of stderr at start: a program that closes 2 may get it back as a connection.
static STDERR: [core::sync::atomic::AtomicU64; 2] = [const { core::sync::atomic::AtomicU64::new(0) }; 2];

fn stderr_id() -> Option<[u64; 2]> {
    lnx::stat(2).map(|st| [st.st_dev, st.st_ino])
}

/// Notes what stderr is; from the constructor.
pub fn init() {
    if let Some(id) = stderr_id() {
        STDERR[0].store(id[0], Relaxed);
        STDERR[1].store(id[1], Relaxed);
    }
}

/// Sets the level.
pub fn set_level(l: Level) {
    LEVEL.store(l as u8, Relaxed);
}

/// Whether messages of this level are wanted.
pub fn wants(l: Level) -> bool {
    l as u8 <= LEVEL.load(Relaxed)
}

/// Longest line, its newline included, bytes.
const LINE: usize = 512;

struct Line {
    buf: [u8; LINE],
    len: usize,
}

/// A character of a message as it is written. Settings and names are other people's: they must not make lines of their own
/// in a log, nor control the terminal that shows it (C0, DEL, C1; the characters that end a line or turn its direction).
fn visible(c: char) -> char {
    match c {
        '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '?',
        c if c.is_control() => '?',
        c => c,
    }
}

impl Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for c in s.chars().map(visible) {
            let mut bytes = [0; 4];
            let bytes = c.encode_utf8(&mut bytes).as_bytes();
            // One byte is kept for the newline; what does not fit is cut.
            let Some(room) =
                self.buf.get_mut(self.len..self.len + bytes.len()).filter(|_| self.len + bytes.len() < LINE)
            else {
                break;
            };
            room.copy_from_slice(bytes);
            self.len += bytes.len();
        }
        Ok(())
    }
}

/// How many lines a span of time takes. Peers can provoke messages, and a log that a program writes for days is not theirs to
/// fill.
struct Limit {
    /// Nanoseconds.
    span: u64,
    most: u32,
    /// When the span began, and how many lines there were to write since.
    since: AtomicU64,
    lines: AtomicU32,
}

impl Limit {
    const fn new(most: u32, span: u64) -> Limit {
        Limit { span, most, since: AtomicU64::new(0), lines: AtomicU32::new(0) }
    }

    /// Whether a line at time `now` is written, and how many of the span before were not. Where threads come at once some lines
    /// may count in either span.
    fn take(&self, now: u64) -> (bool, u32) {
        let since = self.since.load(Relaxed);
        let mut lost = 0;
        let over = since == 0 || now.wrapping_sub(since) > self.span;
        if over && self.since.compare_exchange(since, now.max(1), Relaxed, Relaxed).is_ok() {
            lost = self.lines.swap(0, Relaxed).saturating_sub(self.most);
        }
        (self.lines.fetch_add(1, Relaxed) < self.most, lost)
    }
}

static LIMIT: Limit = Limit::new(20, 10_000_000_000);

/// Writes one line, unless there were too many: `culvert[PID]: message`. Who asks to be told of each connection is.
pub fn line(args: fmt::Arguments) {
    if cfg!(miri) {
        // It makes no system call.
        return;
    }
    if !wants(Level::Debug) {
        let (written, lost) = LIMIT.take(clock::now());
        if lost > 0 {
            write_line(format_args!("{lost} lines were left out: at most {} in ten seconds are written", LIMIT.most));
        }
        if !written {
            return;
        }
    }
    write_line(args);
}

fn write_line(args: fmt::Arguments) {
    let fd = FD.load(Relaxed);
    if fd == 2 && stderr_id() != Some([STDERR[0].load(Relaxed), STDERR[1].load(Relaxed)]) {
        return;
    }
    let mut l = Line { buf: [0; LINE], len: 0 };
    let _ = write!(l, "culvert[{}]: {}", shmring::sys::getpid(), args);
    l.buf[l.len] = b'\n';
    // A line is lost rather than waited for: a peer that provokes messages must not block a program whose standard error
    // nobody reads.
    let mut room = [libc::pollfd { fd, events: libc::POLLOUT, revents: 0 }];
    if lnx::poll(&mut room, 0) != 0 {
        lnx::write(fd, &l.buf[..l.len + 1]);
    }
}

/// `log!(Level, "format", ...)`.
#[macro_export]
macro_rules! log {
    ($l:ident, $($a:tt)*) => {
        if $crate::log::wants($crate::log::Level::$l) {
            $crate::log::line(format_args!($($a)*))
        }
    };
}
