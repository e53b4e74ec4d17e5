//! `culvert bench`: the kernel's TCP beside culvert, in one run, in alternating rounds, medians.
//!
//! JSON: `{"host": {...}, "rounds", "seconds", "rows": [report::Outcome]}`. What the rows are and how they are
//! reproduced by hand is in bench/README.md.

mod api;
mod messages;
mod procs;
mod remote;
mod report;
mod row;
mod rows;
mod split;

use serde_json::json;

use crate::args::BenchArgs;
use crate::visible::visible;
use crate::{exit, library};
use procs::{Scratch, Side};
use report::Outcome;
use row::{Row, Setup};

/// Runs `culvert bench`.
pub fn main(args: &BenchArgs) -> u8 {
    let chosen = match choose(&args.rows) {
        Ok(rows) => rows,
        Err(name) => {
            eprintln!("culvert: no row is called {}; `culvert bench --list` names them", visible(&name));
            return exit::USAGE;
        }
    };
    if args.list {
        list(&chosen, args.json);
        return exit::OK;
    }
    let (library, scratch) = match library::find(args.library.as_deref())
        .and_then(|l| Ok((l, Scratch::new("bench").map_err(|e| e.to_string())?)))
    {
        Ok(both) => both,
        Err(e) => {
            eprintln!("culvert: {}", visible(&e.to_string()));
            return exit::FAILED;
        }
    };
    procs::guard(scratch.path());
    let setup = Setup { library: &library, scratch: scratch.path(), seconds: args.seconds };
    let outcomes: Vec<_> = chosen.into_iter().map(|row| measure(row, &setup, args.rounds)).collect();
    procs::sweep();
    if args.json {
        let all = json!({ "host": host(), "rounds": args.rounds, "seconds": args.seconds, "rows": outcomes });
        println!("{}", serde_json::to_string_pretty(&all).unwrap_or_default());
    } else {
        print!("{}", report::table(&outcomes));
    }
    if args.check && outcomes.iter().any(|o| o.met != Some(true)) { exit::NO } else { exit::OK }
}

/// Names rows; in JSON with the programs that each of them runs.
fn list(rows: &[&Row], as_json: bool) {
    if as_json {
        let all: Vec<_> = rows.iter().map(|r| json!({ "id": r.id, "title": r.title, "programs": r.needs })).collect();
        println!("{}", serde_json::to_string_pretty(&all).unwrap_or_default());
    } else {
        rows.iter().for_each(|r| println!("{:<18} {}", r.id, r.title));
    }
}

/// All rows, in the table's order.
fn all() -> impl Iterator<Item = &'static Row> {
    rows::ROWS.iter().chain(messages::ROWS).chain(api::ROWS).chain(remote::ROWS).chain(split::ROWS)
}

/// The rows named, in the table's order; `api`, `cpu`, `remote`, `split` and `zstack` stand for all that begin so, `local` for all whose both ends are here.
fn choose(names: &[String]) -> Result<Vec<&'static Row>, String> {
    let stands_for = |name: &str, row: &Row| match name {
        "local" => rows::ROWS.iter().chain(messages::ROWS).chain(api::ROWS).any(|r| r.id == row.id),
        "api" | "cpu" | "remote" | "split" | "zstack" => {
            row.id.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'))
        }
        _ => row.id == name,
    };
    match names.iter().find(|n| !all().any(|r| stands_for(n, r))) {
        Some(unknown) => Err(unknown.clone()),
        None => Ok(all().filter(|r| names.is_empty() || names.iter().any(|n| stands_for(n, r))).collect()),
    }
}

fn measure(row: &Row, setup: &Setup, rounds: u32) -> Outcome {
    if let Some(missing) = row.needs.iter().find(|n| procs::find_program(n).is_none()) {
        return Outcome::skipped(row, format!("{missing} is not installed"));
    }
    if let Some(why) = row.equipment.iter().find_map(|what| remote::missing(setup, *what)) {
        return Outcome::skipped(row, why);
    }
    let (mut kernel, mut culvert) = (Vec::new(), Vec::new());
    let rounds = (rounds * row.rounds).min(row.most);
    for round in 0..rounds {
        eprint!("\r{:<18} {}/{rounds} ", row.id, round + 1);
        for side in report::order(round) {
            let sample = (row.run)(setup, side);
            procs::leave_to_signal();
            match sample {
                Ok(s) => if side == Side::Kernel { &mut kernel } else { &mut culvert }.push(s),
                Err(e) => {
                    eprintln!();
                    return Outcome::skipped(row, format!("{side:?} side: {e}"));
                }
            }
        }
    }
    eprintln!();
    Outcome::measured(row, &kernel, &culvert)
}

/// What the figures depend on.
fn host() -> serde_json::Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ")).map(|(_, m)| m);
    json!({
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "cpu": model,
        "processors": std::thread::available_parallelism().map_or(1, |n| n.get()),
        "load": read("/proc/loadavg").split(' ').next(),
        "culvert": env!("CARGO_PKG_VERSION"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(names: &[&str]) -> Result<Vec<&'static str>, String> {
        choose(&names.iter().map(|n| n.to_string()).collect::<Vec<_>>()).map(|r| r.iter().map(|r| r.id).collect())
    }

    #[test]
    fn ids_are_unique() {
        let ids: std::collections::BTreeSet<_> = all().map(|r| r.id).collect();
        assert_eq!(ids.len(), all().count());
    }

    #[test]
    fn rows_are_chosen_by_name() {
        assert_eq!(ids(&[]).unwrap().len(), all().count());
        assert_eq!(ids(&["nginx", "rtt"]).unwrap(), ["rtt", "nginx"]);
        assert_eq!(ids(&["cpu"]).unwrap(), ["cpu-echo", "cpu-redis", "cpu-nginx", "cpu-iperf"]);
        assert_eq!(ids(&["remote"]).unwrap(), ["remote-client", "remote-server"]);
        let zstack = ids(&["zstack"]).unwrap();
        assert_eq!(zstack, remote::ROWS.iter().map(|r| r.id).collect::<Vec<_>>());
        assert_eq!([ids(&["local"]).unwrap(), zstack, ids(&["split"]).unwrap()].concat(), ids(&[]).unwrap());
        assert_eq!(ids(&["rtt", "speed"]).unwrap_err(), "speed");
    }
}
