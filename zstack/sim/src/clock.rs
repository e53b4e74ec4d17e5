//! What a host's clock shows, so that the numbers that follow from it come round where the plan wants it.

use crate::card::{Card, CardPlan};
use crate::host::Programs;
use crate::network::service;
use crate::rng::mix;
use crate::scenario::{Clock, Scenario};
use crate::{network, packet};
use std::net::SocketAddr;
use zstack::net::Address;
use zstack::port::Port;
use zstack::stack::{Config, Connect, Stack};
use zstack::time::Time;

/// The secret of a host.
pub fn key(scenario: &Scenario, side: usize) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&mix(scenario.seed ^ side as u64).to_le_bytes());
    key
}

/// The port that a connection is opened from; `None`: its stack chooses one.
pub fn opener_port(scenario: &Scenario, conn: usize) -> Option<u16> {
    // Numbers depend on the ports: whoever wants certain ones says from where.
    let chosen = conn == 0 && scenario.sides.iter().any(|s| !matches!(s.clock, Clock::At(_)));
    (chosen || scenario.conns[conn].both).then_some(2000 + conn as u16)
}

/// The initial sequence number and the timestamp of a connection, of a stack whose clock shows 0: they grow by one every four, and
/// every thousand, microseconds (RFC 6528, section 3; RFC 7323, section 5.4).
fn at_zero(key: [u8; 16], (local, remote): (SocketAddr, SocketAddr)) -> (u32, u32) {
    let mut card = Card::new(CardPlan::plain(1500), 0);
    let config = Config::new(Address { ip: local.ip(), prefix: 0 }, key);
    let mut stack = Stack::new(config, card.capabilities(), Time(0)).expect("a configuration of the simulator's");
    let connect = Connect { local_port: Some(local.port()), ..Connect::new(remote, 1000) };
    stack.connect(Time(0), connect).expect("an empty stack");
    stack.turn(Time(0), &mut card, &mut Programs::default());
    let syn = card.out.pop().expect("a SYN");
    let (tcp, _) = packet::ip(&syn, 0).and_then(|ip| packet::tcp(&syn, &ip)).expect("a segment");
    (tcp.seq, tcp.stamp().expect("stacks use timestamps"))
}

/// When a stack begins a connection between its socket and a peer's with this number, in microseconds of its clock. Later than four
/// hours.
pub fn when(key: [u8; 16], sockets: (SocketAddr, SocketAddr), number: u32) -> u64 {
    (4 << 32) + 4 * u64::from(number.wrapping_sub(at_zero(key, sockets).0))
}

/// What a host's clock shows when the run begins, in microseconds.
pub fn origin(scenario: &Scenario, side: usize) -> u64 {
    let conn = &scenario.conns[0];
    let socket = |s: usize| {
        let port = if s == conn.opener { 2000 } else { service(0) };
        SocketAddr::new(network::address(s, conn.v6, scenario.routed), port)
    };
    let (key, sockets) = (key(scenario, side), (socket(side), socket(1 - side)));
    let begins = match scenario.sides[side].clock {
        Clock::At(at) => return at,
        Clock::Number(n) => when(key, sockets, n),
        Clock::Stamp(n) => {
            let round = 1000 << 32;
            round + 1000 * u64::from(n.wrapping_sub(at_zero(key, sockets).1))
        }
    };
    begins - conn.start
}
