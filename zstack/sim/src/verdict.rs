//! What a run must come to.

use crate::endpoint::Endpoint;
use crate::facts::{Sent, View};
use crate::scenario::{ConnPlan, Knows, Lie, LinkPlan, Scenario, SidePlan};
use zstack::counters::Counter;
use zstack::stack::Audit;
use zstack::tcp::Cause;

/// The longest run, in microseconds: three hours. A connection that somebody wants, or that nobody answers, ends sooner.
pub const LIMIT: u64 = 3 * 3_600 * 1_000_000;

/// No run of this scenario sends more frames than this: so many a segment, a connection, and a second of waiting.
pub fn frames(scenario: &Scenario) -> u64 {
    let mut total = 3_000;
    for conn in &scenario.conns {
        for (i, app) in conn.apps.iter().enumerate() {
            let peer = &conn.apps[1 - i];
            let room = u64::from(app.rings.0.min(peer.rings.1) / 4);
            let mtu = scenario.sides.iter().map(|s| u64::from(s.card.mtu)).min().unwrap_or(576) - 100;
            // A segment has two pieces of memory at most.
            let pieces = if app.piece > 0 { 2 * u64::from(app.piece) } else { u64::MAX };
            let segment = room.min(mtu).min(app.write.0).min(peer.read).min(pieces).clamp(1, 500);
            let heavy = scenario.links.iter().any(|l| l.loss > 1_000 || l.twice > 1_000 || l.late.0 > 500);
            total += app.send / segment * if heavy { 24 } else { 12 } + 600;
            // Probes of a closed window, and keep-alive, while a program stalls.
            let waits: u64 = app.stalls.iter().map(|s| s.1).sum();
            let keep = app.options.keepalive.map_or(0, |k| waits / (u64::from(k.1.min(k.0)) * 1_000));
            total += 2 * keep + waits / 1_000_000;
            // Who believes that the end of his stream has arrived goes, and the other one, whom keep-alive tells nothing else, waits.
            let deceived = scenario.noise.iter().any(|noise| noise.knows == Knows::Lies(Lie::Early));
            if let Some((idle, interval, _)) = app.options.keepalive.filter(|_| deceived) {
                total += 2 * LIMIT / (u64::from(idle.min(interval)).max(1) * 1_000);
            }
        }
    }
    for (from, to) in scenario.links.iter().flat_map(|l| &l.dead) {
        total += (to - from).min(1_000_000_000) / 100_000;
    }
    total
}

/// The other end of a connection.
fn peer<'a>(world: &View<'a>, side: usize, end: &Endpoint) -> Option<&'a Endpoint> {
    let conn = end.conn?;
    let mut ends = world.sides[1 - side].programs.ends.iter().filter(|e| e.conn == Some(conn) && e.app != end.app);
    ends.next_back()
}

/// Which connections are open, and how far they have come.
pub fn unfinished(world: &View<'_>) -> String {
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

/// Whether all that is open are connections that somebody has lied about: their ends may ask each other, in vain, for ever.
pub fn only_deceived(world: &View<'_>) -> bool {
    let mut open = world.sides.iter().flat_map(|side| side.programs.ends.iter().filter(|e| !e.freed));
    world.scenario.conns.len() == world.started && open.all(|e| e.conn.is_some_and(|conn| deceived(world, conn)))
}

/// Nobody has a timer or a packet due. That must not be while an end waits for something that can still happen: it may only
/// wait for a peer that is gone, have nothing to tell it, and have missed the frame that told it so.
pub fn stuck(world: &View<'_>) -> Option<String> {
    for (s, side) in world.sides.iter().enumerate() {
        for end in side.programs.ends.iter().filter(|e| !e.freed) {
            let idle = side.stack.info(end.id).is_none_or(|i| i.tcp.in_flight == 0 && i.tcp.unsent == 0);
            if !is_gone(world, s) && (!idle || !alone(world, s, end)) {
                return Some(format!("nobody has anything to do, but: {}", unfinished(world)));
            }
        }
    }
    None
}

/// Whether the other end is no more, and this one cannot know it. TCP without keep-alive notices nothing while it is idle (RFC 9293,
/// section 3.5.1, half-open connections).
fn alone(world: &View<'_>, side: usize, end: &Endpoint) -> bool {
    let Some(conn) = end.conn else { return false };
    let sent = &world.sent[conn];
    if is_gone(world, 1 - side) || deceived(world, conn) {
        return true;
    }
    match peer(world, side, end) {
        // The handshake's last ACK was lost as often as the peer's SYN-ACK came; it gave up without a word, as Linux does. Or it knew
        // nothing of the connection from the beginning (RFC 4987, section 3.6), and the ACK with the cookie was lost.
        None => end.app == 0 && (sent[side].lost > 0 || stopped(world) || full(world, 1 - side)),
        // What the peer sent at its end was lost, or our answer to it, or what it answered on that.
        Some(peer) => match peer.ended {
            Some(Cause::Aborted) => {
                let late = |sent: &Sent| sent.lost > 0 && sent.lost_at >= peer.ended_at;
                sent.iter().any(late) || full(world, 1 - side)
            }
            // Who gives up for want of an answer says nothing (tcp_write_err).
            Some(Cause::TimedOut | Cause::HostUnreachable) => {
                sent[1 - side].resets == 0 || sent.iter().any(|sent| sent.lost > 0) || full(world, 1 - side)
            }
            _ => false,
        },
    }
}

/// Whether a host's port had no room at times: an RST that answers a segment of no connection is not kept until there is some.
fn full(world: &View<'_>, side: usize) -> bool {
    world.sides[side].stack.counters()[Counter::PortFull] > 0
}

/// Whether somebody who knew a connection's numbers lied about it, so that its ends disagree.
fn deceived(world: &View<'_>, conn: usize) -> bool {
    world.sent[conn].iter().any(|sent| sent.deceived)
}

/// Whether a host stood still for a while.
fn stopped(world: &View<'_>) -> bool {
    world.scenario.sides.iter().any(|s| !s.stops.is_empty())
}

fn is_gone(world: &View<'_>, side: usize) -> bool {
    world.scenario.sides[side].vanishes.is_some_and(|at| at <= world.now)
}

/// Connections that ended in order at both ends.
pub fn done(world: &View<'_>) -> u64 {
    let good = |e: &&Endpoint| e.conn.is_some() && e.ended == Some(Cause::Done);
    world.sides.iter().map(|s| s.programs.ends.iter().filter(good).count() as u64).sum::<u64>() / 2
}

/// Everything is over: was it as it must be?
pub fn at_the_end(world: &View<'_>) -> Vec<String> {
    let mut faults = Vec::new();
    for (s, side) in world.sides.iter().enumerate() {
        for end in &side.programs.ends {
            let Some(conn) = end.conn else {
                if end.published > 0 || end.peer_closed {
                    faults.push(format!("host {s}: bytes of nobody's connection: {}", state(end)));
                }
                continue;
            };
            let again = side.programs.ends.iter().rev().find(|e| e.conn == end.conn && e.app == end.app);
            if again.is_some_and(|e| e.id != end.id) {
                // It came to nothing, and another took its place.
                if end.established {
                    faults.push(format!("host {s}: a second connection for one: {}", state(end)));
                }
                continue;
            }
            let peer = peer(world, s, end);
            let wrong = match peer {
                Some(peer) => streams(end, peer, deceived(world, conn)),
                None if deceived(world, conn) => None,
                None if end.published > 0 || end.peer_closed || end.released > 0 => {
                    Some("something came without a peer".to_owned())
                }
                None => None,
            };
            let wrong = wrong.or_else(|| cause(world, s, conn, end, peer).filter(|_| !deceived(world, conn)));
            faults.extend(wrong.map(|fault| {
                let peer = peer.map_or("none".to_owned(), state);
                format!("host {s}: {fault}: {}; peer: {peer}; sent: {:?}", state(end), world.sent[conn])
            }));
        }
        if side.card.held() > 0 {
            faults.push(format!("host {s}: {} buffers were never given back", side.card.held()));
        }
        if is_gone(world, s) {
            continue;
        }
        let left = side.stack.audit();
        if left != Audit::default() {
            faults.push(format!("host {s}: something is left in the stack: {left:?}"));
        }
        if let Some(deadline) = side.deadline {
            faults.push(format!("host {s}: a timer is left, at {deadline}, and nothing to wait for"));
        }
    }
    faults
}

/// What must hold of the streams between an end and its peer. `deceived`: what the peer was told to have arrived may not have.
fn streams(end: &Endpoint, peer: &Endpoint, deceived: bool) -> Option<String> {
    if end.published > peer.written || peer.released > end.published && !deceived {
        return Some("more was acknowledged or published than there was".to_owned());
    }
    if end.peer_closed && (!peer.shut || end.published != peer.written) {
        return Some("the stream ended, but not where the peer ended it".to_owned());
    }
    if end.ended == Some(Cause::Done) && !deceived && !(end.released == end.written && peer.published == end.written) {
        return Some("it ended in order, but not all bytes were delivered".to_owned());
    }
    if end.ended == Some(Cause::Done) && !end.peer_closed && !end.early {
        return Some("it ended in order, but the peer's stream did not".to_owned());
    }
    None
}

/// Whether an end has a reason for the cause that it tells.
fn cause(world: &View<'_>, side: usize, conn: usize, end: &Endpoint, peer: Option<&Endpoint>) -> Option<String> {
    let cause = end.ended?;
    let scenario = world.scenario;
    let plan = &scenario.conns[conn];
    let options = &plan.apps[end.app].options;
    let (ours, theirs) = (world.sent[conn][side], world.sent[conn][1 - side]);
    let lost = ours.lost + theirs.lost;
    let stopped = stopped(world);
    let full = full(world, 0) || full(world, 1);
    let refused = plan.decision.is_some_and(|d| !d.accept);
    let good = match cause {
        Cause::Done => peer.is_some(),
        // An RST answered our SYN: the peer refused, or had given the connection up before.
        Cause::Refused => {
            theirs.resets > 0
                && (end.app == 0 || plan.both)
                && (refused || peer.is_some_and(|p| p.ended.is_some_and(|c| c != Cause::Done)))
        }
        Cause::Aborted => end.aborted || refused && end.app == 1 || end.closed,
        // Only an RST resets, and only who has no connection any more, or does not read any more, sends one. After a good end it may
        // be told to who did not hear of that.
        // After its FIN, one that no longer sends.
        Cause::Broken if !end.peer_closed => false,
        Cause::Reset | Cause::Broken => {
            theirs.resets > 0
                && match peer {
                    Some(p) => p.aborted || p.ended.is_some_and(|c| c != Cause::Done || lost > 0),
                    // It gave up before it heard the handshake's last ACK, or before its port had room for the SYN-ACK.
                    None => lost > 0 || stopped || full,
                }
        }
        // After many losses; or sooner, where a timer of the program's own, a peer that stands still, or one that reads no more is
        // the reason.
        Cause::TimedOut => {
            lost >= 5
                || scenario.sides.iter().any(|s| s.card.ethernet) && world.lost >= 5
                || options.user_timeout > 0 && (lost > 0 || full || stalls(plan) || plan.decision.is_some())
                || options.keepalive.is_some_and(|k| lost > 0 || full || u64::from(k.1) * u64::from(k.2) * 1000 < round_trip(scenario))
                || stopped
                || is_gone(world, 1 - side)
                || end.closed
                // A SYN waits until its neighbour's address is known; a SYN-ACK for which nothing is kept is lost instead.
                || options.user_timeout > 0 && !end.established && scenario.sides.iter().any(|s| s.card.ethernet)
                // A listener whose program decides has no cookies for those that it cannot keep.
                || world.sides[1 - side].stack.counters()[Counter::SynDeferredFull] > 0
        }
        // The neighbour's address was asked for in vain, or the port had no room for the questions.
        Cause::HostUnreachable => {
            scenario.sides[side].card.ethernet && (world.lost > 0 || stopped || full || is_gone(world, 1 - side))
        }
        // No router of a simulation sends these.
        Cause::NetUnreachable
        | Cause::NoProtocol
        | Cause::Prohibited
        | Cause::HostUnknown
        | Cause::Isolated
        | Cause::SourceRoute
        | Cause::Malformed => false,
        Cause::PortGone => is_gone(world, side),
    };
    (!good).then(|| format!("it ended with {cause:?} for no reason"))
}

/// The longest that an answer is under way, in microseconds, with cards that read late at both ends.
fn round_trip(scenario: &Scenario) -> u64 {
    let link = |l: &LinkPlan| l.delay + l.jitter + l.late.1 + (l.queue * 1000).checked_div(l.rate).unwrap_or(0);
    let card = |s: &SidePlan| s.card.late.map_or(0, |late| 2 * u64::from(late.1));
    scenario.links.iter().map(link).sum::<u64>() + scenario.sides.iter().map(card).sum::<u64>()
}

/// Whether a program of a connection stops reading for a while.
fn stalls(plan: &ConnPlan) -> bool {
    plan.apps.iter().any(|a| !a.stalls.is_empty())
}
