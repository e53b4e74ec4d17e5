//! The kernel's end of a device: link up, MTU, queue length and addresses, by rtnetlink(7).

use crate::raw::calls;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const IFLA_MTU: u16 = 4;
const IFLA_TXQLEN: u16 = 13;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// Duplicate address detection would keep the address unusable for a second or two (rtnetlink(7)); nobody else is on this link.
const IFA_F_NODAD: u8 = 2;

/// One interface, by its index, in the network namespace of the thread that made this.
pub(crate) struct Link {
    socket: OwnedFd,
    index: u32,
}

impl Link {
    pub(crate) fn new(name: &str) -> io::Result<Link> {
        let socket = calls::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?;
        Ok(Link { socket, index: calls::index(name)? })
    }

    pub(crate) fn up(&self) -> io::Result<()> {
        let up = libc::IFF_UP as u32;
        self.ask(Message::new(RTM_NEWLINK, 0, &self.ifinfomsg(up, up)))
    }

    pub(crate) fn set_mtu(&self, mtu: u16) -> io::Result<()> {
        self.ask(self.change(IFLA_MTU, u32::from(mtu)))
    }

    /// How many packets wait for us before the kernel drops more.
    pub(crate) fn set_queue(&self, packets: u32) -> io::Result<()> {
        self.ask(self.change(IFLA_TXQLEN, packets))
    }

    /// Gives the kernel's end an address; it may have it already.
    pub(crate) fn add_address(&self, address: IpAddr, prefix: u8) -> io::Result<()> {
        let (family, bytes) = match address {
            IpAddr::V4(a) => (libc::AF_INET as u8, a.octets().to_vec()),
            IpAddr::V6(a) => (libc::AF_INET6 as u8, a.octets().to_vec()),
        };
        // struct ifaddrmsg: family, prefix length, flags, scope, index.
        let mut body = vec![family, prefix, if address.is_ipv6() { IFA_F_NODAD } else { 0 }, 0];
        body.extend(self.index.to_ne_bytes());
        let mut message = Message::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &body);
        message.attribute(IFA_LOCAL, &bytes);
        message.attribute(IFA_ADDRESS, &bytes);
        match self.ask(message) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            result => result,
        }
    }

    /// Waits until packets to an IPv6 address of the interface are delivered: the kernel makes the route to it later, in a worker
    /// (addrconf_dad_work), and drops them until then. Mostly it takes less than a millisecond; but the worker needs the lock of
    /// all network configuration (rtnl), which others hold for seconds while they make and remove namespaces.
    ///
    /// # Errors
    /// `TimedOut` after `limit`.
    pub(crate) fn await_route(name: &str, address: Ipv6Addr, limit: Duration) -> io::Result<()> {
        let end = Instant::now() + limit;
        let digits: String = address.octets().iter().map(|b| format!("{b:02x}")).collect();
        // proc_pid_net(5): destination, length of the prefix in hexadecimal, ..., device.
        let start = format!("{digits} 80 ");
        let is_it = |line: &str| line.starts_with(&start) && line.split_whitespace().next_back() == Some(name);
        let mut pause = Duration::from_millis(1);
        // Without /proc nobody can look.
        while let Ok(table) = std::fs::read_to_string("/proc/thread-self/net/ipv6_route") {
            if table.lines().any(is_it) {
                break;
            }
            if Instant::now() >= end {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(pause);
            pause = (2 * pause).min(Duration::from_millis(20));
        }
        Ok(())
    }

    fn change(&self, attribute: u16, value: u32) -> Message {
        let mut message = Message::new(RTM_NEWLINK, 0, &self.ifinfomsg(0, 0));
        message.attribute(attribute, &value.to_ne_bytes());
        message
    }

    /// struct ifinfomsg: family, padding, type, index, flags, which flags to change.
    fn ifinfomsg(&self, flags: u32, change: u32) -> Vec<u8> {
        let mut body = vec![0; 4];
        body.extend(self.index.to_ne_bytes());
        body.extend(flags.to_ne_bytes());
        body.extend(change.to_ne_bytes());
        body
    }

    fn ask(&self, message: Message) -> io::Result<()> {
        calls::send(self.socket.as_fd(), &message.0)?;
        let mut reply = [0; 4096];
        let len = calls::receive(self.socket.as_fd(), &mut reply)?;
        let error = reply[..len].get(16..20).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
        match (u16::from_ne_bytes([reply[4], reply[5]]), error) {
            (NLMSG_ERROR, Some(0)) => Ok(()),
            (NLMSG_ERROR, Some(error)) => Err(io::Error::from_raw_os_error(-error)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "netlink answers something else")),
        }
    }
}

/// A netlink message: header, body, attributes.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16, body: &[u8]) -> Message {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend([0; 4]);
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        // Sequence and port number: one question at a time, and the kernel fills in the port.
        bytes.extend([0; 8]);
        bytes.extend(body);
        let mut message = Message(bytes);
        message.finish();
        message
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.0.extend((value.len() as u16 + 4).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.finish();
    }

    /// Pads to four bytes and writes the length.
    fn finish(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        let len = self.0.len() as u32;
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_padded_and_know_their_length() {
        let mut message = Message::new(RTM_NEWADDR, 0, &[1; 8]);
        message.attribute(7, b"abcde");
        assert_eq!(message.0.len(), 16 + 8 + 12);
        assert_eq!(message.0[..4], 36u32.to_ne_bytes());
        assert_eq!(message.0[24..28], [9u16.to_ne_bytes(), 7u16.to_ne_bytes()].concat()[..]);
        assert_eq!(message.0[28..], *b"abcde\0\0\0");
    }

    #[test]
    fn what_the_kernel_refuses_is_told() {
        // Index 0 is no interface; whether for that or for want of rights, it is an error.
        let socket = calls::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE).unwrap();
        assert!(Link { socket, index: 0 }.set_mtu(1500).is_err());
        assert!(Link::new("no-such-device").is_err());
        let error = Link::await_route("no-such-device", Ipv6Addr::LOCALHOST, Duration::from_millis(3)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
