//! What the holder of a connection may choose.

use super::recovery::Algorithm;
use serde::{Deserialize, Serialize};

/// The settings of a connection; times are in milliseconds. Those that a SYN carries ([`Options::timestamps`], `sack`,
/// `scaling`, `mss`) take effect only before it is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Options {
    /// Send what is committed at once, however small the segment: no Nagle (RFC 9293, section 3.7.4).
    pub nodelay: bool,
    /// Send full segments only, until this is cleared or 200 ms have passed (TCP_CORK in tcp(7)).
    pub cork: bool,
    /// Probe the peer when nothing has come from it for `keepalive_idle` (RFC 9293, section 3.8.4).
    pub keepalive: bool,
    /// How long nothing has come before the first probe.
    pub keepalive_idle: u32,
    /// How long a probe's answer may take before the next one.
    pub keepalive_interval: u32,
    /// So many probes without an answer end the connection.
    pub keepalive_count: u8,
    /// The connection ends when bytes or a FIN have waited for their acknowledgement so long (RFC 5482, TCP_USER_TIMEOUT in
    /// tcp(7)); 0: after 15 retransmissions, some 15 minutes.
    pub user_timeout: u32,
    /// How long a connection whose holder has closed it may go on until the peer has acknowledged everything; then it is
    /// aborted. 0: closing aborts at once, what was not sent is lost (SO_LINGER of 0 seconds in socket(7)). `u32::MAX`: as long as an
    /// open one.
    pub linger: u32,
    /// How long a connection whose holder has closed it waits in FIN-WAIT-2 for the peer's FIN (TCP_LINGER2 in tcp(7)).
    pub fin_wait: u32,
    /// Offer timestamps (RFC 7323).
    pub timestamps: bool,
    /// Offer selective acknowledgements (RFC 2018).
    pub sack: bool,
    /// Offer window scaling (RFC 7323).
    pub scaling: bool,
    /// The most room that the incoming stream may ever have, in bytes, if it may be more than what it begins with: only a SYN can carry the
    /// window's scale.
    pub window: u32,
    /// The largest segment to receive and to send, in bytes of payload; 0: what the route's MTU allows.
    pub mss: u16,
    /// How the sending rate follows the network.
    pub congestion: Algorithm,
}

impl Default for Options {
    /// What Linux has.
    fn default() -> Options {
        Options {
            nodelay: false,
            cork: false,
            keepalive: false,
            keepalive_idle: 7_200_000,
            keepalive_interval: 75_000,
            keepalive_count: 9,
            user_timeout: 0,
            linger: u32::MAX,
            fin_wait: 60_000,
            timestamps: true,
            sack: true,
            scaling: true,
            window: 0,
            mss: 0,
            congestion: Algorithm::Cubic,
        }
    }
}

impl Options {
    /// The most room that an incoming stream may have that begins with so much.
    pub(crate) fn most_room(&self, first: u64) -> u64 {
        first.max(self.window.into())
    }
}
