//! Calls of the simulated kernel that fail for want of something.

use super::Simulated;
use super::state::{State, state};

/// What there is none of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Want {
    /// Memory, or addresses for it.
    Memory,
    /// Descriptors.
    Descriptors,
    /// The seal F_SEAL_FUTURE_WRITE: the kernel is older.
    Seal,
}

/// Calls that fail.
#[derive(Clone, Copy)]
pub struct Plan {
    want: Want,
    /// So many calls that need it succeed before.
    after: u32,
    /// Then all fail, or one.
    lasting: bool,
}

impl State {
    /// Whether a call that needs `want` fails now.
    pub fn is_refused(&mut self, want: Want) -> bool {
        let Some(plan) = self.plan.as_mut().filter(|plan| plan.want == want) else { return false };
        if plan.after > 0 {
            plan.after -= 1;
            return false;
        }
        self.refused += 1;
        if !plan.lasting {
            self.plan = None;
        }
        true
    }
}

impl Simulated {
    /// The call after the next `after` that need `want` fails, and with `lasting` all that follow.
    pub fn refuse(want: Want, after: u32, lasting: bool) {
        let mut s = state();
        s.plan = Some(Plan { want, after, lasting });
        s.refused = 0;
    }

    /// No call fails any more. How many have.
    pub fn refused() -> u32 {
        let mut s = state();
        s.plan = None;
        s.refused
    }
}
