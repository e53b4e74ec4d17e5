//! What all workers have in common, beside the letters that they send each other: each lock is held for a look at a table.

use crate::config::Config;
use crate::division::Division;
use crate::handed::Handed;
use crate::quotas::Quotas;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What they have in common.
#[derive(Debug)]
pub struct Common {
    /// How many connections may end here.
    pub quotas: Quotas,
    /// Who has which.
    pub division: Division,
    /// SYNs whose connections are the kernel's.
    handed: Mutex<Handed>,
}

impl Common {
    /// Nothing has happened yet.
    pub fn new(config: &Config) -> Common {
        Common { quotas: Quotas::new(config), division: Division::new(config.workers), handed: Mutex::default() }
    }

    /// SYNs whose connections are the kernel's.
    pub fn handed(&self) -> MutexGuard<'_, Handed> {
        self.handed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
