//! What a stack keeps of each connection.

use super::names::{HALF, Names};
use super::transmit::{Core, Cx, Run, trouble};
use super::{ConnId, Info, ListenerId};
use crate::payload::Host;
use crate::port::Port;
use crate::queue;
use crate::sip::Key;
use crate::slab::Slab;
use crate::table::Table;
use crate::tcp::{Phase, Tcb};
use crate::time::Time;
use crate::tuple::Tuple;
use crate::wheel;

/// How many frames with payload a connection sends in its turn, before the others have theirs.
const QUOTA: u32 = 16;

/// Where a connection waits for its turn to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Waits {
    /// It has nothing to send.
    Not,
    /// In the list of those that are due.
    Due,
    /// For its neighbour's address.
    Neighbour,
}

/// A connection with its names and places.
pub(super) struct Entry {
    pub tcb: Tcb,
    pub names: Names,
    pub timer: wheel::Link,
    pub place: queue::Link,
    pub waits: Waits,
}

/// What a connection wants of its stack after a call.
pub(super) enum Wants {
    /// Its state has changed: [`super::Stack::settle`].
    Settling,
    /// Its places.
    Place(Place),
}

/// Where a connection is to be put.
pub(super) struct Place {
    /// Into the list of those that are due: it did not wait for its turn to send yet.
    pub turn: bool,
    /// Into the wheel, where it stands later or not at all; [`Time::NEVER`]: not so.
    pub timer: Time,
}

impl Entry {
    /// Calls the connection.
    #[inline(always)]
    pub fn call<P: Port<Buffer = H::Buffer>, H: Host>(
        &mut self,
        run: &mut Run<'_, P, H>,
        core: &mut Core,
        id: ConnId,
        call: impl FnOnce(&mut Tcb, &mut Cx<'_, '_, P, H>),
    ) {
        let mut cx = Cx { run, core, id, names: &mut self.names, quota: QUOTA };
        call(&mut self.tcb, &mut cx);
        if cx.core.troubled
            && let Some(neighbour) = trouble(&mut self.tcb, &mut cx)
            && self.waits == Waits::Not
        {
            self.waits = Waits::Neighbour;
            core.waiters.entry(neighbour).or_default().push(id.index);
        }
    }

    /// What it wants now; `timed` as of [`Entry::places`].
    #[inline(always)]
    pub fn wants(&mut self, timed: bool) -> Wants {
        if self.names.marks & HALF != 0 || self.tcb.phase() == Phase::Closed || self.tcb.freed() {
            return Wants::Settling;
        }
        Wants::Place(self.places(timed))
    }

    /// Where it is to be put, whatever its state. `timed`: its timer is looked at in any case. Else it is not where the connection is
    /// due: its turn to send, which comes before the stack's turn ends or with the next one, does it.
    #[inline(always)]
    pub fn places(&mut self, timed: bool) -> Place {
        let due = self.tcb.due();
        let mut timer = Time::NEVER;
        if timed || !due || self.waits == Waits::Neighbour {
            let deadline = self.tcb.deadline();
            if self.timer.wants(deadline) {
                timer = deadline;
            }
        }
        let turn = due && self.waits == Waits::Not;
        if turn {
            self.waits = Waits::Due;
        }
        Place { turn, timer }
    }

    pub fn info(&self) -> Info {
        Info {
            local: self.names.tuple.local(),
            remote: self.names.tuple.remote(),
            listener: (self.names.listener != 0).then_some(ListenerId(self.names.listener)),
            tcp: self.tcb.info(),
        }
    }
}

/// The index of the connection with a tuple, by the table.
#[inline(never)]
pub(super) fn look_up(conns: &Slab<Entry>, table: &Table, key: &Key, tuple: &Tuple) -> Option<u32> {
    table.look(tuple.hash(key) as u32, |index| conns.at(index).is_some_and(|entry| entry.names.is(tuple)))
}

/// 512 bytes are the bound for all that an idle connection takes: this, 8 to 16 for its generation, and at most 31.5 for its slot
/// in the table while that grows.
const _: () = assert!(size_of::<Entry>() <= 472);

impl wheel::Links for Slab<Entry> {
    #[inline]
    fn link(&mut self, index: u32) -> &mut wheel::Link {
        &mut self.at_mut(index).expect("connections leave the wheel before they go").timer
    }
}

impl queue::Links for Slab<Entry> {
    #[inline]
    fn link(&mut self, index: u32) -> &mut queue::Link {
        &mut self.at_mut(index).expect("connections leave the list before they go").place
    }
}
