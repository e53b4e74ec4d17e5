//! Why there is no port, with the remedy.

use std::fmt;

/// Why a device could not be opened. The text is one line that names what was wanted and the remedy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OpenError {
    /// DPDK does not start; it cannot be tried again in this process.
    Dpdk {
        /// What DPDK said last.
        cause: String,
        /// What can be done.
        remedy: String,
    },
    /// The device asks for what this process does not have.
    Memory {
        /// What is wrong, and the remedy.
        text: String,
    },
    /// DPDK has no such device, or its driver refuses it.
    Device {
        /// What was asked for, in DPDK's syntax.
        name: String,
        /// What the driver said.
        cause: String,
        /// What can be done.
        remedy: String,
    },
    /// The device cannot carry packets of this size.
    Mtu {
        /// The device.
        name: String,
        /// What was wanted.
        mtu: u16,
        /// The most that it can.
        most: u16,
        /// How to get there, or why not.
        remedy: String,
    },
    /// A step failed that should not.
    Step {
        /// The device.
        name: String,
        /// The call.
        call: &'static str,
        /// Why, and what DPDK said of it.
        cause: String,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Dpdk { cause, remedy } => write!(f, "DPDK does not start: {cause}: {remedy}"),
            OpenError::Memory { text } => f.write_str(text),
            OpenError::Device { name, cause, remedy } => write!(f, "dpdk:{name}: {cause}: {remedy}"),
            OpenError::Mtu { name, mtu, most, remedy } => {
                write!(f, "dpdk:{name}: mtu={mtu}: at most {most} here: {remedy}")
            }
            OpenError::Step { name, call, cause } => write!(f, "dpdk:{name}: {call}: {cause}"),
        }
    }
}

impl std::error::Error for OpenError {}
