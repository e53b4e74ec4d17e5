//! Whose a slot of a channel is that a connection of this process was in, and is no more.
#![forbid(unsafe_code)]

use crate::endpoint::Ep;
use crate::family;
use shmring::word::Code;

/// Who has a slot on this side that no connection of this process is in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Heir {
    /// Nobody.
    None,
    /// Processes of this process's family, as long as any of them holds that record in that life: a connection that was
    /// forked, and that this process has closed.
    Holders {
        /// The record.
        ep: Ep,
        /// Its [life](Ep::life).
        life: u32,
    },
    /// Perhaps processes of a family that this process is in no more.
    Unknown,
}

impl Heir {
    /// Whether nobody has the slot any more.
    pub fn is_over(self) -> bool {
        match self {
            Heir::None => true,
            Heir::Holders { ep, life } => family::is_over(ep, life),
            Heir::Unknown => false,
        }
    }
}

impl Code for Heir {
    type Bits = u64;
    fn code(self) -> u64 {
        match self {
            Heir::None => 0,
            Heir::Holders { ep, life } => u64::from(Some(ep).code()) | u64::from(life) << 32,
            Heir::Unknown => u64::MAX,
        }
    }
    fn of(code: u64) -> Heir {
        match (code, Option::<Ep>::of(code as u32)) {
            (0, _) | (_, None) => Heir::None,
            (u64::MAX, _) => Heir::Unknown,
            (_, Some(ep)) => Heir::Holders { ep, life: (code >> 32) as u32 },
        }
    }
}
