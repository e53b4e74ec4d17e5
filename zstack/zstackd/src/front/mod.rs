//! The front: what zstackd makes in the kernel of the programs' network namespace, so that their connections to other hosts end at
//! its own sockets, with the ends that they would have on the wire.
//!
//! ```text
//!  program --- S:p -> R:80 ---> route to R ---> tun cv0, clsact egress: `turn`
//!                                                 | a socket of zstackd's is R:80 <- S:p?
//!                                                 |   yes: comes in by cv0 again, and finds that socket
//!                                                 |   no: zstackd reads it: a SYN to hold, or a packet to pass on
//!  zstackd writes a held SYN back -> comes in by cv0 -> rule `iif cv0`: for this host -> sk_lookup: `assign` -> listener, any port
//!  zstackd's socket R:80 -> S:p is on this host: over lo to the program
//!
//!  inbound: zstackd connects as C:c to the program's listener S:80 over lo; the program's answers, whose source is S, leave by cv0
//!  (rule `from S`) and are turned round.
//! ```
//!
//! The kernel's table of sockets is the table of connections: nothing is to be filled in or to be removed when one begins or ends.
//! The addresses are on the tun. So, when the process is gone, however it ended, so are the tun, its addresses, the routes and the
//! filters; what stays of a process that was killed are four or more rules without effect, which [`Front::make`] and [`clear`]
//! remove.
//!
//! | made | where | goes with |
//! |---|---|---|
//! | tun, addresses, MTU, `accept_local` 1, `rp_filter` 0 | [`Wanted::name`] | the tun |
//! | routes to the served networks | main table | the tun |
//! | `local default` | table [`Numbers::table`] | the tun |
//! | `default` for answers | the table after it | the tun |
//! | clsact, `turn` | the tun's egress | the tun |
//! | sk_lookup `assign` | network namespace | the process |
//! | rules `iif TUN`, `from ADDRESS` | [`Numbers::priority`] and the one after it | [`Front`]'s drop, the next start, [`clear`] |
//!
//! It belongs to the network namespace of the thread that makes it. A child of fork(2) would keep the tun alive.

mod diag;
mod error;
mod filter;
mod follow;
mod inward;
mod lane;
mod netlink;
mod owners;
mod raw;
mod rights;
mod routes;
mod tun;
mod watch;

pub(crate) use diag::destroy_time_wait;
pub use diag::{Ports, listening};
pub use error::Error;
pub use filter::Turns;
pub use follow::{Follow, Way};
pub use inward::{Accepted, LITTLE, acknowledge, break_off, end_in_order, is_nearly_read};
pub use lane::Lane;
pub use owners::Owner;
pub use rights::drop_rights;
pub use routes::PROTOCOL;
pub use watch::{Event, Link, Watch};

use filter::Filter;
use inward::Place;
use netlink::Netlink;
use netlink_packet_route::rule::RuleMessage;
use routes::Existing;
use std::fmt;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use tun::Tun;

/// An address with the length of its network's prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    /// An address; of a network any of it.
    pub address: IpAddr,
    /// In bits.
    pub prefix: u8,
}

impl Network {
    fn longest(v6: bool) -> u8 {
        if v6 { 128 } else { 32 }
    }

    /// Whether both are the same network.
    pub fn is(&self, other: &Network) -> bool {
        (self.network(), self.prefix) == (other.network(), other.prefix)
    }

    /// Whether an address is in the network.
    fn covers(&self, address: IpAddr) -> bool {
        address.is_ipv6() == self.address.is_ipv6()
            && Network { address, prefix: self.prefix }.network() == self.network()
    }

    /// The first address of the network.
    fn network(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(a) => {
                IpAddr::V4((a.to_bits() & u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0)).into())
            }
            IpAddr::V6(a) => {
                IpAddr::V6((a.to_bits() & u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0)).into())
            }
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// Numbers that zstackd takes in the kernel's policy routing. Two zstackds of one network namespace need different ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Numbers {
    /// The rules' priority; the one after it is taken too. Behind the local table's (0) and before the main table's (32766).
    pub priority: u32,
    /// The first of two routing tables.
    pub table: u32,
}

impl Numbers {
    /// The table in which all addresses are this host's.
    fn inward(self) -> u32 {
        self.table
    }

    /// The table by which answers leave.
    fn answers(self) -> u32 {
        self.table + 1
    }
}

impl Default for Numbers {
    /// Priorities 11800 and 11801, tables 11800 and 11801.
    fn default() -> Numbers {
        Numbers { priority: 11_800, table: 11_800 }
    }
}

/// What a front is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// The tun's name, at most 15 bytes.
    pub name: String,
    /// The tun's MTU in bytes, which should be the port's: 68 to 65535, with IPv6 at least 1280.
    pub mtu: u32,
    /// Packets that wait in each queue of the tun to be read before the kernel drops more.
    pub queue: u32,
    /// How many lanes, each for a thread of its own.
    pub lanes: usize,
    /// SYNs at most that are written back and not accepted yet, on all lanes together. With one lane it does not matter.
    pub held: u32,
    /// zstackd's own addresses, at least one and at most 64, with their networks' prefixes, which only programs see that ask for
    /// them: no route follows from them. The first of a family is the source of connections.
    pub addresses: Vec<Network>,
    /// The remote networks whose packets go to zstackd; 0.0.0.0/0 and ::/0 are possible.
    pub served: Vec<Network>,
    /// The metric of the routes to them; 0 is the kernel's own (0 for IPv4, 1024 for IPv6). Another route with a higher one is used
    /// while zstackd is not there.
    pub metric: u32,
    /// Routing tables and rules.
    pub numbers: Numbers,
}

impl Default for Wanted {
    /// `cv0`, MTU 1500, 1000 packets; without addresses and networks.
    fn default() -> Wanted {
        Wanted {
            name: "cv0".to_string(),
            mtu: 1500,
            queue: 1000,
            lanes: 1,
            held: 4096,
            addresses: Vec::new(),
            served: Vec::new(),
            metric: 0,
            numbers: Numbers::default(),
        }
    }
}

impl Wanted {
    /// Whether there is an address of the family.
    fn has(&self, v6: bool) -> bool {
        self.source(v6).is_some()
    }

    /// The source address of connections.
    fn source(&self, v6: bool) -> Option<IpAddr> {
        self.addresses.iter().map(|n| n.address).find(|a| a.is_ipv6() == v6)
    }

    /// Looks for values that cannot be.
    ///
    /// # Errors
    /// [`Error::Setting`].
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |what: String, remedy| Err(Error::Setting { what, remedy });
        let name = &self.name;
        if name.is_empty() || name.len() > 15 || name.bytes().any(|b| !b.is_ascii_graphic() || b"/:%".contains(&b)) {
            return wrong(format!("the interface name {name:?}"), "1 to 15 letters, digits, - _ .");
        }
        let least = if self.has(true) { 1280 } else { 68 };
        if !(least..=65_535).contains(&self.mtu) {
            return wrong(format!("MTU {}", self.mtu), "68 to 65535 bytes, with IPv6 at least 1280");
        }
        if self.addresses.is_empty() {
            return wrong("no address".to_string(), "zstackd needs an address of its own");
        }
        if self.addresses.len() > filter::OWN {
            return wrong(format!("{} addresses", self.addresses.len()), "at most 64");
        }
        for network in self.addresses.iter().chain(&self.served) {
            if network.prefix > Network::longest(network.address.is_ipv6()) {
                return wrong(format!("the prefix of {network}"), "at most 32 bits, of IPv6 128");
            }
        }
        for address in &self.addresses {
            let ip = address.address;
            if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() {
                return wrong(format!("the address {address}"), "an address that other hosts can send to");
            }
            if self.addresses.iter().filter(|a| a.address == ip).count() > 1 {
                return wrong(format!("the address {address} twice"), "name it once");
            }
        }
        if let Some(network) = self.served.iter().find(|n| !self.has(n.address.is_ipv6())) {
            let family = if network.address.is_ipv6() { "no IPv6 address" } else { "no IPv4 address" };
            return wrong(format!("the network {network}, but {family}"), "give zstackd one of this family");
        }
        let Numbers { priority, table } = self.numbers;
        if !(1..32_765).contains(&priority) {
            return wrong(
                format!("the priority {priority}"),
                "1 to 32764: between the local and the main table's rule",
            );
        }
        if !(256..u32::MAX).contains(&table) {
            return wrong(format!("the routing table {table}"), "256 or more: the kernel has those below");
        }
        Ok(())
    }
}

/// A front that stands. Dropping it removes all that was made; connections should be closed before, as their resets need its
/// addresses.
///
/// All calls may be made from any thread (but see [`Lane::connect_inward`]), and none blocks.
pub struct Front {
    wanted: Wanted,
    index: u32,
    netlink: Netlink,
    rules: Vec<RuleMessage>,
    filter: Filter,
    // The last: with them go the addresses.
    lanes: Vec<Arc<Lane>>,
}

impl Front {
    /// Makes everything, in the network namespace of the calling thread; or, if something fails, nothing. What a zstackd that was
    /// killed has left is cleared first. It needs CAP_NET_ADMIN, CAP_BPF and
    /// CAP_NET_BIND_SERVICE. With an IPv6 address it waits until the kernel delivers
    /// packets to it: milliseconds, and seconds on a machine that makes and removes network namespaces all the time.
    ///
    /// # Errors
    /// The text of the error is one line that says what to do.
    pub fn make(wanted: &Wanted) -> Result<Front, Error> {
        wanted.check()?;
        rights::check()?;
        // The lock: nobody else has a tun of this name now. And the first descriptor, so that those of sockets are higher.
        let tuns = Tun::make(&wanted.name, wanted.lanes)?;
        let mut netlink = Netlink::new().map_err(|e| Error::refused("a netlink socket cannot be made", &e))?;
        routes::clear(&mut netlink, Some(&wanted.name))?;
        routes::check_free(&mut netlink, wanted.numbers)?;
        let index = routes::link(&mut netlink, &wanted.name)
            .map_err(|e| Error::netlink(format!("the interface {} cannot be looked up", wanted.name), &e))?
            .header
            .index;

        // Before the interface is up, so that no packet passes the filters by.
        let least = tuns.iter().map(|tun| tun.as_fd().as_raw_fd() + 1).max().unwrap_or(0);
        let place =
            Place::new(least).map_err(|e| Error::refused("a socket of this network namespace cannot be made", &e))?;
        let place = Arc::new(place);
        let listener = |lane: usize, v6: bool| {
            let family = if v6 { "IPv6" } else { "IPv4" };
            let refused = |e| Error::refused(format!("no transparent listener for {family}"), &e);
            wanted.has(v6).then(|| inward::listener(v6, lane, &place).map_err(refused)).transpose()
        };
        let mut listeners = Vec::new();
        for lane in 0..tuns.len() {
            listeners.push([listener(lane, false)?, listener(lane, true)?]);
        }
        let own = wanted.addresses.iter().map(|a| a.address);
        let filter = Filter::attach(index, own, &listeners, wanted.held)?;
        let lane = |(number, (tun, listeners))| {
            let (signpost, owners) = (filter.signpost(number), filter.owners());
            Arc::new(Lane { listeners, place: place.clone(), signpost, owners, tun })
        };
        let lanes = tuns.into_iter().zip(listeners).enumerate().map(lane).collect();
        routes::set_up(&mut netlink, index, wanted, Existing::Refuse)?;

        // From here on `drop` has rules to remove.
        let mut front = Front { wanted: wanted.clone(), index, netlink, rules: Vec::new(), filter, lanes };
        for rule in routes::rules(wanted) {
            routes::add_rule(&mut front.netlink, &rule, Existing::Refuse)?;
            front.rules.push(rule);
        }
        // At last the routes, which lead packets here.
        routes::add_routes(&mut front.netlink, index, wanted, Existing::Refuse)?;
        Ok(front)
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.wanted.name
    }

    /// The interface's index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// One of the lanes, which are numbered from 0.
    pub fn lane(&self, number: usize) -> &Arc<Lane> {
        &self.lanes[number]
    }

    /// Watches what others do to the front. The calling thread has to be in its network namespace.
    ///
    /// # Errors
    /// Those of netlink; the text says what to do.
    pub fn watch(&self) -> Result<Watch, Error> {
        Watch::new(&self.wanted.name, true)
    }

    /// Makes again what somebody has removed or altered of the interface's state, addresses, routes and rules ([`Event::Altered`]):
    /// a network manager that is restarted removes rules that it does not know. What is there stays. An interface that is gone
    /// cannot be made again but by a new front.
    ///
    /// # Errors
    /// As [`Front::make`].
    pub fn restore(&mut self) -> Result<(), Error> {
        routes::set_up(&mut self.netlink, self.index, &self.wanted, Existing::Keep)?;
        for rule in &self.rules {
            routes::add_rule(&mut self.netlink, rule, Existing::Keep)?;
        }
        routes::add_routes(&mut self.netlink, self.index, &self.wanted, Existing::Keep)
    }

    /// These networks are reached through zstackd from now on, and no others. How many routes were removed.
    ///
    /// # Errors
    /// As [`Front::make`]; some of the new ones may be reached, and all that were before.
    pub fn serve(&mut self, served: Vec<Network>) -> Result<u32, Error> {
        let before = std::mem::replace(&mut self.wanted.served, served);
        self.wanted.check()?;
        routes::add_routes(&mut self.netlink, self.index, &self.wanted, Existing::Keep)?;
        let gone = before.iter().filter(|old| !self.wanted.served.iter().any(|new| old.is(new)));
        let mut count = 0;
        for network in gone {
            count += u32::from(routes::remove_route(&mut self.netlink, self.index, &self.wanted, network)?);
        }
        Ok(count)
    }

    /// What has become of the programs' packets so far.
    pub fn turns(&self) -> Turns {
        self.filter.turns()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        for rule in std::mem::take(&mut self.rules) {
            // Nobody could be told, and the next start clears it.
            let _ = routes::remove_rule(&mut self.netlink, &rule);
        }
    }
}

/// Removes the rules that zstackds whose process was killed have left in the network namespace of the calling thread, and tells how
/// many they were. Those of zstackds that live stay.
///
/// # Errors
/// Those of netlink; the text says what to do.
pub fn clear() -> Result<usize, Error> {
    let mut netlink = Netlink::new().map_err(|e| Error::refused("a netlink socket cannot be made", &e))?;
    routes::clear(&mut netlink, None)
}
