//! The values of culvert's environment variables, as the library understands them.

use std::fmt;
use std::str::FromStr;

use shmring::layout::{RING_MAX, RING_MIN};

/// `CULVERT_PATH`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PathChoice {
    /// Shared memory where possible.
    Auto,
    /// The same; what cannot go there is logged.
    Shm,
    /// Everything stays on the kernel.
    Kernel,
    /// As `auto`; that no zstackd serves the network namespace is said.
    Zstack,
}

/// `CULVERT_SPIN`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spin {
    /// While it pays off.
    Auto,
    /// Never.
    Off,
    /// Always this long, microseconds.
    Microseconds(u32),
}

/// `CULVERT_LOG`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogLevel(&'static str);

/// `CULVERT_RING`, bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ring(usize);

impl FromStr for PathChoice {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "auto" => Ok(PathChoice::Auto),
            "shm" => Ok(PathChoice::Shm),
            "kernel" => Ok(PathChoice::Kernel),
            "zstack" => Ok(PathChoice::Zstack),
            _ => Err("expected auto, zstack, shm or kernel".into()),
        }
    }
}

/// Longest spin that the library takes, microseconds.
const SPIN_MAX: u32 = 1_000_000;

impl FromStr for Spin {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "auto" => Ok(Spin::Auto),
            "off" => Ok(Spin::Off),
            _ if !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit()) => {
                let n = s.parse().ok().filter(|n| *n <= SPIN_MAX);
                n.map(Spin::Microseconds).ok_or_else(|| format!("at most {SPIN_MAX} microseconds"))
            }
            _ => Err("expected auto, off or a number of microseconds".into()),
        }
    }
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

impl FromStr for LogLevel {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        LEVELS
            .iter()
            .find(|l| **l == s)
            .map(|l| LogLevel(l))
            .ok_or_else(|| format!("expected one of {}", LEVELS.join(", ")))
    }
}

impl FromStr for Ring {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s.parse() {
            Ok(n)
                if usize::is_power_of_two(n)
                    && (RING_MIN..=RING_MAX).contains(&n)
                    && s.bytes().all(|b| b.is_ascii_digit()) =>
            {
                Ok(Ring(n))
            }
            _ => Err(format!("expected a power of two from {RING_MIN} to {RING_MAX}, bytes")),
        }
    }
}

impl fmt::Display for PathChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PathChoice::Auto => "auto",
            PathChoice::Shm => "shm",
            PathChoice::Kernel => "kernel",
            PathChoice::Zstack => "zstack",
        })
    }
}

impl fmt::Display for Spin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Spin::Auto => f.write_str("auto"),
            Spin::Off => f.write_str("off"),
            Spin::Microseconds(n) => write!(f, "{n}"),
        }
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl fmt::Display for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The variables that it knows.
pub const VARIABLES: [&str; 7] =
    ["CULVERT_PATH", "CULVERT_SPIN", "CULVERT_LOG", "CULVERT_LOG_FILE", "CULVERT_RING", "CULVERT_DIR", "CULVERT_PEERS"];

/// Why the library would not take `value` for `variable`; `None` if it would, or if the variable is not
/// one that it checks.
pub fn complaint(variable: &str, value: &str) -> Option<String> {
    match variable {
        "CULVERT_PATH" => value.parse::<PathChoice>().err(),
        "CULVERT_SPIN" => value.parse::<Spin>().err(),
        "CULVERT_LOG" => value.parse::<LogLevel>().err(),
        "CULVERT_RING" => value.parse::<Ring>().err(),
        "CULVERT_PEERS" => (!matches!(value, "any" | "own")).then(|| "expected any or own".into()),
        // The library keeps both in buffers of its own: it allocates nothing.
        "CULVERT_DIR" => (!value.starts_with('/') || value.len() >= 200)
            .then(|| "expected an absolute path shorter than 200 bytes".into()),
        "CULVERT_LOG_FILE" => {
            (value.is_empty() || value.len() >= 512).then(|| "expected a path shorter than 512 bytes".into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_reads_back_as_itself() {
        for s in ["auto", "shm", "kernel", "zstack"] {
            assert_eq!(s.parse::<PathChoice>().unwrap().to_string(), s);
        }
        for s in ["auto", "off", "0", "50"] {
            assert_eq!(s.parse::<Spin>().unwrap().to_string(), s);
        }
        for s in LEVELS {
            assert_eq!(s.parse::<LogLevel>().unwrap().to_string(), s);
        }
        assert_eq!("65536".parse::<Ring>().unwrap().to_string(), "65536");
    }

    #[test]
    fn wrong_values_are_named() {
        for (variable, value) in [
            ("CULVERT_PATH", "zstackd"),
            ("CULVERT_PATH", ""),
            ("CULVERT_SPIN", ""),
            ("CULVERT_SPIN", "99999999999"),
            ("CULVERT_LOG", "verbose"),
            ("CULVERT_RING", "1M"),
            ("CULVERT_RING", "+4096"),
            ("CULVERT_RING", "65535"),
            ("CULVERT_RING", "1024"),
            ("CULVERT_SPIN", "1000001"),
            ("CULVERT_DIR", "relative"),
            ("CULVERT_PEERS", "me"),
        ] {
            assert!(complaint(variable, value).is_some(), "{variable}={value}");
        }
        assert_eq!(complaint("CULVERT_DIR", "/anything"), None);
        assert_eq!(complaint("CULVERT_RING", "65536"), None);
    }
}
