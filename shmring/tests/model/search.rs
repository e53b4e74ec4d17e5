//! Every state reachable by any interleaving, breadth first; the shortest trace to a bad one.

use crate::hands::{self, Hand};
use crate::world::{Config, Verdict, World};
use crate::{receiver, sender};
use core::hash::{Hash, Hasher};

/// A successor and how it came about.
pub type Next = (World, &'static str, u8);

struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }
    fn write(&mut self, bytes: &[u8]) {
        for c in bytes.chunks(8) {
            let mut w = [0; 8];
            w[..c.len()].copy_from_slice(c);
            self.write_u64(u64::from_le_bytes(w));
        }
    }
    fn write_u8(&mut self, v: u8) {
        self.write_u64(u64::from(v));
    }
    fn write_u64(&mut self, v: u64) {
        self.0 = (self.0.rotate_left(5) ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    fn write_isize(&mut self, v: isize) {
        self.write_u64(v as u64);
    }
    fn write_usize(&mut self, v: usize) {
        self.write_u64(v as u64);
    }
}

fn hash(w: &World) -> usize {
    let mut h = Mix(0);
    w.hash(&mut h);
    h.finish() as usize
}

/// The states seen: an open-addressing table of indices into a list.
struct Seen {
    list: Vec<World>,
    table: Vec<u32>,
}

impl Seen {
    fn new() -> Seen {
        Seen { list: Vec::new(), table: vec![u32::MAX; 1 << 16] }
    }
    /// Index of `w`, and whether it is new.
    fn add(&mut self, w: World) -> (u32, bool) {
        if self.list.len() * 2 > self.table.len() {
            let mask = self.table.len() * 2 - 1;
            self.table = vec![u32::MAX; mask + 1];
            for (i, w) in self.list.iter().enumerate() {
                let mut at = hash(w) & mask;
                while self.table[at] != u32::MAX {
                    at = (at + 1) & mask;
                }
                self.table[at] = i as u32;
            }
        }
        let mask = self.table.len() - 1;
        let mut at = hash(&w) & mask;
        loop {
            match self.table[at] {
                u32::MAX => {
                    self.table[at] = self.list.len() as u32;
                    self.list.push(w);
                    return (self.table[at], true);
                }
                i if self.list[i as usize] == w => return (i, false),
                _ => at = (at + 1) & mask,
            }
        }
    }
}

/// All that can happen next.
pub fn successors(c: &Config, w: &World, out: &mut Vec<Next>) {
    for i in 0..c.senders.len() {
        sender::step(c, w, i, out);
    }
    for i in 0..c.receivers.len() {
        receiver::step(c, w, i, out);
    }
    // A FIN needs a window as a byte does (tcp_snd_wnd_test).
    if w.k.queue.len >= c.window {
    } else if w.k.wire.len > 0 {
        let mut n = *w;
        let id = n.k.wire.pop();
        n.arrives(id);
        out.push((n, "kernel: a byte arrives", 9));
    } else if w.k.fin == 1 {
        let mut n = *w;
        n.k.fin = 2;
        n.k.edge = true;
        out.push((n, "kernel: FIN arrives", 9));
    }
    if c.half && !w.k.half && !w.k.deaf {
        let mut n = *w;
        n.k.half = true;
        out.push((n, "the receiver shuts down its sending side", 9));
    }
    for p in 0..4 {
        if c.kill & !w.dead & (1 << p) != 0 {
            kill(c, w, p, out);
        }
    }
}

/// Process `p` dies here and now.
fn kill(c: &Config, w: &World, p: u8, out: &mut Vec<Next>) {
    let mut n = *w;
    n.dead |= 1 << p;
    let mut any = false;
    for (i, &(q, _)) in c.senders.iter().enumerate() {
        if q == p && n.s[i].pc != sender::Pc::Done {
            n.s[i].pc = sender::Pc::Done;
            n.s[i].wipe();
            n.s[i].hand = Hand::default();
            n.s[i].left = 0;
            n.s[i].act = 0;
            any = true;
        }
    }
    for (i, &q) in c.receivers.iter().enumerate() {
        if q == p && n.r[i].pc != receiver::Pc::Done {
            n.r[i].pc = receiver::Pc::Done;
            n.r[i].wipe();
            n.r[i].hand = Hand::default();
            n.r[i].act = 0;
            any = true;
        }
    }
    if !any {
        return;
    }
    if p < 2 && c.senders.iter().all(|&(q, _)| n.dead & (1 << q) != 0 || all_done(c, &n, q)) {
        sender::owes(&mut n);
        n.kernel_fin(c);
    }
    if p >= 2 && c.receivers.iter().all(|&q| n.dead & (1 << q) != 0) {
        n.k.deaf = true;
        // Nobody is left whom a truncated stream could mislead.
        n.k.queue.clear();
        n.k.wire.clear();
    }
    out.push((n, "killed", p));
}

fn all_done(c: &Config, w: &World, p: u8) -> bool {
    c.senders.iter().enumerate().all(|(i, &(q, _))| q != p || w.s[i].pc == sender::Pc::Done)
}

/// What a search found.
pub struct Outcome {
    pub states: usize,
    pub transitions: usize,
    /// Bad news with the steps that lead there.
    pub fault: Option<(String, Vec<String>)>,
}

/// Explores `c` completely, or up to the first fault.
pub fn explore(c: &Config) -> Outcome {
    let mut seen = Seen::new();
    let mut parent = vec![0u32];
    let mut starts = Vec::new();
    let mut edges: Vec<u32> = Vec::new();
    seen.add(World::new(c));
    let mut next = Vec::new();
    let mut at = 0;
    while at < seen.list.len() {
        let w = seen.list[at];
        let fault = match w.g.verdict {
            Verdict::Fine if hands::intact(c, &w) => None,
            Verdict::Fine => Some("what a program has in hand has changed".to_owned()),
            verdict => Some(format!("{verdict:?}")),
        };
        if let Some(fault) = fault {
            let fault = Some((fault, trace(c, &seen, &parent, at)));
            return Outcome { states: at, transitions: edges.len(), fault };
        }
        next.clear();
        successors(c, &w, &mut next);
        starts.push(edges.len() as u32);
        for (n, ..) in &mut next {
            // Nobody looks.
            n.k.edge &= c.epolls != 0;
            let (i, new) = seen.add(*n);
            if new {
                parent.push(at as u32);
            }
            edges.push(i);
        }
        at += 1;
    }
    starts.push(edges.len() as u32);
    let stuck = stuck(&seen, &starts, &edges);
    let fault = stuck.map(|i| ("no way to completion from here".to_owned(), trace(c, &seen, &parent, i)));
    Outcome { states: at, transitions: edges.len(), fault }
}

/// The first state from which no finished state can be reached.
fn stuck(seen: &Seen, starts: &[u32], edges: &[u32]) -> Option<usize> {
    let n = seen.list.len();
    let mut into = vec![0u32; n + 1];
    for &e in edges {
        into[e as usize + 1] += 1;
    }
    for i in 0..n {
        into[i + 1] += into[i];
    }
    let mut fill = into.clone();
    let mut from = vec![0u32; edges.len()];
    for i in 0..n {
        for &e in &edges[starts[i] as usize..starts[i + 1] as usize] {
            from[fill[e as usize] as usize] = i as u32;
            fill[e as usize] += 1;
        }
    }
    let mut good = vec![false; n];
    let mut work: Vec<u32> = (0..n as u32).filter(|&i| seen.list[i as usize].finished()).collect();
    for &i in &work {
        good[i as usize] = true;
    }
    while let Some(i) = work.pop() {
        for &p in &from[into[i as usize] as usize..into[i as usize + 1] as usize] {
            if !good[p as usize] {
                good[p as usize] = true;
                work.push(p);
            }
        }
    }
    good.iter().position(|g| !g)
}

fn trace(c: &Config, seen: &Seen, parent: &[u32], mut at: usize) -> Vec<String> {
    let mut steps = vec![format!("{:?}", seen.list[at])];
    let mut next = Vec::new();
    while at != 0 {
        let p = parent[at] as usize;
        next.clear();
        successors(c, &seen.list[p], &mut next);
        for (n, ..) in &mut next {
            n.k.edge &= c.epolls != 0;
        }
        let how =
            next.iter().find(|(n, ..)| *n == seen.list[at]).map_or(String::new(), |(_, l, a)| format!("{a}: {l}"));
        steps.push(how);
        at = p;
    }
    steps.reverse();
    steps
}
