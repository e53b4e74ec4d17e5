//! What lies in a program's hands meanwhile: room that it fills, bytes that it looks at or keeps, and holes in their place.

use crate::victim::Victim;
use crate::words::{Words, inside};
use shmring::driver::{self, Aim, Incoming, Turn};
use shmring::hole::{self, Entry, HOLES, Hole};
use shmring::position::{Corrupt, RingPos};
use shmring::ring;
use shmring::sync::Ordering;
use std::sync::atomic::AtomicBool;
use std::thread;

impl Victim<'_> {
    /// Reserves room, and commits some of it, or gives it back.
    pub fn fill_room(&mut self) {
        let c = self.conn();
        if self.ep.tx_reserved.load(Ordering::Relaxed) != 0 {
            match driver::turn(self, &c, Aim::Send).unwrap() {
                Turn::Ring => {
                    let n = self.some(self.reserved);
                    driver::commit(self, &c, n).unwrap();
                    self.seen.put += n;
                }
                _ => driver::give_back(self, self.ep, 1).unwrap(),
            }
        } else if driver::turn(self, &c, Aim::Send).unwrap() == Turn::Ring {
            let want = self.some(100);
            match driver::room(self, &c, want).unwrap() {
                Ok((base, room)) if room > 0 => {
                    let tail = self.ep.tx_tail.load(Ordering::Relaxed);
                    assert!(room <= want.min(self.size));
                    inside(&self.geometry(), self.geometry().spans(base, tail, room), room);
                    driver::reserve(self, &c, 1).unwrap();
                    self.reserved = room;
                }
                Ok(_) => {}
                Err(Corrupt) => self.seen.corrupt += 1,
            }
        }
    }

    /// Begins to look at what lies there, or ends that.
    pub fn view(&mut self) {
        let c = self.conn();
        if self.ep.rx_viewed.load(Ordering::Relaxed) != 0 {
            let limit = Incoming::limit(self);
            let head = self.ep.rx_head.load(Ordering::Relaxed);
            match self.w.next() % 4 {
                0 => return self.keep(true),
                1 => {
                    let (given, to) = (head.minus(self.some(100)), head.minus(self.some(100)));
                    return driver::return_kept(self, &c, given, to, limit).unwrap();
                }
                _ => {}
            }
            return driver::end_view(self, &c, limit).unwrap();
        }
        if self.w.next().is_multiple_of(2) {
            return self.keep(false);
        }
        if let Some(n) = driver::view(self, &c, 1).unwrap() {
            assert!(n > 0 && n <= self.size && self.ep.rx_viewed.load(Ordering::Relaxed) == 1);
            let (base, head) = (ring::base(&self.slot.header.producer[1]), self.ep.rx_head.load(Ordering::Relaxed));
            inside(&self.geometry(), self.geometry().spans(base, head, n), n);
            self.seen.viewed += n;
        }
    }

    /// Reads what lies there, and keeps it.
    fn keep(&mut self, goes_on: bool) {
        let c = self.conn();
        let (least, most) = (self.some(10), self.some(100));
        let head = self.ep.rx_head.load(Ordering::Relaxed);
        if let Some(kept) = driver::keep(self, &c, 1, goes_on, (least, most)).unwrap() {
            assert!(kept.n > 0 && kept.n <= most && kept.at == head && self.ep.rx_viewed.load(Ordering::Relaxed) == 1);
            assert_eq!(self.ep.rx_head.load(Ordering::Relaxed), head.plus(kept.n));
            let base = ring::base(&self.slot.header.producer[1]);
            inside(&self.geometry(), self.geometry().spans(base, head, kept.n), kept.n.min(self.size));
        }
    }
}

/// A hole of which everything may be wrong.
fn any_hole(w: &mut Words, near: u64) -> Hole {
    let [len, offset, index, generation] = [0; 4].map(|_| w.any(4096) as u32);
    Hole { at: RingPos::new(w.any(near)), len, offset, index, generation, hop: w.next() as u8, pool: w.next() as u8 }
}

/// The sender changes the table while it is looked at: what is found lies in what is published, and is found in one look.
#[test]
fn a_table_that_changes_meanwhile_says_nothing_beyond_the_ring() {
    let table: [Entry; HOLES] = std::array::from_fn(|_| Entry::default());
    let stop = AtomicBool::new(false);
    let rounds = if cfg!(miri) { 20 } else { 20_000 };
    thread::scope(|t| {
        t.spawn(|| {
            let mut w = Words(0xbad);
            while !stop.load(Ordering::Relaxed) {
                let hole = any_hole(&mut w, 1 << 20);
                table[w.next() as usize % HOLES].open(&hole);
                if w.next().is_multiple_of(8) {
                    table[w.next() as usize % HOLES].close(hole.at);
                }
                thread::yield_now();
            }
        });
        let _stop = crate::Stop(&stop);
        let mut w = Words(0x600d);
        let mut found = 0;
        let mut round = 0;
        // Some are found, or nothing was tested: the other thread comes to its turn some time.
        while round < rounds || found == 0 {
            let (at, size) = (RingPos::new(w.any(1 << 20)), 1 << (12 + w.next() % 14));
            if let Some((i, hole, part)) = hole::first(&table, at, size) {
                found += 1;
                assert!(i < HOLES && part.len > 0 && part.ahead + u64::from(part.len) <= size);
                assert_eq!(hole.at.plus(part.over.into()), at.plus(part.ahead));
            }
            round += 1;
            if found == 0 {
                thread::yield_now();
            }
        }
    });
}
