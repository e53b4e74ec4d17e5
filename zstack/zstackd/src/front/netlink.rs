//! Requests to the kernel by rtnetlink(7), one after the other, each waited for.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage,
    NetlinkPayload, NlaBuffer, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use std::fmt;
use std::io;

/// The kernel's text beside an error (NLMSGERR_ATTR_MSG).
const MESSAGE: u16 = 1;
/// struct nlmsghdr.
const HEADER: usize = 16;
/// How often a dump is repeated that changes of the table have made inconsistent.
const DUMPS: usize = 10;

/// A request that the kernel has refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) error: io::Error,
    /// What the kernel says beside the number (NETLINK_EXT_ACK).
    text: Option<String>,
}

impl Refusal {
    pub(crate) fn is(&self, errno: i32) -> bool {
        self.error.raw_os_error() == Some(errno)
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        Refusal { error, text: None }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.text {
            Some(text) => write!(f, "{} ({text})", self.error),
            None => write!(f, "{}", self.error),
        }
    }
}

/// A socket to the kernel's network configuration, in the network namespace of the thread that made it; it may be used from
/// another.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    pub(crate) fn new() -> io::Result<Netlink> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Texts beside errors, without the request: since Linux 4.12.
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// One whose dumps have only what the request names: since Linux 4.20.
    pub(crate) fn strict() -> io::Result<Netlink> {
        let netlink = Netlink::new()?;
        netlink.socket.set_netlink_get_strict_chk(true)?;
        Ok(netlink)
    }

    /// Has the kernel do something.
    pub(crate) fn ask(&mut self, request: RouteNetlinkMessage, flags: u16) -> Result<(), Refusal> {
        self.talk(request, flags | NLM_F_ACK).map(drop)
    }

    /// Asks for one thing.
    pub(crate) fn look_up(&mut self, request: RouteNetlinkMessage) -> Result<Option<RouteNetlinkMessage>, Refusal> {
        Ok(self.talk(request, NLM_F_ACK)?.0.into_iter().next())
    }

    /// Asks for all there is.
    pub(crate) fn dump(&mut self, request: &RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, Refusal> {
        for _ in 0..DUMPS {
            let (all, consistent) = self.talk(request.clone(), NLM_F_DUMP)?;
            if consistent {
                return Ok(all);
            }
        }
        Err(io::Error::new(io::ErrorKind::WouldBlock, "the kernel's tables change all the time").into())
    }

    /// Sends a request and collects the answers until the kernel says that there are no more; and whether they belong together.
    fn talk(&mut self, request: RouteNetlinkMessage, flags: u16) -> Result<(Vec<RouteNetlinkMessage>, bool), Refusal> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        let (mut answers, mut consistent) = (Vec::new(), true);
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            for message in Messages(&bytes) {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).map_err(unreadable)?;
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                consistent &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(io::Error::from_raw_os_error(-done.code).into());
                    }
                    NetlinkPayload::Done(_) => return Ok((answers, consistent)),
                    NetlinkPayload::Error(error) => match error.code {
                        None => return Ok((answers, consistent)),
                        Some(code) => {
                            let told = message.header.flags & NLM_F_ACK_TLVS != 0;
                            let text = told.then(|| text(error.header.get(HEADER..).unwrap_or(&[]))).flatten();
                            return Err(Refusal { error: io::Error::from_raw_os_error(-code.get()), text });
                        }
                    },
                    _ => {}
                }
            }
        }
    }
}

fn unreadable(error: netlink_packet_core::DecodeError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the kernel's answer cannot be read: {error}"))
}

/// The kernel's text among the attributes of an error.
fn text(attributes: &[u8]) -> Option<String> {
    let mut all = NlasIterator::new(attributes).flatten();
    let text = all.find(|a: &NlaBuffer<&[u8]>| a.kind() == MESSAGE)?;
    let text = String::from_utf8_lossy(text.value());
    Some(text.trim_end_matches(['\0', '.']).to_string())
}

/// The messages of one datagram.
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let len = NetlinkBuffer::new_checked(self.0).ok()?.length() as usize;
        let message = self.0.get(..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::link::{LinkAttribute, LinkMessage};

    #[test]
    fn asks_and_is_told_what_is_wrong() {
        let mut netlink = Netlink::new().expect("a netlink socket");
        let all = netlink.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default())).expect("the links");
        assert!(all.iter().any(|m| matches!(m, RouteNetlinkMessage::NewLink(l) if l.header.index == 1)), "{all:?}");
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName("no-such-link".to_string()));
        let refusal = netlink.look_up(RouteNetlinkMessage::GetLink(message)).expect_err("no such link");
        assert!(refusal.is(libc::ENODEV), "{refusal}");
    }

    #[test]
    fn a_datagram_is_cut_into_messages() {
        let mut bytes = vec![20, 0, 0, 0];
        bytes.resize(20, 1);
        bytes.extend([17, 0, 0, 0]);
        bytes.resize(37, 2);
        let lengths: Vec<usize> = Messages(&bytes).map(<[u8]>::len).collect();
        assert_eq!(lengths, [20, 17]);
        // One that claims to be longer than the datagram, and one shorter than its header.
        bytes[20] = 99;
        assert_eq!(Messages(&bytes).count(), 1);
        bytes[20] = 3;
        assert_eq!(Messages(&bytes).count(), 1);
    }
}
