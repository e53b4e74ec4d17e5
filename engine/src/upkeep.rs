//! What is done for a connection before anybody is told of it, or waits for it: a peer that has left gets what it did not
//! read, this side follows to the ring and back, and a sending direction whose lifeline has ended goes down.

use crate::channel::Chan;
use crate::endpoint::Ep;
use crate::readiness::{self, Said};
use crate::{rx, tx};
use core::sync::atomic::Ordering::Relaxed;

/// Everything that holds of `ep` by then, as `poll` events; see [`readiness::ask`].
pub fn now(ep: Ep, chan: &Chan, fd: i32, wanted: i16) -> i16 {
    let (events, look) = in_memory(ep, chan, fd, wanted);
    if look { with(ep, chan, fd, wanted, events, tx::look(ep, chan, fd, readiness::LOOK)) } else { events }
}

/// What memory says of `ep` by then, and whether its lifeline is to be asked for the rest; see [`readiness::in_memory`].
pub fn in_memory(ep: Ep, chan: &Chan, fd: i32, wanted: i16) -> (i16, bool) {
    rx::is_looked_at(ep, chan);
    // So are most, where many are looked at.
    if wanted & (readiness::WRITE | readiness::UNSEEN) == 0 && rx::is_quiet(ep, chan) {
        return (0, readiness::shows(ep, chan, fd));
    }
    tx::service(ep, chan, fd);
    rx::advance(ep, chan, fd);
    if wanted & libc::POLLOUT != 0 {
        tx::note_waiting(ep, chan);
    }
    readiness::in_memory(ep, chan, fd, wanted)
}

/// Everything that holds of `ep`, of which memory said `events`, and the lifeline has `seen` since.
pub fn with(ep: Ep, chan: &Chan, fd: i32, wanted: i16, events: i16, seen: i16) -> i16 {
    let events = match readiness::add(ep, chan, events, seen) {
        Said::Events(events) => return events,
        Said::Ended(events) => events,
    };
    tx::sink(ep, chan, fd);
    if ep.latched.load(Relaxed) == 0 {
        return events;
    }
    match readiness::ask(ep, chan, fd, wanted) {
        Said::Events(events) | Said::Ended(events) => events,
    }
}
