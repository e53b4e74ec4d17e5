//! The longest network that an address is in: a tree whose nodes take 8 bits of the address each.

use crate::net::{Prefix, bits};
use std::net::IpAddr;

/// How many nodes there can be, of 1 KiB each.
const NODES: usize = 1 << 16;

/// An entry: nothing, what the longest network so far has, or the node for the next 8 bits.
#[derive(Clone, Copy)]
struct Entry(u32);

const NODE: u32 = 1 << 31;

/// Networks, each with a number.
pub(crate) struct Trie {
    /// The first is IPv4's root, the second IPv6's.
    nodes: Vec<[Entry; 256]>,
}

impl Trie {
    /// Of networks and their numbers; of two that are the same the later counts. `None`: there would be too many nodes.
    pub(crate) fn new(prefixes: &[(Prefix, u32)]) -> Option<Trie> {
        let mut sorted = prefixes.to_vec();
        // A longer one is entered into what shorter ones left, and never the other way.
        sorted.sort_by_key(|(prefix, _)| prefix.len);
        let mut trie = Trie { nodes: vec![[Entry(0); 256]; 2] };
        for (prefix, value) in sorted {
            trie.enter(prefix, value)?;
        }
        Some(trie)
    }

    fn enter(&mut self, prefix: Prefix, value: u32) -> Option<()> {
        debug_assert!(value < NODE - 1);
        let mut node = usize::from(prefix.address.is_ipv6());
        let (mut rest, mut len) = (prefix.bits(), prefix.len);
        while len > 8 {
            let at = (rest >> 120) as usize;
            let entry = self.nodes[node][at];
            node = if entry.0 & NODE != 0 {
                (entry.0 & !NODE) as usize
            } else {
                if self.nodes.len() == NODES {
                    return None;
                }
                self.nodes.push([entry; 256]);
                self.nodes[node][at] = Entry(NODE | (self.nodes.len() - 1) as u32);
                self.nodes.len() - 1
            };
            (rest, len) = (rest << 8, len - 8);
        }
        let first = (rest >> 120) as usize;
        self.nodes[node][first..first + (1 << (8 - len))].fill(Entry(value + 1));
        Some(())
    }

    /// The number of the longest network that the address is in.
    #[inline]
    pub(crate) fn longest(&self, address: IpAddr) -> Option<u32> {
        let mut node = usize::from(address.is_ipv6());
        let mut rest = bits(address);
        loop {
            let Entry(entry) = self.nodes[node][(rest >> 120) as usize];
            if entry & NODE == 0 {
                return entry.checked_sub(1);
            }
            // There is no node below an address's last bits.
            (node, rest) = ((entry & !NODE) as usize, rest << 8);
        }
    }
}
