//! Why a device could not be opened or set up, with the remedy.

use crate::spec::Kind;
use std::fmt;
use std::io;

/// Why a device could not be opened. The text names the device and the remedy.
#[derive(Debug)]
pub enum OpenError {
    /// There is no /dev/net/tun.
    NoTun,
    /// /dev/net/tun may not be opened.
    NoAccess,
    /// The process may not make the device, or attach to it.
    NoRights {
        /// The device.
        name: String,
        /// Tun or tap.
        kind: Kind,
    },
    /// Another process has the device.
    Busy {
        /// The device.
        name: String,
    },
    /// An interface of this name is something else.
    OtherKind {
        /// The device.
        name: String,
        /// What it is not.
        kind: Kind,
    },
    /// The kernel has refused a setting of the device.
    Setting {
        /// The device.
        name: String,
        /// The setting and its value.
        setting: String,
        /// What was refused.
        error: io::Error,
        /// What can be done.
        remedy: &'static str,
    },
    /// Something that should not happen.
    System {
        /// The system call.
        call: &'static str,
        /// Its error.
        error: io::Error,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::NoTun => write!(
                f,
                "there is no /dev/net/tun: load the module (modprobe tun), or give the container the device \
                 (docker run --device /dev/net/tun)"
            ),
            OpenError::NoAccess => {
                write!(
                    f,
                    "no right to open /dev/net/tun: run as root, or let the user have it (chmod 0666 /dev/net/tun)"
                )
            }
            OpenError::NoRights { name, kind } => write!(
                f,
                "no right to make or use the device {name}: it needs CAP_NET_ADMIN; run as root, or let root make it once \
                 for this user (ip tuntap add dev {name} mode {kind} user USER)"
            ),
            OpenError::Busy { name } => write!(
                f,
                "the device {name} is in use: end the process that has it (it has /dev/net/tun open), or choose another name"
            ),
            OpenError::OtherKind { name, kind } => write!(
                f,
                "the interface {name} exists and is not a {kind} device for one process: choose another name, or remove it \
                 (ip link del {name})"
            ),
            OpenError::Setting { name, setting, error, remedy } => {
                write!(f, "the device {name} does not take {setting} ({error}): {remedy}")
            }
            OpenError::System { call, error } => write!(f, "{call} failed: {error}"),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            OpenError::Setting { error, .. } | OpenError::System { error, .. } => Some(error),
            _ => None,
        }
    }
}
