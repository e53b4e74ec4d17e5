//! Commands whose peers are remote: those of this machine, run by `tests/remote`.

use crate::step::{Step, Tally};
use crate::{cargo, culvert, debian, library, target};
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(15 * 60);

/// `cargo xtask remote [--kernel] COMMAND...`
pub fn chore(words: &[&str]) -> bool {
    let mut tally = Tally::default();
    crate::build(&mut tally)
        && build(&mut tally)
        && crate::status({
            let mut c = command();
            c.args(words);
            c
        })
}

/// Builds the runner and zstackd.
pub fn build(tally: &mut Tally) -> bool {
    if !debian::install(&[debian::BUILD, debian::NETWORK].concat()) {
        tally.fail("remote: packages".into());
        return false;
    }
    let mut c = cargo();
    c.args(["build", "--quiet", "-p", "remote", "-p", "zstackd"]);
    Step::new("build, for remote peers", c, LIMIT).run(tally)
}

/// The runner; the command that it is to run follows.
pub fn command() -> Command {
    let mut c = Command::new(target().join("debug/remote"));
    c.env("CULVERT_LIB", library()).env("CULVERT_BIN", culvert()).env("RUST_BACKTRACE", "1");
    c
}

/// `command` with remote peers: what it is told by its environment, the runner and zstackd are not.
pub fn with(command: &Command) -> Command {
    let mut c = self::command();
    c.arg("env");
    // env(1) takes what is to be unset first.
    for (name, _) in command.get_envs().filter(|(_, value)| value.is_none()) {
        c.arg("-u").arg(name);
    }
    for (name, value) in command.get_envs().filter_map(|(name, value)| Some((name, value?))) {
        let mut word = name.to_owned();
        word.push("=");
        word.push(value);
        c.arg(word);
    }
    c.arg(command.get_program()).args(command.get_args());
    if let Some(dir) = command.get_current_dir() {
        c.current_dir(dir);
    }
    c
}
