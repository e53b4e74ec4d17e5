//! `culvert steer`: virtual functions and flows of network cards.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

use steering::{Config, Imagined, Journal, Linux, State, Step, System, Trouble, Whose};

use crate::args::{SteerAction, SteerArgs};
use crate::exit;
use crate::visible::visible;

/// Runs `culvert steer`.
pub fn main(args: &SteerArgs) -> u8 {
    let mut system: Box<dyn System> = match &args.imagined {
        Some(directory) => Box::new(Imagined::new(directory)),
        None => Box::new(Linux::new()),
    };
    let changes = matches!(args.action, SteerAction::Apply { .. } | SteerAction::Undo);
    if changes && args.imagined.is_none() && !is_root() {
        eprintln!(
            "culvert: this takes root, as it changes cards and control groups; `culvert steer plan` needs no rights"
        );
        return exit::NO;
    }
    let result = match &args.action {
        SteerAction::Plan { file } => plan(system.as_ref(), &args.state, file),
        SteerAction::Apply { file } => apply(system.as_mut(), &args.state, file),
        SteerAction::Verify { file } => verify(system.as_ref(), file),
        SteerAction::Undo => undo(system.as_mut(), &args.state),
        SteerAction::Status => status(&args.state),
        SteerAction::Hold { file, whose, command } => hold(file, whose, command),
    };
    result.unwrap_or_else(|troubles| {
        for trouble in troubles {
            eprintln!("culvert: {}\n      -> {}", visible(&trouble.what), visible(&trouble.remedy));
        }
        exit::NO
    })
}

/// The effective user, as the kernel shows it.
fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

type Outcome = Result<u8, Vec<Trouble>>;

fn one(trouble: Trouble) -> Vec<Trouble> {
    vec![trouble]
}

fn config(file: &Path) -> Result<Config, Vec<Trouble>> {
    let what = |why: &dyn std::fmt::Display| format!("{}: {why}", file.display());
    let text = std::fs::read_to_string(file)
        .map_err(|e| one(Trouble { what: what(&e), remedy: "name the file that says what is wanted".into() }))?;
    Config::parse(&text).map_err(|trouble| one(Trouble { what: what(&trouble.what), remedy: trouble.remedy }))
}

/// Prints text whose lines end where they do, whatever is in them.
fn print(text: &str) {
    text.lines().for_each(|line| println!("{}", visible(line)));
}

fn plan(system: &dyn System, state: &Path, file: &Path) -> Outcome {
    let config = config(file)?;
    // Who may not read it sees the plan of somebody who has done nothing yet.
    let made = Journal::look(state).map(|journal| journal.made()).unwrap_or_default();
    let steps = steering::plan(&config, system, &made)?;
    if steps.is_empty() {
        println!("Everything is as wanted.");
    }
    steps.iter().for_each(|step| print(&step.text(system)));
    for redirect in config.redirects.iter().filter(|redirect| redirect.held) {
        let (whose, command) = (redirect.whose(), redirect.hold_command());
        if let (Ok(whose), Ok(command)) = (whose, command) {
            print(&format!("{whose}: its middlebox holds it, once it is started\n    {} COMMAND", shown(&command)));
        }
    }
    Ok(exit::OK)
}

/// For a shell.
fn shown(command: &[String]) -> String {
    let quoted = |word: &String| if word.contains(' ') { format!("'{word}'") } else { word.clone() };
    command.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// Becomes a middlebox that holds its rules. Returns only if it fails.
fn hold(file: &Path, whose: &str, command: &[OsString]) -> Outcome {
    let config = config(file)?;
    let is_it = |found: &Whose| match found {
        Whose::Clients(group, _) => group.to_string() == whose,
        Whose::Forwarded(name) | Whose::Received(name, _) => name.to_string() == whose,
    };
    let found: Vec<_> = config.redirects.iter().filter(|r| r.held && r.whose().is_ok_and(|own| is_it(&own))).collect();
    let wrong = |what: String, remedy: &str| one(Trouble { what, remedy: remedy.into() });
    let [redirect] = found[..] else {
        let what = format!("{}: {} redirects of {whose} with held = true", file.display(), found.len());
        return Err(wrong(what, "name a control group or an interface of which the file has one"));
    };
    let words = redirect.hold_command().map_err(|why| wrong(why, "mend the file"))?;
    let [name, arguments @ ..] = &words[..] else { return Ok(exit::NO) };
    let why = std::process::Command::new(steering::program(name)).args(arguments).args(command).exec();
    Err(wrong(
        format!("{name}: {why}"),
        "build it: cargo build --release -p culvert-redirect, and put it beside culvert",
    ))
}

fn apply(system: &mut dyn System, state: &Path, file: &Path) -> Outcome {
    let config = config(file)?;
    let mut journal = Journal::open(state).map_err(one)?;
    let steps = steering::plan(&config, system, &journal.made())?;
    let done = steering::apply(system, &mut journal, &steps, &mut |step| print(&step.to_string()));
    let notes = done.map_err(|mut trouble| {
        trouble.remedy += "; what was done until then, `culvert steer undo` takes back";
        one(trouble)
    })?;
    notes.iter().for_each(|note| print(&format!("note: {note}")));
    let differences = steering::verify(&config, system)?;
    differences.iter().for_each(|difference| print(&difference.to_string()));
    match (differences.is_empty(), steps.len()) {
        (false, _) => return Ok(exit::NO),
        (true, 0) => println!("Everything was as wanted."),
        (true, n) => println!("Done: {n} steps. `culvert steer undo` takes them back."),
    }
    Ok(exit::OK)
}

fn verify(system: &dyn System, file: &Path) -> Outcome {
    let config = config(file)?;
    let mut differences = steering::verify(&config, system)?;
    differences.extend(steering::verify_held(&config, system));
    differences.iter().for_each(|difference| print(&difference.to_string()));
    if differences.is_empty() {
        println!("Everything is as wanted.");
        return Ok(exit::OK);
    }
    Ok(exit::NO)
}

fn undo(system: &mut dyn System, state: &Path) -> Outcome {
    let mut journal = Journal::open(state).map_err(one)?;
    let undone = steering::undo(system, &mut journal, &mut |_| {}).map_err(one)?;
    undone.restored.iter().for_each(|text| print(text));
    undone.left.iter().for_each(|text| print(&format!("left as it is: {text}")));
    if undone.left.is_empty() {
        println!("Everything is as it was found.");
        return Ok(exit::OK);
    }
    Ok(exit::NO)
}

fn status(state: &Path) -> Outcome {
    let journal = Journal::look(state).map_err(one)?;
    if journal.steps().is_empty() {
        println!("Nothing is applied.");
        return Ok(exit::OK);
    }
    let changes = |step: &&Step| step.to != State::Gone;
    journal.steps().iter().filter(changes).for_each(|step| print(&step.to_string()));
    match journal.is_complete() {
        true => println!("Applied. `culvert steer undo` takes it back."),
        false => println!("It was broken off. `culvert steer apply FILE` goes on, `culvert steer undo` takes it back."),
    }
    Ok(exit::OK)
}
