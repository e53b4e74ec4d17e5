//! By whom a connection is known: its peer, its listener, the table, the host.

use crate::net::{Ends, Path};
use crate::tuple::Tuple;

/// The connection is in the table of tuples: segments of its tuple are its own.
pub(super) const NAMED: u8 = 1 << 0;
/// It counts among the half-open ones.
pub(super) const HALF: u8 = 1 << 1;
/// The host knows of it.
pub(super) const TOLD: u8 = 1 << 2;
/// Its addresses are IPv4.
pub(super) const V4: u8 = 1 << 3;

/// What a connection goes by.
pub(super) struct Names {
    pub tuple: Tuple,
    /// The way to the peer.
    pub path: Path,
    /// The listener that it came to; 0: we opened it.
    pub listener: u32,
    pub marks: u8,
}

impl Names {
    /// Whether segments with this tuple are the connection's.
    #[inline]
    pub fn is(&self, tuple: &Tuple) -> bool {
        self.marks & NAMED != 0 && self.tuple == *tuple
    }

    /// The same of a segment as it stands in its frame.
    #[inline(always)]
    pub fn are(&self, ends: &Ends<'_>, source: u16, destination: u16) -> bool {
        let Tuple { local, remote, local_port, remote_port } = &self.tuple;
        if (*local_port, *remote_port) != (destination, source) {
            return false;
        }
        match ends {
            Ends::V4 { source, destination } => {
                self.marks & (NAMED | V4) == NAMED | V4 && remote[12..] == *source && local[12..] == *destination
            }
            Ends::V6 { source, destination } => self.marks & NAMED != 0 && remote == *source && local == *destination,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuple::map_v4;

    #[test]
    fn a_segment_is_the_connections_if_all_of_its_names_are() {
        let names = |tuple: Tuple, marks| Names { tuple, path: Path::default(), listener: 0, marks };
        let v4 = Tuple::new("10.0.0.1:80".parse().unwrap(), "10.0.0.2:81".parse().unwrap());
        let ends = |source, destination| Ends::V4 { source, destination };
        let (us, them) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        let connection = names(v4, NAMED | V4);
        assert!(connection.are(&ends(them, us), 81, 80));
        assert!(!connection.are(&ends(us, them), 81, 80) && !connection.are(&ends(them, us), 80, 81));
        assert!(!connection.are(&ends(them, them), 81, 80) && !connection.are(&ends(us, us), 81, 80));
        assert!(!connection.are(&ends(them, us), 82, 80) && !connection.are(&ends(them, us), 81, 82));
        assert!(!names(v4, V4).are(&ends(them, us), 81, 80), "it has no name any more");

        let v6 = Tuple::new("[fd00::1]:80".parse().unwrap(), "[fd00::2]:81".parse().unwrap());
        let ends = Ends::V6 { source: &v6.remote, destination: &v6.local };
        assert!(names(v6, NAMED).are(&ends, 81, 80) && !names(v6, NAMED).are(&ends, 80, 81));
        assert!(!names(v6, 0).are(&ends, 81, 80));
        assert!(!names(v6, NAMED).are(&Ends::V6 { source: &v6.local, destination: &v6.remote }, 81, 80));

        // The last four bytes of an IPv6 address are no IPv4 address.
        let mut alike = v6;
        (alike.local[12..]).copy_from_slice(&us);
        (alike.remote[12..]).copy_from_slice(&them);
        assert!(!names(alike, NAMED).are(&Ends::V4 { source: them, destination: us }, 81, 80));
        let (source, destination) = (&map_v4(them), &map_v4(us));
        assert!(!names(alike, NAMED).are(&Ends::V6 { source, destination }, 81, 80));
    }
}
