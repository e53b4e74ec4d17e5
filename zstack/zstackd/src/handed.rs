//! The SYNs that were handed on: whose connection is the kernel's stays so when it asks again, whatever has changed meanwhile. Else
//! a connection that had both would come about twice, with different numbers.

use crate::flow::Flow;
use std::collections::HashMap;
use zstack_wire::Seq;

/// So many are remembered at least; a SYN is repeated within seconds, or is another one.
const LEAST: usize = 8192;

/// The last ones.
#[derive(Debug, Default)]
pub struct Handed {
    young: HashMap<Flow, Seq>,
    old: HashMap<Flow, Seq>,
}

impl Handed {
    /// This one is handed on.
    pub fn add(&mut self, flow: Flow, isn: Seq) {
        if self.young.len() >= LEAST {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(flow, isn);
    }

    /// Whether it was, as far as is remembered.
    pub fn has(&self, flow: &Flow, isn: Seq) -> bool {
        // The last of a flow counts.
        self.young.get(flow).or_else(|| self.old.get(flow)) == Some(&isn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(port: u16) -> Flow {
        Flow { local: ([10, 0, 0, 1], port).into(), remote: ([10, 0, 0, 2], 80).into() }
    }

    #[test]
    fn the_same_syn_is_known_and_no_other() {
        let mut handed = Handed::default();
        handed.add(flow(1), Seq(7));
        assert!(handed.has(&flow(1), Seq(7)) && !handed.has(&flow(1), Seq(8)) && !handed.has(&flow(2), Seq(7)));
        handed.add(flow(1), Seq(8));
        assert!(!handed.has(&flow(1), Seq(7)) && handed.has(&flow(1), Seq(8)));
    }

    #[test]
    fn the_last_ones_are_known_and_memory_is_bounded() {
        let mut handed = Handed::default();
        (0..=u16::MAX).for_each(|port| handed.add(flow(port), Seq(port.into())));
        for port in u16::MAX - LEAST as u16 + 1..=u16::MAX {
            assert!(handed.has(&flow(port), Seq(port.into())));
        }
        assert!(handed.young.len() + handed.old.len() <= 2 * LEAST);
        assert!(!handed.has(&flow(0), Seq(0)));
    }
}
