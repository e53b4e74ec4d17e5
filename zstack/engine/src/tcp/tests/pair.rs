//! Two connections at the ends of a wire that loses, doubles, delays and reorders, with ports that are full at times and read
//! late: every byte once and in order, both ends come to an end, and there is always something that brings them on.

use super::*;

/// xorshift64*: the same numbers for a seed everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
    fn percent(&mut self, n: u64) -> bool {
        self.below(100) < n
    }
}

struct End {
    tcb: Option<Tcb>,
    rest: Option<TimeWait>,
    cx: Mock,
    isn: Seq,
    /// What it will send in all, has committed, and has read.
    total: u64,
    committed: u64,
    read: u64,
    capacity: u64,
    closes: bool,
}

struct World {
    now: Time,
    random: Random,
    /// (arrival, order, to, header, payload)
    wire: Vec<(Time, u64, usize, Header, Vec<u8>)>,
    order: u64,
    loss: u64,
    doubling: u64,
    jitter: u64,
    full: u64,
    late: bool,
    ends: [End; 2],
    trace: Vec<String>,
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..4 {
            random.next();
        }
        let mut end = |isn: u32| {
            let mut cx = Mock::new();
            cx.tso = if random.percent(20) { 5000 } else { 0 };
            cx.spans = if random.percent(20) { 700 } else { u32::MAX };
            End {
                tcb: None,
                rest: None,
                cx,
                isn: Seq(isn),
                total: [0, 1, 5000, 60_000, 200_000][random.below(5) as usize],
                committed: 0,
                read: 0,
                capacity: [300, 3000, 20_000, 200_000][random.below(4) as usize],
                closes: false,
            }
        };
        // The numbers wrap on the way.
        let ends = [end(u32::MAX - 30_000), end(u32::MAX - 1)];
        let (loss, doubling) = (random.below(15), random.below(5));
        let jitter = [0, 1000, 30_000][random.below(3) as usize];
        let (full, late) = ([0, 0, 30][random.below(3) as usize], random.percent(30));
        let now = ends[0].cx.now;
        let mut world = World {
            now,
            random,
            wire: Vec::new(),
            order: 0,
            loss,
            doubling,
            jitter,
            full,
            late,
            ends,
            trace: Vec::new(),
        };
        let options = world.options();
        let start = world.start(0);
        world.ends[0].tcb = Some(Tcb::open(now, &options, &start));
        world
    }

    fn options(&mut self) -> Options {
        Options {
            nodelay: self.random.percent(50),
            timestamps: self.random.percent(60),
            sack: self.random.percent(60),
            scaling: self.random.percent(60),
            keepalive: self.random.percent(30),
            keepalive_idle: 2000,
            ..Options::default()
        }
    }

    fn start(&mut self, who: usize) -> Start {
        let mss = [536, 1000, 1460][self.random.below(3) as usize];
        Start {
            iss: self.ends[who].isn,
            stamp_offset: self.random.next() as u32,
            mss,
            port_mss: mss,
            room: self.ends[who].capacity,
        }
    }

    /// Calls and output of one end, as long as it has some.
    fn work(&mut self, who: usize) {
        let end = &mut self.ends[who];
        end.cx.now = self.now;
        if let Some(tcb) = &mut end.tcb {
            if end.committed < end.total {
                let some = 1 + self.random.below(8000);
                end.committed = (end.committed + some).min(end.total);
                tcb.commit(end.committed, self.random.percent(70) || end.committed == end.total);
            }
            if end.committed == end.total && !end.closes && tcb.phase() >= Phase::Established {
                end.closes = true;
                tcb.shutdown();
            }
            if end.read < end.cx.published && self.random.percent(60) {
                end.read += 1 + self.random.below(end.cx.published - end.read);
                tcb.room(end.read + end.capacity);
            }
            end.cx.room = if self.random.percent(self.full) { self.random.below(3) } else { u64::MAX };
            if tcb.due() {
                tcb.output(&mut end.cx);
            }
            if self.late {
                let seen = end.cx.completed.unwrap_or(0);
                end.cx.completed = Some(seen + self.random.below(end.cx.frames - seen + 1));
                tcb.port_progress(&mut end.cx);
            }
            if tcb.freed() {
                end.rest = tcb.time_wait();
                end.tcb = None;
            }
        }
        let sent: Vec<Out> = self.ends[who].cx.sent.drain(..).collect();
        for out in sent {
            self.transmit(1 - who, &out);
        }
    }

    /// Onto the wire; a frame that is to be cut becomes segments.
    fn transmit(&mut self, to: usize, out: &Out) {
        let cut = if out.cut == 0 { u32::MAX } else { u32::from(out.cut) };
        let mut done = 0;
        loop {
            let len = (out.len - done).min(cut);
            let last = done + len == out.len;
            let mut header = out.header;
            header.seq += done;
            if !last {
                header.flags = Flags(header.flags.0 & !(Flags::FIN.0 | Flags::PSH.0));
            }
            let from = out.from + u64::from(done);
            let payload: Vec<u8> = (from..from + u64::from(len)).map(byte).collect();
            let copies = u64::from(!self.random.percent(self.loss)) + u64::from(self.random.percent(self.doubling));
            self.trace.push(format!(
                "{} to {to}: {:?} {:?} ack {:?} len {len} win {} x{copies}",
                self.now.0, header.flags, header.seq, header.ack, header.window
            ));
            for _ in 0..copies {
                let arrival = Time(self.now.0 + 5000 + self.random.below(self.jitter + 1));
                self.order += 1;
                self.wire.push((arrival, self.order, to, header, payload.clone()));
            }
            done += len;
            if last {
                return;
            }
        }
    }

    fn arrive(&mut self, to: usize, header: &Header, payload: Vec<u8>) {
        let len = payload.len() as u32;
        let now = self.now;
        if self.ends[to].tcb.is_none() && self.ends[to].rest.is_none() {
            if header.flags == Flags::SYN && !self.ends[to].closes {
                let (options, start) = (self.options(), self.start(to));
                self.ends[to].tcb = Some(Tcb::incoming(now, &options, &start, header, false));
            }
            return;
        }
        let end = &mut self.ends[to];
        end.cx.now = now;
        if let Some(tcb) = &mut end.tcb {
            end.cx.room = u64::MAX;
            tcb.segment(&mut end.cx, header, Bytes(payload), 0..len as usize);
        } else if let Some(rest) = &mut end.rest
            && let Verdict::Answer(answer) | Verdict::Only(answer) = rest.segment(now, header, len)
        {
            self.transmit(1 - to, &Out { header: answer, from: 0, len: 0, cut: 0 });
        }
    }

    fn over(&self) -> bool {
        self.ends.iter().all(|end| end.tcb.is_none() && !end.cx.events.is_empty())
    }

    fn run(&mut self) -> Result<(), String> {
        for step in 0..2_000_000u64 {
            for who in 0..2 {
                self.work(who);
            }
            if self.over() {
                break;
            }
            let busy = self.ends.iter().any(|end| {
                end.tcb.as_ref().is_some_and(|tcb| tcb.due() || self.late && tcb.recovery.busy())
                    || end.tcb.is_some() && (end.committed < end.total || end.read < end.cx.published)
                    || end.tcb.is_some() && end.cx.completed.is_some_and(|seen| seen < end.cx.frames)
            });
            let wire = self.wire.iter().map(|packet| packet.0).min().unwrap_or(Time::NEVER);
            let timers = self.ends.iter().filter_map(|end| end.tcb.as_ref()).map(Tcb::deadline).min();
            let next = wire.min(timers.unwrap_or(Time::NEVER)).max(self.now);
            let next = if busy { next.min(Time(self.now.0 + 2000)) } else { next };
            if next == Time::NEVER {
                return Err(format!("step {step}: nothing brings them on"));
            }
            self.now = next;
            if self.now.0 > 1_000_000_000 + 36_000_000_000 {
                return Err("ten hours have passed".into());
            }
            while let Some(index) = (0..self.wire.len())
                .filter(|&i| self.wire[i].0 <= self.now)
                .min_by_key(|&i| (self.wire[i].0, self.wire[i].1))
            {
                let (_, _, to, header, payload) = self.wire.swap_remove(index);
                self.arrive(to, &header, payload);
            }
            for end in &mut self.ends {
                end.cx.now = self.now;
                if let Some(tcb) = &mut end.tcb
                    && tcb.deadline() <= self.now
                {
                    tcb.timer(&mut end.cx);
                    if tcb.deadline() <= self.now && !tcb.due() {
                        return Err(format!("a deadline that does not go away: {tcb:?}"));
                    }
                }
            }
        }
        for (who, end) in self.ends.iter().enumerate() {
            let other = &self.ends[1 - who];
            if end.cx.published != other.total || end.cx.released != end.total {
                return Err(format!(
                    "{who}: {} of {} came, {} released",
                    end.cx.published, other.total, end.cx.released
                ));
            }
            let expected = [Event::Established, Event::PeerClosed, Event::Ended(Cause::Done), Event::Free];
            if end.cx.events != expected {
                return Err(format!("{who}: {:?}", end.cx.events));
            }
        }
        Ok(())
    }
}

fn try_seed(seed: u64) {
    let mut world = World::new(seed);
    if let Err(text) = world.run() {
        let tail: Vec<_> = world.trace.iter().rev().take(60).rev().cloned().collect();
        let ends: Vec<_> = world
            .ends
            .iter()
            .map(|end| {
                format!(
                    "{:?} {:?} {:?} frames {} completed {:?}",
                    end.tcb, end.rest, end.cx.events, end.cx.frames, end.cx.completed
                )
            })
            .collect();
        panic!("seed {seed}: {text}\n{}\n{}", tail.join("\n"), ends.join("\n"));
    }
}

#[test]
fn every_byte_once_and_in_order() {
    for seed in 0..300 {
        try_seed(seed);
    }
}
