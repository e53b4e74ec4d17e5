//! Which connection a segment is probably for: a guess by a few bits of its tuple, made before anything is hashed. Peers that choose
//! these bits spoil each other's guesses, and cost the look into the table that every segment would cost without them.

use crate::net::Ends;

/// How many guesses there are: 16 KiB. Of a thousand busy connections a fifth spoil each other's.
const GUESSES: usize = 4096;

/// The index of the connection that was found last, for each value of the bits.
pub(super) struct Recent {
    guesses: Box<[u32; GUESSES]>,
}

impl Default for Recent {
    fn default() -> Recent {
        Recent { guesses: Box::new([0; GUESSES]) }
    }
}

impl Recent {
    #[inline(always)]
    fn place(ends: &Ends<'_>, source: u16, destination: u16) -> usize {
        let (c, d) = match *ends {
            Ends::V4 { source: [_, _, c, d], .. } | Ends::V6 { source: &[.., c, d], .. } => (c, d),
        };
        usize::from(u16::from_be_bytes([c, d]) ^ source ^ destination) % GUESSES
    }

    /// The index of the connection to which a segment of these ends and ports may belong: it may be another one's, or nobody's.
    #[inline(always)]
    pub fn guess(&self, ends: &Ends<'_>, source: u16, destination: u16) -> u32 {
        self.guesses[Recent::place(ends, source, destination)]
    }

    /// The connection was found.
    #[inline]
    pub fn found(&mut self, ends: &Ends<'_>, source: u16, destination: u16, index: u32) {
        self.guesses[Recent::place(ends, source, destination)] = index;
    }
}
