//! What must hold between any two calls, for tests and the fuzzer. It looks at every record.

use super::Recovery;
use super::records::Marks;
use crate::time::Time;

impl Recovery {
    /// Counts agree with the records. Panics where they do not.
    pub fn check(&self) {
        assert!(self.congestion.cwnd >= u32::from(self.mss), "cwnd {}", self.congestion.cwnd);
        let Some(flight) = &self.flight else { return };
        let (mut sacked, mut lost, mut again, mut at) = (0, 0, 0, flight.una);
        for record in flight.records.outstanding() {
            assert_eq!(record.seq, at, "records have gaps");
            assert!(record.len > 0);
            at = record.end();
            match record {
                record if record.sacked() => {
                    assert!(!record.marks.any(Marks::LOST));
                    sacked += record.len
                }
                record if record.marks.any(Marks::LOST) => lost += record.len,
                record if record.flying_again() => again += record.len,
                _ => {}
            }
        }
        assert_eq!(at, flight.nxt);
        assert_eq!((lost, again), (flight.lost, flight.again));
        if self.sack {
            assert_eq!(sacked, flight.sacked);
            let islands: u32 = flight.board.islands().map(|island| island.right.since(island.left)).sum();
            assert_eq!(sacked, islands, "{:?}", flight.board);
        }
        assert!(flight.una == flight.nxt || flight.expiry != Time::NEVER, "data in flight and no timer");
    }

    /// How many records there are: of what is in flight, and of what the port may still read.
    pub fn records(&self) -> usize {
        self.flight.as_ref().map_or(0, |flight| flight.records.len())
    }
}
