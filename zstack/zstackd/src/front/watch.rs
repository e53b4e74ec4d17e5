//! What others do to the front's interface and to the port's, by the messages that the kernel sends (rtnetlink(7)).

use super::error::Error;
use super::netlink::{Messages, Netlink};
use super::routes::{PROTOCOL, link};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::RouteAttribute;
use netlink_packet_route::rule::RuleAttribute;
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// linux/rtnetlink.h: RTNLGRP_LINK; IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE; IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE.
const LINKS: &[u32] = &[1];
const ALL: &[u32] = &[1, 5, 7, 8, 9, 11, 19];

/// The state of an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Whether it is set up.
    pub up: bool,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its Ethernet address, if it has one.
    pub mac: Option<[u8; 6]>,
}

/// What has happened to an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The interface has been removed, or has another name.
    Removed,
    /// The interface is not what it was, or is there again: of the front's, it has been set down or up, or its MTU is another.
    Link(Link),
    /// Addresses, routes or rules of the front have been removed, or may have been. [`Front::restore`](super::Front::restore) makes
    /// them again.
    Altered,
}

/// Watches one interface of the network namespace of the thread that made this.
pub struct Watch {
    socket: Socket,
    netlink: Netlink,
    name: String,
    /// Whether it is the front's.
    front: bool,
    link: Option<Link>,
    events: VecDeque<Event>,
    /// So many removals of routes to come are the front's own.
    own: u32,
}

impl Watch {
    /// Watches the interface `name`, as the port's.
    ///
    /// # Errors
    /// Those of netlink, if there is no such interface; the text says what to do.
    pub fn port(name: &str) -> Result<Watch, Error> {
        Watch::new(name, false)
    }

    pub(crate) fn new(name: &str, front: bool) -> Result<Watch, Error> {
        let refused = |e| Error::refused(format!("the interface {name} cannot be watched"), &e);
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(refused)?;
        socket.bind_auto().map_err(refused)?;
        socket.set_non_blocking(true).map_err(refused)?;
        for group in if front { ALL } else { LINKS } {
            match socket.add_membership(*group) {
                // A kernel without IPv6 has not all groups.
                Err(e) if *group <= 8 => return Err(refused(e)),
                _ => {}
            }
        }
        // After the subscription, so that nothing between is missed.
        let mut netlink = Netlink::new().map_err(refused)?;
        let link = look(&mut netlink, name).map_err(refused)?;
        if link.is_none() {
            return Err(Error::Refused {
                doing: format!("the interface {name} cannot be watched"),
                error: "there is none".to_string(),
                remedy: "check its name (ip link)",
            });
        }
        Ok(Watch { socket, netlink, name: name.to_string(), front, link, events: VecDeque::new(), own: 0 })
    }

    /// The interface as it was when this was made, or as the last [`Event::Link`] says.
    pub fn link(&self) -> Option<Link> {
        self.link
    }

    /// The front itself has removed so many of its routes.
    pub fn expect(&mut self, routes: u32) {
        self.own += routes;
    }

    /// What has happened, or `None` if there is nothing more. Never blocks: the descriptor of [`AsFd`] can be slept on.
    ///
    /// # Errors
    /// Those of netlink(7); the watch goes on.
    pub fn next_event(&mut self) -> io::Result<Option<Event>> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            match self.socket.recv_from_full() {
                // From the kernel alone.
                Ok((bytes, from)) if from.port_number() == 0 => self.messages(&bytes)?,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // The kernel had more to tell than there was room for: what has happened meanwhile is unknown.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.own = 0;
                    self.look_again()?;
                    if self.front && self.link.is_some() {
                        self.event(Event::Altered);
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn messages(&mut self, bytes: &[u8]) -> io::Result<()> {
        for message in Messages(bytes) {
            // What cannot be read is of a kind that is not asked for.
            let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) else { continue };
            let NetlinkPayload::InnerMessage(message) = message.payload else { continue };
            if self.concerns_the_link(&message) {
                self.look_again()?;
            } else if self.front && self.removes_ours(&message) {
                match &message {
                    RouteNetlinkMessage::DelRoute(_) if self.own > 0 => self.own -= 1,
                    _ => self.event(Event::Altered),
                }
            }
        }
        Ok(())
    }

    fn concerns_the_link(&self, message: &RouteNetlinkMessage) -> bool {
        let (RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link)) = message else { return false };
        let named = |a: &LinkAttribute| matches!(a, LinkAttribute::IfName(name) if *name == self.name);
        self.link.is_some_and(|l| l.index == link.header.index) || link.attributes.iter().any(named)
    }

    /// Whether something of the front is removed.
    fn removes_ours(&self, message: &RouteNetlinkMessage) -> bool {
        let Some(link) = self.link else { return false };
        match message {
            RouteNetlinkMessage::DelAddress(address) => address.header.index == link.index,
            RouteNetlinkMessage::DelRoute(route) => {
                u8::from(route.header.protocol) == PROTOCOL
                    && route.attributes.contains(&RouteAttribute::Oif(link.index))
            }
            // Of whom it is does not follow from it; another zstackd's does no harm.
            RouteNetlinkMessage::DelRule(rule) => {
                let ours = |a: &RuleAttribute| matches!(a, RuleAttribute::Protocol(p) if u8::from(*p) == PROTOCOL);
                rule.attributes.iter().any(ours)
            }
            _ => false,
        }
    }

    /// Compares the interface as it is now, which may be later than the message.
    fn look_again(&mut self) -> io::Result<()> {
        let now = look(&mut self.netlink, &self.name)?;
        // One that has been made anew is not the front's.
        let now = now.filter(|now| !self.front || self.link.is_some_and(|before| before.index == now.index));
        let before = std::mem::replace(&mut self.link, now);
        match (before, now) {
            (before, now) if before == now => {}
            (_, None) => self.event(Event::Removed),
            (before, Some(now)) => {
                self.event(Event::Link(now));
                // The kernel has removed the routes when it was set down.
                if self.front && now.up && !before.is_some_and(|b| b.up) {
                    self.event(Event::Altered);
                }
            }
        }
        Ok(())
    }

    fn event(&mut self, event: Event) {
        if self.events.back() != Some(&event) {
            self.events.push_back(event);
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The interface, if there is one of the name.
fn look(netlink: &mut Netlink, name: &str) -> io::Result<Option<Link>> {
    match link(netlink, name) {
        Ok(message) => Ok(Some(read(&message))),
        Err(e) if e.is(libc::ENODEV) => Ok(None),
        Err(e) => Err(e.error),
    }
}

fn read(message: &LinkMessage) -> Link {
    let (mut mtu, mut mac) = (0, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Mtu(value) => mtu = *value,
            LinkAttribute::Address(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    Link { index: message.header.index, up: message.header.flags.contains(LinkFlags::Up), mtu, mac }
}
