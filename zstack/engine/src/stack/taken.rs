//! Cookies that have made a connection, and connections that have ended, while cookies are about.
//!
//! A cookie is good for two minutes, longer than many a connection lives, and of one that has ended nothing is kept at the end that did
//! not close first: without this an ACK of its handshake that comes late, or once more, would make a second connection that nobody
//! wanted. And what belongs to no connection is left without an answer while cookies are good, unless it is known here that there was
//! one: its peer must learn that it is gone (RFC 5961, section 3.2, lives by that answer).

/// So many are remembered, as a power of two: 16 KiB, and only in stacks that ever sent a cookie. Whoever takes
/// another's place in here has completed a handshake: a flood from invented addresses cannot push others out.
const SIZE: u32 = 12;

/// The cookies that were taken last, each where its number's upper bits say.
#[derive(Debug, Default)]
pub(super) struct Taken {
    tags: Box<[u32]>,
}

impl Taken {
    /// `hash` is the tuple's, with a key that only we know; `cookie` our initial number.
    fn place(hash: u64, cookie: u32) -> (usize, u32) {
        let mixed = (hash ^ u64::from(cookie)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed >> (64 - SIZE)) as usize, mixed as u32 | 1)
    }

    /// A cookie is sent: from now on something is remembered.
    pub fn begin(&mut self) {
        if self.tags.is_empty() {
            self.tags = vec![0; 1 << SIZE].into();
        }
    }

    /// A cookie has made a connection.
    pub fn add(&mut self, hash: u64, cookie: u32) {
        let (at, tag) = Self::place(hash, cookie);
        if let Some(slot) = self.tags.get_mut(at) {
            *slot = tag;
        }
    }

    /// A connection that a peer has opened is no more.
    pub fn end(&mut self, hash: u64) {
        self.add(!hash, 0);
    }

    /// Whether a connection of this tuple has ended.
    pub fn ended(&self, hash: u64) -> bool {
        self.has(!hash, 0)
    }

    /// Whether it made a connection before.
    pub fn has(&self, hash: u64, cookie: u32) -> bool {
        let (at, tag) = Self::place(hash, cookie);
        self.tags.get(at) == Some(&tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_taken_once() {
        let mut taken = Taken::default();
        taken.add(7, 1);
        assert!(!taken.has(7, 1), "there are no cookies");
        taken.begin();
        taken.add(7, 1);
        assert!(taken.has(7, 1) && !taken.has(7, 2) && !taken.has(8, 1));
        assert!(!taken.ended(7));
        taken.end(7);
        assert!(taken.ended(7) && !taken.ended(8));
        for other in 0..1000 {
            taken.add(1 << 40 | other, 5);
        }
        let known = (0..1000).filter(|other| taken.has(1 << 40 | other, 5)).count();
        assert!(known > 850, "{known} of a thousand are remembered");
    }
}
