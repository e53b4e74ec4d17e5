//! What the tools print. A reader that has gone away (`| head`) or a full disk ends no server, and no tool before its devices and sockets
//! are given back: what could not be printed is remembered, and told at the end.

use std::fmt::Arguments;
use std::io::{self, Write};
use std::sync::atomic::{AtomicI32, Ordering};

/// The number in errno(3) of the first failure; 0: none.
static FAILED: AtomicI32 = AtomicI32::new(0);

/// Prints to standard output.
pub fn text(text: Arguments<'_>) {
    if cfg!(test) {
        // The harness shows what a test prints only if it fails.
        return print!("{text}");
    }
    let mut out = io::stdout().lock();
    if let Err(error) = out.write_fmt(text).and_then(|()| out.flush()) {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        let _ = FAILED.compare_exchange(0, errno, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Prints a line to standard output.
pub fn line(line: Arguments<'_>) {
    text(format_args!("{line}\n"));
}

/// Prints a line for the user to standard error. There is nobody to tell if that fails.
pub fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "zstack: {line}");
}

/// Whether nobody reads standard output any more.
pub fn unread() -> bool {
    FAILED.load(Ordering::Relaxed) == libc::EPIPE
}

/// Why something was not printed. That nobody reads is no failure.
pub fn failure() -> Option<io::Error> {
    match FAILED.load(Ordering::Relaxed) {
        0 | libc::EPIPE => None,
        errno => Some(io::Error::from_raw_os_error(errno)),
    }
}
