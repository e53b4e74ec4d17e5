//! Calls of the simulated kernel that fail for want of something.
#![forbid(unsafe_code)]

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
struct Plan {
    want: Want,
    /// So many calls that need it succeed before.
    after: u32,
    /// Then all fail, or one.
    lasting: bool,
}

/// Calls that are to fail, and how many have.
#[derive(Default)]
pub struct Faults {
    plan: Option<Plan>,
    refused: u32,
}

impl Faults {
    /// The call after the next `after` that need `want` fails, and with `lasting` all that follow.
    pub fn refuse(&mut self, want: Want, after: u32, lasting: bool) {
        *self = Faults { plan: Some(Plan { want, after, lasting }), refused: 0 };
    }

    /// No call fails any more. How many have.
    pub fn end(&mut self) -> u32 {
        self.plan = None;
        self.refused
    }

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
