//! Which connection a segment is probably for: a guess by a few bits of its tuple, made before anything is hashed. Peers that choose
//! these bits spoil each other's guesses, and cost the look into the table that every segment would cost without them.

use crate::tuple::Tuple;

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
    #[inline]
    fn place(tuple: &Tuple) -> usize {
        let [.., c, d] = tuple.remote;
        usize::from(u16::from_be_bytes([c, d]) ^ tuple.remote_port ^ tuple.local_port) % GUESSES
    }

    /// An index: it may be the connection's, another one's, or nobody's.
    #[inline]
    pub fn guess(&self, tuple: &Tuple) -> u32 {
        self.guesses[Recent::place(tuple)]
    }

    /// The connection with this tuple was found.
    #[inline]
    pub fn found(&mut self, tuple: &Tuple, index: u32) {
        self.guesses[Recent::place(tuple)] = index;
    }
}
