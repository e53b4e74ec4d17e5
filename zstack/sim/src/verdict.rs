//! What a run must come to.

use crate::endpoint::Endpoint;
use crate::scenario::{End, Scenario};
use crate::world::World;
use zstack::stack::{ConnId, Stack};
use zstack::tcp::Cause;
use zstack::time::Time;

/// No run of this scenario sends more frames than this: so many a segment, a connection, and a second of waiting.
pub fn frames(scenario: &Scenario) -> u64 {
    let mut total = 3_000;
    for conn in &scenario.conns {
        for (i, app) in conn.apps.iter().enumerate() {
            let peer = &conn.apps[1 - i];
            let room = u64::from(app.rings.0.min(peer.rings.1) / 4);
            let mtu = scenario.sides.iter().map(|s| u64::from(s.card.mtu)).min().unwrap_or(576) - 100;
            let segment = room.min(mtu).min(app.write.0).min(peer.read).clamp(1, 500);
            let heavy = scenario.links.iter().any(|l| l.loss > 1_000 || l.twice > 1_000 || l.late.0 > 500);
            total += app.send / segment * if heavy { 24 } else { 12 } + 600;
            // Probes of a closed window, and keep-alive, while a program stalls.
            let waits: u64 = app.stalls.iter().map(|s| s.1).sum();
            let keep = app.options.keepalive.map_or(0, |k| waits / (u64::from(k.1.min(k.0)) * 1_000));
            total += 2 * keep + waits / 1_000_000;
        }
    }
    for (from, to) in scenario.links.iter().flat_map(|l| &l.dead) {
        total += (to - from).min(1_000_000_000) / 100_000;
    }
    total
}

/// The other end of a connection.
fn peer<'a>(world: &'a World, side: usize, end: &Endpoint) -> Option<&'a Endpoint> {
    let conn = end.conn?;
    let mut ends = world.sides[1 - side].programs.ends.iter().filter(|e| e.conn == Some(conn) && e.app != end.app);
    ends.next_back()
}

/// Which connections are open, and how far they have come.
pub fn unfinished(world: &World) -> String {
    let mut text = String::new();
    for (s, side) in world.sides.iter().enumerate() {
        for end in side.programs.ends.iter().filter(|e| !e.freed) {
            text += &format!("host {s} {}; ", state(end));
            if let Some(info) = side.stack.info(end.id) {
                text += &format!("{:?}; ", info.tcp);
            }
        }
    }
    if text.is_empty() {
        text += "some connections have not begun";
    }
    text
}

fn state(e: &Endpoint) -> String {
    format!(
        "connection {:?} program {}: written {} of {}, released {}, published {}, read {}, established {}, peer closed {}, shut {}, \
         closed {}, aborted {}, ended {:?}, freed {}",
        e.conn,
        e.app,
        e.written,
        e.wants(),
        e.released,
        e.published,
        e.read,
        e.established,
        e.peer_closed,
        e.shut,
        e.closed,
        e.aborted,
        e.ended,
        e.freed
    )
}

/// Nobody has a timer or a packet due. That must not be while an end waits for something that can still happen: it may only
/// wait for a peer that is gone, and have nothing to tell it.
pub fn stuck(world: &World) -> Option<String> {
    for (s, side) in world.sides.iter().enumerate() {
        for end in side.programs.ends.iter().filter(|e| !e.freed) {
            let gone = !world.scenario.lives()
                || match peer(world, s, end) {
                    None => end.conn.is_none() || end.app == 1 || cookies(&world.scenario),
                    Some(p) => p.ended.is_some_and(|c| c != Cause::Done),
                };
            let idle = side.stack.info(end.id).is_none_or(|i| i.tcp.in_flight == 0 && i.tcp.unsent == 0);
            if !gone || !idle && !side_is_gone(world, s) {
                return Some(format!("nobody has anything to do, but: {}", unfinished(world)));
            }
        }
    }
    None
}

fn side_is_gone(world: &World, side: usize) -> bool {
    world.scenario.sides[side].vanishes.is_some_and(|at| at <= world.now)
}

/// Connections that ended in order at both ends.
pub fn done(world: &World) -> u64 {
    let good = |e: &&Endpoint| e.conn.is_some() && e.ended == Some(Cause::Done);
    world.sides.iter().map(|s| s.programs.ends.iter().filter(good).count() as u64).sum::<u64>() / 2
}

/// Whether handshakes may have been answered with cookies. Then a stack knows nothing of a connection whose handshake's last ACK is
/// lost, resets it when its second segment comes before the first, and takes an old ACK that comes once more for a new connection's
/// (RFC 4987, section 3.6).
fn cookies(scenario: &Scenario) -> bool {
    scenario.sides.iter().any(|s| s.half_open < 64)
}

/// Everything is over: was it as it must be?
pub fn at_the_end(world: &World) -> Vec<String> {
    let mut faults = Vec::new();
    for (s, side) in world.sides.iter().enumerate() {
        for end in &side.programs.ends {
            let Some(conn) = end.conn else {
                if (end.published > 0 || end.peer_closed) && !cookies(&world.scenario) {
                    faults.push(format!("host {s}: bytes of nobody's connection: {}", state(end)));
                }
                continue;
            };
            if side
                .programs
                .ends
                .iter()
                .rev()
                .find(|e| e.conn == end.conn && e.app == end.app)
                .is_some_and(|e| e.id != end.id)
            {
                // It came to nothing, and another took its place.
                if end.established {
                    faults.push(format!("host {s}: a second connection for one: {}", state(end)));
                }
                continue;
            }
            if let Some(peer) = peer(world, s, end) {
                faults.extend(
                    pair(world, conn, end, peer)
                        .map(|f| format!("host {s}: {f}: {}; peer: {}", state(end), state(peer))),
                );
            } else if end.published > 0 || end.ended == Some(Cause::Done) && !end.closed {
                faults.push(format!("host {s}: something came without a peer: {}", state(end)));
            }
        }
        if side.card.held() > 0 {
            faults.push(format!("host {s}: {} buffers were never given back", side.card.held()));
        }
        let left = side.stack.connections().count();
        if left > 0 && !side_is_gone(world, s) {
            faults.push(format!("host {s}: {left} connections are left in the stack"));
        }
    }
    faults
}

/// What must hold of an end and its peer.
fn pair(world: &World, conn: usize, end: &Endpoint, peer: &Endpoint) -> Option<String> {
    if end.published > peer.written || peer.released > end.published {
        return Some("more was acknowledged or published than there was".to_owned());
    }
    if end.peer_closed && (!peer.shut || end.published != peer.written) {
        return Some("the stream ended, but not where the peer ended it".to_owned());
    }
    let cause = end.ended?;
    if cause == Cause::Done && !(end.released == end.written && peer.published == end.written) {
        return Some("it ended in order, but not all bytes were delivered".to_owned());
    }
    if cause == Cause::Done && !end.peer_closed && !end.early {
        return Some("it ended in order, but the peer's stream did not".to_owned());
    }
    let plan = &world.scenario.conns[conn];
    let ours = &plan.apps[end.app];
    let rough = !world.scenario.lives()
        || cookies(&world.scenario)
        || world.scenario.sides.iter().any(|s| !s.stops.is_empty())
        || plan.apps.iter().any(|a| a.options.user_timeout > 0 || a.options.keepalive.is_some());
    let heavy = world
        .scenario
        .links
        .iter()
        .any(|l| l.loss > 800 || l.burst.0 > 0 || !l.dead.is_empty() || l.rate > 0 && l.rate < 100);
    let ends_early = |a: &crate::scenario::AppPlan| matches!(a.end, End::Close(_) | End::Abort(_));
    let good = match cause {
        Cause::Done => true,
        // A stack whose handshakes are answered with cookies, or whose SYN-ACKs were all lost, knows nothing of the connection.
        Cause::Refused => {
            plan.both
                || rough
                || heavy
                || plan.decision.is_some()
                    && end.app == 0
                    && plan.decision.is_some_and(|d| !d.accept || d.after > 1_000_000)
        }
        Cause::Aborted => {
            plan.decision.is_some_and(|d| !d.accept) && end.app == 1
                || end.aborted
                || end.early
                || end.closed && ends_early(ours)
                || rough
        }
        Cause::Reset => rough || heavy || peer.aborted || peer.early || ends_early(&plan.apps[peer.app]) || plan.both,
        Cause::TimedOut => {
            rough
                || heavy
                || peer.ended.is_some_and(|c| c != Cause::Done) && ends_early(&plan.apps[peer.app])
                || ends_early(ours)
        }
        Cause::HostUnreachable | Cause::NetUnreachable => rough || heavy,
        Cause::PortGone => world.scenario.sides.iter().any(|s| s.vanishes.is_some()),
    };
    (!good).then(|| format!("it ended with {cause:?} for no reason"))
}

/// Takes a connection out of its stack as plain data and lets the stack build it again. Not possible at every moment: not before it
/// is established, nor while the card may read its memory.
pub fn adopt(stack: &mut Stack, end: &Endpoint, now: Time) -> Result<Option<ConnId>, String> {
    if !end.established || end.ended.is_some() || end.closed {
        return Ok(None);
    }
    let Some(given) = stack.surrender(end.id) else { return Ok(None) };
    stack.adopt(now, given).map(Some).map_err(|e| format!("a connection that was surrendered was not adopted: {e:?}"))
}
