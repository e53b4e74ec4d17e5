//! What two processes can do by memory that both have, and nothing else: the limit of the machine, beside which `messages` is measured.
//!
//! A word in a cache line of its own goes there, and another one comes back. Beside them may lie places for messages, which are made and used
//! as those of `messages` are: the word that goes there says how many were made, the one that comes back how many were used.
// Unsafe here: memory of two processes, which are this program, both.
#![allow(unsafe_code)]

use super::announce;
use super::messages::{Pattern, make, pause, using};
use super::span::Span;
use serde_json::json;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Places for messages. More of 64 KiB than these do not stay in a processor's cache, and then it takes longer.
const PLACES: usize = 8;

/// The word that goes there when there are no more.
const END: u64 = u64::MAX;

#[repr(align(128))]
struct Line(AtomicU64);

struct Memory {
    at: *mut [Line; 2],
    /// Bytes of a message.
    size: usize,
    _file: File,
}

impl Memory {
    fn new(file: File, size: usize) -> io::Result<Memory> {
        let (read, write) = (libc::PROT_READ, libc::PROT_WRITE);
        // SAFETY: a mapping of its own, as long as the process.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Memory::len(size),
                read | write,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                file.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            Err(io::Error::last_os_error())
        } else {
            Ok(Memory { at: at.cast(), size, _file: file })
        }
    }

    /// Bytes of all.
    fn len(size: usize) -> usize {
        size_of::<[Line; 2]>() + PLACES * size
    }

    fn words(&self) -> (&AtomicU64, &AtomicU64) {
        // SAFETY: mapped and aligned as a page is, of words that are atomic.
        let [there, back] = unsafe { &*self.at };
        (&there.0, &back.0)
    }

    /// The place of the message of this number: whose it is the words say.
    fn place(&self, n: u64) -> *mut u8 {
        self.at.wrapping_add(1).cast::<u8>().wrapping_add(n as usize % PLACES * self.size)
    }
}

/// What it is to wait for `word` to be another number than this.
fn another(word: &AtomicU64, than: u64) -> u64 {
    let mut tries = 0;
    loop {
        match word.load(Ordering::Acquire) {
            n if n == than => pause(&mut tries),
            n => return n,
        }
    }
}

/// Sends back each word that comes, and uses the messages before it if there are any, until the last.
pub fn server(size: usize) -> io::Result<()> {
    // SAFETY: a name; the descriptor is ours.
    let file = unsafe {
        let fd = libc::memfd_create(c"lines".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        File::from_raw_fd(fd)
    };
    file.set_len(Memory::len(size) as u64)?;
    announce(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))?;
    let memory = Memory::new(file, size)?;
    let (there, back) = memory.words();
    let (mut n, mut sum) = (0, 0u64);
    loop {
        let made = another(there, n);
        if made == END {
            break;
        }
        while n < made {
            if size > 0 {
                // SAFETY: inside of the mapping; the client writes there again when it was told that this one is used.
                sum = sum.wrapping_add(using(unsafe { std::slice::from_raw_parts(memory.place(n), size) }));
            }
            n += 1;
            back.store(n, Ordering::Release);
        }
    }
    std::hint::black_box(sum);
    // It is killed.
    loop {
        std::thread::park();
    }
}

/// Prints how long a word took there and back, or how many messages were used in a second.
pub fn client(path: &str, pattern: Pattern, size: usize, length: Duration) -> io::Result<()> {
    let memory = Memory::new(File::options().read(true).write(true).open(path)?, size)?;
    let (there, back) = memory.words();
    // How many are on their way at most.
    let ahead = if pattern == Pattern::RoundTrip { 1 } else { PLACES as u64 };
    let (mut span, mut n, mut used) = (Span::new(Duration::from_millis(300), length), 0u64, 0);
    loop {
        if size > 0 {
            // SAFETY: inside of the mapping; the server has used what was there.
            make(unsafe { std::slice::from_raw_parts_mut(memory.place(n), size) }, n);
        }
        n += 1;
        there.store(n, Ordering::Release);
        while n - used >= ahead {
            used = another(back, used);
        }
        if n.is_multiple_of(16) && !span.goes_on(n) {
            break;
        }
    }
    while used < n {
        used = another(back, used);
    }
    let (took, done) = span.counted(n);
    let (took, done) = (took.as_secs_f64(), done as f64);
    there.store(END, Ordering::Release);
    announce(json!({ "rate": done / took, "us": took * 1e6 / done, "all_operations": n }))
}
