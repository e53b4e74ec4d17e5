//! `zstack-budget`: see the library.

use std::process::ExitCode;
use zstack_budget::{SCENARIOS, count, run};

const USAGE: &str = "usage: zstack-budget list | run SCENARIO | count [SCENARIO...] | flood";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["list"] => {
            SCENARIOS.iter().for_each(|s| println!("{}", s.0));
            ExitCode::SUCCESS
        }
        ["run", name] => match run(name) {
            Some(segments) => {
                println!("{segments}");
                ExitCode::SUCCESS
            }
            None => {
                eprintln!("zstack-budget: {name}: no such scenario; `list` names them");
                ExitCode::FAILURE
            }
        },
        ["count", ref names @ ..] => {
            let this = std::env::current_exe().expect("the path of this program");
            let all: Vec<&str> = SCENARIOS.iter().map(|s| s.0).collect();
            for name in if names.is_empty() { &all } else { names } {
                match count(&this, name) {
                    Ok(instructions) => println!("{name:24} {instructions:9.1} instructions a segment"),
                    Err(text) => {
                        eprintln!("zstack-budget: {text}");
                        return ExitCode::FAILURE;
                    }
                }
            }
            ExitCode::SUCCESS
        }
        ["flood"] => {
            for kept in zstack_budget::flood::measure() {
                let zstack_budget::flood::Kept { flood, segments, clean, flooded } = kept;
                let percent = kept.ratio() * 100.0;
                println!(
                    "{flood:14} one for {segments} segments: {flooded:8.0} MiB/s, {clean:8.0} alone: {percent:3.0} %"
                );
            }
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::FAILURE
        }
    }
}
