//! `zstack-packetdrill FILE|FOLDER...`: runs packetdrill's scripts against the engine, in virtual time.

#![deny(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use zstack_packetdrill::run::{Outcome, run};

const USAGE: &str = "zstack-packetdrill [--short] FILE|FOLDER...: runs packetdrill's scripts, or all *.pkt of a folder and of what \
    lies in it, against the engine, in virtual time; a line for each says what came of it (--short: of failures nothing but how \
    they differ), and the last one how many passed, failed, or are out of scope";

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let short = arguments.first().is_some_and(|a| a == "--short");
    if short {
        arguments.remove(0);
    }
    if arguments.is_empty() || arguments[0].starts_with("--") {
        println!("{USAGE}");
        return ExitCode::from(2);
    }
    let mut files = Vec::new();
    for argument in &arguments {
        if let Err(error) = collect(Path::new(argument), &mut files) {
            eprintln!("{argument}: {error}");
            return ExitCode::from(2);
        }
    }
    let (mut passed, mut skipped, mut failed) = (0, 0, 0);
    for (name, file) in &files {
        let text = match std::fs::read(file) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => {
                eprintln!("{}: {error}", file.display());
                return ExitCode::from(2);
            }
        };
        let (word, what) = match run(&text) {
            Outcome::Passed(notes) => {
                passed += 1;
                ("passed", notes.join("; "))
            }
            Outcome::Skipped(reason) => {
                skipped += 1;
                ("out of scope", reason)
            }
            Outcome::Failed(what) => {
                failed += 1;
                ("FAILED", if short { what.lines().next().unwrap_or("").to_owned() } else { what })
            }
        };
        println!("{word:<12}  {name}{}{what}", if what.is_empty() { "" } else { ": " });
    }
    println!("{passed} passed, {failed} failed, {skipped} out of scope");
    if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The scripts of a folder in the order of their names, each by its name in the folder; or the one script.
fn collect(path: &Path, into: &mut Vec<(String, PathBuf)>) -> std::io::Result<()> {
    if !path.is_dir() {
        into.push((path.display().to_string(), path.to_owned()));
        return Ok(());
    }
    let (mut folders, mut found) = (vec![path.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            // A link to a folder may lead back.
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if entry.path().extension().is_some_and(|e| e == "pkt") {
                let name = entry.path().strip_prefix(path).unwrap_or(&entry.path()).display().to_string();
                found.push((name, entry.path()));
            }
        }
    }
    found.sort();
    into.extend(found);
    Ok(())
}
