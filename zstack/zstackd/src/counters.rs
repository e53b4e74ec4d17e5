//! What has happened, counted by reason.

/// Something that is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Counter {
    /// Connections that programs opened, and remote hosts took.
    OpenedOutward,
    /// Connections that remote hosts opened, and servers here took.
    OpenedInward,
    /// Connections that ended in order.
    EndedInOrder,
    /// Connections whose program's end was reset, because the outer one broke off.
    ProgramsReset,
    /// Connections whose remote host was sent a RST, because the program's end was gone.
    RemotesReset,
    /// Connections that remote hosts refused.
    RefusedByRemotes,
    /// Connections that servers here refused.
    RefusedByServers,
    /// Connections that could not reach their host.
    Unreachable,
    /// Connections that nobody answered.
    Unanswered,
    /// Connections that their programs gave up before the remote host had answered.
    GivenUp,
    /// SYNs that came again while their connection was being made.
    Repeated,
    /// SYNs that were dropped since too many connections were being made.
    TooMany,
    /// SYNs that were handed on, since their connections are the kernel's.
    Handed,
    /// Segments of a connection that ends here, for which no socket of ours was there: dropped.
    Stray,
    /// Packets from programs to the wire, unchanged.
    RawOut,
    /// Those that could not be sent.
    RawOutLost,
    /// Packets from the wire to programs, unchanged.
    RawIn,
    /// Those that the tun did not take.
    RawInLost,
    /// Packets that came to another worker's queue, and were handed over to that one.
    HandedOver,
    /// Those for which there was no room.
    HandedOverLost,
    /// Moments for which a worker slept among many connections, without being woken.
    Naps,
    /// System calls of the kernel's that failed where none should.
    CallsFailed,
}

/// Each counter, with its name.
pub const NAMES: &[(Counter, &str)] = &[
    (Counter::OpenedOutward, "opened_outward"),
    (Counter::OpenedInward, "opened_inward"),
    (Counter::EndedInOrder, "ended_in_order"),
    (Counter::ProgramsReset, "programs_reset"),
    (Counter::RemotesReset, "remotes_reset"),
    (Counter::RefusedByRemotes, "refused_by_remotes"),
    (Counter::RefusedByServers, "refused_by_servers"),
    (Counter::Unreachable, "unreachable"),
    (Counter::Unanswered, "unanswered"),
    (Counter::GivenUp, "given_up"),
    (Counter::Repeated, "syn_repeated"),
    (Counter::TooMany, "syn_too_many"),
    (Counter::Handed, "syn_handed_on"),
    (Counter::Stray, "stray"),
    (Counter::RawOut, "raw_out"),
    (Counter::RawOutLost, "raw_out_lost"),
    (Counter::RawIn, "raw_in"),
    (Counter::RawInLost, "raw_in_lost"),
    (Counter::HandedOver, "handed_over"),
    (Counter::HandedOverLost, "handed_over_lost"),
    (Counter::Naps, "naps"),
    (Counter::CallsFailed, "calls_failed"),
];

/// All counters.
#[derive(Clone, Debug, Default)]
pub struct Counters([u64; NAMES.len()]);

impl Counters {
    /// It has happened once more.
    pub fn count(&mut self, counter: Counter) {
        self.0[counter as usize] += 1;
    }

    /// How often it has happened.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    /// Each name with its number.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        NAMES.iter().map(|(counter, name)| (*name, self.get(*counter)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_place() {
        for (i, (counter, _)) in NAMES.iter().enumerate() {
            assert_eq!(*counter as usize, i);
        }
    }
}
