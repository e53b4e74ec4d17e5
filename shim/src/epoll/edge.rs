//! What is an edge: news of the ring, and of the lifeline.

use super::set::{CALM, EDGE, Set, TAGGED, Watch, watch};
use core::sync::atomic::Ordering::Relaxed;
use engine::endpoint::Ep;
use engine::{channel, lifeline, rx, tx};
use libc::{EPOLLERR, EPOLLET, EPOLLHUP, EPOLLOUT, EPOLLRDHUP};
use shmring::switch::TxPhase;

pub(super) const WRITE: u32 = EPOLLOUT as u32 | libc::EPOLLWRNORM as u32 | libc::EPOLLWRBAND as u32;

pub(super) const READ: u32 = libc::EPOLLIN as u32 | libc::EPOLLRDNORM as u32;

pub(super) const GONE: u32 = (EPOLLRDHUP | EPOLLHUP | EPOLLERR) as u32;

/// All that a program can ask to be told; the rest of its mask says how.
pub(super) const NEWS: u32 = 0xffff;

const BOTH: u32 = (libc::EPOLLIN | EPOLLOUT) as u32;

/// News of the lifeline that an attached watch gets from the kernel.
pub(super) fn lifeline_mask(events: u32) -> u32 {
    // EPOLLOUT: a direction that has not gone up, or has come down, is written natively. Edge-triggered, an
    // idle lifeline that could be written all the time stays silent.
    let always = (EPOLLRDHUP | EPOLLET) as u32 | events & libc::EPOLLPRI as u32;
    // Edge-triggered: only what the program asked for. The kernel reports an edge once; asked for both directions, it
    // would report a write edge that could not be told from the read edge that the program waits for.
    always | if events & EPOLLET as u32 != 0 { events & BOTH } else { BOTH }
}

/// How far the sender has come on the ring, whether that is the end of its stream, and how often a lower mark has made news of what is
/// there: what makes an edge if it changes. A sender that goes back to the kernel is no news.
///
/// A sender says in memory that it ends before its FIN is on its way. Until that has come the kernel does not show the end, and
/// whoever looked again, for whatever reason, would be told of the bytes before it alone; of the FIN the kernel tells, an edge by
/// itself.
pub(super) fn written(ep: Ep, chan: &channel::Chan) -> u64 {
    let renewed = u64::from(ep.renewed.load(Relaxed) & 0x7fff) << 48;
    let fd = ep.local().fd.load(Relaxed);
    let ended = rx::is_last(ep, chan) && (fd < 0 || lifeline::look(fd, lifeline::ENDED) != 0);
    (rx::tail(ep, chan).number() ^ renewed) | u64::from(ended) << 63
}

/// Bytes that came since the last report are an edge for a watch that asked for data; space after a refused send is one
/// for a watch that asked for space (ep_poll_callback looks at the kind of news). Nothing else is an edge.
pub(super) fn note_edge(ep: Ep, w: &Watch) {
    let events = w.events.load(Relaxed);
    if events & EPOLLET as u32 == 0 {
        return;
    }
    let Some(chan) = ep.chan() else { return };
    let data = written(ep, chan) != w.seen.load(Relaxed) || rx::is_pushed(ep, chan);
    let space = note_space(ep, chan, w);
    if data && events & !WRITE & NEWS != 0 || space && events & WRITE != 0 {
        w.flags.fetch_or(EDGE, Relaxed);
    }
}

/// Whether there is space after a refused send of which the watch was not told. So there may be when the direction has come down, since the
/// receiver has left: of room on a lifeline that took at once what lay unread, the kernel has no edge to tell. Whether there is any, it is asked.
fn note_space(ep: Ep, chan: &channel::Chan, w: &Watch) -> bool {
    let blocked = ep.tx_blocked.load(Relaxed);
    let space = blocked != w.blocked.load(Relaxed)
        && match ep.tx_phase.get() {
            TxPhase::Ring | TxPhase::Native => tx::writable(ep, chan),
            // The lifeline was full, and the kernel tells when it is not.
            TxPhase::Rewind => false,
            TxPhase::Down => true,
        };
    if space {
        w.blocked.store(blocked, Relaxed);
    }
    space
}

/// The peer was served ([`serve_peer`]) of a connection of which an edge-triggered watch had no news: whether it has some by that.
pub(super) fn is_edge_by_that(ep: Ep, chan: &channel::Chan, w: &Watch) -> bool {
    let edge = w.events.load(Relaxed) & WRITE != 0 && note_space(ep, chan, w);
    if edge {
        w.flags.fetch_or(EDGE, Relaxed);
    }
    edge
}

/// A descriptor of `ep`, which is watched under number `fd`.
pub(super) fn number(ep: Ep, fd: i32) -> i32 {
    let at = ep.local().fd.load(Relaxed);
    if at >= 0 { at } else { fd }
}

/// Does what the peer of a watched connection has asked for: one that has left the ring waits for what it did not read.
pub(super) fn serve_peer(ep: Ep, chan: &channel::Chan, fd: i32) {
    tx::service(ep, chan, number(ep, fd));
}

/// The kernel, asked at time stamp `begun`, has `events` of the lifeline of a connection, which come after the first
/// `place` of its other events. With the set's lock held.
pub(super) fn lifeline_event(s: &Set, id: u64, events: u32, begun: u64, place: usize) {
    if let Some(w) = watch(id as u32)
        && let Some(ep) = w.ep.load(Relaxed)
        && w.flags.load(Relaxed) & TAGGED != 0
        && ep.local().refs.load(Relaxed) > 0
    {
        w.flags.fetch_and(!CALM, Relaxed);
        lifeline_news(ep, w, events);
        s.push_at((id & 0xf_ffff) as i32, begun, place);
    }
}

/// The kernel says that `events` hold on the lifeline, one of them newly.
fn lifeline_news(ep: Ep, w: &Watch, events: u32) {
    let mut edge = events & (w.events.load(Relaxed) | GONE);
    let fd = ep.local().fd.load(Relaxed);
    if events & GONE != 0 {
        // Asked again: a closed file that lives on elsewhere may speak under a number that is another's now.
        if fd >= 0 {
            ep.note_end(lifeline::look(fd, lifeline::ENDED));
        }
    } else {
        if ep.tx_phase.get() == TxPhase::Ring {
            // Room on an idle lifeline.
            edge &= !WRITE;
        }
        if let Some(chan) = ep.chan()
            && fd >= 0
            && edge & READ != 0
            && rx::only_repeats(ep, chan, fd)
        {
            // They were an edge when they came on the ring.
            edge &= !READ;
        }
    }
    let retold = w.retold.swap(0, Relaxed);
    let mask = lifeline_mask(w.events.load(Relaxed)) as i16;
    if retold != 0 && fd >= 0 && lifeline::state_of_news(fd, mask) == Some(retold) {
        // The kernel looked at the watch once more, since that was moved.
        return;
    }
    if events & GONE != 0 && fd >= 0 {
        w.heard.store(lifeline::state_of_news(fd, mask).unwrap_or(0), Relaxed);
    }
    if edge != 0 {
        w.flags.fetch_or(EDGE, Relaxed);
    }
}
