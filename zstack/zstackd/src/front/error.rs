//! Why a front cannot be made, with the remedy.

use super::netlink::Refusal;
use std::fmt;
use std::io;

/// Why a front cannot be made, or what is left of one cannot be cleared. The text is one line that says what to do.
#[derive(Debug)]
pub enum Error {
    /// A value of [`Wanted`](super::Wanted) cannot be.
    Setting {
        /// What, with its value.
        what: String,
        /// What can be done.
        remedy: &'static str,
    },
    /// There is no /dev/net/tun.
    NoTun,
    /// /dev/net/tun may not be opened.
    NoAccess,
    /// The process lacks capabilities.
    NoRights {
        /// Their names.
        missing: String,
    },
    /// eBPF programs may not be loaded.
    NoBpf {
        /// The kernel's answer.
        error: String,
    },
    /// There is an interface of the tun's name, or another zstackd has made it.
    Exists {
        /// The name.
        name: String,
        /// The process that has it open as a tun, as `zstackd (pid 17)`, if one was found.
        holder: Option<String>,
    },
    /// Somebody else uses the routing tables or the priorities.
    Taken {
        /// What is there already.
        what: String,
    },
    /// The kernel lacks something.
    Lacks {
        /// What.
        what: &'static str,
        /// The kernel's answer.
        error: String,
        /// What can be done.
        remedy: &'static str,
    },
    /// The kernel has refused a request that should succeed.
    Refused {
        /// What was asked for.
        doing: String,
        /// Its answer.
        error: String,
        /// What can be done, if it is known.
        remedy: &'static str,
    },
}

impl Error {
    pub(crate) fn refused(doing: impl Into<String>, error: &io::Error) -> Error {
        Error::Refused { doing: doing.into(), error: error.to_string(), remedy: "" }
    }

    pub(crate) fn netlink(doing: impl Into<String>, refusal: &Refusal) -> Error {
        let remedy = match refusal.error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => "run zstackd with CAP_NET_ADMIN in this network namespace",
            Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT) => {
                "the kernel needs CONFIG_IP_MULTIPLE_TABLES and \
                 CONFIG_IPV6_MULTIPLE_TABLES; without IPv6 in the kernel, give zstackd IPv4 addresses only"
            }
            _ => "",
        };
        Error::Refused { doing: doing.into(), error: refusal.to_string(), remedy }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Setting { what, remedy } => write!(f, "{what}: {remedy}"),
            Error::NoTun => write!(
                f,
                "there is no /dev/net/tun: load the module (modprobe tun), or give the container the device \
                 (docker run --device /dev/net/tun)"
            ),
            Error::NoAccess => write!(
                f,
                "no right to open /dev/net/tun: run zstackd as root, or let its user have it (chmod 0666 /dev/net/tun)"
            ),
            Error::NoRights { missing } => write!(
                f,
                "zstackd lacks {missing}: run it as root, or with AmbientCapabilities={missing} in its systemd unit"
            ),
            Error::NoBpf { error } => write!(
                f,
                "no right to load eBPF programs ({error}): zstackd needs CAP_BPF and CAP_NET_ADMIN of the host, which a user \
                 namespace (a container without root) does not give; run it outside"
            ),
            Error::Exists { name, holder: Some(holder) } => write!(
                f,
                "the interface {name} belongs to {holder}: end that process, or choose another name, table and priority \
                 for this zstackd"
            ),
            Error::Exists { name, holder: None } => write!(
                f,
                "there is an interface {name} that is not zstackd's: choose another name, or remove it (ip link del {name})"
            ),
            Error::Taken { what } => {
                write!(f, "{what}: choose another table and priority for zstackd, or remove what is there")
            }
            Error::Lacks { what, error, remedy } => write!(f, "the kernel lacks {what} ({error}): {remedy}"),
            Error::Refused { doing, error, remedy: "" } => write!(f, "{doing}: {error}"),
            Error::Refused { doing, error, remedy } => write!(f, "{doing}: {error}; {remedy}"),
        }
    }
}

impl std::error::Error for Error {}
