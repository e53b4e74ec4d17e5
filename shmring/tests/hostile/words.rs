//! Words that a peer may have written.

use proptest::prelude::*;
use shmring::position::RingPos;
use shmring::ring::{self, Geometry};

/// Any word, most often one at a boundary.
pub fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0u64..20,
        (0u64..20).prop_map(|n| u64::MAX - n),
        (0u32..64, 0u64..5).prop_map(|(b, n)| (1u64 << b).wrapping_add(n).wrapping_sub(2)),
    ]
}

pub fn pos() -> impl Strategy<Value = RingPos> {
    word().prop_map(RingPos::new)
}

pub fn geometry() -> impl Strategy<Value = Geometry> {
    (0u32..=26, any::<u64>()).prop_map(|(b, h)| Geometry { size: 1 << b, home: h & ((1 << b) - 1) })
}

pub fn inside(g: &Geometry, spans: [ring::Span; 3], len: u64) {
    let mut sum = 0;
    for (off, len) in spans {
        let (off, end) = (off as u64, off as u64 + len as u64);
        assert!(end <= g.size, "{g:?} {spans:?}");
        assert!(len == 0 || end <= g.home || off >= g.home, "home and bulk lie apart: {g:?} {spans:?}");
        sum += len as u64;
    }
    assert_eq!(sum, len.min(g.size));
}

/// A generator of words, most of them near something interesting. xorshift64* (Vigna 2016).
pub struct Words(pub u64);

impl Words {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    pub fn any(&mut self, near: u64) -> u64 {
        let n = self.next();
        match n % 6 {
            0 => n,
            1 => (n >> 8) % 20,
            2 => u64::MAX - (n >> 8) % 20,
            3 => 1 << ((n >> 8) % 64),
            4 => near.wrapping_add((n >> 8) % 40).wrapping_sub(20),
            _ => near,
        }
    }
}
