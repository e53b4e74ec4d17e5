//! Makes a scenario that fails smaller, as long as it fails in the same way.

use crate::scenario::{AppPlan, Clock, End, LinkPlan, Scenario};
use crate::world;
use std::cell::Cell;
use std::rc::Rc;

/// The smallest scenario that was found to fail, and its first fault. At most `runs` runs are tried.
pub fn shrink(scenario: &Scenario, mut runs: usize) -> (Scenario, String) {
    let mut best = scenario.clone();
    let mut fault = fails(&best).unwrap_or_default();
    let first = kind(&fault);
    loop {
        let mut better = false;
        for candidate in smaller(&best) {
            if runs == 0 {
                return (best, fault);
            }
            if candidate == best {
                continue;
            }
            runs -= 1;
            if let Some(f) = fails(&candidate).filter(|f| kind(f) == first) {
                (best, fault, better) = (candidate, f, true);
                break;
            }
        }
        if !better {
            return (best, fault);
        }
    }
}

/// What is wrong, apart from numbers: another fault is not a smaller one.
pub fn kind(fault: &str) -> String {
    fault.chars().filter(|c| !c.is_ascii_digit()).take(40).collect()
}

/// How many packets were sent and arrived, and how many events and calls there were, until a scenario failed.
pub fn events(scenario: &Scenario) -> usize {
    let count = Rc::new(Cell::new(0));
    let counts = count.clone();
    let run = || world::run_with(scenario, move |_| counts.set(counts.get() + 1));
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    count.get()
}

/// The first fault of a scenario; a panic of the engine is one.
pub fn fails(scenario: &Scenario) -> Option<String> {
    let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world::run(scenario, false)));
    match run {
        Ok(outcome) => outcome.faults.into_iter().next(),
        Err(panic) => Some(format!("panic: {}", text(&*panic))),
    }
}

/// What a panic said.
pub fn text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
        .unwrap_or_else(|| "without words".to_owned())
}

fn smaller(s: &Scenario) -> Vec<Scenario> {
    let mut all = Vec::new();
    let mut with = |change: &dyn Fn(&mut Scenario)| {
        let mut t = s.clone();
        change(&mut t);
        all.push(t);
    };
    // Half of the connections first, where there are many.
    let mut many = s.conns.len() / 2;
    while many > 0 {
        for first in (0..s.conns.len()).step_by(many).filter(|_| many < s.conns.len()) {
            let gone = first..(first + many).min(s.conns.len());
            with(&|t| {
                t.conns.drain(gone.clone());
                t.noise.retain(|n| !gone.contains(&n.conn));
                for n in t.noise.iter_mut().filter(|n| n.conn >= gone.end) {
                    n.conn -= gone.len();
                }
            });
        }
        many /= 2;
    }
    if !s.noise.is_empty() {
        with(&|t| t.noise.clear());
        for i in 0..s.noise.len() {
            with(&|t| {
                t.noise.remove(i);
            });
        }
    }
    if s.sides[0].card.ethernet == s.sides[1].card.ethernet {
        with(&|t| t.routed = false);
    }
    with(&|t| {
        for side in &mut t.sides {
            side.card.ethernet = false;
        }
    });
    with(&|t| t.vlan = None);
    for i in 0..2 {
        with(&|t| t.sides[i].stops.clear());
        with(&|t| t.sides[i].vanishes = None);
        with(&|t| t.sides[i].half_open = 64);
        with(&|t| t.sides[i].clock = Clock::At(0));
        with(&|t| t.sides[i].card.mtu = 1500);
        with(&|t| t.sides[i].card.checksum = false);
        with(&|t| t.sides[i].card.verify = false);
        with(&|t| t.sides[i].card.tso = 0);
        with(&|t| t.sides[i].card.late = None);
        with(&|t| t.sides[i].card.join = 0);
        with(&|t| t.sides[i].card.full = 0);
        with(&|t| t.sides[i].card.queue = 512);
        with(&|t| t.sides[i].card.scarce = 0);
        let changes: [fn(&mut LinkPlan); 12] = [
            |l| (l.jitter, l.overtake) = (0, false),
            |l| l.overtake = false,
            |l| (l.rate, l.queue) = (0, 0),
            |l| l.loss = 0,
            |l| l.loss /= 2,
            |l| l.burst = (0, 0),
            |l| l.twice = 0,
            |l| l.late = (0, 0),
            |l| l.corrupt = 0,
            |l| l.mtu.clear(),
            |l| l.dead.clear(),
            |l| l.delay = 1_000,
        ];
        for change in changes {
            with(&|t| change(&mut t.links[i]));
        }
    }
    for c in 0..s.conns.len() {
        with(&|t| t.conns[c].start = 0);
        with(&|t| t.conns[c].both = false);
        with(&|t| t.conns[c].v6 = false);
        with(&|t| t.conns[c].decision = None);
        with(&|t| t.conns[c].adopt = None);
        with(&|t| t.conns[c].shift = (0, 0));
        let changes: [fn(&mut AppPlan); 16] = [
            |a| a.send = 0,
            |a| a.send /= 2,
            |a| a.send -= a.send / 8,
            |a| a.pause = (0, 0),
            |a| a.push = 10_000,
            |a| a.piece = 0,
            |a| a.read = u64::MAX,
            |a| a.stalls.clear(),
            |a| a.refuse = 0,
            |a| a.keep = 0,
            |a| a.end = End::HalfClose,
            |a| a.change = 0,
            |a| a.rings = (65_536, 65_536),
            |a| a.write = (a.send.max(1), a.send.max(1)),
            |a| (a.options.keepalive, a.options.user_timeout, a.options.cork) = (None, 0, false),
            |a| (a.options.nodelay, a.options.reno, a.options.mss) = (true, true, 0),
        ];
        for app in 0..2 {
            for change in changes {
                with(&|t| change(&mut t.conns[c].apps[app]));
            }
            with(&|t| {
                let o = &mut t.conns[c].apps[app].options;
                (o.timestamps, o.sack, o.scaling) = (false, false, false);
            });
        }
    }
    all
}
