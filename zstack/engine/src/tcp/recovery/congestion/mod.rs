//! How much may be in flight: one of the algorithms, behind one face. Windows are in bytes.

use serde::{Deserialize, Serialize};

/// The algorithms.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Algorithm {
    /// CUBIC (RFC 9438).
    #[default]
    Cubic,
    /// Reno (RFC 5681).
    Reno,
}
