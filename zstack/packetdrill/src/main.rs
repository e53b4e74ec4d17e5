//! `zstack-packetdrill FILE.pkt...`: runs packetdrill's scripts against the engine, in virtual time.

#![deny(unsafe_code)]

use std::process::ExitCode;
use zstack_packetdrill::run::{Outcome, run};

fn main() -> ExitCode {
    let files: Vec<String> = std::env::args().skip(1).collect();
    if files.is_empty() || files[0] == "--help" {
        println!("zstack-packetdrill FILE.pkt...: runs packetdrill's scripts against the engine, in virtual time");
        return ExitCode::from(2);
    }
    let (mut passed, mut skipped, mut failed) = (0, 0, 0);
    for file in &files {
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) => {
                eprintln!("{file}: {error}");
                return ExitCode::from(2);
            }
        };
        match run(&text) {
            Outcome::Passed(notes) => {
                passed += 1;
                println!("passed   {file}{}{}", if notes.is_empty() { "" } else { ": " }, notes.join("; "));
            }
            Outcome::Skipped(reason) => {
                skipped += 1;
                println!("skipped  {file}: {reason}");
            }
            Outcome::Failed(what) => {
                failed += 1;
                println!("FAILED   {file}: {what}");
            }
        }
    }
    println!("{passed} passed, {failed} failed, {skipped} out of scope");
    if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
