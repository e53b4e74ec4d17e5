//! Many connections, one port: the face of the engine.
//!
//! [`Stack::turn`] does all the work: it receives, fires timers and sends. The other calls note what is wanted of a connection,
//! and the next turn does it. Nothing here blocks, and nothing is kept outside of the [`Stack`], which belongs to one thread; after
//! fork(2) only one of the processes may go on with it.
//!
//! A segment's way: `arrive` (checks, which connection, or which listener), [`crate::tcp`], `turn` (who sends now), `transmit`
//! (headers, checksum, port). What a [bridge](Config::bridge) has no use for leaves `arrive` by `bridge`, which also sends what others here
//! send.

mod arrive;
mod audit;
mod bridge;
mod calls;
mod config;
mod echo;
mod entry;
#[allow(unsafe_code)]
#[doc(hidden)]
pub mod fuzzing;
mod listeners;
mod names;
mod recent;
mod syn;
mod taken;
mod transmit;
mod turn;

pub use crate::event::{ConnId, ListenerId};
pub use crate::net::Unforwarded;
pub use audit::Audit;
pub use config::{
    Adopt, AdoptError, Config, ConfigError, Connect, ConnectError, Info, Limits, Listen, ListenError, Turn,
};
pub use echo::Echoed;

use crate::counters::Counters;
use crate::isn::Secrets;
use crate::net::{self, Interface};
use crate::port::{Capabilities, Medium};
use crate::queue::Queue;
use crate::rate::Strangers;
use crate::sip::Key;
use crate::slab::Slab;
use crate::table::Table;
use crate::tcp::recovery::Spare;
use crate::time::Time;
use crate::time_wait::Waiting;
use crate::tuple::Tuple;
use crate::wheel::Wheel;
use entry::Entry;
use listeners::Listeners;
use recent::Recent;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use taken::Taken;
use transmit::{Core, Trouble};

/// How many boxes of each kind are kept for connections that will need one.
const SPARES: usize = 256;

/// The connections, listeners and addresses of one port.
pub struct Stack {
    conns: Slab<Entry>,
    /// By tuple, with hashes of `key`.
    table: Table,
    recent: Recent,
    key: Key,
    secrets: Secrets,
    wheel: Wheel,
    waiting: Waiting,
    /// Connections that have something to send, in the order of their turns.
    due: Queue,
    half_open: u32,
    /// For how many turns timers have waited.
    held: u32,
    taken: Taken,
    echoes: Option<Box<echo::Echoes>>,
    /// Packets of others that wait for neighbours.
    queued: bridge::Queue,
    core: Core,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack")
            .field("connections", &self.conns.len())
            .field("half_open", &self.half_open)
            .field("waiting", &self.waiting)
            .field("due", &self.due.len())
            .finish_non_exhaustive()
    }
}

/// Frames by their numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frames {
    /// The next one that the port accepts.
    pub next: u64,
    /// Those below will not be read again.
    pub completed: u64,
}

impl Stack {
    /// A stack for a port with these capabilities.
    ///
    /// # Errors
    /// The configuration contradicts itself or the port.
    pub fn new(config: Config, port: Capabilities, now: Time) -> Result<Stack, ConfigError> {
        let Config { addresses, routes, mac, vlan, any_address, bridge, key, tcp, limits } = config;
        let zero = [
            (limits.connections, "connections"),
            (limits.half_open, "half_open"),
            (limits.receive, "receive"),
            (limits.send, "send"),
            (limits.timers, "timers"),
        ];
        if let Some((_, name)) = zero.into_iter().find(|&(limit, _)| limit == 0) {
            return Err(ConfigError::Limit(name));
        }
        if limits.first_port == 0 || limits.first_port > limits.last_port {
            return Err(ConfigError::Ports(limits.first_port, limits.last_port));
        }
        // Links of the wheel leave 31 bits for an index.
        let limits = Limits { connections: limits.connections.min(1 << 30), ..limits };
        let key = Key::new(&key);
        let net_key = [key.derive(10).hash(&[0]), key.derive(10).hash(&[1])];
        let net = net::Config {
            addresses,
            routes,
            mac,
            vlan,
            any_address,
            bridge,
            key: std::array::from_fn(|i| (net_key[i / 8] >> (i % 8 * 8)) as u8),
        };
        let net = Interface::new(net, port, now).map_err(ConfigError::Net)?;
        // Who cuts computes checksums, and the IP length of the whole must fit 16 bits.
        let port = Capabilities { tso: if port.checksum { port.tso.min(0xffff - 120) } else { 0 }, ..port };
        let link = if port.medium == Medium::Ethernet { 18 } else { 0 };
        let core = Core {
            net,
            bridge,
            listeners: Listeners::default(),
            options: tcp,
            limits,
            visits: limits.send.max(limits.receive).max(limits.timers),
            port,
            counters: Counters::default(),
            flights: Spare::new(SPARES),
            gaps: Spare::new(SPARES),
            frames: 1,
            completed: 1,
            unread: VecDeque::new(),
            waiters: BTreeMap::new(),
            confirmed: net::Path::default(),
            resets: Strangers::new(limits.resets, key.derive(13)),
            head: [0; transmit::HEAD],
            reply: vec![0; (usize::from(port.mtu) + link).max(256)].into(),
            sent: 0,
            budget: 0,
            full: false,
            gone: false,
            trouble: Trouble::default(),
            troubled: false,
        };
        Ok(Stack {
            conns: Slab::new(),
            table: Table::new(),
            recent: Recent::default(),
            key: key.derive(11),
            secrets: Secrets::new(&key),
            wheel: Wheel::new(now),
            waiting: Waiting::new(key.derive(12), limits.time_wait),
            due: Queue::default(),
            half_open: 0,
            held: 0,
            taken: Taken::default(),
            echoes: None,
            queued: bridge::Queue::default(),
            core,
        })
    }

    /// These routes, in the place of those from before, also for connections that are there.
    ///
    /// # Errors
    /// They contradict the addresses, and nothing has changed.
    pub fn set_routes(&mut self, routes: &[net::Route]) -> Result<(), ConfigError> {
        self.core.net.set_routes(routes).map_err(ConfigError::Net)?;
        for index in 0..self.conns.end() {
            if let Some(entry) = self.conns.at_mut(index) {
                entry.names.path.forget();
            }
        }
        Ok(())
    }

    /// What was dropped, and what happened, so far.
    pub fn counters(&self) -> &Counters {
        &self.core.counters
    }

    /// Which frames the port has accepted, and which of them it will not read again.
    pub(crate) fn frames(&self) -> Frames {
        Frames { next: self.core.frames, completed: self.core.completed }
    }

    /// How many connections wait in TIME-WAIT; they have no names any more.
    pub fn time_wait(&self) -> u32 {
        self.waiting.len()
    }

    /// A connection, for whoever looks at it; `None`: the name is stale.
    pub fn info(&self, conn: ConnId) -> Option<Info> {
        self.conns.get(conn.index, conn.generation).map(Entry::info)
    }

    /// All that is known of a connection, as text for people who look for a fault.
    pub fn detail(&self, conn: ConnId) -> Option<String> {
        let entry = self.conns.get(conn.index, conn.generation)?;
        Some(format!("waits {:?}, timer {:?}, {:?}", entry.waits, entry.timer, entry.tcb))
    }

    /// Whether there is a connection between these ends, or one that waits in TIME-WAIT.
    pub fn knows(&mut self, now: Time, local: SocketAddr, remote: SocketAddr) -> bool {
        let tuple = Tuple::new(local, remote);
        entry::look_up(&self.conns, &self.table, &self.key, &tuple).is_some() || self.waiting.get(now, &tuple).is_some()
    }

    /// All connections, those included that have ended and whose memory the port has not read yet.
    pub fn connections(&self) -> impl Iterator<Item = (ConnId, Info)> + '_ {
        self.conns.iter().map(|(index, generation, entry)| (ConnId { index, generation }, entry.info()))
    }
}

#[cfg(test)]
mod tests;
