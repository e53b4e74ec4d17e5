//! Unmodified programs of two hosts, natively, and under culvert, each with a zstackd of its own: what they say is the same. Those that are
//! tested on one machine are tested with peers on a wire by `tests/remote`.
//!
//! Environment: `ZSTACKD_PAIR=NAME,...`: these programs alone; `ZSTACKD_ENDS=all`: also with one end alone under culvert; `ZSTACKD_COPY_MB`:
//! megabytes that are copied by scp, 16 if it is not set.

#[path = "../../../port/tests/lab/mod.rs"]
mod lab;
mod programs;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;
use world::{Ends, LIMIT, World};

/// What a program observed, by name.
pub type Seen = BTreeMap<String, String>;

/// A program that makes its observations.
type Program = fn(&World, &mut Seen);

const PROGRAMS: &[(&str, Program)] = &[
    ("curl", programs::curl),
    ("scan", programs::scan),
    ("redis", programs::redis),
    ("git", programs::git),
    ("node", programs::node),
    ("ssh", programs::ssh),
];

#[test]
fn programs_see_the_same() {
    need_root!();
    lab::bounded(5 * LIMIT, || {
        let wanted = std::env::var("ZSTACKD_PAIR").ok();
        let wanted = |name: &str| wanted.as_ref().is_none_or(|w| w.split(',').any(|w| w == name));
        let mut native = Seen::new();
        let ends: &[Ends] = match std::env::var("ZSTACKD_ENDS").as_deref() {
            Ok("all") => &[Ends::Neither, Ends::Both, Ends::Server, Ends::Client],
            _ => &[Ends::Neither, Ends::Both],
        };
        for &ends in ends {
            let begin = Instant::now();
            let mut world = World::new(ends);
            let mut seen = Seen::new();
            for (name, program) in PROGRAMS.iter().filter(|(name, _)| wanted(name)) {
                let began = Instant::now();
                let mut its = Seen::new();
                program(&world, &mut its);
                assert!(!its.is_empty(), "{name} has observed nothing");
                println!("{ends:?} {name}: {:.1} s", began.elapsed().as_secs_f32());
                seen.extend(its.into_iter().map(|(key, value)| (format!("{name}: {key}"), value)));
            }
            println!("{ends:?}: {:.1} s", begin.elapsed().as_secs_f32());
            if ends == Ends::Neither {
                println!("{seen:#?}");
                native = seen;
            } else {
                let keys: BTreeSet<&String> = native.keys().chain(seen.keys()).collect();
                let other = keys.into_iter().filter(|k| native.get(*k) != seen.get(*k));
                let text = |k: &String| format!("{k}\n  native {:?}\n  {ends:?} {:?}", native.get(k), seen.get(k));
                let other: Vec<String> = other.map(text).collect();
                assert!(other.is_empty(), "not as natively:\n{}", other.join("\n"));
            }
            world.end();
        }
    });
}
