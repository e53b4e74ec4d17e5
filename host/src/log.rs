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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsRawFd;

    fn written(text: &str) -> String {
        let mut l = Line { buf: [0; LINE], len: 0 };
        write!(l, "{text}").expect("it is cut, at worst");
        String::from_utf8(l.buf[..l.len].to_vec()).expect("whole characters")
    }

    #[test]
    fn what_controls_a_terminal_or_a_line_is_not_written() {
        for c in (0..0x20).chain(0x7f..0xa0).filter_map(char::from_u32) {
            assert_eq!(written(&format!("a{c}b")), "a?b", "{c:?}");
        }
        for c in ['\u{2028}', '\u{2029}', '\u{200e}', '\u{200f}', '\u{202a}', '\u{202e}', '\u{2066}', '\u{2069}'] {
            assert_eq!(written(&format!("a{c}b")), "a?b", "{c:?}");
        }
        let plain = " ~\u{a0}\u{2027}\u{202f}\u{2065}\u{206a}äß€\u{1f980}";
        assert_eq!(written(plain), plain);
    }

    #[test]
    fn a_long_line_is_cut_between_characters_and_keeps_room_for_its_end() {
        for (c, bytes) in [('x', 1), ('ä', 2), ('€', 3), ('\u{1f980}', 4)] {
            let text = written(&c.to_string().repeat(LINE));
            assert_eq!(text.len(), (LINE - 1) / bytes * bytes);
        }
        // What comes in the same piece behind a character that did not fit is not written in its place.
        let text = written(&format!("{}€x", "x".repeat(LINE - 2)));
        assert_eq!(text, "x".repeat(LINE - 2));
    }

    #[test]
    fn a_span_takes_so_many_lines_and_the_next_says_how_many_it_lost() {
        let limit = Limit::new(3, 100);
        let start = 1_000;
        assert!((0..3).all(|i| limit.take(start + i) == (true, 0)));
        assert!((0..7).all(|i| limit.take(start + 10 + i) == (false, 0)));
        // Up to its end.
        assert_eq!(limit.take(start + 100), (false, 0));
        assert_eq!(limit.take(start + 101), (true, 8));
        assert_eq!(limit.take(start + 102), (true, 0));
        // Nothing was lost in a span that was not full; a clock that begins at 0 is as good.
        assert_eq!(limit.take(start + 300), (true, 0));
        let limit = Limit::new(1, 100);
        assert_eq!(limit.take(0), (true, 0));
        assert_eq!(limit.take(1), (false, 0));
    }

    /// All that concerns the one place where lines go.
    #[test]
    fn lines_go_where_they_should_and_wait_for_nobody() {
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        FD.store(writer.as_raw_fd(), Relaxed);
        set_level(Level::Debug);
        assert!(wants(Level::Error) && wants(Level::Debug) && !wants(Level::Trace));
        crate::log!(Debug, "one {}\n", "line");
        crate::log!(Trace, "not this one");
        let begin = format!("culvert[{}]: ", std::process::id());
        let mut got = [0; 2 * LINE];
        let n = reader.read(&mut got).expect("a line");
        assert_eq!(std::str::from_utf8(&got[..n]), Ok(&*format!("{begin}one line?\n")));
        // Nobody reads: lines are lost. A line that waited would never be through.
        for i in 0..10_000 {
            crate::log!(Error, "line {i} of many");
        }
        // Nor to another file that has the number of standard error by now: this one was never looked at.
        FD.store(2, Relaxed);
        assert!(stderr_id().is_some_and(|id| id != [0, 0]));
        write_line(format_args!("this is not to be seen"));
        silence();
        assert!(!wants(Level::Error));
        set_level(Level::Error);
        drop(writer);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).expect("lines");
        assert!(rest.starts_with(&format!("{begin}line 0 of many\n{begin}line 1 of many\n")));
        assert!(rest.lines().count() < 10_000);
    }
}
