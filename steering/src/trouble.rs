//! Why something cannot be done, and what helps.

use std::fmt;
use std::io;

/// Why something cannot be done, and what helps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trouble {
    /// What is the matter, in a sentence.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl Trouble {
    pub(crate) fn new(what: impl Into<String>, remedy: impl Into<String>) -> Trouble {
        Trouble { what: what.into(), remedy: remedy.into() }
    }

    /// A file that cannot be read or written.
    pub(crate) fn file(what: impl fmt::Display, error: &io::Error) -> Trouble {
        let remedy = match error.kind() {
            io::ErrorKind::PermissionDenied => "it takes root: run this as root; a plan needs no rights",
            io::ErrorKind::NotFound => "is the device there, and /sys mounted?",
            _ => "see dmesg(1) for what the kernel says of it",
        };
        Trouble::new(format!("{what}: {error}"), remedy)
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.what, self.remedy)
    }
}
